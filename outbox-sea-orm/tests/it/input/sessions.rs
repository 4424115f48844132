//! A database whose transactions are stricter by default than PostgreSQL's own default.

use std::collections::BTreeSet;
use std::sync::Mutex;

use futures_util::future::{join, join_all};
use outbox_core::{
    Claim, ClaimRequest, Claimed, Claimer, Draft, Error, ErrorKind, Mark, Marked, Outcome, ProcessedStore,
    Repository, Result, Settled, Settlement, TableName,
};
use outbox_sea_orm::{OutboxTable, ProcessedTable, transactor};
use sea_orm::DatabaseConnection;
use tokio::time::timeout;
use uuid::Uuid;

use crate::support::{LEASE, OwnDatabase, PATIENCE};

const N_PRODUCERS: usize = 4;
const N_EACH: usize = 50;
const N_CLAIMERS: usize = 4;

/// Repeats what may be repeated; anything else is a failure of the test.
async fn persist<T>(mut call: impl AsyncFnMut() -> Result<T>) -> T {
    loop {
        match call().await {
            Ok(value) => return value,
            Err(error) => assert!(error.is_retryable() && is_expected(&error), "{error:?}"),
        }
    }
}

fn is_expected(error: &Error) -> bool {
    error.kind() == ErrorKind::Contention
}

struct Traffic {
    db: DatabaseConnection,
    outbox: OutboxTable,
    delivered: Mutex<Vec<Uuid>>,
}

impl Traffic {
    async fn produce(&self) -> Vec<Uuid> {
        let mut ids = Vec::new();
        for _ in 0..N_EACH {
            let tx = transactor(&self.db);
            let stored = persist(async || {
                tx.run(async |cx| self.outbox.enqueue(cx, [Draft::new("t", ""), Draft::new("t", "")]).await)
                    .await
            });
            ids.extend(stored.await);
        }
        ids
    }

    async fn consume(&self) {
        let claimer = Claimer::new();
        while self.delivered.lock().expect("lock").len() < 2 * N_PRODUCERS * N_EACH {
            let request = || ClaimRequest::new(7, LEASE).with_claimer(claimer.clone());
            let claim = persist(async || self.outbox.claim(request()).await).await;
            let settled = persist(async || self.outbox.settle(done(&claim)).await).await;
            assert!(settled.iter().all(|settled| *settled == Settled::Applied));
            self.delivered
                .lock()
                .expect("lock")
                .extend(claim.messages.iter().map(|claimed| claimed.message.id));
            tokio::task::yield_now().await;
        }
    }
}

fn done(claim: &Claim) -> Vec<Settlement> {
    let done = |claimed: &Claimed| Settlement::new(claimed.lease, Outcome::Done);
    claim.messages.iter().map(done).collect()
}

async fn traffic_flows(db: &DatabaseConnection) {
    let outbox = OutboxTable::new(db, TableName::parse("outbox").expect("name"));
    outbox.migrate().await.expect("migrate");
    let traffic = Traffic { db: db.clone(), outbox, delivered: Mutex::default() };
    let producers = join_all((0..N_PRODUCERS).map(|_| traffic.produce()));
    let consumers = join_all((0..N_CLAIMERS).map(|_| traffic.consume()));
    let (ids, _) = timeout(3 * PATIENCE, join(producers, consumers)).await.expect("stuck");
    let ids: BTreeSet<Uuid> = ids.into_iter().flatten().collect();
    let delivered = traffic.delivered.into_inner().expect("lock");
    assert_eq!(delivered.len(), ids.len(), "each is delivered once");
    assert_eq!(delivered.into_iter().collect::<BTreeSet<_>>(), ids);
}

async fn one_of_many_is_first(db: &DatabaseConnection) {
    let inbox = ProcessedTable::new(db, TableName::parse("inbox").expect("name"));
    inbox.migrate().await.expect("migrate");
    for _ in 0..10 {
        let id = Uuid::now_v7();
        let tx = transactor(db);
        let mark = || async {
            persist(async || tx.run(async |cx| inbox.mark_processed(cx, Mark::new("g", id)).await).await)
                .await
        };
        let marked = timeout(PATIENCE, join_all((0..4).map(|_| mark()))).await.expect("stuck");
        assert_eq!(marked.iter().filter(|marked| **marked == Marked::First).count(), 1, "{marked:?}");
    }
}

async fn all_get_the_first_id(db: &DatabaseConnection) {
    let outbox = OutboxTable::new(db, TableName::parse("outbox").expect("name"));
    for round in 0..10 {
        let tx = transactor(db);
        let enqueue = || async {
            let keyed = || Draft::new("t", "").dedup_key(round);
            persist(async || tx.run(async |cx| outbox.enqueue(cx, keyed()).await).await).await
        };
        let ids = timeout(PATIENCE, join_all((0..4).map(|_| enqueue()))).await.expect("stuck");
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }
    let claim = outbox.claim(ClaimRequest::new(100, LEASE)).await.expect("claim");
    assert_eq!(claim.messages.len(), 10);
}

async fn in_a_database_with(isolation: &str) {
    let Some(database) = OwnDatabase::create().await else { return };
    let name = database.name();
    database
        .administer(&format!("ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'"))
        .await;
    let db = database.connect(&[]).await;
    let set: String = crate::support::value(&db, "SHOW transaction_isolation").await;
    assert_eq!(set, isolation);
    traffic_flows(&db).await;
    one_of_many_is_first(&db).await;
    all_get_the_first_id(&db).await;
    drop(db);
    database.drop().await;
}

/// The server's default is REPEATABLE READ; our own connections and the transactor's transactions are not.
async fn many_at_once_get_contention_at_worst(site: &crate::support::Site) {
    traffic_flows(&site.db).await;
    one_of_many_is_first(&site.db).await;
}

crate::support::on_mysql! { many_at_once_get_contention_at_worst }

mod postgres {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn repeatable_read_by_default_gives_contention_at_worst() {
        super::in_a_database_with("repeatable read").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn serializable_by_default_gives_contention_at_worst() {
        super::in_a_database_with("serializable").await;
    }
}
