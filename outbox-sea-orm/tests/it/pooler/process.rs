//! A PgBouncer of the test's own before the shared server.

use std::env::var_os;
use std::ffi::OsString;
use std::fs::{File, read_to_string, write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use outbox_testkit::Skip;
use sea_orm::{ConnectOptions, Database, DatabaseConnection};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin};
use tokio::time::{sleep, timeout};

use crate::support::PATIENCE;

/// Ends what it has started when its standard input is closed: also when we are killed.
const LEASH: &str = r#""$@" </dev/null & cat >/dev/null; kill $!"#;
/// The first version that knows prepared statements in a pool of transactions.
const FIRST: (u32, u32) = (1, 21);

/// What a pooler is started with.
pub(super) struct Options {
    /// `max_prepared_statements`.
    pub(super) n_prepared: u32,
    /// `default_pool_size`.
    pub(super) n_sessions: u32,
    /// Parameters at the start of a session that it takes and forgets.
    pub(super) ignored: &'static str,
    /// What it does to a session after each transaction.
    pub(super) reset: &'static str,
}

/// As docs/storage.md says.
pub(super) const AS_DOCUMENTED: Options =
    Options { n_prepared: 200, n_sessions: 10, ignored: "extra_float_digits", reset: "" };

/// Takes what a session is told at its start and forgets it.
pub(super) const FORGETFUL: Options = Options { ignored: "extra_float_digits, options", ..AS_DOCUMENTED };

pub(super) struct Pooler {
    url: String,
    _process: Child,
    /// Dropping it ends the pooler.
    _leash: Option<ChildStdin>,
    folder: TempDir,
}

impl Pooler {
    /// # Errors
    /// [`Skip`] without a server and without a PgBouncer that is new enough.
    pub(super) async fn start(options: &Options) -> Result<Self, Skip> {
        let server = outbox_testkit::server::postgres().await?;
        let program = program()?;
        let folder = tempfile::tempdir().expect("a folder");
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
        let port = port.expect("a free port").port();
        let (server, database) = databases(server.url());
        let is_root = folder.path().metadata().expect("the folder").uid() == 0;
        let user = if is_root { "user = nobody" } else { "" };
        let Options { n_prepared, n_sessions, ignored, reset } = options;
        let resets_always = u8::from(!reset.is_empty());
        let config = format!(
            "[databases]\n* = {server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = {n_sessions}\nmax_client_conn = 500\n\
             max_prepared_statements = {n_prepared}\nignore_startup_parameters = {ignored}\n\
             server_reset_query = {reset}\nserver_reset_query_always = {resets_always}\n{user}\n"
        );
        let (file, log) = (folder.path().join("pgbouncer.ini"), folder.path().join("log"));
        write(&file, config).expect("its configuration");
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", LEASH, "sh"]).arg(program).arg(file);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(File::create(log).expect("its log"));
        let mut process = command.spawn().expect("sh");
        let leash = process.stdin.take();
        let url = format!("postgres://anybody@127.0.0.1:{port}/{database}?sslmode=disable");
        let pooler = Self { url, _process: process, _leash: leash, folder };
        pooler.wait_until_ready(port).await;
        Ok(pooler)
    }

    async fn wait_until_ready(&self, port: u16) {
        let connecting = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(PATIENCE, connecting).await.is_err() {
            panic!("{}", read_to_string(self.folder.path().join("log")).unwrap_or_default());
        }
    }

    /// A pool that reaches the server through it.
    pub(super) async fn connect(&self) -> DatabaseConnection {
        let mut options = ConnectOptions::new(&self.url);
        options.max_connections(12).sqlx_logging(false).acquire_timeout(Duration::from_secs(10));
        Database::connect(options).await.expect("connect")
    }
}

/// How PgBouncer is told of the server, and the name of the database.
fn databases(url: &str) -> (String, &str) {
    let (_, rest) = url.split_once("://").expect("a URL");
    let (login, rest) = rest.split_once('@').expect("a user in the URL");
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (address, database) = rest.split_once('/').expect("a database in the URL");
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "5432"));
    let database = database.split('?').next().unwrap_or(database);
    (format!("host={host} port={port} user='{user}' password='{password}'"), database)
}

/// `OUTBOX_TEST_PGBOUNCER`, or the one that is installed.
fn program() -> Result<OsString, Skip> {
    let given = var_os("OUTBOX_TEST_PGBOUNCER").filter(|program| !program.is_empty());
    let candidates = match given {
        Some(program) => vec![program],
        None => vec!["pgbouncer".into(), "/usr/sbin/pgbouncer".into()],
    };
    let mut found = candidates.into_iter().filter_map(|program| Some((version(&program)?, program)));
    match found.next() {
        Some((version, program)) if version >= FIRST => Ok(program),
        Some(((major, minor), _)) => Err(Skip::new(format!(
            "PgBouncer {major}.{minor} cannot keep prepared statements, 1.21 can (OUTBOX_TEST_PGBOUNCER names one)"
        ))),
        None => Err(Skip::new("no PgBouncer (install pgbouncer, or let OUTBOX_TEST_PGBOUNCER name one)")),
    }
}

fn version(program: &OsString) -> Option<(u32, u32)> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.lines().next()?.strip_prefix("PgBouncer ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
