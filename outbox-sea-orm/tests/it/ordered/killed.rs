//! Dispatchers on an ordered table that are killed, handlers that fail, dead letters that are redriven.

use std::sync::Arc;
use std::time::Duration;

use outbox_core::{DeadLetterFilter, Declaration, Draft, HandlerError, OnDead, Operations};
use outbox_dispatcher::{CancellationToken, Dispatcher, HandlerResult, Message, Router};
use outbox_sea_orm::OutboxTable;
use outbox_testkit::{DeclaredHarness, Harness};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Auditable, Audited, check_order, trail};
use crate::faults::{Random, config};
use crate::harness::{MySql, Postgres};
use crate::support::eventually;

const N_PRODUCERS: usize = 8;
const N_CALLS: usize = 10;
/// Of each producer: between transactions that write a key at the same time there is no order.
const N_KEYS: u64 = 2;
const N_DISPATCHERS: usize = 4;
/// Of each dispatcher, before it is left alone.
const N_KILLS: usize = 4;

async fn produce(outbox: OutboxTable, number: usize, random: Arc<Random>) {
    for _ in 0..N_CALLS {
        let draft = |_| Draft::new("t", "").key(format!("{number}-{}", random.below(N_KEYS)));
        let drafts: Vec<Draft> = (0..=random.below(3)).map(draft).collect();
        outbox.enqueue_autocommit(drafts).await.expect("enqueue");
        sleep(random.millis(20)).await;
    }
}

async fn handle(random: &Random) -> HandlerResult {
    sleep(random.millis(5)).await;
    match random.below(12) {
        0 => Err(HandlerError::dead_letter("by chance")),
        1 | 2 => Err(HandlerError::from("by chance")),
        _ => Ok(()),
    }
}

async fn dispatch(outbox: OutboxTable, random: Arc<Random>, token: CancellationToken) {
    let at_work = Arc::clone(&random);
    let router = Router::new().on("t", async move |_: Message| handle(&at_work).await);
    let config = config().with_max_attempts(1_000);
    let dispatcher = Dispatcher::new(outbox, router).with_config(config).expect("config");
    for _ in 0..N_KILLS {
        let running = tokio::spawn(dispatcher.clone().run(CancellationToken::new()));
        sleep(random.millis(300)).await;
        running.abort();
    }
    dispatcher.run(token).await.expect("report");
}

/// Returns when everything that was enqueued is delivered.
async fn deliver_all(h: &impl Auditable, random: &Arc<Random>) {
    let (outbox, token) = (h.repository(), CancellationToken::new());
    let (mut producers, mut dispatchers) = (JoinSet::new(), JoinSet::new());
    for number in 0..N_PRODUCERS {
        producers.spawn(produce(outbox.clone(), number, Arc::clone(random)));
    }
    for _ in 0..N_DISPATCHERS {
        dispatchers.spawn(dispatch(outbox.clone(), Arc::clone(random), token.clone()));
    }
    producers.join_all().await;
    eventually("all are delivered", async || {
        sleep(Duration::from_millis(30)).await;
        outbox.redrive_matching(DeadLetterFilter::default(), 100).await.expect("redrive");
        outbox.stats().await.expect("stats").topics.is_empty()
    })
    .await;
    token.cancel();
    dispatchers.join_all().await;
}

async fn killed_dispatchers_keep_the_order<H: Auditable>() {
    let Ok(h) = Audited::<H>::start().await else { return };
    let random = Arc::new(Random::start());
    for on_dead in [OnDead::Continue, OnDead::Block] {
        let h = h.declared(Declaration::new().ordered(on_dead)).await.inner;
        deliver_all(&h, &random).await;
        let n_claims = check_order(&trail(h.db(), h.schema()).await, on_dead);
        assert!(n_claims >= N_PRODUCERS * N_CALLS, "{n_claims} claims");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_dispatchers_keep_the_order_on_postgres() {
    killed_dispatchers_keep_the_order::<Postgres>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_dispatchers_keep_the_order_on_mysql() {
    killed_dispatchers_keep_the_order::<MySql>().await;
}
