//! The guard: a dispatcher that sleeps is woken by every commit, and one that works costs producers nothing.

mod stress;

use std::time::Duration;

use outbox_core::{Claimed, Draft, ErrorKind, Listener, Outcome, Readiness, Repository, Settlement, Wakeup};
use outbox_sea_orm::{OutboxTable, TableListener};
use sea_orm::sqlx::postgres::PgListener;
use sea_orm::{ConnectionTrait, TransactionTrait};
use tokio::time::timeout;

use crate::support::{PATIENCE, Pool, Site, eventually, on_postgres, on_sqlite, settle_all};

/// Longer than a hint that is on its way needs.
const QUIET: Duration = Duration::from_millis(150);

async fn listen(outbox: &OutboxTable) -> TableListener {
    outbox.listen().await.expect("listen").expect("a listener")
}

/// Goes to sleep by the rules.
pub(crate) async fn fall_asleep(listener: &mut TableListener) {
    let falling = async {
        while let Readiness::Look { after } = listener.prepare().await.expect("prepare") {
            tokio::time::sleep(after).await;
        }
    };
    timeout(PATIENCE, falling).await.expect("never sleeps");
}

pub(crate) async fn sleeper(site: &Site) -> TableListener {
    let mut listener = listen(&site.outbox).await;
    fall_asleep(&mut listener).await;
    listener
}

pub(crate) async fn expect_hint(listener: &mut TableListener) {
    timeout(PATIENCE, listener.hint()).await.expect("no hint").expect("hint");
}

async fn expect_silence(listener: &mut TableListener) {
    assert!(timeout(QUIET, listener.hint()).await.is_err(), "a hint that nobody sent");
}

/// Listens as anybody could, to see each notification.
struct Ear {
    listener: PgListener,
    channel: String,
}

impl Ear {
    async fn open(site: &Site) -> Self {
        let channel: String =
            site.value(&format!("SELECT 'outbox_' || '{}'::regclass::oid", site.sql_name("outbox"))).await;
        let pool = site.connect(Pool::of(1)).await;
        let mut listener =
            PgListener::connect_with(pool.get_postgres_connection_pool()).await.expect("connect");
        listener.listen(&channel).await.expect("listen");
        Self { listener, channel }
    }

    /// How many notifications came before one that is sent now.
    async fn count(&mut self, site: &Site) -> usize {
        site.execute(&format!("SELECT pg_notify('{}', 'the last one')", self.channel)).await;
        let mut n = 0;
        while self.listener.recv().await.expect("a notification").payload() != "the last one" {
            n += 1;
        }
        n
    }
}

async fn a_commit_after_sleep_always_hints(site: &Site) {
    let mut listener = sleeper(site).await;
    expect_silence(&mut listener).await;
    for _ in 0..20 {
        site.enqueue("t", 1).await;
        expect_hint(&mut listener).await;
        assert_eq!(site.claim(10).await.messages.len(), 1);
        listener.stand_down().await.expect("stand down");
        fall_asleep(&mut listener).await;
    }
}

async fn a_hint_comes_with_the_commit_and_not_before(site: &Site) {
    let mut listener = sleeper(site).await;
    let transaction = site.db.begin().await.expect("begin");
    site.outbox.enqueue_in(&transaction, [Draft::new("t", "")]).await.expect("enqueue");
    expect_silence(&mut listener).await;
    transaction.commit().await.expect("commit");
    expect_hint(&mut listener).await;
    assert_eq!(site.claim(10).await.messages.len(), 1);
}

async fn a_rolled_back_message_gives_no_hint(site: &Site) {
    let mut listener = sleeper(site).await;
    let transaction = site.db.begin().await.expect("begin");
    site.outbox.enqueue_in(&transaction, [Draft::new("t", "")]).await.expect("enqueue");
    transaction.rollback().await.expect("rollback");
    expect_silence(&mut listener).await;
}

async fn a_transaction_open_across_prepare_is_waited_for(site: &Site) {
    let transaction = site.db.begin().await.expect("begin");
    site.outbox.enqueue_in(&transaction, [Draft::new("t", "")]).await.expect("enqueue");
    let mut listener = listen(&site.outbox).await;
    for _ in 0..10 {
        let readiness = listener.prepare().await.expect("prepare");
        assert!(matches!(readiness, Readiness::Look { .. }), "it would be missed");
    }
    assert!(site.claim(10).await.is_empty());
    transaction.commit().await.expect("commit");
    fall_asleep(&mut listener).await;
    assert_eq!(site.claim(10).await.messages.len(), 1, "the claim after Sleep sees it");
}

async fn looks_become_rarer_while_a_transaction_stays_open(site: &Site) {
    let transaction = site.db.begin().await.expect("begin");
    site.outbox.enqueue_in(&transaction, [Draft::new("t", "")]).await.expect("enqueue");
    let mut listener = listen(&site.outbox).await;
    let mut waits = Vec::new();
    for _ in 0..10 {
        let Readiness::Look { after } = listener.prepare().await.expect("prepare") else { panic!("asleep") };
        waits.push(after);
    }
    assert!(waits[0] <= Duration::from_millis(1), "{waits:?}");
    assert!(waits.is_sorted() && waits[9] == Duration::from_millis(50), "{waits:?}");
}

async fn a_writer_elsewhere_keeps_nobody_awake(site: &Site) {
    let transaction = site.db.begin().await.expect("begin");
    transaction.execute_unprepared(&site.business("a")).await.expect("write");
    let reader = site.db.begin().await.expect("begin");
    reader.execute_unprepared(&format!("SELECT FROM {}", site.sql_name("outbox"))).await.expect("read");
    let mut listener = listen(&site.outbox).await;
    assert_eq!(listener.prepare().await.expect("prepare"), Readiness::Sleep);
}

async fn delayed_and_released_messages_hint_as_well(site: &Site) {
    site.enqueue("t", 1).await;
    let claim = site.claim(1).await;
    let mut listener = sleeper(site).await;
    settle_all(&site.outbox, &claim, Outcome::Release).await;
    expect_hint(&mut listener).await;
    let delayed = Draft::new("t", "").delay(Duration::from_secs(60));
    site.outbox.enqueue_autocommit([delayed]).await.expect("enqueue");
    expect_hint(&mut listener).await;
}

async fn messages_of_another_table_do_not_hint(site: &Site) {
    let other = OutboxTable::new(&site.db, site.name("other"));
    other.migrate().await.expect("migrate");
    let mut listener = sleeper(site).await;
    other.enqueue_autocommit([Draft::new("t", "")]).await.expect("enqueue");
    expect_silence(&mut listener).await;
}

async fn both_sleepers_are_woken(site: &Site) {
    let mut leader = sleeper(site).await;
    let mut follower = sleeper(site).await;
    assert_eq!(guards(site).await.len(), 1, "one stands guard for both");
    site.enqueue("t", 1).await;
    expect_hint(&mut leader).await;
    expect_hint(&mut follower).await;
}

/// The sessions of ours that hold a guard.
async fn guards(site: &Site) -> Vec<i32> {
    site.values(&format!(
        "SELECT DISTINCT l.pid FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid \
         WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND a.application_name = '{}'",
        site.schema()
    ))
    .await
}

async fn a_leader_that_leaves_without_a_hint_tells_the_followers(site: &Site) {
    let mut leader = sleeper(site).await;
    let mut follower = sleeper(site).await;
    leader.stand_down().await.expect("stand down");
    expect_hint(&mut follower).await;
    fall_asleep(&mut follower).await;
    site.enqueue("t", 1).await;
    expect_hint(&mut follower).await;
}

async fn a_leader_that_was_woken_leaves_without_a_word(site: &Site) {
    let mut leader = sleeper(site).await;
    site.enqueue("t", 1).await;
    expect_hint(&mut leader).await;
    let mut ear = Ear::open(site).await;
    leader.stand_down().await.expect("stand down");
    assert_eq!(ear.count(site).await, 0, "everybody had the hint that woke it");
}

async fn a_follower_that_leaves_leaves_the_guard(site: &Site) {
    let mut leader = sleeper(site).await;
    let mut follower = sleeper(site).await;
    follower.stand_down().await.expect("stand down");
    site.enqueue("t", 1).await;
    expect_hint(&mut leader).await;
}

async fn a_follower_takes_over_from_a_leader_that_was_killed(site: &Site) {
    let mut leader = sleeper(site).await;
    let mut follower = sleeper(site).await;
    let [pid] = guards(site).await[..] else { panic!("one guard") };
    site.execute(&format!("SELECT pg_terminate_backend({pid})")).await;
    let lost = timeout(PATIENCE, leader.hint()).await.expect("it must notice");
    assert_eq!(lost.expect_err("lost").kind(), ErrorKind::Unavailable);
    eventually("the guard falls", async || guards(site).await.is_empty()).await;

    fall_asleep(&mut follower).await;
    assert_eq!(guards(site).await.len(), 1);
    site.enqueue("t", 1).await;
    expect_hint(&mut follower).await;
}

async fn a_leader_that_goes_on_after_its_connection_was_lost_stands_guard_again(site: &Site) {
    let mut leader = sleeper(site).await;
    let [pid] = guards(site).await[..] else { panic!("one guard") };
    site.execute(&format!("SELECT pg_terminate_backend({pid})")).await;
    let lost = timeout(PATIENCE, leader.hint()).await.expect("it must notice");
    assert_eq!(lost.expect_err("lost").kind(), ErrorKind::Unavailable);
    eventually("the guard falls", async || guards(site).await.is_empty()).await;

    // whoever was writing meanwhile gave no hint
    let transaction = site.db.begin().await.expect("begin");
    site.outbox.enqueue_in(&transaction, [Draft::new("t", "")]).await.expect("enqueue");
    assert!(matches!(leader.prepare().await.expect("prepare"), Readiness::Look { .. }), "it would be missed");
    transaction.commit().await.expect("commit");
    fall_asleep(&mut leader).await;
    assert_eq!((guards(site).await.len(), site.claim(10).await.messages.len()), (1, 1));
    site.enqueue("t", 1).await;
    expect_hint(&mut leader).await;
    leader.stand_down().await.expect("stand down");
    assert!(guards(site).await.is_empty());
}

async fn a_listener_that_is_dropped_leaves_no_lock(site: &Site) {
    let listener = sleeper(site).await;
    assert_eq!(guards(site).await.len(), 1);
    drop(listener);
    eventually("the guard falls", async || guards(site).await.is_empty()).await;
}

async fn producers_notify_nobody_unless_somebody_sleeps(site: &Site) {
    let mut ear = Ear::open(site).await;
    site.enqueue("t", 10).await;
    produce_and_settle(site).await;
    assert_eq!(ear.count(site).await, 0);

    let mut listener = sleeper(site).await;
    site.enqueue("t", 10).await;
    assert_eq!(ear.count(site).await, 1, "one notification for one transaction");
    expect_hint(&mut listener).await;

    listener.stand_down().await.expect("stand down");
    produce_and_settle(site).await;
    assert_eq!(ear.count(site).await, 0);
}

async fn produce_and_settle(site: &Site) {
    site.enqueue("t", 1).await;
    let claim = site.claim(100).await;
    let release = |claimed: &Claimed| Settlement::new(claimed.lease, Outcome::Release);
    let _ = site.outbox.settle(claim.messages.iter().map(release).collect()).await.expect("settle");
}

async fn a_hint_is_kept_until_it_is_asked_for(site: &Site) {
    let mut listener = sleeper(site).await;
    site.enqueue("t", 1).await;
    for _ in 0..3 {
        listener.prepare().await.expect("prepare");
    }
    expect_hint(&mut listener).await;
    expect_silence(&mut listener).await;
}

async fn a_dropped_wait_loses_no_hint(site: &Site) {
    let mut listener = sleeper(site).await;
    for _ in 0..20 {
        let waiting = async { while timeout(Duration::from_micros(50), listener.hint()).await.is_err() {} };
        let (_, hinted) = tokio::join!(site.enqueue("t", 1), timeout(PATIENCE, waiting));
        hinted.expect("the hint was lost");
    }
}

async fn a_probe_makes_the_round_trip(site: &Site) {
    let mut listener = listen(&site.outbox).await;
    assert!(listener.probe().await.expect("probe"));
    fall_asleep(&mut listener).await;
    site.enqueue("t", 1).await;
    assert!(listener.probe().await.expect("probe"));
    expect_hint(&mut listener).await;
    expect_silence(&mut listener).await;
}

async fn a_shared_pool_has_no_hints(site: &Site) {
    let shared = site.outbox.clone().with_shared_pool();
    assert!(shared.listen().await.expect("listen").is_none());
}

async fn sqlite_has_no_hints(site: &Site) {
    assert!(site.outbox.listen().await.expect("listen").is_none());
}

on_postgres! {
    a_commit_after_sleep_always_hints,
    a_hint_comes_with_the_commit_and_not_before,
    a_rolled_back_message_gives_no_hint,
    a_transaction_open_across_prepare_is_waited_for,
    looks_become_rarer_while_a_transaction_stays_open,
    a_writer_elsewhere_keeps_nobody_awake,
    delayed_and_released_messages_hint_as_well,
    messages_of_another_table_do_not_hint,
    both_sleepers_are_woken,
    a_leader_that_leaves_without_a_hint_tells_the_followers,
    a_leader_that_was_woken_leaves_without_a_word,
    a_follower_that_leaves_leaves_the_guard,
    a_follower_takes_over_from_a_leader_that_was_killed,
    a_leader_that_goes_on_after_its_connection_was_lost_stands_guard_again,
    a_listener_that_is_dropped_leaves_no_lock,
    producers_notify_nobody_unless_somebody_sleeps,
    a_hint_is_kept_until_it_is_asked_for,
    a_dropped_wait_loses_no_hint,
    a_probe_makes_the_round_trip,
    a_shared_pool_has_no_hints,
}

on_sqlite! { sqlite_has_no_hints }
