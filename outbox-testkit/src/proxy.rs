//! A proxy for the protocols of PostgreSQL and MySQL that breaks connections at a chosen message.
//!
//! It knows just enough of them to count the messages that a client sends. PostgreSQL: a byte of type and four bytes
//! of length, after a first message without the type. Requests for encryption are answered with "no", so clients
//! must allow plain connections (`sslmode=disable` or `prefer`). MySQL: three bytes of length, one that counts, and one that is
//! the command, after a greeting of the server. Clients must not ask for encryption (`ssl-mode=disabled`).

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

const SSL_REQUEST: i32 = 80_877_103;
const GSS_REQUEST: i32 = 80_877_104;
const MAX_STARTUP: usize = 64 * 1024;
const COM_QUIT: u8 = 0x01;
const COM_QUERY: u8 = 0x03;
const COM_STMT_SEND_LONG_DATA: u8 = 0x18;
const COM_STMT_CLOSE: u8 = 0x19;

/// Whether the server still gets the message at which a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The message does not reach the server.
    Before,
    /// The server gets the message and answers; the client does not get the answer.
    After,
}

/// A running proxy. Dropping it stops listening and closes its connections.
///
/// # Examples
/// ```no_run
/// use outbox_testkit::proxy::{Cut, Proxy};
/// # async fn example(server: std::net::SocketAddr) -> std::io::Result<()> {
/// let proxy = Proxy::start(server).await?;
/// println!("connect to {}", proxy.address());
/// proxy.cut_on_commit(Cut::After);
/// // the next COMMIT takes effect, and its answer is lost
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    control: Arc<Control>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port of this host and forwards to the PostgreSQL at `target`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        Self::start_with(Protocol::Postgres, target).await
    }

    /// As [`start`](Self::start), to the MySQL or MariaDB at `target`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start_mysql(target: SocketAddr) -> io::Result<Self> {
        Self::start_with(Protocol::MySql, target).await
    }

    async fn start_with(protocol: Protocol, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let control = Arc::new(Control::new(protocol, target));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&control)));
        Ok(Self { address, control, accepting })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts the connection that sends the next COMMIT, once.
    pub fn cut_on_commit(&self, cut: Cut) {
        self.control.plan().cut = Some((Trigger::Commit, cut));
    }

    /// Cuts the connection that sends the `k`-th message from now (1 is the next), once. The messages of all
    /// connections count, those of connecting included.
    pub fn cut_at_message(&self, k: u64, cut: Cut) {
        self.control.plan().cut = Some((Trigger::Countdown(k.max(1)), cut));
    }

    /// Takes back a cut that has not happened; whether there was one.
    pub fn disarm(&self) -> bool {
        self.control.plan().cut.take().is_some()
    }

    /// While on, nothing is forwarded in either direction, and the connections stay open.
    pub fn blackhole(&self, on: bool) {
        self.control.is_open.send_replace(!on);
    }

    /// Forwards every piece of data this much later, in both directions.
    pub fn delay(&self, by: Duration) {
        self.control.plan().delay = by;
    }

    /// Connects later clients to `target`; open connections stay where they are.
    pub fn repoint(&self, target: SocketAddr) {
        self.control.plan().target = target;
    }

    /// Closes every open connection.
    pub fn reset(&self) {
        self.control.generation.send_modify(|generation| *generation += 1);
    }

    /// How many messages clients have sent.
    pub fn n_messages(&self) -> u64 {
        self.control.plan().n_messages
    }

    /// How many connections clients have made.
    pub fn n_connections(&self) -> u64 {
        self.control.plan().n_connections
    }

    /// How many connections were cut at a message.
    pub fn n_cuts(&self) -> u64 {
        self.control.plan().n_cuts
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.reset();
    }
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Postgres,
    MySql,
}

#[derive(Debug)]
struct Control {
    protocol: Protocol,
    plan: Mutex<Plan>,
    is_open: watch::Sender<bool>,
    /// Connections of an older generation are closed.
    generation: watch::Sender<u64>,
}

#[derive(Debug)]
struct Plan {
    target: SocketAddr,
    cut: Option<(Trigger, Cut)>,
    delay: Duration,
    n_messages: u64,
    n_connections: u64,
    n_cuts: u64,
}

#[derive(Clone, Copy, Debug)]
enum Trigger {
    Commit,
    Countdown(u64),
}

impl Control {
    fn new(protocol: Protocol, target: SocketAddr) -> Self {
        let plan =
            Plan { target, cut: None, delay: Duration::ZERO, n_messages: 0, n_connections: 0, n_cuts: 0 };
        let (is_open, generation) = (watch::Sender::new(true), watch::Sender::new(0));
        Self { protocol, plan: Mutex::new(plan), is_open, generation }
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while nothing may pass.
    async fn pass(&self) {
        let delay = self.plan().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        // the sender lives as long as `self`
        let _ = self.is_open.subscribe().wait_for(|is_open| *is_open).await;
    }
}

impl Plan {
    fn connected(&mut self) -> SocketAddr {
        self.n_connections += 1;
        self.target
    }

    /// Counts a message; whether it is the one to cut at.
    fn sent(&mut self, is_commit: bool) -> Option<Cut> {
        self.n_messages += 1;
        let (trigger, cut) = self.cut.as_mut()?;
        let is_now = match trigger {
            Trigger::Commit => is_commit,
            Trigger::Countdown(left) => {
                *left -= 1;
                *left == 0
            }
        };
        let cut = *cut;
        is_now.then(|| {
            self.cut = None;
            self.n_cuts += 1;
            cut
        })
    }
}

async fn accept(listener: TcpListener, control: Arc<Control>) {
    while let Ok((client, _)) = listener.accept().await {
        let control = Arc::clone(&control);
        let mut generation = control.generation.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                // however a connection ends, both of its sides are closed
                _ = serve(client, &control) => {}
                _ = generation.changed() => {}
            }
        });
    }
}

async fn serve(mut client: TcpStream, control: &Control) -> io::Result<()> {
    client.set_nodelay(true)?;
    let target = control.plan().connected();
    let startup = match control.protocol {
        Protocol::Postgres => Some(read_startup(&mut client).await?),
        Protocol::MySql => None,
    };
    let server = TcpStream::connect(target).await?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let is_losing = AtomicBool::new(false);
    let forth = Forth { from: from_client, to: to_server, control, is_losing: &is_losing };
    let back = Back { from: from_server, to: to_client, control, is_losing: &is_losing };
    tokio::select! {
        ended = forth.forward(startup) => ended,
        ended = back.forward() => ended,
    }
}

/// The server's side of a connection.
struct Back<'a> {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    control: &'a Control,
    /// Whether the next answer is to be lost, and the connection with it.
    is_losing: &'a AtomicBool,
}

impl Back<'_> {
    async fn forward(mut self) -> io::Result<()> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = self.from.read(&mut buffer).await?;
            if n == 0 || self.is_losing.load(Ordering::Acquire) {
                return Ok(());
            }
            self.control.pass().await;
            self.to.write_all(&buffer[..n]).await?;
        }
    }
}

/// The client's side of a connection.
struct Forth<'a> {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    control: &'a Control,
    is_losing: &'a AtomicBool,
}

impl Forth<'_> {
    async fn forward(mut self, startup: Option<Frame>) -> io::Result<()> {
        if let Some(startup) = startup {
            self.send(&startup, false).await?;
        }
        let mut has_prepared = false;
        loop {
            let (frame, is_commit) = match self.control.protocol {
                Protocol::Postgres => {
                    let frame = read_frame(&mut self.from).await?;
                    let is_commit = frame.commits(&mut has_prepared);
                    (frame, is_commit)
                }
                Protocol::MySql => {
                    let frame = read_packet(&mut self.from).await?;
                    let is_commit = frame.commits_on_mysql();
                    (frame, is_commit)
                }
            };
            self.send(&frame, is_commit).await?;
        }
    }

    async fn send(&mut self, frame: &Frame, is_commit: bool) -> io::Result<()> {
        let cut = self.control.plan().sent(is_commit);
        if cut == Some(Cut::Before) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.control.pass().await;
        self.is_losing.store(cut == Some(Cut::After), Ordering::Release);
        self.to.write_all(&frame.bytes).await?;
        if cut == Some(Cut::After) {
            self.wait_for_the_server(frame).await?;
        }
        Ok(())
    }

    /// Leaves the end of the connection to the server's answer, or to its hanging up where none will come.
    async fn wait_for_the_server(&mut self, frame: &Frame) -> io::Result<()> {
        if !frame.is_answered {
            self.to.shutdown().await?;
        }
        std::future::pending().await
    }
}

/// One message of a client.
struct Frame {
    bytes: Vec<u8>,
    /// Whether the server answers when it has got this message and nothing behind it.
    is_answered: bool,
}

impl Frame {
    /// Whether it makes the server commit: a simple query, or the end of an extended one.
    fn commits(&self, has_prepared: &mut bool) -> bool {
        match self.bytes.first() {
            Some(b'Q') => self.says_commit(0),
            Some(b'P') => {
                *has_prepared |= self.says_commit(1);
                false
            }
            Some(b'S') => std::mem::take(has_prepared),
            _ => false,
        }
    }

    /// The same of MySQL, where a commit is never prepared.
    fn commits_on_mysql(&self) -> bool {
        self.bytes.get(4) == Some(&COM_QUERY) && self.bytes.get(5..).is_some_and(is_commit)
    }

    /// Whether the `n`-th string of the message is COMMIT.
    fn says_commit(&self, n: usize) -> bool {
        let text = self.bytes.get(5..).and_then(|body| body.split(|byte| *byte == 0).nth(n));
        text.is_some_and(is_commit)
    }
}

fn is_commit(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    let text = text.strip_suffix(b";").unwrap_or(text);
    text.trim_ascii().eq_ignore_ascii_case(b"COMMIT")
}

/// The first message that is no request for encryption.
async fn read_startup(client: &mut TcpStream) -> io::Result<Frame> {
    loop {
        let length = client.read_i32().await?;
        let code = client.read_i32().await?;
        if matches!(code, SSL_REQUEST | GSS_REQUEST) {
            client.write_all(b"N").await?;
            continue;
        }
        let rest = usize::try_from(length).ok().and_then(|length| length.checked_sub(8));
        let rest = rest.filter(|rest| *rest <= MAX_STARTUP).ok_or(io::ErrorKind::InvalidData)?;
        let mut bytes = [length.to_be_bytes(), code.to_be_bytes()].concat();
        read_more(client, &mut bytes, rest).await?;
        return Ok(Frame { bytes, is_answered: true });
    }
}

async fn read_frame(from: &mut OwnedReadHalf) -> io::Result<Frame> {
    let tag = from.read_u8().await?;
    let length = from.read_i32().await?;
    let rest = usize::try_from(length).ok().and_then(|length| length.checked_sub(4));
    let mut bytes = vec![tag];
    bytes.extend(length.to_be_bytes());
    read_more(from, &mut bytes, rest.ok_or(io::ErrorKind::InvalidData)?).await?;
    Ok(Frame { bytes, is_answered: matches!(tag, b'Q' | b'S' | b'p' | b'F') })
}

/// A packet of MySQL: a command, or a part of the conversation about who the client is.
async fn read_packet(from: &mut OwnedReadHalf) -> io::Result<Frame> {
    let mut bytes = vec![0; 4];
    from.read_exact(&mut bytes).await?;
    let rest = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]) as usize;
    let is_first = bytes[3] == 0;
    read_more(from, &mut bytes, rest).await?;
    let is_answered =
        !(is_first && matches!(bytes.get(4), Some(&(COM_QUIT | COM_STMT_SEND_LONG_DATA | COM_STMT_CLOSE))));
    Ok(Frame { bytes, is_answered })
}

async fn read_more(from: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>, n: usize) -> io::Result<()> {
    let start = bytes.len();
    bytes.resize(start + n, 0);
    from.read_exact(&mut bytes[start..]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers every query and every sync with its number; notes the queries.
    struct Server {
        address: SocketAddr,
        queries: Arc<Mutex<Vec<String>>>,
    }

    async fn server() -> Server {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let queries = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&queries);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(session(socket, Arc::clone(&noted)));
            }
        });
        Server { address, queries }
    }

    async fn session(mut socket: TcpStream, noted: Arc<Mutex<Vec<String>>>) -> io::Result<()> {
        read_startup(&mut socket).await?;
        let (mut from, mut to) = socket.into_split();
        to.write_all(b"Z").await?;
        loop {
            let frame = read_frame(&mut from).await?;
            noted.lock().expect("notes").push(String::from_utf8_lossy(&frame.bytes[5..]).into_owned());
            if frame.is_answered {
                to.write_all(b"Z").await?;
            }
        }
    }

    impl Server {
        fn saw(&self, text: &str) -> bool {
            self.queries.lock().expect("notes").iter().any(|query| query.contains(text))
        }
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        let mut client = TcpStream::connect(proxy.address()).await.expect("connect");
        let ssl = [8_i32.to_be_bytes(), SSL_REQUEST.to_be_bytes()].concat();
        client.write_all(&ssl).await.expect("ask for encryption");
        assert_eq!(client.read_u8().await.expect("answer"), b'N');
        client.write_all(&[8_i32.to_be_bytes(), 196_608_i32.to_be_bytes()].concat()).await.expect("start");
        assert_eq!(client.read_u8().await.expect("answer"), b'Z');
        client
    }

    async fn send(client: &mut TcpStream, tag: u8, body: &[u8]) -> io::Result<()> {
        let length = body.len() as i32 + 4;
        client.write_all(&[&[tag], &length.to_be_bytes()[..], body].concat()).await
    }

    async fn query(client: &mut TcpStream, text: &str) -> io::Result<u8> {
        send(client, b'Q', format!("{text}\0").as_bytes()).await?;
        client.read_u8().await
    }

    async fn prepared(client: &mut TcpStream, text: &str) -> io::Result<u8> {
        send(client, b'P', format!("name\0{text}\0").as_bytes()).await?;
        for tag in [b'B', b'E', b'S'] {
            send(client, tag, b"").await?;
        }
        client.read_u8().await
    }

    #[tokio::test]
    async fn messages_pass_and_are_counted() {
        let server = server().await;
        let proxy = Proxy::start(server.address).await.expect("proxy");
        let mut client = connect(&proxy).await;
        assert_eq!(query(&mut client, "SELECT 1").await.expect("answer"), b'Z');
        assert_eq!(prepared(&mut client, "SELECT 2").await.expect("answer"), b'Z');
        assert!(server.saw("SELECT 1") && server.saw("SELECT 2"));
        assert_eq!((proxy.n_connections(), proxy.n_messages(), proxy.n_cuts()), (1, 6, 0));
    }

    #[tokio::test]
    async fn commit_is_cut_before_or_after_it_reaches_the_server() {
        for (cut, reaches) in [(Cut::Before, false), (Cut::After, true)] {
            let server = server().await;
            let proxy = Proxy::start(server.address).await.expect("proxy");
            for text in [" commit ; ", "COMMIT"] {
                let mut client = connect(&proxy).await;
                proxy.cut_on_commit(cut);
                assert_eq!(query(&mut client, "SELECT 'commit;'").await.expect("answer"), b'Z');
                query(&mut client, text).await.expect_err("the connection is cut");
                assert_eq!(server.saw(text), reaches);
            }
            assert_eq!(proxy.n_cuts(), 2);
        }
    }

    #[tokio::test]
    async fn prepared_commit_is_cut_at_its_end() {
        let server = server().await;
        let proxy = Proxy::start(server.address).await.expect("proxy");
        let mut client = connect(&proxy).await;
        proxy.cut_on_commit(Cut::After);
        prepared(&mut client, "COMMIT").await.expect_err("the connection is cut");
        assert!(server.saw("COMMIT"));
        assert_eq!(server.queries.lock().expect("notes").len(), 4, "up to the end of the extended query");
    }

    #[tokio::test]
    async fn any_message_can_be_cut() {
        let server = server().await;
        let proxy = Proxy::start(server.address).await.expect("proxy");
        let mut client = connect(&proxy).await;
        proxy.cut_at_message(3, Cut::After);
        prepared(&mut client, "SELECT 1").await.expect_err("cut at the third, which is not answered");
        assert_eq!(proxy.n_messages(), 4);
        assert_eq!(server.queries.lock().expect("notes").len(), 3);
        proxy.cut_at_message(100, Cut::Before);
        assert!(proxy.disarm() && !proxy.disarm());
    }

    #[tokio::test]
    async fn blackhole_keeps_connections_open() {
        let server = server().await;
        let proxy = Proxy::start(server.address).await.expect("proxy");
        let mut client = connect(&proxy).await;
        proxy.blackhole(true);
        let mut waiting = tokio::spawn(async move { query(&mut client, "SELECT 1").await });
        assert!(tokio::time::timeout(Duration::from_millis(100), &mut waiting).await.is_err());
        assert!(!server.saw("SELECT 1"));
        proxy.blackhole(false);
        assert_eq!(waiting.await.expect("joined").expect("answer"), b'Z');
    }

    #[tokio::test]
    async fn reset_repoint_and_delay() {
        let (one, other) = (server().await, server().await);
        let proxy = Proxy::start(one.address).await.expect("proxy");
        let mut client = connect(&proxy).await;
        proxy.repoint(other.address);
        query(&mut client, "SELECT 1").await.expect("still where it was");
        proxy.reset();
        query(&mut client, "SELECT 2").await.expect_err("closed");
        let mut client = connect(&proxy).await;
        proxy.delay(Duration::from_millis(30));
        let started = tokio::time::Instant::now();
        query(&mut client, "SELECT 3").await.expect("answer");
        assert!(started.elapsed() >= Duration::from_millis(60));
        assert!(other.saw("SELECT 3") && !one.saw("SELECT 3"));
    }

    /// Greets, and answers every command that wants an answer; notes the commands.
    async fn mysql_session(socket: TcpStream, noted: Arc<Mutex<Vec<String>>>) -> io::Result<()> {
        let (mut from, mut to) = socket.into_split();
        to.write_all(b"Z").await?;
        loop {
            let frame = read_packet(&mut from).await?;
            noted.lock().expect("notes").push(String::from_utf8_lossy(&frame.bytes[4..]).into_owned());
            if frame.is_answered {
                to.write_all(b"Z").await?;
            }
        }
    }

    async fn command(client: &mut TcpStream, code: u8, text: &str) -> io::Result<()> {
        let length = u32::try_from(text.len() + 1).expect("short").to_le_bytes();
        client.write_all(&[&length[..3], &[0, code], text.as_bytes()].concat()).await
    }

    #[tokio::test]
    async fn commit_of_mysql_is_cut_before_or_after_it_reaches_the_server() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let target = listener.local_addr().expect("an address");
        let queries = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&queries);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(mysql_session(socket, Arc::clone(&noted)));
            }
        });
        let proxy = Proxy::start_mysql(target).await.expect("proxy");
        for (cut, n_commits) in [(Cut::Before, 0), (Cut::After, 1)] {
            let mut client = TcpStream::connect(proxy.address()).await.expect("connect");
            assert_eq!(client.read_u8().await.expect("greeting"), b'Z');
            proxy.cut_on_commit(cut);
            command(&mut client, COM_STMT_CLOSE, "COMMIT").await.expect("no answer");
            command(&mut client, COM_QUERY, "SELECT 'commit'").await.expect("sent");
            assert_eq!(client.read_u8().await.expect("answer"), b'Z');
            command(&mut client, COM_QUERY, "COMMIT").await.expect("sent");
            client.read_u8().await.expect_err("the connection is cut");
            let n = queries.lock().expect("notes").iter().filter(|text| *text == "\u{3}COMMIT").count();
            assert_eq!(n, n_commits, "{cut:?}");
        }
        assert_eq!((proxy.n_messages(), proxy.n_cuts()), (6, 2));
    }
}
