//! A standby that is promoted, with all of its primary or without the last commits of it. Servers from local binaries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outbox_core::{
    ClaimRequest, Claimed, Claimer, Declaration, Draft, ErrorKind, MessageId, OnDead, Operations, Outcome,
    Repository, Settled, Settlement, TableName,
};
use outbox_sea_orm::{LogGroup, OutboxLog};
use outbox_testkit::server::StopMode;
use sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};
use tokio::time::sleep;

use crate::faults::Random;
use crate::pair::Pair;
use crate::support::{eventually, value};

/// A lease that ends in no test.
const LONG: Duration = Duration::from_secs(3_600);
/// One that ends soon after the servers have changed.
const SHORT: Duration = Duration::from_secs(3);

/// Stores it by SQL, and its number.
async fn insert(db: &impl ConnectionTrait) -> i64 {
    value(db, "INSERT INTO l.log (id, topic, payload) VALUES (gen_random_uuid(), 't', '') RETURNING seq")
        .await
}

async fn enqueue(log: &OutboxLog, n: usize) -> Vec<MessageId> {
    let drafts: Vec<Draft> = (0..n).map(|_| Draft::new("t", "x")).collect();
    log.enqueue_autocommit(drafts).await.expect("enqueue")
}

fn ids(claimed: &[Claimed]) -> Vec<MessageId> {
    claimed.iter().map(|claimed| claimed.message.id).collect()
}

async fn claim(group: &LogGroup, claimer: &Claimer, limit: usize) -> outbox_core::Result<Vec<Claimed>> {
    let request = ClaimRequest::new(limit, LONG).with_claimer(claimer.clone());
    Ok(group.claim(request).await?.messages)
}

/// What a loop claims that tries again until the server answers.
async fn claim_at_last(group: &LogGroup, claimer: &Claimer, limit: usize) -> Vec<Claimed> {
    let mut claimed = Vec::new();
    eventually("a claim succeeds", async || match claim(group, claimer, limit).await {
        Ok(messages) => {
            claimed = messages;
            true
        }
        Err(error) => {
            assert!(error.is_retryable(), "{error}");
            false
        }
    })
    .await;
    claimed
}

async fn settle(group: &LogGroup, claimed: &[Claimed]) -> outbox_core::Result<Vec<Settled>> {
    group.settle(claimed.iter().map(|claimed| Settlement::new(claimed.lease, Outcome::Done)).collect()).await
}

/// The server that takes over hands out again numbers that were handed out by the one that is lost. A reader that
/// was going to read up to a number above them, as it knew from the old one, would pass over who commits late.
async fn horizon_of_a_lost_server_is_forgotten(declared: Declaration) {
    let Some(pair) = Pair::start(declared).await else { return };
    let group = pair.register("g").await;
    let kept = enqueue(&pair.log, 10).await;
    pair.catch_up().await;
    pair.cut_off().await;
    enqueue(&pair.log, 190).await;
    let claimer = Claimer::new();
    let claimed = claim(&group, &claimer, 5).await.expect("claim");
    assert_eq!(ids(&claimed), kept[..5]);
    pair.promote(StopMode::Kill).await;
    let open = pair.on_standby.begin().await.expect("begin");
    let (late, early) = (insert(&open).await, insert(&pair.on_standby).await);
    assert!(10 < late && late < early && early < 200, "{late} and {early} were handed out before");
    pair.repoint();
    let mut claimed = Vec::new();
    for _ in 0..3 {
        claimed.extend(claim_at_last(&group, &claimer, 100).await);
    }
    open.commit().await.expect("commit");
    claimed.extend(claim(&group, &claimer, 100).await.expect("claim"));
    assert_eq!(ids(&claimed)[..10], kept, "the claim before was lost, too");
    assert_eq!(claimed.len(), 12, "{late} was passed over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn horizon_of_a_lost_server_is_forgotten_by_a_group() {
    horizon_of_a_lost_server_is_forgotten(Declaration::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn horizon_of_a_lost_server_is_forgotten_by_an_ordered_group() {
    horizon_of_a_lost_server_is_forgotten(Declaration::new().ordered(OnDead::Continue)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standby_refuses_claims_until_it_is_promoted() {
    let Some(pair) = Pair::start(Declaration::new()).await else { return };
    let claimer = Claimer::new();
    pair.register("g").await;
    pair.catch_up().await;
    let log = OutboxLog::new(&pair.on_standby, TableName::parse("l.log").expect("name"));
    let group = log.group("g").expect("name");
    let refused = async |what: &str| {
        let error = claim(&group, &claimer, 10).await.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
        assert!(error.is_retryable() && error.to_string().contains("standby"), "{error}");
    };
    refused("nothing to read").await;
    let sent = enqueue(&pair.log, 3).await;
    pair.catch_up().await;
    refused("something to read").await;
    let stats = group.stats().await.expect("a standby can be asked");
    assert_eq!((stats.total().n_pending, stats.held_back), (3, None));
    pair.promote(StopMode::Fast).await;
    let claimed = claim_at_last(&group, &claimer, 10).await;
    assert_eq!(ids(&claimed), sent);
}

/// What loops of one group have done, in order.
#[derive(Default)]
struct Trace {
    delivered: Vec<MessageId>,
    settled: BTreeSet<MessageId>,
}

/// Claims and settles until the producers have ended and nothing is left.
async fn deliver(group: LogGroup, trace: Arc<Mutex<Trace>>, random: Arc<Random>, ended: Arc<AtomicBool>) {
    let claimer = Claimer::new();
    let mut n_quiet = 0;
    while n_quiet < 100 {
        let was_ended = ended.load(SeqCst);
        let request = ClaimRequest::new(1 + random.below(20) as usize, SHORT).with_claimer(claimer.clone());
        let claimed = group.claim(request).await.map(|claim| claim.messages).unwrap_or_default();
        n_quiet = if was_ended && claimed.is_empty() { n_quiet + 1 } else { 0 };
        trace.lock().expect("trace").delivered.extend(ids(&claimed));
        if claimed.is_empty() {
            sleep(Duration::from_millis(SHORT.as_millis() as u64 / 50)).await;
        } else if let Ok(answers) = settle(&group, &claimed).await {
            let is_applied = answers.iter().map(|answer| *answer == Settled::Applied);
            let settled = ids(&claimed).into_iter().zip(is_applied);
            trace.lock().expect("trace").settled.extend(settled.filter(|(_, is)| *is).map(|(id, _)| id));
        }
    }
}

/// Transactions of a few messages, some of which stay open for a while or roll back; some fail with their server.
async fn produce(pair: Arc<Pair>, random: Arc<Random>, ended: Arc<AtomicBool>) {
    while !ended.load(SeqCst) {
        if transaction(&pair, &random).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn transaction(pair: &Pair, random: &Random) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let txn = pair.db.begin().await?;
    for _ in 0..=random.below(2) {
        let draft = |_| Draft::new("t", "x").key(format!("{}", random.below(30)));
        let drafts: Vec<Draft> = (0..=random.below(4)).map(draft).collect();
        pair.log.enqueue_in(&txn, drafts).await?;
        sleep(random.millis(20)).await;
    }
    if random.below(5) == 0 {
        txn.rollback().await?
    } else {
        txn.commit().await?
    }
    Ok(())
}

/// The messages of a database that a group has done with: behind its position, in no range, and not in its own table.
pub(super) const SETTLED: &str = "SELECT l.id FROM l.log AS l JOIN l.log_groups AS g ON g.name = 'g' AND l.seq <= g.position
  WHERE NOT EXISTS (SELECT FROM l.log_group_g AS o WHERE o.id = l.id)
    AND NOT EXISTS (SELECT FROM (SELECT m.seq, r.done, row_number() OVER (PARTITION BY r.token ORDER BY m.seq) - 1 AS place
                                   FROM l.log_ranges AS r JOIN l.log AS m ON m.seq > r.from_seq AND m.seq <= r.to_seq) AS x
                     WHERE x.seq = l.seq AND (x.done IS NULL OR get_bit(x.done, x.place::integer) = 0))";

async fn column<T: sea_orm::TryGetable>(db: &DatabaseConnection, sql: &str) -> Vec<T> {
    let statement = sea_orm::Statement::from_string(sea_orm::DbBackend::Postgres, sql);
    let rows = db.query_all_raw(statement).await.expect("query");
    rows.iter().map(|row| row.try_get_by_index(0).expect("a value")).collect()
}

pub(super) async fn messages(db: &DatabaseConnection, sql: &str) -> BTreeSet<MessageId> {
    column::<MessageId>(db, sql).await.into_iter().collect()
}

/// Producers and two loops of a group go on while the standby takes over: what was settled on the new server by the time of its
/// promotion comes never again, everything else that it has comes at least once, and in order.
async fn takes_over(declared: Declaration, loses_commits: bool) {
    let is_ordered = declared.ordered.is_some();
    let Some(pair) = Pair::start(declared).await else { return };
    let (pair, random, ended) = (Arc::new(pair), Arc::new(Random::start()), Arc::new(AtomicBool::new(false)));
    let (group, trace) = (pair.register("g").await, Arc::<Mutex<Trace>>::default());
    pair.catch_up().await;
    let stranger = pair.log.group("g").expect("name");
    let delivering = [group, stranger].map(|group| {
        tokio::spawn(deliver(group, Arc::clone(&trace), Arc::clone(&random), Arc::clone(&ended)))
    });
    let producing =
        [(); 4].map(|()| tokio::spawn(produce(Arc::clone(&pair), Arc::clone(&random), Arc::clone(&ended))));
    sleep(Duration::from_millis(1_000)).await;
    if loses_commits {
        pair.cut_off().await;
        sleep(Duration::from_millis(700)).await;
    }
    let mode = if loses_commits { StopMode::Kill } else { StopMode::Fast };
    pair.promote(mode).await;
    let (n_before, acknowledged) = {
        let trace = trace.lock().expect("trace");
        (trace.delivered.len(), trace.settled.clone())
    };
    let settled = messages(&pair.on_standby, SETTLED).await;
    let n_undone = acknowledged.difference(&settled).count();
    pair.repoint();
    sleep(Duration::from_millis(1_500)).await;
    ended.store(true, SeqCst);
    for task in producing.into_iter().chain(delivering) {
        task.await.expect("no panic");
    }
    let all = messages(&pair.on_standby, "SELECT id FROM l.log").await;
    let trace = std::mem::take(&mut *trace.lock().expect("trace"));
    let (before, after) = trace.delivered.split_at(n_before);
    let after = after.to_vec();
    let again = settled.intersection(&after.iter().copied().collect()).count();
    let delivered: BTreeSet<MessageId> = settled.iter().chain(&after).copied().collect();
    eprintln!(
        "{} messages, {} before, {} settled, {n_undone} undone",
        all.len(),
        before.len(),
        settled.len()
    );
    assert_eq!(all.difference(&delivered).count(), 0, "skipped of {}", all.len());
    assert_eq!(again, 0, "settled before and delivered again");
    assert_eq!(n_undone > 0, loses_commits, "{n_undone} of {} settlements were lost", acknowledged.len());
    if is_ordered {
        assert_in_order(&pair.on_standby, &after).await;
    }
}

/// Of each key, first deliveries are in the order of the numbers.
async fn assert_in_order(db: &DatabaseConnection, delivered: &[MessageId]) {
    let ids = column::<MessageId>(db, "SELECT id FROM l.log ORDER BY seq").await;
    let keys = column::<String>(db, "SELECT key FROM l.log ORDER BY seq").await;
    let places: BTreeMap<MessageId, (usize, String)> =
        ids.into_iter().zip(keys).enumerate().map(|(place, (id, key))| (id, (place, key))).collect();
    let (mut last, mut seen) = (BTreeMap::new(), BTreeSet::new());
    for id in delivered.iter().filter(|id| seen.insert(**id)) {
        let Some((place, key)) = places.get(id) else { continue };
        let before = last.insert(key, place);
        assert!(before < Some(place), "{id} of {key} came after a later one");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promoted_standby_goes_on_where_its_primary_was() {
    takes_over(Declaration::new(), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promoted_standby_without_the_last_commits_skips_nothing_that_it_has() {
    takes_over(Declaration::new(), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promoted_standby_keeps_the_order_of_keys() {
    takes_over(Declaration::new().ordered(OnDead::Continue), true).await;
}
