//! What the tests share: tables in a place of their own, and a way to drop a future at any of its awaits.

use std::future::{Future, poll_fn};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, Once};
use std::task::Poll;
use std::time::Duration;

use outbox_core::{Claim, ClaimRequest, Draft, MessageId, Outcome, Repository, Settlement, TableName};
use outbox_sea_orm::{OutboxTable, ProcessedTable};
use outbox_testkit::proxy::Proxy;
use outbox_testkit::secrets::{Sentinel, TOKEN};
use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, Statement, TryGetable};
use tokio::process::Command;
use tracing_subscriber::fmt::format::FmtSpan;
use uuid::Uuid;

pub(crate) const LEASE: Duration = Duration::from_secs(60);
/// How long anything may take that should be there in a moment.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An outbox, an inbox and a table `business (name)`.
pub(crate) struct Site {
    pub(crate) db: DatabaseConnection,
    pub(crate) outbox: OutboxTable,
    pub(crate) inbox: ProcessedTable,
    place: Place,
}

enum Place {
    Postgres { url: String, schema: String },
    MySql { url: String, schema: String },
    Sqlite { file: PathBuf, _folder: Option<tempfile::TempDir> },
}

impl Place {
    async fn connect(&self, pool: Pool<'_>) -> DatabaseConnection {
        let url = match self {
            Self::Postgres { url, .. } => pool.url.unwrap_or(url).to_owned(),
            Self::MySql { url, schema } => {
                mysql_database(pool.url.unwrap_or(url), &format!("{schema}{}", pool.suffix)).await
            }
            Self::Sqlite { file, .. } => format!("sqlite://{}?mode=rwc", file.display()),
        };
        let mut options = ConnectOptions::new(url);
        options.max_connections(pool.max_connections).sqlx_logging(pool.logs).acquire_timeout(PATIENCE);
        match self {
            Self::Postgres { schema, .. } => {
                postgres_options(&mut options, &format!("{schema}{}", pool.suffix), pool.settings);
            }
            Self::MySql { .. } => mysql_options(&mut options, pool.settings),
            Self::Sqlite { .. } => sqlite_options(&mut options),
        }
        Database::connect(options).await.expect("connect")
    }

    fn name(&self, table: &str) -> TableName {
        let schema = match self {
            Self::Postgres { schema, .. } | Self::MySql { schema, .. } => schema,
            Self::Sqlite { .. } => "t",
        };
        TableName::parse(&format!("{schema}.{table}")).expect("name")
    }

    fn sql_name(&self, table: &str) -> String {
        match self {
            Self::Postgres { schema, .. } | Self::MySql { schema, .. } => format!("{schema}.{table}"),
            Self::Sqlite { .. } => format!("t_{table}"),
        }
    }
}

/// What is special about a pool.
#[derive(Default)]
pub(crate) struct Pool<'a> {
    pub(crate) max_connections: u32,
    /// Goes behind the name of the application.
    pub(crate) suffix: &'a str,
    /// Another way to the server.
    pub(crate) url: Option<&'a str>,
    /// For each connection to PostgreSQL.
    pub(crate) settings: &'a [(&'a str, &'a str)],
    pub(crate) logs: bool,
}

impl Pool<'_> {
    pub(crate) fn of(max_connections: u32) -> Self {
        Self { max_connections, ..Self::default() }
    }
}

fn postgres_options(options: &mut ConnectOptions, application: &str, settings: &[(&str, &str)]) {
    let application = application.to_owned();
    let settings = owned(settings);
    options.map_sqlx_postgres_opts(move |options| {
        options.application_name(&application).options(settings.iter().map(|(name, value)| (name, value)))
    });
}

/// Makes the database, and returns the URL with it as the one to connect to: that tells our sessions apart.
async fn mysql_database(url: &str, database: &str) -> String {
    let db = Database::connect(ConnectOptions::new(url)).await.expect("connect");
    db.execute_unprepared(&format!("CREATE DATABASE IF NOT EXISTS {database}")).await.expect("create");
    db.close().await.expect("close");
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let (address, _) = address.rsplit_once('/').expect("a database in the URL");
    format!("{address}/{database}?{query}")
}

/// Only the time zone can be set.
fn mysql_options(options: &mut ConnectOptions, settings: &[(&str, &str)]) {
    for (name, value) in owned(settings) {
        assert_eq!(name, "timezone");
        options.map_sqlx_mysql_opts(move |options| options.timezone(value.clone()));
    }
}

fn owned(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn sqlite_options(options: &mut ConnectOptions) {
    options.map_sqlx_sqlite_opts(|options| {
        options
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Off)
            .busy_timeout(PATIENCE)
    });
}

impl Site {
    /// In a schema of its own on the shared server; `None` without one, said on standard error.
    pub(crate) async fn postgres() -> Option<Self> {
        let server = outbox_testkit::server::postgres().await.ok()?;
        Some(Self::at(server.url(), &[]).await)
    }

    /// In a schema of its own on the server at `url`; every connection is made with `settings`.
    pub(crate) async fn at(url: &str, settings: &[(&str, &str)]) -> Self {
        let schema = format!("t_{}", Uuid::new_v4().simple());
        Self::create(Place::Postgres { url: url.to_owned(), schema }, settings).await
    }

    /// In a database of its own on the shared MySQL; `None` without one, said on standard error.
    pub(crate) async fn mysql() -> Option<Self> {
        let server = outbox_testkit::server::mysql().await.ok()?;
        Some(Self::mysql_at(server.url()).await)
    }

    /// In a database of its own on the MySQL at `url`.
    pub(crate) async fn mysql_at(url: &str) -> Self {
        let schema = format!("t_{}", Uuid::new_v4().simple());
        Self::create(Place::MySql { url: url.to_owned(), schema }, &[]).await
    }

    /// A pool of its own that reaches the server through a proxy.
    pub(crate) async fn through_proxy(&self) -> (Proxy, DatabaseConnection) {
        let (proxy, url) = proxied(&self.url()).await;
        let db = self.connect(Pool { url: Some(&url), ..Pool::of(6) }).await;
        (proxy, db)
    }

    /// In a file of its own.
    pub(crate) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("test.db");
        Self::create(Place::Sqlite { file, _folder: Some(folder) }, &[]).await
    }

    /// What another process says to [`Self::reopen`] to be at the same place.
    pub(crate) fn place(&self) -> String {
        match &self.place {
            Place::Postgres { schema, .. } | Place::MySql { schema, .. } => schema.clone(),
            Place::Sqlite { file, .. } => file.display().to_string(),
        }
    }

    /// The place of the process that has started this one; our number is part of the application's name, on MySQL also of the
    /// user's.
    pub(crate) async fn reopen(place: &str) -> Self {
        let given = |variable| std::env::var(variable).ok().filter(|url| !url.is_empty());
        let schema = place.to_owned();
        let place = match (given(POSTGRES_URL), given(MYSQL_URL)) {
            (Some(url), _) => Place::Postgres { url, schema },
            (_, Some(url)) => {
                let user = format!("{}_{}", mysql_user_name(&schema), std::process::id());
                Place::MySql { url: mysql_user(&url, &user, "ALL PRIVILEGES ON *.*").await, schema }
            }
            _ => Place::Sqlite { file: place.into(), _folder: None },
        };
        let suffix = format!("_{}", std::process::id());
        Self::open(place, Pool { suffix: &suffix, ..Pool::of(6) }).await
    }

    async fn create(place: Place, settings: &[(&str, &str)]) -> Self {
        let site = Self::open(place, Pool { settings, ..Pool::of(6) }).await;
        site.outbox.migrate().await.expect("migrate the outbox");
        site.inbox.migrate().await.expect("migrate the inbox");
        site.execute(&format!("CREATE TABLE {} (name TEXT NOT NULL)", site.sql_name("business"))).await;
        site
    }

    async fn open(place: Place, pool: Pool<'_>) -> Self {
        watch_log();
        let db = place.connect(pool).await;
        let outbox = OutboxTable::new(&db, place.name("outbox"));
        let inbox = ProcessedTable::new(&db, place.name("inbox"));
        Self { db, outbox, inbox, place }
    }

    /// The name of a table here as a TableName.
    pub(crate) fn name(&self, table: &str) -> TableName {
        self.place.name(table)
    }

    /// The name of a table here as it stands in SQL.
    pub(crate) fn sql_name(&self, table: &str) -> String {
        self.place.sql_name(table)
    }

    /// The schema, which is also the name of the application on each of our connections.
    pub(crate) fn schema(&self) -> &str {
        match &self.place {
            Place::Postgres { schema, .. } | Place::MySql { schema, .. } => schema,
            Place::Sqlite { .. } => panic!("no schemas on SQLite"),
        }
    }

    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.place, Place::Postgres { .. })
    }

    pub(crate) fn is_sqlite(&self) -> bool {
        matches!(self.place, Place::Sqlite { .. })
    }

    pub(crate) fn is_mysql(&self) -> bool {
        matches!(self.place, Place::MySql { .. })
    }

    /// Where SQLite keeps it.
    pub(crate) fn file(&self) -> &Path {
        let Place::Sqlite { file, .. } = &self.place else { panic!("no file") };
        file
    }

    pub(crate) fn url(&self) -> String {
        match &self.place {
            Place::Postgres { url, .. } | Place::MySql { url, .. } => url.clone(),
            Place::Sqlite { .. } => format!("sqlite://{}?mode=rwc", self.file().display()),
        }
    }

    /// Another pool of the same place.
    pub(crate) async fn connect(&self, pool: Pool<'_>) -> DatabaseConnection {
        self.place.connect(pool).await
    }

    /// Handles with pools of their own, to do harm to.
    pub(crate) async fn victim(&self) -> Victim {
        let suffix = format!("_{}", Uuid::new_v4().as_u64_pair().0);
        let db = self.connect(Pool { suffix: &suffix, ..Pool::of(2) }).await;
        Victim {
            outbox: OutboxTable::new(&db, self.name("outbox")),
            inbox: ProcessedTable::new(&db, self.name("inbox")),
            db,
            suffix,
        }
    }

    pub(crate) async fn execute(&self, sql: &str) -> u64 {
        let result = self.db.execute_unprepared(sql).await;
        result.unwrap_or_else(|error| panic!("{sql}: {error}")).rows_affected()
    }

    /// The first column of the first row.
    pub(crate) async fn value<T: TryGetable>(&self, sql: &str) -> T {
        value(&self.db, sql).await
    }

    pub(crate) async fn values<T: TryGetable>(&self, sql: &str) -> Vec<T> {
        values(&self.db, sql).await
    }

    /// The number of rows in a table, for example `business WHERE name = 'a'`.
    pub(crate) async fn count(&self, table: &str) -> i64 {
        let (table, condition) = table.split_once(' ').unwrap_or((table, ""));
        self.value(&format!("SELECT count(*) FROM {} {condition}", self.sql_name(table))).await
    }

    /// The statement that adds a row to `business`.
    pub(crate) fn business(&self, name: &str) -> String {
        format!("INSERT INTO {} VALUES ('{name}')", self.sql_name("business"))
    }

    /// Stores `n` messages of `topic`.
    pub(crate) async fn enqueue(&self, topic: &str, n: usize) -> Vec<MessageId> {
        let drafts: Vec<Draft> = (0..n).map(|_| secret_draft(topic)).collect();
        self.outbox.enqueue_autocommit(drafts).await.expect("enqueue")
    }

    /// Claims and settles as done until nothing is left; returns the ids in the order of delivery.
    pub(crate) async fn drain(&self) -> Vec<MessageId> {
        let mut delivered = Vec::new();
        loop {
            let claim = self.claim(1_000).await;
            if claim.is_empty() {
                return delivered;
            }
            delivered.extend(claim.messages.iter().map(|claimed| claimed.message.id));
            settle_all(&self.outbox, &claim, Outcome::Done).await;
        }
    }

    pub(crate) async fn claim(&self, limit: usize) -> Claim {
        let request = ClaimRequest::new(limit, LEASE).with_max_attempts(1_000);
        self.outbox.claim(request).await.expect("claim")
    }

    /// Makes every lease expire.
    pub(crate) async fn expire_leases(&self) {
        let set = match self.place {
            Place::Postgres { .. } => "leased_until = leased_until - interval '2 days'",
            Place::MySql { .. } => "due = IF(state = 4, due - 172800000000000, due)",
            Place::Sqlite { .. } => "leased_until = leased_until - 172800000",
        };
        let outbox = self.sql_name("outbox");
        self.execute(&format!("UPDATE {outbox} SET {set}")).await;
    }

    /// Whether one of our sessions sits in a transaction and does nothing.
    pub(crate) async fn has_idle_transaction(&self) -> bool {
        let sql = match &self.place {
            Place::Postgres { schema, .. } => format!(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '{schema}%' \
                 AND state LIKE 'idle in transaction%'"
            ),
            Place::MySql { schema, .. } => format!(
                "SELECT count(*) FROM information_schema.INNODB_TRX AS t JOIN {} AS p \
                 ON p.ID = t.TRX_MYSQL_THREAD_ID WHERE p.DB LIKE '{schema}%' AND p.COMMAND = 'Sleep'",
                mysql_sessions(&self.db).await
            ),
            Place::Sqlite { .. } => return false,
        };
        let statement = Statement::from_string(self.db.get_database_backend(), &sql);
        match self.db.query_one_raw(statement).await {
            Ok(row) => row.expect("a row").try_get_by_index::<i64>(0).expect("count") > 0,
            // MySQL cannot show transactions while a statement with bytes among its parameters runs: nobody knows
            Err(error) if self.is_mysql() && error.to_string().contains("3854") => true,
            Err(error) => panic!("{sql}: {error}"),
        }
    }

    /// Ends one session of ours, whichever the server picks; seen from `observer`.
    pub(crate) async fn end_one_session(&self, observer: &DatabaseConnection) {
        match &self.place {
            Place::Postgres { schema, .. } => {
                let sql = format!(
                    "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
                     WHERE application_name = '{schema}' ORDER BY random() LIMIT 1) AS one"
                );
                let _: i64 = value(observer, &sql).await;
            }
            Place::MySql { schema, .. } => {
                let sessions = mysql_sessions(observer).await;
                let sessions = format!(
                    "SELECT CAST(ID AS SIGNED) FROM {sessions} WHERE DB = '{schema}' ORDER BY RAND() LIMIT 1"
                );
                for id in values::<i64>(observer, &sessions).await {
                    // it may end by itself
                    let _ = observer.execute_unprepared(&format!("KILL {id}")).await;
                }
            }
            Place::Sqlite { .. } => {}
        }
    }

    /// Removes everything, also what tests have left open on purpose.
    pub(crate) async fn finish(self) {
        let Place::Postgres { url, schema } = &self.place else { return self.finish_mysql().await };
        let db = Database::connect(ConnectOptions::new(url)).await.expect("connect");
        let others = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE '{schema}%'"
        );
        let _: i64 = value(&db, &others).await;
        db.execute_unprepared(&format!("DROP SCHEMA {schema} CASCADE")).await.expect("drop the schema");
    }
}

/// A draft with a secret in its payload and in a header.
pub(crate) fn secret_draft(topic: &str) -> Draft {
    Draft::new(topic, format!("payload {TOKEN}")).header("authorization", TOKEN)
}

impl Site {
    async fn finish_mysql(self) {
        let Place::MySql { url, schema } = &self.place else { return };
        let db = Database::connect(ConnectOptions::new(url)).await.expect("connect");
        let sessions = mysql_sessions(&db).await;
        let sessions = format!("SELECT CAST(ID AS SIGNED) FROM {sessions} AS p WHERE DB LIKE '{schema}%'");
        for id in values::<i64>(&db, &sessions).await {
            // it may end by itself
            let _ = db.execute_unprepared(&format!("KILL {id}")).await;
        }
        let databases = format!(
            "SELECT CAST(SCHEMA_NAME AS CHAR) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME LIKE '{schema}%'"
        );
        for database in values::<String>(&db, &databases).await {
            db.execute_unprepared(&format!("DROP DATABASE {database}")).await.expect("drop the database");
        }
        let users = format!(
            "SELECT CAST(User AS CHAR) FROM mysql.user WHERE User LIKE '{}%'",
            mysql_user_name(schema)
        );
        for user in values::<String>(&db, &users).await {
            db.execute_unprepared(&format!("DROP USER '{user}'@'%'")).await.expect("drop the user");
        }
    }
}

/// What the names of a test's users begin with; they have at most 32 characters.
pub(crate) fn mysql_user_name(schema: &str) -> &str {
    &schema[..20]
}

/// Makes a user of the server at `url` with this privilege; the URL that it connects with.
pub(crate) async fn mysql_user(url: &str, user: &str, privilege: &str) -> String {
    let db = Database::connect(ConnectOptions::new(url)).await.expect("connect");
    for sql in [
        format!("CREATE USER IF NOT EXISTS '{user}'@'%' IDENTIFIED BY 'secret'"),
        format!("GRANT {privilege} TO '{user}'@'%'"),
    ] {
        db.execute_unprepared(&sql).await.expect("a user");
    }
    db.close().await.expect("close");
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (_, place) = rest.rsplit_once('@').expect("a user");
    format!("{scheme}://{user}:secret@{place}")
}

/// The table with the sessions of the server. That of MariaDB fails on MySQL where one of them has a token in its statement.
pub(crate) async fn mysql_sessions(db: &impl ConnectionTrait) -> &'static str {
    let version: String = value(db, "SELECT version()").await;
    match version.contains("MariaDB") {
        true => "information_schema.PROCESSLIST",
        false => "performance_schema.processlist",
    }
}

/// See [`Site::victim`].
pub(crate) struct Victim {
    pub(crate) db: DatabaseConnection,
    pub(crate) outbox: OutboxTable,
    pub(crate) inbox: ProcessedTable,
    suffix: String,
}

impl Victim {
    /// Returns when everything that was ever sent has ended.
    pub(crate) async fn end(self, site: &Site) {
        let Self { db, outbox, inbox, suffix } = self;
        drop((outbox, inbox));
        db.close().await.expect("close");
        let sql = match &site.place {
            Place::Postgres { schema, .. } => {
                format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{schema}{suffix}'")
            }
            Place::MySql { schema, .. } => {
                // one that logs in, which takes MySQL its time, has no database yet
                format!(
                    "SELECT count(*) FROM {} AS p \
                     WHERE DB = '{schema}{suffix}' OR (DB IS NULL AND COMMAND = 'Connect')",
                    mysql_sessions(&site.db).await
                )
            }
            Place::Sqlite { .. } => return,
        };
        eventually("the sessions end", async || site.value::<i64>(&sql).await == 0).await;
    }
}

pub(crate) async fn value<T: TryGetable>(db: &impl ConnectionTrait, sql: &str) -> T {
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let row = db.query_one_raw(statement).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    row.expect("a row").try_get_by_index(0).expect("column")
}

async fn values<T: TryGetable>(db: &impl ConnectionTrait, sql: &str) -> Vec<T> {
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let rows = db.query_all_raw(statement).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    rows.iter().map(|row| row.try_get_by_index(0).expect("column")).collect()
}

pub(crate) async fn settle_all(outbox: &impl Repository, claim: &Claim, outcome: Outcome) {
    let settlement = |claimed: &outbox_core::Claimed| Settlement::new(claimed.lease, outcome.clone());
    let settled = outbox.settle(claim.messages.iter().map(settlement).collect()).await.expect("settle");
    assert!(settled.iter().all(|settled| *settled == outbox_core::Settled::Applied), "{settled:?}");
}

/// Runs a test on PostgreSQL, or skips it loudly.
pub(crate) async fn run_on_postgres(test: impl AsyncFnOnce(&Site)) {
    let Some(site) = Site::postgres().await else { return };
    test(&site).await;
    site.finish().await;
}

/// Runs a test on MySQL, or skips it loudly.
pub(crate) async fn run_on_mysql(test: impl AsyncFnOnce(&Site)) {
    let Some(site) = Site::mysql().await else { return };
    test(&site).await;
    site.finish().await;
}

/// Runs a test on SQLite.
pub(crate) async fn run_on_sqlite(test: impl AsyncFnOnce(&Site)) {
    let site = Site::sqlite().await;
    test(&site).await;
    site.finish().await;
}

/// Runs a test in an empty database of its own on the shared server, or skips it loudly.
pub(crate) async fn run_in_own_database(test: impl AsyncFnOnce(&DatabaseConnection)) {
    let Some(database) = OwnDatabase::create().await else { return };
    let db = database.connect(&[]).await;
    test(&db).await;
    drop(db);
    database.drop().await;
}

/// A database of its own on a server, the shared one if no other is named.
pub(crate) struct OwnDatabase {
    server: &'static str,
    name: String,
}

impl OwnDatabase {
    pub(crate) async fn create() -> Option<Self> {
        Some(Self::on(outbox_testkit::server::postgres().await.ok()?.url()).await)
    }

    pub(crate) async fn on(server: &'static str) -> Self {
        let name = format!("t_{}", Uuid::new_v4().simple());
        let own = Self { server, name };
        own.administer(&format!("CREATE DATABASE {}", own.name)).await;
        own
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The URL of the server with the database in the place of its own.
    pub(crate) fn url(&self) -> String {
        let (address, query) = self.server.split_once('?').unwrap_or((self.server, ""));
        let (address, _) = address.rsplit_once('/').expect("a database in the URL");
        format!("{address}/{}?{query}", self.name)
    }

    pub(crate) async fn connect(&self, settings: &[(&str, &str)]) -> DatabaseConnection {
        let mut options = ConnectOptions::new(self.url());
        options.max_connections(10).sqlx_logging(false);
        postgres_options(&mut options, &self.name, settings);
        Database::connect(options).await.expect("connect")
    }

    pub(crate) async fn drop(self) {
        self.administer(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
    }

    /// A statement of its own, which must not stand in a transaction, from outside of the database.
    pub(crate) async fn administer(&self, sql: &str) {
        let db = Database::connect(ConnectOptions::new(self.server)).await.expect("connect");
        db.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

/// A proxy before the server at `url`, and the URL that leads through it.
pub(crate) async fn proxied(url: &str) -> (Proxy, String) {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (place, path) = rest.split_once('/').expect("a database in the URL");
    let (user, address) = place.rsplit_once('@').unwrap_or(("", place));
    let target = tokio::net::lookup_host(address).await.expect("the server's address").next();
    let target = target.expect("the server's address");
    let (proxy, plain) = match scheme {
        "mysql" => (Proxy::start_mysql(target).await, "ssl-mode=disabled"),
        _ => (Proxy::start(target).await, ""),
    };
    let proxy = proxy.expect("a proxy");
    let joint = if path.contains('?') { '&' } else { '?' };
    let url = format!("{scheme}://{user}@{}/{path}{joint}{plain}", proxy.address());
    (proxy, url)
}

/// Makes a named test on PostgreSQL of each function `async fn(&Site)`.
macro_rules! on_postgres {
    ($($case:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::support::run_on_postgres(super::$case).await;
            })*
        }
    };
}

/// Makes a named test on MySQL of each function `async fn(&Site)`.
macro_rules! on_mysql {
    ($($case:ident),* $(,)?) => {
        mod mysql {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::support::run_on_mysql(super::$case).await;
            })*
        }
    };
}

/// Makes a named test on SQLite of each function `async fn(&Site)`.
macro_rules! on_sqlite {
    ($($case:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::support::run_on_sqlite(super::$case).await;
            })*
        }
    };
}

/// Makes tests of the same functions on several databases; in braces behind one, what is tested there alone.
macro_rules! on_each {
    ($($on:ident $({ $($own:ident),* $(,)? })?),* => $cases:tt) => {
        $(crate::support::on_each! { @one $on { $($($own),*)? } $cases })*
    };
    (@one $on:ident { $($own:ident),* } { $($case:ident),* $(,)? }) => {
        crate::support::$on! { $($own,)* $($case),* }
    };
}

pub(crate) use {on_each, on_mysql, on_postgres, on_sqlite};

/// Drops `future` when it is not ready for the `k`-th time; `None` says that it was dropped.
pub(crate) async fn cancel_at<F: Future>(k: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut n_pending = 0;
    poll_fn(|task| {
        let Poll::Ready(output) = future.as_mut().poll(task) else {
            n_pending += 1;
            return if n_pending == k { Poll::Ready(None) } else { Poll::Pending };
        };
        Poll::Ready(Some(output))
    })
    .await
}

const POSTGRES_URL: &str = "OUTBOX_TEST_POSTGRES_URL";
const MYSQL_URL: &str = "OUTBOX_TEST_MYSQL_URL";
/// Set in the processes that tests start of themselves.
const CHILD: &str = "OUTBOX_TEST_CHILD";

/// What this process is to do for the test that has started it, where one has.
pub(crate) fn child_role() -> Option<String> {
    std::env::var(CHILD).ok()
}

/// This program, to run the test `name` only, with `role`, on the server at `url`.
pub(crate) fn child(name: &str, role: &str, url: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", name, "--nocapture", "--test-threads", "1"]).env(CHILD, role);
    command.env_remove("OUTBOX_TEST_SERVER").kill_on_drop(true);
    let (used, other) =
        if url.starts_with("mysql") { (MYSQL_URL, POSTGRES_URL) } else { (POSTGRES_URL, MYSQL_URL) };
    command.env(used, url).env_remove(other);
    command
}

/// Runs the test `name` in a process of its own, which can then see all that it logs; or skips it loudly.
pub(crate) async fn run_logged(name: &str, test: impl AsyncFnOnce(&Site, &Log)) {
    let Ok(server) = outbox_testkit::server::postgres().await else { return };
    if let Some(log) = alone(name, server.url()).await {
        run_on_postgres(async |site| test(site, &log).await).await;
    }
}

/// As [`run_logged`] on MySQL.
pub(crate) async fn run_logged_on_mysql(name: &str, test: impl AsyncFnOnce(&Site, &Log)) {
    let Ok(server) = outbox_testkit::server::mysql().await else { return };
    if let Some(log) = alone(name, server.url()).await {
        run_on_mysql(async |site| test(site, &log).await).await;
    }
}

/// As [`run_logged`] on SQLite.
pub(crate) async fn run_logged_on_sqlite(name: &str, test: impl AsyncFnOnce(&Site, &Log)) {
    if let Some(log) = alone(name, "").await {
        run_on_sqlite(async |site| test(site, &log).await).await;
    }
}

/// What this process logs, if it runs the test `name` alone; otherwise starts one that does and waits for it.
async fn alone(name: &str, url: &str) -> Option<Log> {
    if child_role().is_some() {
        return Some(Log::install());
    }
    let output = child(name, "logged", url).output().await.expect("run");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success() && text[0].contains("1 passed"), "{}", text.concat());
    None
}

/// Lets all that this process logs go through a watch for the secret of the suite's messages. SeaORM's spans of
/// level trace are left to the tests that log everything: they slow each statement down.
pub(crate) fn watch_log() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter("trace,sea_orm=debug")
            .with_span_events(FmtSpan::NEW | FmtSpan::CLOSE)
            .with_writer(|| Sentinel)
            .finish();
        // a process that keeps its log to look into has a subscriber already
        let _ = tracing::subscriber::set_global_default(subscriber);
    });
}

/// Everything that this process logs.
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn install() -> Self {
        let text = Arc::default();
        let writer = Arc::clone(&text);
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(FmtSpan::NEW | FmtSpan::CLOSE)
            .with_ansi(false)
            .with_writer(move || LogWriter(Arc::clone(&writer)))
            .finish();
        tracing::subscriber::set_global_default(subscriber).expect("the first one");
        Self(text)
    }

    /// What was logged since this was called before.
    pub(crate) fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.0.lock().expect("not poisoned"));
        String::from_utf8(bytes).expect("text")
    }
}

struct LogWriter(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}
