//! Claims are disjoint, bounded, in order, and count the attempt.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use outbox_core::{Claimed, Draft, Lease, MessageId, Outcome, Repository, RepositoryExt, Settled};
use tokio::task::JoinSet;

use super::lacks;
use super::steps::{
    HOUR, LEASE, MINUTE, Steps, assert_near, draft, drafts, ids, insist, on, request, retry, soon, sorted,
};
use crate::harness::say_skipped;
use crate::random::Random;
use crate::{Corruption, Harness};

/// A claim of an empty table finds nothing.
pub async fn empty_table_gives_an_empty_claim(h: &impl Harness) {
    let claim = h.claim_with(request(10)).await;
    assert!(claim.is_empty());
    assert!(!claim.recovered);
    assert_eq!(claim.next_due_in, None);
}

/// Messages come in the order in which they were enqueued, in one call or many.
pub async fn messages_come_in_the_order_of_enqueueing(h: &impl Harness) {
    let mut enqueued = h.enqueue(drafts(1_000)).await;
    for _ in 0..20 {
        enqueued.extend(h.enqueue(drafts(3)).await);
    }
    let mut claimed = ids(&h.claim(1_000).await);
    claimed.extend(ids(&h.claim(1_000).await));
    assert_eq!(claimed, enqueued);
}

/// What one claim has taken the next does not take.
pub async fn claims_are_disjoint(h: &impl Harness) {
    let enqueued = h.enqueue(drafts(30)).await;
    let mut claimed = Vec::new();
    for _ in 0..3 {
        claimed.extend(ids(&h.claim(10).await));
    }
    assert_eq!(claimed, enqueued);
    h.assert_nothing_to_claim().await;
}

/// A claim takes as many as the limit says, and never one more.
pub async fn limit_is_never_exceeded(h: &impl Harness) {
    h.enqueue(drafts(500)).await;
    for (limit, expected) in [(1, 1), (2, 2), (10, 10), (100, 100), (7, 7), (1_000, 380), (1, 0)] {
        assert_eq!(h.claim(limit).await.len(), expected, "with a limit of {limit}");
    }
}

/// A claim takes as many bytes as it may, and never one more.
pub async fn byte_limit_is_never_exceeded(h: &impl Harness) {
    let sizes = [100, 200, 700, 1, 999, 1_000, 0, 1];
    let drafts = sizes.map(|size| Draft::new("topic", vec![b'x'; size])).to_vec();
    let enqueued = h.enqueue(drafts).await;
    let mut taken = Vec::new();
    for expected in [3, 2, 2, 1] {
        let claimed = h.claim_with(request(10).with_max_bytes(1_000)).await.messages;
        assert!(payload_bytes(&claimed) <= 1_000);
        assert_eq!(claimed.len(), expected, "a claim should take what fits");
        taken.extend(ids(&claimed));
    }
    assert_eq!(taken, enqueued);
}

fn payload_bytes(claimed: &[Claimed]) -> usize {
    claimed.iter().map(|claimed| claimed.message.payload.len()).sum()
}

/// The first message passes whatever its size, alone.
pub async fn first_message_passes_the_byte_limit(h: &impl Harness) {
    let sizes = [5_000, 6_000, 1];
    let enqueued = h.enqueue(sizes.map(|size| Draft::new("topic", vec![0; size])).to_vec()).await;
    for id in enqueued {
        assert_eq!(ids(&h.claim_with(request(10).with_max_bytes(1)).await.messages), [id]);
    }
}

/// Only the named topics are claimed; the others stay claimable.
pub async fn only_named_topics_are_claimed(h: &impl Harness) {
    let mixed = h.enqueue([on("a"), on("b"), on("c"), on("a"), on("A")]).await;
    let claimed = h.claim_with(request(10).with_topics(["a", "b", "nobody"])).await.messages;
    assert_eq!(ids(&claimed), [mixed[0], mixed[1], mixed[3]]);
    assert_eq!(ids(&h.claim(10).await), [mixed[2], mixed[4]]);
}

/// Messages of a topic that nobody serves keep no other message waiting, and cost no attempt.
pub async fn unserved_topic_blocks_nobody(h: &impl Harness) {
    h.enqueue((0..300).map(|_| on("unserved")).collect::<Vec<_>>()).await;
    let served = h.enqueue(on("served")).await;
    assert_eq!(ids(&h.claim_with(request(10).with_topics(["served"])).await.messages), served);
    assert!(h.claim_with(request(10).with_topics(["served"])).await.is_empty());
    assert!(h.claim(300).await.iter().all(|claimed| claimed.message.attempt == 1));
}

/// The attempt is counted by the claim, before anybody says what became of it.
pub async fn attempt_is_counted_by_the_claim(h: &impl Harness) {
    h.enqueue_one().await;
    for attempt in 1..=4 {
        let claimed = h.claim_one().await;
        assert_eq!(claimed.message.attempt, attempt);
        h.expire().await;
    }
}

/// Each claim has a token that no claim had before.
pub async fn token_is_fresh_for_every_claim(h: &impl Harness) {
    h.enqueue(drafts(4)).await;
    let mut tokens = HashSet::new();
    for _ in 0..2 {
        for _ in 0..2 {
            let claimed = h.claim(2).await;
            let of_claim: HashSet<_> = claimed.iter().map(|claimed| claimed.lease.token).collect();
            assert!(of_claim.iter().all(|token| tokens.insert(*token)), "a token came twice");
        }
        h.expire().await;
    }
}

/// The fence rises with every claim of a message, whatever came between.
pub async fn fence_rises_with_every_claim(h: &impl Harness) {
    h.enqueue_one().await;
    let mut last = i64::MIN;
    for outcome in [None, Some(Outcome::Release), Some(retry(HOUR)), None, Some(Outcome::Release), None] {
        let claimed = h.claim_one().await;
        assert!(claimed.message.fence > last, "{} after {last}", claimed.message.fence);
        last = claimed.message.fence;
        if let Some(outcome) = outcome {
            assert_eq!(h.settle(claimed.lease, outcome).await, Settled::Applied);
        }
        h.expire().await;
    }
}

/// A running lease keeps everybody else away until it has expired.
pub async fn running_lease_excludes_others(h: &impl Harness) {
    h.enqueue_one().await;
    h.claim_one().await;
    h.advance(LEASE - HOUR / 2).await;
    h.assert_nothing_to_claim().await;
    h.advance(HOUR / 2).await;
    assert_eq!(h.claim_one().await.message.attempt, 2);
}

/// The lease is as long as the claim asked for.
pub async fn lease_is_as_long_as_asked_for(h: &impl Harness) {
    h.enqueue(drafts(2)).await;
    let short = h.claim(1).await;
    let mut long = request(1);
    long.lease = 10 * LEASE;
    let long = h.claim_with(long).await.messages;
    h.expire().await;
    assert_eq!(ids(&h.claim(10).await), ids(&short));
    h.advance(10 * LEASE).await;
    assert_eq!(sorted(h.drain().await), sorted([ids(&short), ids(&long)].concat()));
}

/// Delayed messages come when they are due, in the order of their due times.
pub async fn delayed_messages_come_in_the_order_of_their_due_times<H: Harness>(h: &H) {
    let delays = [3, 1, 2].map(|hours| draft().delay(hours * HOUR));
    let [third, first, second] = h.enqueue(delays.to_vec()).await[..] else { unreachable!("three") };
    h.advance(4 * HOUR).await;
    assert_order(h, "claim::delayed_messages_come_in_the_order_of_their_due_times", [first, second, third])
        .await;
}

/// A message that was retried comes as a new arrival, behind those that were enqueued meanwhile.
pub async fn retried_message_comes_as_a_new_arrival<H: Harness>(h: &H) {
    let [first, second] = h.enqueue(drafts(2)).await[..] else { unreachable!("two") };
    let claimed = h.claim(1).await;
    let _ = h.settle(claimed[0].lease, retry(HOUR)).await;
    let third = h.enqueue_one().await;
    h.advance(2 * HOUR).await;
    assert_order(h, "claim::retried_message_comes_as_a_new_arrival", [second, third, first]).await;
}

/// A message that was released comes as a new arrival.
pub async fn released_message_comes_as_a_new_arrival<H: Harness>(h: &H) {
    let [first, second] = h.enqueue(drafts(2)).await[..] else { unreachable!("two") };
    let claimed = h.claim(1).await;
    assert_eq!(h.settle(claimed[0].lease, Outcome::Release).await, Settled::Applied);
    assert_order(h, "claim::released_message_comes_as_a_new_arrival", [second, first]).await;
}

async fn assert_order<H: Harness, const N: usize>(h: &H, case: &str, expected: [MessageId; N]) {
    let claimed = ids(&h.claim(100).await);
    if h.capabilities().exact_order {
        assert_eq!(claimed, expected);
    } else {
        lacks::<H>(case, "exact_order");
        assert_eq!(sorted(claimed), sorted(expected.to_vec()));
    }
}

/// A claim that finds nothing says when the next message becomes due.
pub async fn empty_claim_says_when_the_next_message_is_due<H: Harness>(h: &H) {
    if !h.capabilities().timers {
        return lacks::<H>("claim::empty_claim_says_when_the_next_message_is_due", "timers");
    }
    h.enqueue([draft().delay(5 * HOUR), draft().delay(3 * HOUR)]).await;
    assert_near(h.claim_with(request(10)).await.next_due_in, 3 * HOUR);
    h.advance(2 * HOUR).await;
    assert_near(h.claim_with(request(10)).await.next_due_in, HOUR);
}

/// A claim that finds nothing says when the next lease expires, if that is sooner.
pub async fn empty_claim_says_when_the_next_lease_expires<H: Harness>(h: &H) {
    if !h.capabilities().timers {
        return lacks::<H>("claim::empty_claim_says_when_the_next_lease_expires", "timers");
    }
    h.enqueue([draft(), draft().delay(5 * HOUR)]).await;
    h.claim_one().await;
    h.advance(LEASE / 2).await;
    assert_near(h.claim_with(request(10)).await.next_due_in, LEASE / 2);
}

/// The timer may be early because of other topics, never late.
pub async fn timer_is_never_late_for_the_claimed_topics<H: Harness>(h: &H) {
    if !h.capabilities().timers {
        return lacks::<H>("claim::timer_is_never_late_for_the_claimed_topics", "timers");
    }
    h.enqueue([on("a").delay(HOUR), on("b").delay(3 * HOUR), on("c").delay(5 * HOUR)]).await;
    for (topic, due_in) in [("a", HOUR), ("b", 3 * HOUR), ("c", 5 * HOUR)] {
        let timer = h.claim_with(request(10).with_topics([topic])).await.next_due_in.expect("a timer");
        assert!(timer < due_in + MINUTE, "{timer:?} is later than {due_in:?}");
    }
}

/// A row that cannot be decoded is dead; its neighbours are delivered.
pub async fn undecodable_row_is_dead_and_the_rest_goes_on<H: Harness>(h: &H) {
    if !h.capabilities().corrupt_rows {
        return lacks::<H>("claim::undecodable_row_is_dead_and_the_rest_goes_on", "corrupt_rows");
    }
    for corruption in Corruption::ALL {
        let mut expected = h.enqueue(drafts(100)).await;
        if h.corrupt(expected[50], corruption).await {
            expected.remove(50);
        } else {
            refuses::<H>(corruption);
        }
        let (mut delivered, mut n_dead) = (Vec::new(), 0);
        for _ in 0..10 {
            let claim = h.claim_with(request(30)).await;
            h.finish_all(&claim.messages).await;
            delivered.extend(ids(&claim.messages));
            n_dead += claim.n_dead;
        }
        assert_eq!((delivered.len(), n_dead), (expected.len(), 100 - expected.len()), "{corruption:?}");
        assert_eq!(delivered, expected);
    }
}

fn refuses<H: Harness>(corruption: Corruption) {
    say_skipped(&format!("{} cannot hold a row with broken {corruption:?}", H::NAME));
}

/// Eight claimers at once never hold one message together, and together they deliver all.
pub async fn concurrent_claimers_are_disjoint(h: &impl Harness) {
    let enqueued = h.enqueue(drafts(400)).await;
    let mut random = Random::announced("concurrent_claimers_are_disjoint");
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let mut claimers = JoinSet::new();
    for _ in 0..8 {
        let work = deliver_some(h.repository().clone(), Arc::clone(&ledger), random.fork(), enqueued.len());
        claimers.spawn(work);
    }
    soon("the end of the claimers", claimers.join_all()).await;
    let ledger = ledger.lock().expect("ledger");
    assert_eq!(sorted(ledger.delivered.clone()), sorted(enqueued));
    assert!(ledger.held.is_empty());
}

#[derive(Default)]
struct Ledger {
    held: HashSet<MessageId>,
    delivered: Vec<MessageId>,
}

impl Ledger {
    fn take(&mut self, claimed: &[Claimed]) {
        for id in ids(claimed) {
            assert!(self.held.insert(id), "{id} is claimed twice at a time");
            assert!(!self.delivered.contains(&id), "{id} is claimed after it was delivered");
        }
    }

    /// Done, retry or release by chance; the message is given up before the storage is told.
    fn give_up(&mut self, lease: Lease, random: &mut Random) -> Outcome {
        self.held.remove(&lease.id);
        match random.below(4) {
            0 => Outcome::Release,
            1 => retry(std::time::Duration::ZERO),
            _ => {
                self.delivered.push(lease.id);
                Outcome::Done
            }
        }
    }
}

async fn deliver_some<R: Repository>(
    repository: R,
    ledger: Arc<Mutex<Ledger>>,
    mut random: Random,
    n: usize,
) {
    while ledger.lock().expect("ledger").delivered.len() < n {
        let request = request(1 + random.below(20)).with_max_attempts(u32::MAX);
        let claim = insist(|| repository.claim(request.clone())).await;
        ledger.lock().expect("ledger").take(&claim.messages);
        for claimed in claim.messages {
            let outcome = ledger.lock().expect("ledger").give_up(claimed.lease, &mut random);
            let settled = insist(|| settle(&repository, claimed.lease, &outcome)).await;
            assert_eq!(settled, Settled::Applied);
        }
        tokio::task::yield_now().await;
    }
}

async fn settle<R: Repository>(
    repository: &R,
    lease: Lease,
    outcome: &Outcome,
) -> outbox_core::Result<Settled> {
    match outcome {
        Outcome::Done => repository.mark_done(lease).await,
        Outcome::Release => repository.release(lease).await,
        Outcome::Retry { after, error } => repository.mark_failed(lease, error, *after).await,
        Outcome::Dead { error } => repository.mark_dead(lease, error).await,
    }
}
