//! Asks a server whether it accepts connections, the way `pg_isready` and `mysqladmin ping` do.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    thread::sleep,
    time::{Duration, Instant},
};

use super::Engine;

/// For a server that somebody else may be starting at this moment.
pub(super) const PATIENCE_WITH_A_URL: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const CANNOT_CONNECT_NOW: &[u8] = b"C57P03\0";

/// Waits until the server accepts connections, at most `limit`, and only as long as `alive` says so.
pub(super) fn wait_until_ready(
    engine: Engine,
    host: &str,
    port: u16,
    limit: Duration,
    mut alive: impl FnMut() -> bool,
) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    loop {
        let answer = ask(engine, host, port);
        match answer {
            Ok(true) => return Ok(()),
            _ if !alive() => return Err("the server exited".to_owned()),
            _ if Instant::now() >= deadline => return Err(not_ready(host, port, limit, answer)),
            _ => sleep(PAUSE),
        }
    }
}

fn not_ready(host: &str, port: u16, limit: Duration, answer: io::Result<bool>) -> String {
    let why = answer.map_or_else(|error| error.to_string(), |_| "still starting".to_owned());
    format!("{host}:{port} did not accept connections within {limit:?}: {why}")
}

/// Whether the server at this place accepts connections; a refusal to let us in is an answer, too.
pub(super) fn ask(engine: Engine, host: &str, port: u16) -> io::Result<bool> {
    let stream = connect(host, port)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    match engine {
        Engine::Postgres => ask_postgres(stream),
        Engine::MySql => ask_mysql(stream),
    }
}

/// The server speaks first: a header of four bytes, then the version of its protocol or an error.
fn ask_mysql(mut stream: TcpStream) -> io::Result<bool> {
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting)?;
    Ok(true)
}

fn ask_postgres(mut stream: TcpStream) -> io::Result<bool> {
    stream.write_all(&startup_message())?;
    let answer = read_answer(stream)?;
    match answer.first() {
        Some(b'E') => Ok(!contains(&answer, CANNOT_CONNECT_NOW)),
        Some(b'R') => Ok(true),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::NotFound.into();
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, ANSWER_WITHIN) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Protocol 3.0, user and database `postgres`.
fn startup_message() -> Vec<u8> {
    let body = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], body].concat()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The server keeps the connection open after `R`, and closes it after an error.
fn read_answer(stream: TcpStream) -> io::Result<Vec<u8>> {
    let mut stream = stream.take(512);
    let mut answer = vec![0; 1];
    stream.read_exact(&mut answer)?;
    if answer == b"E" {
        stream.read_to_end(&mut answer)?;
    }
    Ok(answer)
}
