//! A queue whose standby takes over without the last commits of the primary, and hands out numbers again.

use std::collections::BTreeSet;
use std::time::Duration;

use outbox_core::{
    ClaimRequest, Claimer, Declaration, Draft, Fairness, MessageId, Outcome, Repository, Settlement,
    TableName,
};
use outbox_sea_orm::OutboxTable;
use outbox_testkit::server::StopMode;
use sea_orm::DatabaseConnection;

use crate::pair::Pair;
use crate::support::eventually;

const LEASE: Duration = Duration::from_secs(3_600);

fn outbox(db: &DatabaseConnection, declared: &Declaration) -> OutboxTable {
    OutboxTable::new(db, TableName::parse("q.outbox").expect("name")).declared(declared.clone())
}

async fn enqueue(outbox: &OutboxTable, n: usize) -> BTreeSet<MessageId> {
    let drafts: Vec<Draft> = (0..n).map(|_| Draft::new("t", "x")).collect();
    outbox.enqueue_autocommit(drafts).await.expect("enqueue").into_iter().collect()
}

/// Claims once, and settles.
async fn deliver(outbox: &OutboxTable, claimer: &Claimer) -> BTreeSet<MessageId> {
    let request = ClaimRequest::new(100, LEASE).with_claimer(claimer.clone());
    let claimed = outbox.claim(request).await.expect("no claim fails").messages;
    let settlements = claimed.iter().map(|claimed| Settlement::new(claimed.lease, Outcome::Done)).collect();
    outbox.settle(settlements).await.expect("settle");
    claimed.iter().map(|claimed| claimed.message.id).collect()
}

/// Claims until it has had these.
async fn drain(outbox: &OutboxTable, claimer: &Claimer, wanted: &BTreeSet<MessageId>) {
    let mut delivered = BTreeSet::new();
    eventually("everything comes", async || {
        delivered.extend(deliver(outbox, claimer).await);
        delivered.is_superset(wanted)
    })
    .await;
}

/// A claim that fails forgets where its loop was. Here none does: another call has met the broken connection.
async fn numbers_of_a_lost_server_are_forgotten(declared: Declaration, is_hidden: bool) {
    let Some(pair) = Pair::start(Declaration::new()).await else { return };
    outbox(&pair.db, &declared).migrate().await.expect("migrate");
    let hidden = if is_hidden { Some(pair.connect_blind("q").await) } else { None };
    let (ours, claimer) = (outbox(hidden.as_ref().unwrap_or(&pair.db), &declared), Claimer::new());
    let kept = enqueue(&ours, 10).await;
    pair.catch_up().await;
    pair.cut_off().await;
    let lost = enqueue(&ours, 300).await;
    drain(&ours, &claimer, &kept.union(&lost).copied().collect()).await;
    for _ in 0..3 {
        // until its marks are above everything
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(deliver(&ours, &claimer).await.is_empty());
    }
    pair.promote(StopMode::Kill).await;
    pair.repoint();
    let other = outbox(&pair.on_standby, &declared);
    let mut wanted = kept;
    wanted.extend(enqueue(&other, 400).await);
    eventually("a call succeeds", async || {
        ours.claim(ClaimRequest::new(1, Duration::from_millis(1)).with_topics(["none"])).await.is_ok()
    })
    .await;
    drain(&ours, &claimer, &wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_of_a_lost_server_are_forgotten_by_a_queue() {
    numbers_of_a_lost_server_are_forgotten(Declaration::new(), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_of_a_lost_server_are_forgotten_by_a_fair_queue() {
    numbers_of_a_lost_server_are_forgotten(Declaration::new().fair(Fairness::Key), false).await;
}

/// Its role may not see when its own sessions began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_of_a_lost_server_are_forgotten_by_who_sees_no_sessions() {
    numbers_of_a_lost_server_are_forgotten(Declaration::new(), true).await;
}
