//! Every call of the hot path, dropped at each of its awaits.

use outbox_core::{
    Claim, Claimer, Draft, Mark, Marked, Operations, Outcome, ProcessedStore, Repository, Result, Settled,
    Settlement,
};
use outbox_sea_orm::transactor;
use uuid::Uuid;

use crate::support::{LEASE, PATIENCE, Site, cancel_at, eventually, on_postgres, on_sqlite, settle_all};

const ROUNDS: usize = 8;

/// Lets `attempt(k)` drop its call at the first, second, … await until it says that the call finished, several
/// times over; afterwards the pools must be as good as new.
async fn sweep(site: &Site, mut attempt: impl AsyncFnMut(usize) -> bool) {
    let mut n_cancelled = 0;
    for _ in 0..ROUNDS {
        for k in 1.. {
            if attempt(k).await {
                break;
            }
            n_cancelled += 1;
        }
    }
    assert!(n_cancelled > 0, "nothing was cancelled");
    assert_healthy(site).await;
}

/// More calls at once than either pool has connections.
async fn assert_healthy(site: &Site) {
    let calls = (0..10).map(|_| async {
        site.outbox.ping().await.expect("ping");
        let request = outbox_core::ClaimRequest::new(1, LEASE).with_topics(["nobody"]);
        assert!(site.outbox.claim(request).await.expect("claim").is_empty());
    });
    let all = futures_util::future::join_all(calls);
    tokio::time::timeout(PATIENCE, all).await.expect("a connection is stuck");
    eventually("no transaction is left open", async || !site.has_idle_transaction().await).await;
}

async fn enqueue_autocommit_stores_all_or_nothing(site: &Site) {
    let mut expected = 0;
    sweep(site, async |k| {
        let drafts = vec![Draft::new("t", "a"), Draft::new("t", "b"), Draft::new("t", "c")];
        let finished = cancel_at(k, site.outbox.enqueue_autocommit(drafts)).await;
        // a statement that was sent is still finished by the server
        let stored = settled_count(site).await;
        assert!(stored == expected || stored == expected + 3, "{stored} after {expected}");
        expected = stored;
        if let Some(finished) = &finished {
            assert_eq!(finished.as_ref().expect("enqueued").len(), 3);
        }
        finished.is_some()
    })
    .await;
    assert!(expected >= 3);
}

/// The number of messages, once no statement of ours is running any more.
async fn settled_count(site: &Site) -> i64 {
    quiet(site).await;
    site.count("outbox").await
}

/// Waits until a statement whose caller has gone has ended too.
async fn quiet(site: &Site) {
    if site.db.get_database_backend() != sea_orm::DbBackend::Postgres {
        // the write lock is taken after whoever holds it
        site.execute(&format!("DELETE FROM {} WHERE false", site.sql_name("business"))).await;
        return;
    }
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{}' AND state = 'active' \
         AND pid <> pg_backend_pid()",
        site.schema()
    );
    eventually("our statements end", async || site.value::<i64>(&sql).await == 0).await;
}

async fn a_dropped_claim_leaves_messages_that_come_back(site: &Site) {
    let mut ids = site.enqueue("t", 3).await;
    ids.sort();
    let claimer = Claimer::new();
    sweep(site, async |k| {
        let request = || outbox_core::ClaimRequest::new(10, LEASE).with_max_attempts(1_000);
        let claim = cancel_at(k, site.outbox.claim(request().with_claimer(claimer.clone()))).await;
        quiet(site).await;
        site.expire_leases().await;
        assert_eq!(take_back(site, &claimer).await, ids, "k = {k}");
        claim.is_some()
    })
    .await;
}

/// Claims everything, with the claimer of the call that was dropped, and releases it again.
async fn take_back(site: &Site, claimer: &Claimer) -> Vec<Uuid> {
    let mut ids = Vec::new();
    let mut claims: Vec<Claim> = Vec::new();
    eventually("every message is claimed again", async || {
        let request = outbox_core::ClaimRequest::new(10, LEASE).with_max_attempts(1_000);
        let claim = site.outbox.claim(request.with_claimer(claimer.clone())).await.expect("claim");
        assert_eq!(claim.n_dead, 0);
        ids.extend(claim.messages.iter().map(|claimed| claimed.message.id));
        claims.push(claim);
        ids.len() >= 3
    })
    .await;
    for claim in &claims {
        settle_all(&site.outbox, claim, Outcome::Release).await;
    }
    ids.sort();
    ids
}

/// One settlement of each kind.
fn one_of_each(claim: &Claim) -> Vec<Settlement> {
    let error = || "no".to_owned();
    let outcomes = [
        Outcome::Done,
        Outcome::Retry { after: LEASE, error: error() },
        Outcome::Dead { error: error() },
        Outcome::Release,
    ];
    let leases = claim.messages.iter().map(|claimed| claimed.lease);
    leases.zip(outcomes).map(|(lease, outcome)| Settlement::new(lease, outcome)).collect()
}

/// How many messages are leased, in how many statements a settlement of each kind is written.
async fn settle_at_every_await(site: &Site, possible: &[i64]) {
    sweep(site, async |k| {
        site.execute(&format!("DELETE FROM {}", site.sql_name("outbox"))).await;
        site.enqueue("t", 4).await;
        let settlements = one_of_each(&site.claim(4).await);
        let settled = cancel_at(k, site.outbox.settle(settlements.clone())).await;
        quiet(site).await;
        let leased = site.count("outbox WHERE lease IS NOT NULL").await;
        assert!(possible.contains(&leased), "{leased} of 4 are leased");
        // what the call did not settle can be settled again, and nothing twice
        let again = site.outbox.settle(settlements).await.expect("settle");
        let n_applied = again.iter().filter(|settled| **settled == Settled::Applied).count();
        assert_eq!(n_applied as i64, leased);
        settled.is_some()
    })
    .await;
    assert_eq!(site.count("outbox WHERE lease IS NOT NULL").await, 0);
}

async fn a_dropped_settle_settles_all_or_nothing(site: &Site) {
    settle_at_every_await(site, &[0, 4]).await;
}

async fn a_dropped_settle_settles_each_message_or_not(site: &Site) {
    // what is done is written first, by a statement of its own
    settle_at_every_await(site, &[0, 3, 4]).await;
}

async fn a_dropped_extend_keeps_the_lease(site: &Site) {
    site.enqueue("t", 3).await;
    let claim = site.claim(3).await;
    let leases: Vec<_> = claim.messages.iter().map(|claimed| claimed.lease).collect();
    sweep(site, async |k| {
        let extended = cancel_at(k, site.outbox.extend(leases.clone(), 2 * LEASE)).await;
        quiet(site).await;
        let n: i64 = site
            .value(&format!(
                "SELECT count(DISTINCT leased_until > created_at) FROM {}",
                site.sql_name("outbox")
            ))
            .await;
        assert_eq!(n, 1);
        extended.is_some()
    })
    .await;
    settle_all(&site.outbox, &claim, Outcome::Done).await;
}

async fn a_dropped_mark_is_there_or_not_and_blocks_nobody(site: &Site) {
    let mark = async |id: Uuid| -> Result<Marked> {
        transactor(&site.db).run(async |cx| site.inbox.mark_processed(cx, Mark::new("g", id)).await).await
    };
    sweep(site, async |k| {
        let id = Uuid::now_v7();
        let marked = cancel_at(k, mark(id)).await;
        let again = tokio::time::timeout(PATIENCE, mark(id)).await.expect("blocked by a lost transaction");
        let is_first = again.expect("marked") == Marked::First;
        assert!(marked.is_none() || !is_first, "what was marked is marked once");
        assert!(site.inbox.is_processed("g", id).await.expect("asked"));
        marked.is_some()
    })
    .await;
}

on_postgres! {
    enqueue_autocommit_stores_all_or_nothing,
    a_dropped_claim_leaves_messages_that_come_back,
    a_dropped_settle_settles_all_or_nothing,
    a_dropped_extend_keeps_the_lease,
    a_dropped_mark_is_there_or_not_and_blocks_nobody,
}

on_sqlite! {
    enqueue_autocommit_stores_all_or_nothing,
    a_dropped_claim_leaves_messages_that_come_back,
    a_dropped_settle_settles_each_message_or_not,
    a_dropped_extend_keeps_the_lease,
    a_dropped_mark_is_there_or_not_and_blocks_nobody,
}
