//! Through a PgBouncer that pools transactions: producers as they are, dispatchers with a shared pool.

mod process;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::join_all;
use outbox_core::{
    ClaimRequest, Draft, ErrorKind, Listener, MessageId, Operations, Repository, Severity, Symptom,
};
use outbox_dispatcher::{CancellationToken, Dispatcher, Event, Message, Observer, Router};
use outbox_sea_orm::{OutboxLog, OutboxTable, ProcessedTable, Subscription, transactor};
use outbox_testkit::server::required;
use outbox_testkit::{Capabilities, Corruption, Harness, OperationsHarness, ProcessedHarness, Skip};
use sea_orm::DatabaseConnection;

use crate::doctor::{PATIENCE, doctor, only};
use crate::harness::Postgres;
use crate::support::{Site, eventually};
use crate::wakeup::{expect_hint, fall_asleep, sleeper};
use process::{AS_DOCUMENTED, FORGETFUL, Options, Pooler};

/// The tables of one schema, reached through the pooler.
struct Pooled {
    direct: Postgres,
    outbox: OutboxTable,
    inbox: ProcessedTable,
    _pooler: Pooler,
}

impl Harness for Pooled {
    const NAME: &'static str = "pgbouncer";
    type Repository = OutboxTable;

    async fn start() -> Result<Self, Skip> {
        let pooler = Pooler::start(&AS_DOCUMENTED).await?;
        let direct = Postgres::start().await?;
        let db = pooler.connect().await;
        let outbox = OutboxTable::new(&db, direct.name("outbox")).with_shared_pool();
        let inbox = ProcessedTable::new(&db, direct.name("inbox"));
        Ok(Self { direct, outbox, inbox, _pooler: pooler })
    }

    fn repository(&self) -> &OutboxTable {
        &self.outbox
    }

    async fn advance(&self, by: Duration) {
        self.direct.advance(by).await;
    }

    fn capabilities(&self) -> Capabilities {
        self.direct.capabilities().with_hints(false)
    }

    async fn corrupt(&self, id: MessageId, corruption: Corruption) -> bool {
        self.direct.corrupt(id, corruption).await
    }

    async fn finish(self) {
        self.direct.finish().await;
    }
}

impl OperationsHarness for Pooled {
    type Operations = OutboxTable;

    fn operations(&self) -> &OutboxTable {
        &self.outbox
    }
}

impl ProcessedHarness for Pooled {
    type Processed = ProcessedTable;

    fn processed(&self) -> &ProcessedTable {
        &self.inbox
    }
}

mod suite {
    use super::Pooled;

    outbox_testkit::conformance!(Pooled: repository, operations, processed);
}

/// Runs a test with a pool behind a pooler that is started so, or skips it loudly.
async fn run_behind(options: &Options, test: impl AsyncFnOnce(&Site, &DatabaseConnection)) {
    let pooler = match Pooler::start(options).await {
        Ok(pooler) => pooler,
        Err(skip) => {
            assert!(!required(Pooled::NAME), "PgBouncer is required: {skip}");
            return eprintln!("skipped: {skip}");
        }
    };
    let Some(site) = Site::postgres().await else { return };
    let db = pooler.connect().await;
    test(&site, &db).await;
    site.finish().await;
}

/// What keeps processes apart that make a table at once is a lock of their transactions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_made_through_a_pooler() {
    run_behind(&AS_DOCUMENTED, async |site, db| {
        let table = OutboxTable::new(db, site.name("another"));
        for made in join_all((0..8).map(|_| table.migrate())).await {
            made.expect("migrate");
        }
        table.check().await.expect("check");
    })
    .await;
}

/// The trigger gives its locks back within its statement: the producer's session may be another's afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_behind_a_pooler_wakes_a_dispatcher_that_is_not() {
    run_behind(&AS_DOCUMENTED, async |site, db| {
        let producer = OutboxTable::new(db, site.name("outbox"));
        let mut listener = sleeper(site).await;
        for _ in 0..50 {
            let stored = transactor(db).run(async |cx| producer.enqueue(cx, Draft::new("t", "")).await).await;
            expect_hint(&mut listener).await;
            assert_eq!(site.drain().await, stored.expect("enqueue"));
            listener.stand_down().await.expect("stand down");
            fall_asleep(&mut listener).await;
        }
        drop(listener);
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        eventually("no lock stays", async || site.value::<i64>(locks).await == 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispatcher_with_a_shared_pool_delivers_through_a_pooler() {
    run_behind(&AS_DOCUMENTED, async |site, db| {
        let outbox = OutboxTable::new(db, site.name("outbox")).with_shared_pool();
        site.enqueue("t", 500).await;
        let router = Router::new().on("t", async |_: Message| Ok(()));
        let report = Dispatcher::new(outbox, router).drain_once().await.expect("drain");
        assert_eq!((report.n_done, report.n_lease_lost), (500, 0));
    })
    .await;
}

/// One that does not know of the pooler, which takes what a session is told at its start and forgets it. It must not
/// listen: the notifications would reach whoever has the session next, and make its statements fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_behind_a_pooler_is_found_to_be_deaf_and_harms_nobody() {
    run_behind(&FORGETFUL, async |site, db| {
        let finding = only(doctor(site, db, PATIENCE).await, Symptom::Wakeup);
        assert_eq!(finding.severity, Severity::Warning);
        assert!(finding.advice.contains("with_shared_pool"), "{finding}");
        let _asleep = sleeper(site).await;
        let producer = OutboxTable::new(db, site.name("outbox"));
        for _ in 0..20 {
            producer.enqueue_autocommit(Draft::new("t", "")).await.expect("enqueue, which notifies");
        }
    })
    .await;
}

/// How often a dispatcher says that no hint arrives.
#[derive(Clone, Default)]
struct Deaf(Arc<AtomicUsize>);

impl Observer for Deaf {
    fn on(&self, event: &Event<'_>) {
        self.0.fetch_add(usize::from(matches!(event, Event::WakeupDeaf)), Relaxed);
    }
}

/// It says that it is deaf, once, and polls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispatcher_that_does_not_know_of_the_pooler_polls() {
    run_behind(&FORGETFUL, async |site, db| {
        let (deaf, n_delivered) = (Deaf::default(), Arc::new(AtomicUsize::new(0)));
        let delivered = Arc::clone(&n_delivered);
        let router = Router::new().on("t", async move |_: Message| {
            delivered.fetch_add(1, Relaxed);
            Ok(())
        });
        let outbox = OutboxTable::new(db, site.name("outbox"));
        let token = CancellationToken::new();
        let dispatcher = Dispatcher::new(outbox, router).with_observer(deaf.clone());
        let running = tokio::spawn(dispatcher.run(token.clone()));
        eventually("it says so", async || deaf.0.load(Relaxed) == 1).await;
        site.enqueue("t", 3).await;
        eventually("they are delivered", async || n_delivered.load(Relaxed) == 3).await;
        token.cancel();
        let report = running.await.expect("no panic").expect("report");
        assert_eq!((report.n_done, deaf.0.load(Relaxed)), (3, 1));
    })
    .await;
}

/// The same behind one that refuses such sessions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispatcher_that_a_pooler_refuses_is_found() {
    run_behind(&AS_DOCUMENTED, async |site, db| {
        let finding = only(doctor(site, db, PATIENCE).await, Symptom::Connections);
        assert_eq!(finding.severity, Severity::Critical);
        assert!(finding.advice.contains("with_shared_pool"), "{finding}");
        let shared = OutboxTable::new(db, site.name("outbox")).with_shared_pool();
        assert_eq!(shared.doctor(PATIENCE).await.expect("doctor"), []);
    })
    .await;
}

/// Statements are prepared: behind a pooler that hands sessions on without knowing what is prepared there, calls fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_without_prepared_statements_makes_calls_fail() {
    let unaware = Options { n_prepared: 0, n_sessions: 1, ..AS_DOCUMENTED };
    run_behind(&unaware, async |site, db| {
        let outbox = OutboxTable::new(db, site.name("outbox")).with_shared_pool();
        let calls = join_all((0..50).map(|_| outbox.enqueue_autocommit(Draft::new("t", "")))).await;
        let n_stored = calls.iter().filter(|call| call.is_ok()).count();
        let errors: Vec<String> =
            calls.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
        assert!(errors.iter().any(|error| error.contains("max_prepared_statements")), "{errors:?}");
        assert_eq!(site.drain().await.len(), n_stored);
    })
    .await;
}

/// A group of a log knows sessions by their processes; where its role may not see those, by a setting that a pooler must not reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_a_log_fail_where_nothing_tells_sessions_apart() {
    // any role that is nobody's
    const BLIND: &str = "pg_signal_backend";
    const BLINDS: &str = "RESET ALL; SET ROLE pg_signal_backend";
    for (reset, is_refused) in [("", false), ("RESET ALL", false), (BLINDS, true)] {
        let pooler = Options { reset, ..AS_DOCUMENTED };
        run_behind(&pooler, async |site, db| {
            let log = OutboxLog::new(&site.db, site.name("log"));
            log.migrate().await.expect("migrate");
            log.register(Subscription::new("g")).await.expect("register");
            log.enqueue_autocommit(Draft::new("t", "")).await.expect("enqueue");
            let schema = site.schema();
            site.execute(&format!(
                "GRANT USAGE ON SCHEMA {schema} TO {BLIND}; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {BLIND};
                 GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {BLIND}"
            ))
            .await;
            let group = OutboxLog::new(db, site.name("log")).with_shared_pool().group("g").expect("a name");
            let claimed = group.claim(ClaimRequest::new(1, PATIENCE)).await;
            let kind = claimed.map(|claim| claim.messages.len()).map_err(|error| error.kind());
            assert_eq!(kind, if is_refused { Err(ErrorKind::Unsupported) } else { Ok(1) });
        })
        .await;
    }
}
