//! A private server from local binaries, on a free port of the loopback interface, in a temporary folder.

use std::{
    env::temp_dir,
    fs,
    io::{self, ErrorKind},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    Engine, Settings, StopMode, binaries, binaries::Installation, keeper::Keeper, owner, owner::Owner, probe,
};

const HOST: &str = "127.0.0.1";
/// Starting includes recovery after a crash.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);
/// Another process may take the free port before the server does.
const MAX_PORTS: usize = 3;

/// Orders: `start PORT`, `alive`, or the name of a signal that ends the server. Answers: `up` or `down`.
/// `jobs` makes the shell notice a server that has exited.
const SCRIPT: &str = r#"
folder=$1 program=$2 server=
shift 2
alive() { jobs >/dev/null; [ -n "$server" ] && kill -0 "$server"; }
start() { "$program" "$@" </dev/null >>"$folder/server.log" 2>&1 & server=$!; }
end() { alive && kill -s "$1" "$server" && wait "$server"; server=; }
while read -r order port; do
    case $order in
        start) alive || start "$@" --port="$port" ;;
        alive) ;;
        *) end "$order" ;;
    esac
    if alive; then echo up; else echo down; fi
done
end QUIT
cd / && rm -rf "$folder"
"#;

#[derive(Debug)]
pub(super) struct Local {
    engine: Engine,
    settings: Settings,
    password: String,
    url: String,
    port: u16,
    /// Before the folder, so that the server is gone when the folder goes.
    keeper: Mutex<Keeper>,
    folder: Folder,
}

impl Local {
    pub(super) fn start(settings: &Settings) -> Result<Self, String> {
        let engine = settings.engine();
        let binaries = binaries::find(engine)?;
        let folder = Folder::create()?;
        let owner = Owner::for_server(engine, &folder.0)?;
        let password = Uuid::new_v4().simple().to_string();
        initialise(&binaries, &folder, owner, &password)?;
        Self::run(&binaries, folder, owner, settings, password)
    }

    fn run(
        binaries: &Installation,
        folder: Folder,
        owner: Owner,
        settings: &Settings,
        password: String,
    ) -> Result<Self, String> {
        let (engine, settings) = (settings.engine(), settings.clone());
        let mut keeper = hire(binaries, &folder, owner, &settings).map_err(keeper_is_gone)?;
        let port = launch(engine, &mut keeper, &folder)?;
        let url = engine.url(&password, HOST, port);
        Ok(Self { engine, settings, password, url, port, keeper: Mutex::new(keeper), folder })
    }

    /// With the same settings, users and passwords.
    pub(super) fn standby(&self) -> Result<Self, String> {
        let binaries = binaries::find(self.engine)?;
        let Installation::Postgres(programs) = &binaries else {
            return Err("only PostgreSQL has standbys here".to_owned());
        };
        let folder = Folder::create()?;
        let owner = Owner::for_server(self.engine, &folder.0)?;
        owner.give(&folder.0).map_err(|error| format!("{}: {error}", folder.0.display()))?;
        let mut copy = Command::new(programs.join("pg_basebackup"));
        copy.args(["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"])
            .args(["--username=postgres", "--no-password"])
            .args([format!("--host={HOST}"), format!("--port={}", self.port)])
            .arg(option("--pgdata=", &folder.0.join("data")))
            .env("PGPASSWORD", &self.password)
            .current_dir(&folder.0);
        owner.run(&mut copy);
        succeed(copy)?;
        Self::run(&binaries, folder, owner, &self.settings, self.password.clone())
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn stop(&self, mode: StopMode) -> Result<(), String> {
        let answer = self.keeper().order(signal(self.engine, mode));
        answer.map(drop).map_err(keeper_is_gone)
    }

    /// After a SIGKILL the sessions of the old server need a moment to notice; until then a new one refuses
    /// the data folder and exits.
    pub(super) fn restart(&self) -> Result<(), String> {
        let mut keeper = self.keeper();
        keeper.order(signal(self.engine, StopMode::Fast)).map_err(keeper_is_gone)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match come_up(self.engine, &mut keeper, self.port, &self.folder) {
                Err(_) if Instant::now() < deadline => sleep(PAUSE),
                outcome => return outcome,
            }
        }
    }

    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What ends a server in this way.
pub(super) fn signal(engine: Engine, mode: StopMode) -> &'static str {
    match (engine, mode) {
        (Engine::Postgres, StopMode::Fast) => "INT",
        (Engine::Postgres, StopMode::Immediate) => "QUIT",
        (Engine::MySql, StopMode::Fast) => "TERM",
        (_, StopMode::Kill) | (Engine::MySql, StopMode::Immediate) => "KILL",
    }
}

fn initialise(binaries: &Installation, folder: &Folder, owner: Owner, password: &str) -> Result<(), String> {
    let (secret, text) = match binaries {
        Installation::Postgres(_) => ("password", password.to_owned()),
        Installation::MariaDb { .. } | Installation::MySql(_) => ("init.sql", users(password)),
    };
    let secret = folder.0.join(secret);
    let prepare = || {
        fs::write(&secret, text)?;
        owner.give(&secret)?;
        owner.give(&folder.0)
    };
    prepare().map_err(|error| format!("{}: {error}", folder.0.display()))?;
    let data = folder.0.join("data");
    let mut command = match binaries {
        Installation::Postgres(folder) => {
            let mut command = Command::new(folder.join("initdb"));
            command
                .args([
                    "--username=postgres",
                    "--auth=password",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--no-sync",
                ])
                .arg(option("--pwfile=", &secret))
                .arg(option("--pgdata=", &data));
            command
        }
        Installation::MariaDb { install, .. } => {
            let mut command = Command::new(install);
            command.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
            command.arg(option("--datadir=", &data));
            command
        }
        Installation::MySql(server) => {
            let mut command = Command::new(server);
            command.args(["--no-defaults", "--initialize-insecure"]).arg(option("--datadir=", &data));
            command
        }
    };
    // MariaDB that prepares a folder removes the temporary tables of others in the same place
    command.current_dir(&folder.0).env("TMPDIR", &folder.0);
    owner.run(&mut command);
    succeed(command)
}

/// What MySQL runs whenever it starts, one statement a line.
fn users(password: &str) -> String {
    let user = |host| {
        format!(
            "CREATE USER IF NOT EXISTS 'root'@'{host}' IDENTIFIED BY '{password}';\n\
             ALTER USER 'root'@'{host}' IDENTIFIED BY '{password}';\n\
             GRANT ALL PRIVILEGES ON *.* TO 'root'@'{host}' WITH GRANT OPTION;\n"
        )
    };
    format!("{}{}CREATE DATABASE IF NOT EXISTS outbox;\n", user("localhost"), user(HOST))
}

fn option(name: &str, path: &Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from(name);
    option.push(path);
    option
}

fn succeed(mut command: Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("the folder could not be prepared: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("the folder could not be prepared: {}", last_lines(&complaint)))
}

fn launch(engine: Engine, keeper: &mut Keeper, folder: &Folder) -> Result<u16, String> {
    let mut outcome = Err(String::new());
    for _ in 0..MAX_PORTS {
        let port = free_port()?;
        outcome = come_up(engine, keeper, port, folder).map(|()| port);
        if !matches!(&outcome, Err(reason) if reason.contains(engine.port_is_taken())) {
            break;
        }
    }
    outcome
}

fn hire(binaries: &Installation, folder: &Folder, owner: Owner, settings: &Settings) -> io::Result<Keeper> {
    let program = match binaries {
        Installation::Postgres(folder) => folder.join("postgres"),
        Installation::MariaDb { server, .. } | Installation::MySql(server) => server.clone(),
    };
    let (place, program) = (folder.0.to_string_lossy(), program.to_string_lossy());
    let options: Vec<_> = own_options(binaries, folder).into_iter().chain(settings.arguments()).collect();
    let options = options.iter().map(String::as_str);
    let arguments = [place.as_ref(), program.as_ref()].into_iter().chain(options);
    Keeper::spawn(SCRIPT, arguments, |command| {
        command.current_dir(&folder.0);
        owner.run(command);
    })
}

/// Data in the folder, and nobody but this machine.
fn own_options(binaries: &Installation, folder: &Folder) -> Vec<String> {
    let inside = |name: &str| folder.0.join(name).to_string_lossy().into_owned();
    match binaries {
        Installation::Postgres(_) => vec![
            "-D".to_owned(),
            inside("data"),
            format!("--listen_addresses={HOST}"),
            "--unix_socket_directories=".to_owned(),
        ],
        Installation::MariaDb { .. } | Installation::MySql(_) => vec![
            "--no-defaults".to_owned(),
            format!("--datadir={}", inside("data")),
            format!("--socket={}", inside("socket")),
            format!("--pid-file={}", inside("pid")),
            format!("--init-file={}", inside("init.sql")),
            // a server that starts removes the temporary tables of others in the same place
            format!("--tmpdir={}", folder.0.display()),
            format!("--bind-address={HOST}"),
        ],
    }
}

fn come_up(engine: Engine, keeper: &mut Keeper, port: u16, folder: &Folder) -> Result<(), String> {
    keeper.order(&format!("start {port}")).map_err(keeper_is_gone)?;
    let alive = || keeper.order("alive").is_ok_and(|answer| answer == "up");
    probe::wait_until_ready(engine, HOST, port, PATIENCE, alive)
        .map_err(|reason| format!("{reason}: {}", folder.end_of_log()))
}

fn keeper_is_gone(error: io::Error) -> String {
    format!("the shell that runs the server: {error}")
}

pub(super) fn free_port() -> Result<u16, String> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| format!("no free port: {error}"))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

/// A temporary folder for the data, the log and the password; removed with everything in it.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn create() -> Result<Self, String> {
        let path = temp_dir().join(format!("outbox-test-{}", Uuid::new_v4().simple()));
        owner::private_folder(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    fn end_of_log(&self) -> String {
        fs::read_to_string(self.0.join("server.log"))
            .map_or_else(|error| error.to_string(), |log| last_lines(&log))
    }
}

impl Drop for Folder {
    /// The keeper has removed it already, unless there was none or the folder around it is not its own.
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                eprintln!("left behind {}: {error}", self.0.display());
            }
            _ => {}
        }
    }
}
