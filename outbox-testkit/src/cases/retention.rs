//! A table that keeps what it delivered, and what pruning may remove.

use std::time::Duration;

use outbox_core::{
    Claimed, DeadLetterQuery, ErrorKind, Lease, MAX_BATCH, MessageId, Moved, Operations, Outcome, Prune,
    Repository, Settled, Settlement,
};

use super::lacks;
use super::steps::{HOUR, Steps, assert_invalid, dead, draft, drafts, ids, kind, retry, sorted};
use crate::OperationsHarness;

const DAY: Duration = Duration::from_secs(86_400);

/// The handle that keeps, or the end of the case.
macro_rules! keeping {
    ($h:ident, $case:literal) => {
        match $h.keeping() {
            Some(keeping) => keeping,
            None => return lacks::<H>(concat!("retention::", $case), "keeping"),
        }
    };
}

async fn settle(keeping: &impl Repository, claimed: &[Claimed], outcome: Outcome) -> Vec<Settled> {
    let settlements = claimed.iter().map(|claimed| Settlement::new(claimed.lease, outcome.clone()));
    keeping.settle(settlements.collect()).await.expect("settle")
}

/// Enqueues, claims and settles `n` messages, which are then kept.
async fn keep(h: &impl OperationsHarness, keeping: &impl Repository, n: usize) -> Vec<MessageId> {
    h.enqueue(drafts(n)).await;
    let claimed = h.claim(n).await;
    assert_eq!(settle(keeping, &claimed, Outcome::Done).await, vec![Settled::Applied; n]);
    ids(&claimed)
}

async fn prune(h: &impl OperationsHarness, prune: Prune) -> u64 {
    h.operations().prune(prune).await.expect("prune")
}

async fn n_done_and_dead(h: &impl OperationsHarness) -> (u64, u64) {
    let total = h.operations().stats().await.expect("stats").total();
    (total.n_done, total.n_dead)
}

/// A message that is kept is done: never handed out again, not pending, not a dead letter.
pub async fn kept_message_is_never_handed_out<H: OperationsHarness>(h: &H) {
    let keeping = keeping!(h, "kept_message_is_never_handed_out");
    let kept = keep(h, &keeping, 3).await;
    h.expire().await;
    h.assert_nothing_to_claim().await;
    let total = h.operations().stats().await.expect("stats").total();
    assert_eq!((total.n_pending, total.n_claimed, total.n_dead, total.n_done), (0, 0, 0, 3));
    assert!(h.operations().dead_letters(DeadLetterQuery::new(10)).await.expect("page").letters.is_empty());
    let redriven = h.operations().redrive(kept.clone()).await.expect("redrive");
    assert_eq!(redriven, [Moved::NotDead; 3]);
    assert_eq!(h.operations().discard(kept).await.expect("discard"), [Moved::NotDead; 3]);
    h.assert_nothing_to_claim().await;
}

/// The id of a kept message is taken until it is pruned; where only messages to be delivered have their ids remembered,
/// it is free, and the kept message stays beside the new one.
pub async fn id_of_a_kept_message_is_taken<H: OperationsHarness>(h: &H) {
    let keeping = keeping!(h, "id_of_a_kept_message_is_taken");
    let id = keep(h, &keeping, 1).await[0];
    if !h.capabilities().ended_ids {
        lacks::<H>("retention::id_of_a_kept_message_is_taken", "ended_ids");
        h.enqueue(draft().id(id)).await;
        assert_eq!(ids(&h.claim(2).await), [id]);
        assert_eq!(n_done_and_dead(h).await, (1, 0));
        return;
    }
    let cx = h.begin().await;
    assert_eq!(kind(h.repository().enqueue(&cx, vec![draft().id(id)]).await), ErrorKind::AlreadyEnqueued);
    h.commit(cx).await;
    h.assert_nothing_to_claim().await;
    h.advance(DAY).await;
    assert_eq!(prune(h, Prune::done(HOUR)).await, 1);
    h.enqueue(draft().id(id)).await;
    assert_eq!(h.drain().await, [id]);
}

/// A lease that was settled or lost keeps nothing a second time.
pub async fn stale_lease_of_a_kept_message_is_lost<H: OperationsHarness>(h: &H) {
    let keeping = keeping!(h, "stale_lease_of_a_kept_message_is_lost");
    h.enqueue_one().await;
    let lost = h.claim(1).await;
    h.expire().await;
    let current = h.claim(1).await;
    assert_eq!(settle(&keeping, &lost, Outcome::Done).await, [Settled::LeaseLost]);
    assert_eq!(n_done_and_dead(h).await, (0, 0));
    assert_eq!(settle(&keeping, &current, Outcome::Done).await, [Settled::Applied]);
    for outcome in [Outcome::Done, Outcome::Release, retry(HOUR), dead("no")] {
        assert_eq!(settle(&keeping, &current, outcome).await, [Settled::LeaseLost]);
    }
    let leases: Vec<Lease> = current.iter().map(|claimed| claimed.lease).collect();
    assert_eq!(h.extend(&leases, HOUR).await, [Settled::LeaseLost]);
    assert_eq!(n_done_and_dead(h).await, (1, 0));
}

/// One call may keep some messages and settle others otherwise.
pub async fn call_may_mix_kept_messages_and_others<H: OperationsHarness>(h: &H) {
    let keeping = keeping!(h, "call_may_mix_kept_messages_and_others");
    let enqueued = h.enqueue(drafts(6)).await;
    let claimed = h.claim(6).await;
    let outcomes = [Outcome::Done, retry(HOUR), Outcome::Done, dead("no"), Outcome::Release, Outcome::Done];
    let settlements =
        claimed.iter().zip(outcomes).map(|(claimed, outcome)| Settlement::new(claimed.lease, outcome));
    let settled = keeping.settle(settlements.collect()).await.expect("settle");
    assert_eq!(settled, [Settled::Applied; 6]);
    assert_eq!(n_done_and_dead(h).await, (3, 1));
    h.advance(HOUR).await;
    assert_eq!(sorted(h.drain().await), sorted(vec![enqueued[1], enqueued[4]]));
}

/// A message is pruned when it ended longer ago than it should be kept, however old it is.
pub async fn kept_message_is_pruned_by_the_time_it_ended<H: OperationsHarness>(h: &H) {
    let keeping = keeping!(h, "kept_message_is_pruned_by_the_time_it_ended");
    h.enqueue(drafts(2)).await;
    let claimed = h.claim(1).await;
    assert_eq!(settle(&keeping, &claimed, Outcome::Done).await, [Settled::Applied]);
    h.advance(3 * DAY).await;
    let claimed = h.claim(1).await;
    assert_eq!(settle(&keeping, &claimed, Outcome::Done).await, [Settled::Applied]);
    h.advance(DAY).await;
    assert_eq!(prune(h, Prune::done(5 * DAY)).await, 0);
    assert_eq!(prune(h, Prune::done(2 * DAY)).await, 1);
    assert_eq!(n_done_and_dead(h).await, (1, 0));
    assert_eq!(prune(h, Prune::done(Duration::ZERO)).await, 1);
    assert_eq!(prune(h, Prune::done(Duration::ZERO)).await, 0);
}

/// Whatever its age, a message that has not ended is never pruned: pending, delayed, retrying, claimed, expired.
pub async fn nothing_unfinished_is_pruned<H: OperationsHarness>(h: &H) {
    let mut enqueued = h.enqueue(drafts(4)).await;
    enqueued.extend(h.enqueue(draft().delay(30 * DAY)).await);
    let claimed = h.claim(3).await;
    assert_eq!(h.settle(claimed[0].lease, retry(20 * DAY)).await, Settled::Applied);
    assert_eq!(h.settle(claimed[1].lease, Outcome::Release).await, Settled::Applied);
    h.advance(10 * DAY).await;
    let held = h.claim(1).await;
    for prune in [Prune::done(Duration::ZERO), Prune::dead(Duration::ZERO)] {
        assert_eq!(self::prune(h, prune.clone().dry_run()).await, 0);
        assert_eq!(self::prune(h, prune).await, 0);
    }
    assert_eq!(h.settle(held[0].lease, Outcome::Release).await, Settled::Applied);
    h.advance(30 * DAY).await;
    assert_eq!(sorted(h.drain().await), sorted(enqueued));
}

/// Done and dead messages are pruned apart from each other.
pub async fn dead_letters_have_a_policy_of_their_own<H: OperationsHarness>(h: &H) {
    let keeping = keeping!(h, "dead_letters_have_a_policy_of_their_own");
    keep(h, &keeping, 2).await;
    h.enqueue(drafts(3)).await;
    let claimed = h.claim(3).await;
    assert_eq!(settle(&keeping, &claimed, dead("no")).await, [Settled::Applied; 3]);
    h.advance(DAY).await;
    assert_eq!(prune(h, Prune::dead(2 * DAY)).await, 0);
    assert_eq!(prune(h, Prune::dead(HOUR)).await, 3);
    assert_eq!(n_done_and_dead(h).await, (2, 0));
    assert_eq!(prune(h, Prune::done(HOUR)).await, 2);
}

/// A step removes no more than its limit, of done messages the oldest first.
pub async fn prune_is_bounded<H: OperationsHarness>(h: &H) {
    let keeping = keeping!(h, "prune_is_bounded");
    keep(h, &keeping, 3).await;
    h.advance(HOUR).await;
    keep(h, &keeping, 2).await;
    h.advance(HOUR).await;
    let old = || Prune::done(HOUR + HOUR / 2).dry_run();
    assert_eq!(prune(h, old()).await, 3);
    assert_eq!(prune(h, Prune::done(Duration::ZERO).with_limit(3)).await, 3);
    assert_eq!(prune(h, old()).await, 0, "the old ones went first");
    assert_eq!(prune(h, Prune::done(Duration::ZERO).with_limit(3)).await, 2);
}

/// A dry run counts what a step would remove, within its limit, and removes nothing.
pub async fn dry_run_removes_nothing<H: OperationsHarness>(h: &H) {
    let keeping = keeping!(h, "dry_run_removes_nothing");
    keep(h, &keeping, 4).await;
    h.enqueue(drafts(2)).await;
    let claimed = h.claim(2).await;
    assert_eq!(settle(&keeping, &claimed, dead("no")).await, [Settled::Applied; 2]);
    h.advance(HOUR).await;
    let done = || Prune::done(HOUR / 2).dry_run();
    assert_eq!(prune(h, done()).await, 4);
    assert_eq!(prune(h, done().with_limit(3)).await, 3);
    assert_eq!(prune(h, Prune::done(2 * HOUR).dry_run()).await, 0);
    assert_eq!(prune(h, Prune::dead(HOUR / 2).dry_run()).await, 2);
    assert_eq!(n_done_and_dead(h).await, (4, 2));
}

/// A step of none, or of more than 1,000, and an endless age are refused.
pub async fn prune_out_of_bounds_is_refused(h: &impl OperationsHarness) {
    for limit in [0, MAX_BATCH + 1, usize::MAX] {
        for prune in [Prune::done(HOUR), Prune::dead(HOUR), Prune::done(HOUR).dry_run()] {
            assert_invalid(h.operations().prune(prune.with_limit(limit)).await, "limit");
        }
    }
    assert_invalid(h.operations().prune(Prune::done(Duration::MAX)).await, "older_than");
}

/// Pruning removes keys that have expired, oldest first and in bounded steps, and none that is honoured.
pub async fn only_expired_keys_are_pruned<H: OperationsHarness>(h: &H) {
    if !h.capabilities().dedup_keys {
        return lacks::<H>("retention::only_expired_keys_are_pruned", "dedup_keys");
    }
    h.enqueue([draft().dedup_key("a"), draft().dedup_key("b"), draft().dedup_key("c")]).await;
    h.advance(2 * HOUR).await;
    let young = h.enqueue(draft().dedup_key("young")).await[0];
    assert_eq!(prune(h, Prune::dedup_keys().dry_run()).await, 0, "all are honoured");
    assert_eq!(prune(h, Prune::dedup_keys()).await, 0, "all are honoured");
    h.advance(DAY - HOUR).await;
    let step = Prune::dedup_keys().with_limit(2);
    assert_eq!(prune(h, Prune::dedup_keys().dry_run()).await, 3);
    assert_eq!(prune(h, step.clone().dry_run()).await, 2);
    let mut older = Prune::dedup_keys();
    older.older_than = 2 * HOUR;
    assert_eq!(prune(h, older).await, 0, "they expired an hour ago");
    assert_eq!(prune(h, step.clone()).await, 2);
    assert_eq!(prune(h, step.clone()).await, 1);
    assert_eq!(prune(h, step).await, 0);
    assert_eq!(h.enqueue(draft().dedup_key("young")).await, [young]);
    assert_eq!(prune(h, Prune::done(Duration::ZERO)).await + prune(h, Prune::dead(Duration::ZERO)).await, 0);
    assert_eq!(h.drain().await.len(), 4, "messages are not pruned with their keys");
}

/// A key that was pruned is new, and one that expired and was not pruned is too.
pub async fn pruned_key_is_new<H: OperationsHarness>(h: &H) {
    if !h.capabilities().dedup_keys {
        return lacks::<H>("retention::pruned_key_is_new", "dedup_keys");
    }
    let first = h.enqueue(draft().dedup_key("k")).await;
    h.advance(DAY).await;
    assert_eq!(prune(h, Prune::dedup_keys()).await, 1);
    let second = h.enqueue(draft().dedup_key("k")).await;
    assert_eq!(h.drain().await, [first, second].concat());
}

/// A key is honoured after its dead letter was discarded.
pub async fn key_of_a_discarded_message_is_taken<H: OperationsHarness>(h: &H) {
    if !h.capabilities().dedup_keys {
        return lacks::<H>("retention::key_of_a_discarded_message_is_taken", "dedup_keys");
    }
    let first = h.enqueue(draft().dedup_key("k")).await[0];
    let claimed = h.claim_one().await;
    let _ = h.settle(claimed.lease, dead("refused")).await;
    assert_eq!(h.operations().discard(vec![first]).await.expect("discard"), [Moved::Applied]);
    assert_eq!(h.enqueue(draft().dedup_key("k")).await, [first]);
    h.assert_nothing_to_claim().await;
}
