//! Producers against sleepers that never poll: a single lost wake-up stops the test.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::{join, join_all};
use outbox_core::{
    ClaimRequest, Claimer, Draft, Listener, Outcome, Readiness, Repository, Settlement, Wakeup,
};
use outbox_sea_orm::{OutboxTable, TableListener};
use sea_orm::{DatabaseConnection, TransactionTrait};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::support::{LEASE, PATIENCE, Pool, Site, on_postgres};

const N_PRODUCERS: usize = 8;
/// How many messages each producer commits in a round, one by one.
const N_EACH: usize = 2;
const N_ROUNDS: usize = 20_000 / (N_PRODUCERS * N_EACH);

/// Counts what is delivered.
#[derive(Default)]
struct Delivered {
    n: AtomicUsize,
    changed: Notify,
}

impl Delivered {
    fn add(&self, n: usize) {
        self.n.fetch_add(n, SeqCst);
        self.changed.notify_waiters();
    }

    async fn reached(&self, n: usize) {
        loop {
            let changed = self.changed.notified();
            if self.n.load(SeqCst) >= n {
                return;
            }
            changed.await;
        }
    }
}

/// A claim loop that sleeps by the rules and has no polling interval.
struct Loop {
    outbox: OutboxTable,
    listener: TableListener,
    claimer: Claimer,
    delivered: Arc<Delivered>,
}

impl Loop {
    async fn start(outbox: OutboxTable, delivered: Arc<Delivered>) -> Self {
        let listener = outbox.listen().await.expect("listen").expect("a listener");
        Self { outbox, listener, claimer: Claimer::new(), delivered }
    }

    async fn run(mut self) {
        loop {
            while self.deliver().await {
                self.listener.stand_down().await.expect("stand down");
            }
            match self.listener.prepare().await.expect("prepare") {
                Readiness::Look { after } => {
                    // a hint ends the wait; the timeout only means that there was none
                    let _ = timeout(after, self.listener.hint()).await;
                }
                Readiness::Sleep if self.deliver().await => {
                    self.listener.stand_down().await.expect("stand down");
                }
                Readiness::Sleep => self.listener.hint().await.expect("hint"),
            }
        }
    }

    async fn deliver(&self) -> bool {
        let request = ClaimRequest::new(100, LEASE).with_claimer(self.claimer.clone());
        let claim = self.outbox.claim(request).await.expect("claim");
        let done = |claimed: &outbox_core::Claimed| Settlement::new(claimed.lease, Outcome::Done);
        let settled = self.outbox.settle(claim.messages.iter().map(done).collect()).await.expect("settle");
        self.delivered.add(settled.len());
        !claim.is_empty()
    }
}

/// In each round every producer commits its messages at times of its own; the next round starts when all are
/// delivered. So the commits meet the sleepers everywhere on their way to sleep.
async fn lose_nothing(site: &Site, n_sleepers: usize) {
    let delivered = Arc::new(Delivered::default());
    let mut sleepers = JoinSet::new();
    for _ in 0..n_sleepers {
        sleepers.spawn(Loop::start(site.outbox.clone(), delivered.clone()).await.run());
    }
    let producers = site.connect(Pool::of(N_PRODUCERS as u32)).await;
    let outbox = OutboxTable::new(&producers, site.name("outbox"));
    for round in 1..=N_ROUNDS {
        let prompt = (1..N_PRODUCERS).map(|_| produce(&outbox));
        join(produce_late(&producers, &outbox), join_all(prompt)).await;
        let all = delivered.reached(round * N_PRODUCERS * N_EACH);
        let Ok(()) = timeout(PATIENCE, all).await else {
            panic!("a wake-up was lost in round {round}: {} are left", site.count("outbox").await);
        };
    }
    assert_eq!(delivered.n.load(SeqCst), N_ROUNDS * N_PRODUCERS * N_EACH, "each was delivered once");
    assert!(sleepers.try_join_next().is_none(), "a sleeper has ended");
}

async fn produce(outbox: &OutboxTable) {
    for _ in 0..N_EACH {
        pause(1_500).await;
        outbox.enqueue_autocommit([Draft::new("t", "")]).await.expect("enqueue");
    }
}

/// As [`produce`], but its transactions stay open for a moment after the insert: sleepers must wait for them.
async fn produce_late(db: &DatabaseConnection, outbox: &OutboxTable) {
    for _ in 0..N_EACH {
        let transaction = db.begin().await.expect("begin");
        outbox.enqueue_in(&transaction, [Draft::new("t", "")]).await.expect("enqueue");
        pause(5_000).await;
        transaction.commit().await.expect("commit");
    }
}

async fn pause(micros: u128) {
    sleep(Duration::from_micros((Uuid::new_v4().as_u128() % micros) as u64)).await;
}

async fn one_sleeper_loses_no_wakeup(site: &Site) {
    lose_nothing(site, 1).await;
}

async fn two_sleepers_lose_no_wakeup(site: &Site) {
    lose_nothing(site, 2).await;
}

on_postgres! { one_sleeper_loses_no_wakeup, two_sleepers_lose_no_wakeup }
