//! The server: `OUTBOX_BENCH_MYSQL_URL`, which must belong to the benchmark alone, or a private one.

use std::{env, fs};

use outbox_testkit::server::{Engine, Server, Settings};
use sea_orm::sqlx::mysql::{MySqlConnectOptions, MySqlPool, MySqlPoolOptions};
use sea_orm::sqlx::{AssertSqlSafe, ConnectOptions as _, query, query_as, query_scalar};
use serde_json::{Value, json};

use super::{BENCH, Counters};
use crate::error::Result;

const URL: &str = "OUTBOX_BENCH_MYSQL_URL";

/// A MySQL or MariaDB and a connection beside the measured ones.
#[derive(Debug)]
pub(crate) struct MySqlSite {
    options: MySqlConnectOptions,
    admin: MySqlPool,
    process: Option<u32>,
    _server: Option<Server>,
}

impl MySqlSite {
    pub(crate) async fn open() -> Result<Self> {
        let (url, server) = match env::var(URL) {
            Ok(url) => (url, None),
            Err(_) => {
                let server = Server::local(settings()).await?;
                (server.url().to_owned(), Some(server))
            }
        };
        let options: MySqlConnectOptions = url.parse()?;
        let admin = MySqlPoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        for sql in [format!("DROP DATABASE IF EXISTS {BENCH}"), format!("CREATE DATABASE {BENCH}")] {
            query(AssertSqlSafe(sql)).execute(&admin).await?;
        }
        let process = if server.is_some() { process(&admin).await } else { None };
        Ok(Self { options, admin, process, _server: server })
    }

    /// How to connect to the benchmark's database.
    pub(crate) fn options(&self) -> MySqlConnectOptions {
        self.options.clone().database(BENCH)
    }

    /// The same as a URL. Holds a password.
    pub(crate) fn url(&self) -> String {
        self.options().to_url_lossy().to_string()
    }

    /// The server's process, where it is on this machine.
    pub(crate) fn process(&self) -> Option<u32> {
        self.process
    }

    /// Statements that clients have sent, and bytes of the redo log, of the whole server.
    pub(crate) async fn counters(&self) -> Result<Counters> {
        Ok(Counters {
            statements: self.status("Questions").await?,
            wal_bytes: self.status("Innodb_os_log_written").await?,
        })
    }

    async fn status(&self, name: &'static str) -> Result<u64> {
        let show = AssertSqlSafe(format!("SHOW GLOBAL STATUS LIKE '{name}'"));
        let (_, value): (String, String) = query_as(show).fetch_one(&self.admin).await?;
        Ok(value.parse()?)
    }

    /// What decides the figures besides the code.
    pub(crate) async fn settings(&self) -> Result<Value> {
        let names = ["version", "innodb_buffer_pool_size", "innodb_flush_log_at_trx_commit", "log_bin"];
        let mut settings = serde_json::Map::new();
        for name in names {
            let read = AssertSqlSafe(format!("SELECT CAST(@@{name} AS CHAR)"));
            let value: String = query_scalar(read).fetch_one(&self.admin).await?;
            settings.insert(name.to_owned(), json!(value));
        }
        Ok(Value::Object(settings))
    }
}

/// As durable as a server in use, with room for what is measured.
fn settings() -> Settings {
    Settings::new(Engine::MySql)
        .with("innodb_flush_log_at_trx_commit", "1")
        .with("innodb_buffer_pool_size", "512M")
        .with("innodb_log_file_size", "512M")
        .with("max_connections", "100")
}

async fn process(admin: &MySqlPool) -> Option<u32> {
    let file: String = query_scalar("SELECT @@pid_file").fetch_one(admin).await.ok()?;
    fs::read_to_string(file).ok()?.trim().parse().ok()
}
