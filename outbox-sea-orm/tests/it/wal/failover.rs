//! A standby that takes over from the server that has fed a group. Servers from local binaries.

use std::collections::HashSet;

use outbox_core::{
    ClaimRequest, Declaration, Error, ErrorKind, MessageId, Operations, Outcome, Repository, TableName,
};
use outbox_sea_orm::{OutboxLog, WalFeed};
use outbox_testkit::Harness;
use outbox_testkit::server::StopMode;
use tokio::time::timeout;

use super::{
    Fed, LEASE, PATIENCE, assert_empty, claim, claim_some, deliver, eventually, on, require_feeds, settle,
};
use crate::pair::Pair;
use crate::support::value;

/// A fed group on a primary with a standby.
async fn start(test: &str) -> Option<(Pair, Fed)> {
    let pair = Pair::start(Declaration::new()).await?;
    if let Err(skip) = require_feeds(&pair.on_primary).await {
        skip.report(Fed::NAME, test);
        return None;
    }
    let group = pair.register("billing").await.with_feed(WalFeed::new());
    group.start_feed().await.expect("start the feed");
    let (db, log) = (pair.db.clone(), pair.log.clone());
    let fed = Fed { db, log, group, schema: "l".to_owned(), url: String::new() };
    Some((pair, fed))
}

/// Delivers so many, and returns when nothing of it would be read again by number.
pub(super) async fn deliver_for_good(fed: &Fed, n: usize) -> Vec<MessageId> {
    fed.enqueue((0..n).map(|_| on("a"))).await;
    let delivered = deliver(&fed.group, n).await;
    eventually("the position is behind it", async || {
        assert!(claim(&fed.group, 1).await.is_empty());
        fed.value::<bool>("SELECT position = (SELECT max(seq) FROM l.log) FROM l.log_groups")
            .await
            .then_some(())
    })
    .await;
    delivered
}

/// Claims as a dispatcher does, until a claim says that it is of no use, and what was handed out before.
pub(super) async fn refusal(fed: &Fed) -> (Vec<MessageId>, Error) {
    let mut ids = Vec::new();
    let error = eventually("the claim is refused", async || {
        match fed.group.claim(ClaimRequest::new(10, LEASE)).await {
            Ok(claim) => ids.extend(claim.messages.iter().map(|claimed| claimed.message.id)),
            Err(error) if error.is_retryable() => {}
            Err(error) => return Some(error),
        }
        None
    })
    .await;
    (ids, error)
}

/// Delivers by number what there is, once and as often as it comes.
pub(super) async fn resync(fed: &Fed) -> HashSet<MessageId> {
    fed.group.resync().await.expect("resync");
    let all: HashSet<MessageId> =
        fed.value::<Vec<MessageId>>("SELECT array_agg(id) FROM l.log").await.into_iter().collect();
    let mut delivered = HashSet::new();
    let position = "SELECT position = (SELECT max(seq) FROM l.log) FROM l.log_groups";
    eventually("everything is read", async || {
        let claimed = claim(&fed.group, 100).await;
        settle(&fed.group, &claimed, Outcome::Done).await;
        delivered.extend(claimed.iter().map(|claimed| claimed.message.id));
        (claimed.is_empty() && fed.value::<bool>(position).await).then_some(())
    })
    .await;
    assert!(delivered.is_subset(&all));
    delivered
}

/// The new server feeds the group as the old one did.
pub(super) async fn assert_fed_again(fed: &Fed) {
    fed.group.start_feed().await.expect("it can be fed again");
    let ids = fed.enqueue((0..5).map(|_| on("c"))).await;
    assert_eq!(deliver(&fed.group, 5).await, ids);
    assert_empty(&fed.group).await;
    assert!(fed.group.stats().await.expect("stats").slot_lag.is_some());
}

fn is_missing(error: &Error) -> bool {
    let text = error.to_string();
    error.kind() == ErrorKind::Schema && text.contains("is missing") && text.contains("resync")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standby_that_takes_over_reads_on_by_number_and_feeds_again() {
    let Some((pair, fed)) =
        start("failover::standby_that_takes_over_reads_on_by_number_and_feeds_again").await
    else {
        return;
    };
    let settled = deliver_for_good(&fed, 10).await;
    fed.enqueue((0..3).map(|_| on("leased"))).await;
    let leased = claim_some(&fed.group, 3).await;
    let waiting: HashSet<_> = fed.enqueue((0..5).map(|_| on("b"))).await.into_iter().collect();
    pair.catch_up().await;
    let name = TableName::parse("l.log").expect("name");
    let there =
        OutboxLog::new(&pair.on_standby, name).group("billing").expect("name").with_feed(WalFeed::new());
    let error = there.claim(ClaimRequest::new(10, LEASE)).await.expect_err("a standby");
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    assert_eq!(there.stats().await.expect("a standby can be asked").slot_lag, None);

    // nobody has to stop the dispatchers before the server, and an idle one does not claim
    let promoted = timeout(PATIENCE, pair.promote(StopMode::Fast)).await;
    promoted.expect("the server stops although its slot is read");
    pair.repoint();
    let (taken, error) = refusal(&fed).await;
    assert!(taken.is_empty() && is_missing(&error), "{taken:?} {error}");
    settle(&fed.group, &leased, Outcome::Done).await;
    let delivered = resync(&fed).await;
    assert!(delivered.is_superset(&waiting), "lost");
    assert!(settled.iter().all(|id| !delivered.contains(id)), "nothing but the last moments comes again");
    assert_fed_again(&fed).await;
}

/// What the old server has sent and the new one does not have is in the process, and its numbers are handed out again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_with_a_primary_hides_nothing_of_the_next() {
    let Some((pair, fed)) = start("failover::what_is_lost_with_a_primary_hides_nothing_of_the_next").await
    else {
        return;
    };
    let settled = deliver_for_good(&fed, 10).await;
    let waiting = fed.enqueue((0..5).map(|_| on("b"))).await;
    pair.catch_up().await;
    pair.cut_off().await;
    for _ in 0..8 {
        fed.enqueue((0..20).map(|_| on("lost"))).await;
    }
    eventually("they are sent", async || {
        let sql = "SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name LIKE 'outbox feed%' AND sent_lsn >= pg_current_wal_lsn()";
        value::<bool>(&pair.on_primary, sql).await.then_some(())
    })
    .await;
    let last: i64 = fed.value("SELECT max(seq) FROM l.log").await;
    pair.promote(StopMode::Kill).await;
    let mut ids: HashSet<MessageId> = waiting.into_iter().collect();
    for n in 0..40 {
        let sql = "INSERT INTO l.log (id, topic, payload) VALUES (gen_random_uuid(), 'new', '') RETURNING id";
        ids.insert(value(&pair.on_standby, sql).await);
        if n == 0 {
            let seq: i64 = value(&pair.on_standby, "SELECT max(seq) FROM l.log").await;
            assert!(seq < last, "{seq} was handed out before, up to {last}");
        }
    }
    pair.repoint();
    let (taken, error) = refusal(&fed).await;
    assert!(taken.is_empty(), "{} that this server does not have", taken.len());
    assert!(is_missing(&error), "{error}");
    let delivered = resync(&fed).await;
    assert_eq!(ids.difference(&delivered).count(), 0, "lost");
    assert!(settled.iter().all(|id| !delivered.contains(id)), "nothing but the last moments comes again");
    assert_fed_again(&fed).await;
}
