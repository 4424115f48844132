//! Every call of the hot path, dropped at each of its awaits.

use futures_util::future::join_all;
use outbox_core::{
    Claim, ClaimRequest, Claimer, Draft, Lease, Mark, Marked, Operations, Outcome, ProcessedStore,
    Repository, Result, Settled, Settlement,
};
use outbox_sea_orm::transactor;
use uuid::Uuid;

use crate::support::{
    LEASE, PATIENCE, Site, Victim, cancel_at, on_mysql, on_postgres, on_sqlite, settle_all,
};

const ROUNDS: usize = 5;

/// Lets `call` be dropped at its first, second, … await until it finishes, several times over, each time on pools of
/// its own that must be as good as new afterwards; `check` is told what the call did when all of it has ended.
async fn sweep<T>(
    site: &Site,
    mut call: impl AsyncFnMut(&Victim, usize) -> Option<T>,
    mut check: impl AsyncFnMut(Option<T>),
) {
    let mut n_cancelled = 0;
    // on a busy machine an answer may be there before it is waited for: then go on
    for round in 0..10 * ROUNDS {
        if round >= ROUNDS && n_cancelled > 0 {
            break;
        }
        for k in 1.. {
            let victim = site.victim().await;
            let output = call(&victim, k).await;
            assert_healthy(&victim).await;
            victim.end(site).await;
            let has_finished = output.is_some();
            check(output).await;
            if has_finished {
                break;
            }
            n_cancelled += 1;
        }
    }
    assert!(n_cancelled > 0, "nothing was cancelled");
}

/// More calls at once than either pool has connections.
async fn assert_healthy(victim: &Victim) {
    let calls = (0..6).map(|_| async {
        victim.outbox.ping().await.expect("ping");
        let nothing = ClaimRequest::new(1, LEASE).with_topics(["nobody"]).with_recover(false);
        assert!(victim.outbox.claim(nothing).await.expect("claim").is_empty());
    });
    tokio::time::timeout(PATIENCE, join_all(calls)).await.expect("a connection is stuck");
}

async fn enqueue_autocommit_stores_all_or_nothing(site: &Site) {
    let mut before = 0;
    let call = async |victim: &Victim, k| {
        let drafts = [Draft::new("t", "a"), Draft::new("t", "b"), Draft::new("t", "c")];
        cancel_at(k, victim.outbox.enqueue_autocommit(drafts)).await
    };
    let check = async |output: Option<Result<Vec<Uuid>>>| {
        let n = site.count("outbox").await;
        match output {
            Some(ids) => assert_eq!((ids.expect("enqueued").len(), n), (3, before + 3)),
            None => assert!(n == before || n == before + 3, "{n} after {before}"),
        }
        before = n;
    };
    sweep(site, call, check).await;
}

async fn a_dropped_claim_leaves_messages_that_come_back(site: &Site) {
    let mut ids = site.enqueue("t", 3).await;
    ids.sort();
    let claimer = Claimer::new();
    let request = || ClaimRequest::new(10, LEASE).with_max_attempts(1_000).with_claimer(claimer.clone());
    let call = async |victim: &Victim, k| cancel_at(k, victim.outbox.claim(request())).await;
    let check = async |_| {
        site.expire_leases().await;
        let mut found = Vec::new();
        while found.len() < ids.len() {
            let claim = site.outbox.claim(ClaimRequest::new(10, LEASE).with_max_attempts(1_000)).await;
            let claim = claim.expect("claim");
            assert!(!claim.is_empty() && claim.n_dead == 0, "{found:?} of {ids:?}");
            found.extend(claim.messages.iter().map(|claimed| claimed.message.id));
            settle_all(&site.outbox, &claim, Outcome::Release).await;
        }
        found.sort();
        assert_eq!(found, ids);
    };
    sweep(site, call, check).await;
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

/// After a settlement of each kind that was dropped, `possible` says how many of the four may still be leased.
async fn settle_at_every_await(site: &Site, possible: &[usize]) {
    let settlements = std::cell::RefCell::new(Vec::new());
    let call = async |victim: &Victim, k| {
        site.execute(&format!("DELETE FROM {}", site.sql_name("outbox"))).await;
        site.enqueue("t", 4).await;
        let each = one_of_each(&site.claim(4).await);
        settlements.replace(each.clone());
        cancel_at(k, victim.outbox.settle(each)).await
    };
    let check = async |output: Option<Result<Vec<Settled>>>| {
        let n_leased = site.count("outbox WHERE lease IS NOT NULL").await as usize;
        assert!(possible.contains(&n_leased), "{n_leased} of 4 are leased");
        assert!(output.is_none() || n_leased == 0);
        // what the call did not settle can be settled again, and nothing twice
        let again = site.outbox.settle(settlements.take()).await.expect("settle");
        assert_eq!(again.iter().filter(|settled| **settled == Settled::Applied).count(), n_leased);
    };
    sweep(site, call, check).await;
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
    let leases: Vec<Lease> = claim.messages.iter().map(|claimed| claimed.lease).collect();
    let end = if site.is_mysql() { "due" } else { "leased_until" };
    let ends = format!("SELECT count(DISTINCT {end}) FROM {}", site.sql_name("outbox"));
    let call = async |victim: &Victim, k| cancel_at(k, victim.outbox.extend(leases.clone(), 2 * LEASE)).await;
    let check = async |output: Option<Result<Vec<Settled>>>| {
        if let Some(settled) = output {
            assert_eq!(settled.expect("extended"), [Settled::Applied; 3]);
        }
        // the rows of one statement need not end at the same microsecond
        assert!((1..=3).contains(&site.value::<i64>(&ends).await));
        let again = site.outbox.extend(leases.clone(), LEASE).await.expect("extended");
        assert_eq!(again, [Settled::Applied; 3]);
    };
    sweep(site, call, check).await;
    settle_all(&site.outbox, &claim, Outcome::Done).await;
}

async fn a_dropped_mark_is_there_or_not_and_blocks_nobody(site: &Site) {
    let id = std::cell::Cell::new(Uuid::nil());
    let call = async |victim: &Victim, k| {
        id.set(Uuid::now_v7());
        let mark = Mark::new("g", id.get());
        cancel_at(k, transactor(&victim.db).run(async |cx| victim.inbox.mark_processed(cx, mark).await)).await
    };
    let check = async |output: Option<Result<Marked>>| {
        let mark = Mark::new("g", id.get());
        let tx = transactor(&site.db);
        let marking = tx.run(async |cx| site.inbox.mark_processed(cx, mark).await);
        let marked = tokio::time::timeout(PATIENCE, marking).await.expect("a lost transaction blocks it");
        let is_first = marked.expect("marked") == Marked::First;
        if let Some(before) = output {
            assert_eq!(before.expect("marked"), Marked::First);
            assert!(!is_first, "what was marked is marked once");
        }
    };
    sweep(site, call, check).await;
}

on_postgres! {
    enqueue_autocommit_stores_all_or_nothing,
    a_dropped_claim_leaves_messages_that_come_back,
    a_dropped_settle_settles_all_or_nothing,
    a_dropped_extend_keeps_the_lease,
    a_dropped_mark_is_there_or_not_and_blocks_nobody,
}

on_mysql! {
    enqueue_autocommit_stores_all_or_nothing,
    a_dropped_claim_leaves_messages_that_come_back,
    a_dropped_settle_settles_each_message_or_not,
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
