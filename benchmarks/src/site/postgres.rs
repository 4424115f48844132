//! The server: `OUTBOX_BENCH_POSTGRES_URL`, which must belong to the benchmark alone, or a private one.

use std::env;
use std::time::Duration;

use outbox_testkit::server::{Engine, Server, Settings};
use sea_orm::sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sea_orm::sqlx::{
    AssertSqlSafe, ConnectOptions as _, PgConnection, Row as _, query, query_scalar, raw_sql,
};
use serde_json::{Value, json};

use super::Counters;
use crate::error::Result;
use crate::proc;
use crate::report::rounded;

const URL: &str = "OUTBOX_BENCH_POSTGRES_URL";
/// The database in which everything is measured.
pub(crate) const BENCH: &str = "outbox_bench";
/// A database of somebody else's.
pub(crate) const FOREIGN: &str = "outbox_bench_foreign";

/// A database whose sessions tell their plans.
pub(crate) const PLANS: &str = "outbox_bench_plans";

/// A server and a connection beside the measured ones, in another database, so that it is not counted.
#[derive(Debug)]
pub(crate) struct PostgresSite {
    options: PgConnectOptions,
    admin: PgPool,
    postmaster: Option<u32>,
    has_statements: bool,
    _server: Option<Server>,
}

impl PostgresSite {
    pub(crate) async fn open() -> Result<Self> {
        let (url, server) = find().await?;
        Self::at(&url, server).await
    }

    /// A private server that can feed groups from its WAL, with which it writes more.
    pub(crate) async fn open_logical() -> Result<Self> {
        let server = Server::local(settings("logical")).await?;
        let url = server.url().to_owned();
        Self::at(&url, Some(server)).await
    }

    async fn at(url: &str, server: Option<Server>) -> Result<Self> {
        let options: PgConnectOptions = url.parse()?;
        let admin = PgPoolOptions::new().max_connections(2).connect_with(options.clone()).await?;
        recreate_databases(&admin).await?;
        let has_statements = raw_sql(
            "CREATE EXTENSION IF NOT EXISTS pg_stat_statements; SELECT * FROM pg_stat_statements_info",
        )
        .execute(&admin)
        .await
        .inspect_err(|error| eprintln!("no pg_stat_statements, statements are not counted: {error}"))
        .is_ok();
        let postmaster = postmaster(&admin).await;
        Ok(Self { options, admin, postmaster, has_statements, _server: server })
    }

    /// The connection beside the measured ones.
    pub(crate) fn admin(&self) -> &PgPool {
        &self.admin
    }

    pub(crate) fn postmaster(&self) -> Option<u32> {
        self.postmaster
    }

    /// How to connect to one of the benchmark's databases.
    pub(crate) fn options(&self, database: &str) -> PgConnectOptions {
        self.options.clone().database(database)
    }

    /// The same as a URL. Holds a password.
    pub(crate) fn url(&self, database: &str) -> String {
        self.options(database).to_url_lossy().to_string()
    }

    /// One connection with the settings that the user of a plain connection has.
    pub(crate) async fn connect(&self, database: &str) -> Result<PgConnection> {
        Ok(self.options(database).connect().await?)
    }

    pub(crate) async fn checkpoint(&self) -> Result<()> {
        query("CHECKPOINT").execute(&self.admin).await?;
        Ok(())
    }

    /// Statements of the benchmark's database, WAL of the cluster.
    pub(crate) async fn counters(&self) -> Result<Counters> {
        let wal_bytes: i64 = query_scalar("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
            .fetch_one(&self.admin)
            .await?;
        let statements = if self.has_statements { self.statements(BENCH).await? } else { 0 };
        Ok(Counters { statements, wal_bytes: wal_bytes.cast_unsigned() })
    }

    /// Statements that have been executed in a database.
    pub(crate) async fn statements(&self, database: &str) -> Result<u64> {
        let calls: i64 = query_scalar(
            "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements(false) s
               JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = $1",
        )
        .bind(database)
        .fetch_one(&self.admin)
        .await?;
        Ok(calls.cast_unsigned())
    }

    /// The statements of a database since [`Self::forget_statements`], those that took longest in all first.
    pub(crate) async fn executed(&self, database: &str) -> Result<Vec<Executed>> {
        let rows = query(
            "SELECT query, sum(calls)::bigint, sum(total_exec_time), min(min_exec_time) FROM pg_stat_statements s
               JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = $1 GROUP BY query ORDER BY 3 DESC",
        )
        .bind(database)
        .fetch_all(&self.admin)
        .await?;
        Ok(rows.iter().map(Executed::decode).collect())
    }

    /// Those of other databases stay: an idle dispatcher is being counted there.
    pub(crate) async fn forget_statements(&self, database: &str) -> Result<()> {
        let forget = "SELECT pg_stat_statements_reset(0, oid, 0) FROM pg_database WHERE datname = $1";
        query(forget).bind(database).execute(&self.admin).await?;
        Ok(())
    }

    /// Turns full-page images on or off; they depend on when the last checkpoint was, not on the statements.
    pub(crate) async fn full_page_writes(&self, on: bool) -> Result<()> {
        self.set("full_page_writes", if on { "on" } else { "off" }).await
    }

    /// Makes commits that wait for the disk wait this much longer.
    pub(crate) async fn commit_delay(&self, delay: Duration) -> Result<()> {
        self.set("commit_siblings", if delay.is_zero() { "5" } else { "0" }).await?;
        self.set("commit_delay", &delay.as_micros().to_string()).await
    }

    async fn set(&self, name: &str, value: &str) -> Result<()> {
        let alter = format!("ALTER SYSTEM SET {name} = {value}");
        query(AssertSqlSafe(alter)).execute(&self.admin).await?;
        query("SELECT pg_reload_conf()").execute(&self.admin).await?;
        self.wait_for_setting(name, value).await
    }

    async fn wait_for_setting(&self, name: &str, value: &str) -> Result<()> {
        for _ in 0..100 {
            let mut fresh = self.connect(BENCH).await?;
            let now: String =
                query_scalar("SELECT current_setting($1)").bind(name).fetch_one(&mut fresh).await?;
            if now == value {
                // the checkpointer, not a session, tells everybody about it
                return self.checkpoint().await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(format!("{name} did not become {value}").into())
    }

    /// What decides the figures besides the code.
    pub(crate) async fn settings(&self) -> Result<Value> {
        let rows = query(
            "SELECT name, setting FROM pg_settings WHERE name = ANY ('{server_version,shared_buffers,fsync,
               synchronous_commit,wal_level,max_wal_size,autovacuum,full_page_writes,jit,max_connections}')",
        )
        .fetch_all(&self.admin)
        .await?;
        let pairs = rows.iter().map(|row| (row.get::<String, _>(0), json!(row.get::<String, _>(1))));
        Ok(Value::Object(pairs.collect()))
    }
}

/// One statement and how often and how long it was executed.
#[derive(Clone, Debug)]
pub(crate) struct Executed {
    pub(crate) text: String,
    pub(crate) calls: u64,
    total_ms: f64,
    min_ms: f64,
}

impl Executed {
    fn decode(row: &PgRow) -> Self {
        let calls: i64 = row.get(1);
        Self { text: row.get(0), calls: calls.cast_unsigned(), total_ms: row.get(2), min_ms: row.get(3) }
    }

    /// The first words of the statement, behind its comments.
    pub(crate) fn head(&self) -> String {
        head(&self.text)
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "statement": self.head(), "calls": self.calls, "min_ms": rounded(self.min_ms),
            "mean_ms": rounded(self.total_ms / self.calls as f64),
        })
    }
}

/// The first words of a statement, behind its comments.
pub(crate) fn head(text: &str) -> String {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("--"));
    code.flat_map(str::split_whitespace).take(10).collect::<Vec<_>>().join(" ")
}

async fn find() -> Result<(String, Option<Server>)> {
    if let Ok(url) = env::var(URL) {
        return Ok((url, None));
    }
    let server = Server::local(settings("replica")).await?;
    Ok((server.url().to_owned(), Some(server)))
}

/// As durable as a server in use. Its log is in a file that it can read itself: the plans are taken from there.
fn settings(wal_level: &str) -> Settings {
    Settings::new(Engine::Postgres)
        .with("fsync", "on")
        .with("synchronous_commit", "on")
        .with("wal_level", wal_level)
        .with("shared_buffers", "1GB")
        .with("max_wal_size", "4GB")
        .with("max_connections", "100")
        .with("logging_collector", "on")
        .with("shared_preload_libraries", "pg_stat_statements")
}

async fn recreate_databases(admin: &PgPool) -> Result<()> {
    for name in [BENCH, FOREIGN, PLANS] {
        let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        query(AssertSqlSafe(drop)).execute(admin).await?;
        query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(admin).await?;
    }
    Ok(())
}

async fn postmaster(admin: &PgPool) -> Option<u32> {
    let line = "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)";
    let pid: String = query_scalar(line).fetch_one(admin).await.ok()?;
    pid.parse().ok().filter(|&pid| proc::is_postgres(pid))
}
