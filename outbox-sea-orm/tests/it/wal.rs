//! Groups of a log that are fed from the WAL: the suite on one, and what only they have.

mod crashes;
mod delivery;
mod dispatched;
mod failover;
mod faults;
mod restored;
mod slot;
mod switch;
mod tls;

use std::sync::OnceLock;
use std::time::Duration;

use outbox_core::{
    ClaimRequest, Claimed, Draft, MessageId, Outcome, Repository, Settled, Settlement, TableName,
};
use outbox_sea_orm::{LogGroup, OutboxLog, Subscription, WalFeed};
use outbox_testkit::server::{Server, Settings, private};
use outbox_testkit::{Capabilities, Corruption, Harness, OperationsHarness, Skip};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement, TryGetable,
};
use uuid::Uuid;

const LEASE: Duration = Duration::from_secs(3600);
/// How long anything may take that should be there in a moment.
const PATIENCE: Duration = Duration::from_secs(20);
/// The first version that has feeds.
const MIN_VERSION: i32 = 140_000;

/// A log with one group that is fed, in a schema of its own on a server with many slots.
pub(crate) struct Fed {
    db: DatabaseConnection,
    log: OutboxLog,
    group: LogGroup,
    schema: String,
    url: String,
}

/// A server for these tests alone: each of them makes a slot, for which the server waits until whoever writes has ended.
async fn server() -> Result<&'static Server, Skip> {
    static SERVER: OnceLock<Server> = OnceLock::new();
    static STARTING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _starting = STARTING.lock().await;
    if let Some(server) = SERVER.get() {
        return Ok(server);
    }
    let settings = Settings::for_tests().with("max_replication_slots", "200").with("max_wal_senders", "200");
    let server = private(settings).await?;
    Ok(SERVER.get_or_init(|| server))
}

/// Skips on a server whose slots do not send rows in binary.
async fn require_feeds(db: &DatabaseConnection) -> Result<(), Skip> {
    match version(db).await {
        ..MIN_VERSION => Err(Skip::new("a feed needs PostgreSQL 14")),
        _ => Ok(()),
    }
}

async fn version(db: &DatabaseConnection) -> i32 {
    crate::support::value(db, "SELECT current_setting('server_version_num')::integer").await
}

/// A log that is read by number, on a server of its own for the test of this name; skips loudly where there is none that has feeds.
async fn on_own_server(test: &str, settings: Settings) -> Option<(Server, Fed)> {
    let server = private(settings).await.ok()?;
    let fed = Fed::polled(server.url()).await;
    let skip = require_feeds(&fed.db).await.err();
    skip.inspect(|skip| skip.report(Fed::NAME, test)).map_or(Some((server, fed)), |_| None)
}

impl Fed {
    /// With a log that is read by number.
    async fn polled(url: &str) -> Self {
        Self::at(url, &format!("t_{}", Uuid::new_v4().simple())).await
    }

    async fn at(url: &str, schema: &str) -> Self {
        let fed = Self::open(url, schema).await;
        fed.log.migrate().await.expect("migrate");
        fed.log.register(Subscription::new("billing")).await.expect("register");
        fed
    }

    /// Of a log and a group that are there already.
    async fn open(url: &str, schema: &str) -> Self {
        let mut options = ConnectOptions::new(url);
        options.max_connections(12).sqlx_logging(false);
        let db = Database::connect(options).await.expect("connect");
        let log = OutboxLog::new(&db, TableName::parse(&format!("{schema}.log")).expect("name"));
        let group = log.group("billing").expect("name").with_feed(WalFeed::new());
        Self { db, log, group, schema: schema.to_owned(), url: url.to_owned() }
    }

    async fn start_feed(&self) {
        self.group.start_feed().await.expect("start the feed");
    }

    /// Another handle with what another process would know.
    fn another(&self) -> LogGroup {
        self.log.group("billing").expect("name").with_feed(WalFeed::new())
    }

    async fn execute(&self, sql: &str) {
        self.db.execute_unprepared(sql).await.expect("execute");
    }

    async fn value<T: TryGetable>(&self, sql: &str) -> T {
        let row = self.db.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await;
        row.expect("query").expect("a row").try_get_by_index(0).expect("a value")
    }

    /// A column of the group's row.
    async fn of_group<T: TryGetable>(&self, column: &str) -> T {
        self.value(&format!("SELECT {column} FROM {}.log_groups WHERE name = 'billing'", self.schema)).await
    }

    async fn count(&self, table: &str) -> i64 {
        self.value(&format!("SELECT count(*) FROM {}.{table}", self.schema)).await
    }

    /// A column of the group's slot.
    async fn of_slot<T: TryGetable>(&self, column: &str) -> T {
        let slot: String = self.of_group("slot").await;
        self.value(&format!("SELECT {column} FROM pg_replication_slots WHERE slot_name = '{slot}'")).await
    }

    async fn enqueue(&self, drafts: impl IntoIterator<Item = Draft>) -> Vec<MessageId> {
        self.log.enqueue_autocommit(drafts.into_iter().collect::<Vec<_>>()).await.expect("enqueue")
    }
}

fn on(topic: &str) -> Draft {
    Draft::new(topic, "x")
}

async fn claim(group: &LogGroup, limit: usize) -> Vec<Claimed> {
    group.claim(ClaimRequest::new(limit, LEASE)).await.expect("claim").messages
}

/// Claims until there is something.
async fn claim_some(group: &LogGroup, limit: usize) -> Vec<Claimed> {
    eventually("something is claimed", async || {
        let claimed = claim(group, limit).await;
        (!claimed.is_empty()).then_some(claimed)
    })
    .await
}

async fn settle(group: &LogGroup, claimed: &[Claimed], outcome: Outcome) {
    let call = claimed.iter().map(|claimed| Settlement::new(claimed.lease, outcome.clone())).collect();
    let settled = group.settle(call).await.expect("settle");
    assert!(settled.iter().all(|settled| *settled == Settled::Applied), "{settled:?}");
}

/// Delivers until so many are.
async fn deliver(group: &LogGroup, n: usize) -> Vec<MessageId> {
    let mut ids = Vec::new();
    while ids.len() < n {
        let claimed = claim_some(group, 1_000).await;
        settle(group, &claimed, Outcome::Done).await;
        ids.extend(claimed.iter().map(|claimed| claimed.message.id));
    }
    ids
}

/// Nothing comes for a while.
async fn assert_empty(group: &LogGroup) {
    for _ in 0..10 {
        let claimed = claim(group, 10).await;
        assert!(claimed.is_empty(), "{claimed:?}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = std::time::Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Harness for Fed {
    // another than that of the database: on an old one there is nothing to test, whatever is required
    const NAME: &'static str = "fed";
    type Repository = LogGroup;

    async fn start() -> Result<Self, Skip> {
        let fed = Self::polled(server().await?.url()).await;
        require_feeds(&fed.db).await?;
        fed.start_feed().await;
        Ok(fed)
    }

    fn repository(&self) -> &LogGroup {
        &self.group
    }

    async fn advance(&self, by: Duration) {
        let (schema, by) = (&self.schema, format!("interval '{} microseconds'", by.as_micros()));
        self.execute(&format!(
            "UPDATE {schema}.log SET created_at = created_at - {by}, available_at = available_at - {by}"
        ))
        .await;
        self.execute(&format!("UPDATE {schema}.log_ranges SET leased_until = leased_until - {by}")).await;
        let columns = ["created_at", "available_at", "leased_until", "dead_at", "done_at"];
        let set: Vec<String> = columns.iter().map(|column| format!("{column} = {column} - {by}")).collect();
        self.execute(&format!("UPDATE {schema}.log_group_billing SET {}", set.join(", "))).await;
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all()
            .with_exact_order(false)
            .with_dedup_keys(false)
            .with_unique_ids(false)
            .with_corrupt_rows(false)
            .with_moved_enqueues(false)
    }

    /// What the WAL has said cannot be changed.
    async fn corrupt(&self, _: MessageId, _: Corruption) -> bool {
        false
    }

    async fn finish(self) {
        let Self { db, log, group, schema, .. } = self;
        // nobody reads the slot any more
        drop(group);
        assert!(log.unregister("billing").await.expect("unregister"), "the group was there");
        db.execute_unprepared(&format!("DROP SCHEMA {schema} CASCADE")).await.expect("drop");
    }
}

impl OperationsHarness for Fed {
    type Operations = LogGroup;

    fn operations(&self) -> &LogGroup {
        &self.group
    }
}

mod suite {
    use super::Fed;

    outbox_testkit::conformance!(Fed: repository, operations);
}

/// Runs a test on a log of its own; skips loudly without a server.
macro_rules! on_a_feed {
    ($module:literal: $(async fn $name:ident($fed:ident: &Fed) $body:block)+) => {
        $(
            #[test]
            fn $name() {
                async fn case($fed: &super::Fed) $body
                outbox_testkit::Case::<super::Fed>::new(
                    concat!("wal::", $module, "::", stringify!($name)),
                    |fed| Box::pin(case(fed)),
                )
                .run();
            }
        )+
    };
}
use on_a_feed;
