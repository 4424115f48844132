//! A primary and its standby, from local binaries.

use std::net::{SocketAddr, ToSocketAddrs};

use outbox_core::{Declaration, TableName};
use outbox_sea_orm::{LogGroup, OutboxLog, Start, Subscription};
use outbox_testkit::proxy::Proxy;
use outbox_testkit::server::{Server, Settings, StopMode, required};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};

use crate::support::{eventually, proxied, value};

fn options(url: &str) -> ConnectOptions {
    let mut options = ConnectOptions::new(url);
    options.max_connections(8).sqlx_logging(false);
    options
}

async fn connect(url: &str) -> DatabaseConnection {
    Database::connect(options(url)).await.expect("connect")
}

fn address(url: &str) -> SocketAddr {
    let (_, place) = url.rsplit_once('@').expect("a user");
    let place = place.split('/').next().expect("a host");
    place.to_socket_addrs().expect("an address").next().expect("an address")
}

/// A primary, its standby, and a log that is reached by an address of which nobody knows which of them answers.
pub(crate) struct Pair {
    primary: Server,
    standby: Server,
    pub(crate) on_primary: DatabaseConnection,
    pub(crate) on_standby: DatabaseConnection,
    proxy: Proxy,
    url: String,
    pub(crate) db: DatabaseConnection,
    pub(crate) log: OutboxLog,
}

impl Pair {
    pub(crate) async fn start(declared: Declaration) -> Option<Self> {
        let primary = match Server::local(Settings::for_tests()).await {
            Ok(primary) => primary,
            Err(error) => {
                assert!(!required("local"), "a standby needs local binaries: {error}");
                eprintln!("skipped: {error}");
                return None;
            }
        };
        let standby = primary.standby().await.expect("a standby");
        let (on_primary, on_standby) = (connect(primary.url()).await, connect(standby.url()).await);
        let (proxy, url) = proxied(primary.url()).await;
        let db = connect(&url).await;
        let log = OutboxLog::new(&db, TableName::parse("l.log").expect("name")).declared(declared);
        log.migrate().await.expect("migrate");
        Some(Self { primary, standby, on_primary, on_standby, proxy, url, db, log })
    }

    /// Connects as a role that owns nothing, may use the tables of `schema`, and does not see its own sessions.
    pub(crate) async fn connect_blind(&self, schema: &str) -> DatabaseConnection {
        let sql = "CREATE ROLE blind; GRANT USAGE ON SCHEMA {0} TO blind;
                   GRANT ALL ON ALL TABLES IN SCHEMA {0} TO blind; GRANT ALL ON ALL SEQUENCES IN SCHEMA {0} TO blind";
        execute(&self.on_primary, &sql.replace("{0}", schema)).await;
        let mut options = options(&self.url);
        options.map_sqlx_postgres_opts(|options| options.options([("role", "blind")]));
        Database::connect(options).await.expect("connect")
    }

    pub(crate) async fn register(&self, name: &str) -> LogGroup {
        let subscription = Subscription::new(name).with_start(Start::Beginning);
        self.log.register(subscription).await.expect("register")
    }

    /// Returns when the standby has all that the primary has now.
    pub(crate) async fn catch_up(&self) {
        let written: String = value(&self.on_primary, "SELECT pg_current_wal_lsn()::text").await;
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn");
        eventually("the standby has it", async || value(&self.on_standby, &sql).await).await;
    }

    /// What is written from now on is lost with the primary.
    pub(crate) async fn cut_off(&self) {
        execute(&self.on_standby, "ALTER SYSTEM SET primary_conninfo = ''").await;
        execute(&self.on_standby, "SELECT pg_reload_conf()").await;
        let sql = "SELECT count(*) = 0 FROM pg_stat_wal_receiver";
        eventually("it receives nothing", async || value(&self.on_standby, sql).await).await;
    }

    pub(crate) async fn promote(&self, mode: StopMode) {
        self.primary.stop(mode).await.expect("stop");
        assert!(value::<bool>(&self.on_standby, "SELECT pg_promote()").await);
    }

    /// The address is that of the new server now.
    pub(crate) fn repoint(&self) {
        self.proxy.repoint(address(self.standby.url()));
        self.proxy.reset();
    }
}

async fn execute(db: &impl ConnectionTrait, sql: &str) {
    db.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}
