//! Only who holds the lease says what became of a message, and says it once.

use std::time::Duration;

use outbox_core::{Lease, MessageId, Outcome, Repository, Settled, Settlement};
use uuid::Uuid;

use super::steps::{HOUR, Steps, dead, draft, drafts, ids, insist, request, retry, soon, sorted};
use crate::Harness;

const APPLIED: Settled = Settled::Applied;
const LOST: Settled = Settled::LeaseLost;

/// A message that was delivered is gone.
pub async fn done_message_is_gone(h: &impl Harness) {
    h.enqueue_one().await;
    let claimed = h.claim_one().await;
    assert_eq!(h.settle(claimed.lease, Outcome::Done).await, APPLIED);
    h.expire().await;
    h.assert_nothing_to_claim().await;
}

/// A retry is due when its delay has passed, by the storage's clock, and not before.
pub async fn retry_waits_for_its_delay(h: &impl Harness) {
    let id = h.enqueue_one().await;
    let claimed = h.claim_one().await;
    assert_eq!(h.settle(claimed.lease, retry(3 * HOUR)).await, APPLIED);
    h.advance(2 * HOUR).await;
    h.assert_nothing_to_claim().await;
    h.advance(HOUR).await;
    let again = h.claim_one().await;
    assert_eq!((again.message.id, again.message.attempt), (id, 2));
}

/// A retry without delay is due at once.
pub async fn retry_without_delay_is_due_at_once(h: &impl Harness) {
    h.enqueue_one().await;
    for attempt in 1..=3 {
        let claimed = h.claim_one().await;
        assert_eq!(claimed.message.attempt, attempt, "no outcome but a release takes an attempt back");
        assert_eq!(h.settle(claimed.lease, retry(Duration::ZERO)).await, APPLIED);
    }
}

/// A dead letter is not handed out again.
pub async fn dead_letter_is_never_handed_out(h: &impl Harness) {
    h.enqueue_one().await;
    let claimed = h.claim_one().await;
    assert_eq!(h.settle(claimed.lease, dead("beyond help")).await, APPLIED);
    h.advance(1_000 * HOUR).await;
    h.assert_nothing_to_claim().await;
}

/// A release makes the message claimable at once and gives the attempt back.
pub async fn release_gives_the_attempt_back(h: &impl Harness) {
    let id = h.enqueue_one().await;
    for _ in 0..3 {
        let claim = h.claim_with(request(1).with_max_attempts(1)).await;
        assert_eq!((ids(&claim.messages), claim.recovered), (vec![id], false));
        assert_eq!(claim.messages[0].message.attempt, 1);
        assert_eq!(h.settle(claim.messages[0].lease, Outcome::Release).await, APPLIED);
    }
}

/// What the claim before had says nothing any more, whatever it says, and is told so.
pub async fn stale_token_changes_nothing(h: &impl Harness) {
    let id = h.enqueue_one().await;
    let stale = h.claim_one().await;
    h.expire().await;
    let current = h.claim_one().await;
    for outcome in [Outcome::Done, retry(Duration::ZERO), dead("stale"), Outcome::Release] {
        assert_eq!(h.settle(stale.lease, outcome).await, LOST);
    }
    h.assert_nothing_to_claim().await;
    h.expire().await;
    let third = h.claim_one().await;
    assert_eq!((third.message.id, third.message.attempt), (id, 3));
    assert_eq!(h.settle(current.lease, Outcome::Done).await, LOST);
    assert_eq!(h.settle(third.lease, Outcome::Done).await, APPLIED);
}

/// A settlement that comes after the lease has expired applies while nobody has claimed the message again.
pub async fn late_settlement_applies_until_the_next_claim(h: &impl Harness) {
    h.enqueue(drafts(4)).await;
    let claimed = h.claim(4).await;
    h.expire().await;
    let outcomes = [Outcome::Done, retry(HOUR), dead("late"), Outcome::Release];
    let late = claimed.iter().map(|claimed| claimed.lease).zip(outcomes);
    assert_eq!(h.settle_all(late).await, [APPLIED; 4]);
    let released = h.claim_one().await;
    assert_eq!((released.message.id, released.message.attempt), (claimed[3].message.id, 1));
}

/// The second settlement of a lease is reported and changes nothing, whatever the first one was.
pub async fn second_settlement_is_reported(h: &impl Harness) {
    let outcomes = [Outcome::Done, retry(HOUR), dead("first"), Outcome::Release];
    h.enqueue(drafts(4)).await;
    let leases: Vec<_> = h.claim(4).await.iter().map(|claimed| claimed.lease).collect();
    let first = leases.iter().copied().zip(outcomes.clone());
    assert_eq!(h.settle_all(first).await, [APPLIED; 4]);
    for outcome in outcomes {
        let second = leases.iter().map(|lease| (*lease, outcome.clone()));
        assert_eq!(h.settle_all(second).await, [LOST; 4]);
    }
    assert_eq!(h.drain().await, [leases[3].id]);
    h.advance(HOUR).await;
    assert_eq!(h.drain().await, [leases[1].id]);
}

/// A lease that nobody was given is reported: unknown message, foreign token, another message's token.
pub async fn unknown_lease_is_reported(h: &impl Harness) {
    h.enqueue_one().await;
    let lease = h.claim_one().await.lease;
    h.enqueue_one().await;
    let other = h.claim_one().await.lease;
    let forged = [
        Lease { token: Uuid::new_v4(), ..lease },
        Lease { id: Uuid::now_v7(), token: Uuid::new_v4(), locator: i64::MAX },
        Lease { token: other.token, ..lease },
        Lease { token: Uuid::nil(), ..lease },
    ];
    for outcome in [Outcome::Done, retry(Duration::ZERO), dead("forged"), Outcome::Release] {
        assert_eq!(h.settle_all(forged.map(|lease| (lease, outcome.clone()))).await, [LOST; 4]);
    }
    assert_eq!(h.settle_all([lease, other].map(|lease| (lease, Outcome::Done))).await, [APPLIED; 2]);
}

/// A message that is not claimed has no lease to settle by.
pub async fn unclaimed_message_cannot_be_settled(h: &impl Harness) {
    let id = h.enqueue_one().await;
    for token in [Uuid::nil(), Uuid::new_v4()] {
        for locator in [0, 1, 2] {
            assert_eq!(h.settle(Lease { id, token, locator }, Outcome::Done).await, LOST);
        }
    }
    assert_eq!(h.claim_one().await.message.id, id);
}

/// One lost lease in a call touches no other.
pub async fn lost_lease_touches_no_other(h: &impl Harness) {
    h.enqueue(drafts(10)).await;
    let claimed = h.claim(10).await;
    assert_eq!(h.settle(claimed[4].lease, Outcome::Release).await, APPLIED);
    let settled = h.settle_all(claimed.iter().map(|claimed| (claimed.lease, Outcome::Done))).await;
    let expected: Vec<_> = (0..10).map(|index| if index == 4 { LOST } else { APPLIED }).collect();
    assert_eq!(settled, expected);
    assert_eq!(h.claim_one().await.message.id, claimed[4].message.id);
}

/// One message that failed touches no other of its batch.
pub async fn one_failure_touches_no_other(h: &impl Harness) {
    h.enqueue(drafts(10)).await;
    let claimed = h.claim(10).await;
    let outcome = |index| if index == 7 { retry(Duration::ZERO) } else { Outcome::Done };
    let outcomes = claimed.iter().enumerate().map(|(index, claimed)| (claimed.lease, outcome(index)));
    assert_eq!(h.settle_all(outcomes).await, [APPLIED; 10]);
    let again = h.claim_one().await;
    assert_eq!((again.message.id, again.message.attempt), (claimed[7].message.id, 2));
}

/// A call that names a stale and the current lease of one message heeds the current one only.
pub async fn stale_lease_beside_the_current_one_is_lost(h: &impl Harness) {
    for stale_outcome in [Outcome::Done, dead("stale"), Outcome::Release, retry(5 * HOUR)] {
        for stale_first in [true, false] {
            let id = h.enqueue_one().await;
            let stale = h.claim_one().await.lease;
            h.expire().await;
            let current = h.claim_one().await.lease;
            let mut call = [(stale, stale_outcome.clone(), LOST), (current, retry(HOUR), APPLIED)];
            if !stale_first {
                call.reverse();
            }
            let expected = call.clone().map(|(_, _, settled)| settled);
            assert_eq!(h.settle_all(call.map(|(lease, outcome, _)| (lease, outcome))).await, expected);
            h.assert_nothing_to_claim().await;
            h.advance(HOUR).await;
            assert_eq!(h.drain().await, [id], "the retry counts");
        }
    }
}

/// A stale lease does not become good because its message's current token stands in the call, in the lease of
/// another message of the same claim.
pub async fn stale_lease_borrows_no_token(h: &impl Harness) {
    for give_up in [Some(Outcome::Release), Some(retry(Duration::ZERO)), None] {
        let id = h.enqueue_one().await;
        let stale = h.claim_one().await.lease;
        match give_up {
            Some(outcome) => assert_eq!(h.settle(stale, outcome).await, APPLIED),
            None => h.expire().await,
        }
        h.enqueue_one().await;
        let mut current = [h.claim(10).await, h.claim(10).await].concat();
        let own =
            current.remove(current.iter().position(|claimed| claimed.message.id == id).expect("claimed"));
        let call = [stale, current[0].lease].map(|lease| (lease, Outcome::Done));
        assert_eq!(h.settle_all(call).await, [LOST, APPLIED]);
        assert_eq!(h.settle(own.lease, Outcome::Done).await, APPLIED);
    }
}

/// Of two settlements for one lease in a call the first counts; the second is reported as lost.
pub async fn lease_named_twice_counts_once(h: &impl Harness) {
    h.enqueue(drafts(2)).await;
    let claimed = h.claim(2).await;
    let [one, other] = [claimed[0].lease, claimed[1].lease];
    let call =
        [(one, Outcome::Done), (other, Outcome::Release), (one, Outcome::Release), (other, Outcome::Done)];
    assert_eq!(h.settle_all(call).await, [APPLIED, APPLIED, LOST, LOST]);
    assert_eq!(h.claim_one().await.message.id, other.id);
}

/// A call may mix leases of several claims and all outcomes; answers come in its order.
pub async fn call_may_mix_claims_and_outcomes(h: &impl Harness) {
    h.enqueue(drafts(8)).await;
    let mut leases = Vec::new();
    for limit in [3, 1, 4] {
        leases.extend(h.claim(limit).await.iter().map(|claimed| claimed.lease));
    }
    leases.reverse();
    let outcomes = [Outcome::Done, retry(HOUR), dead("no"), Outcome::Release];
    let call = leases.iter().copied().zip(outcomes.into_iter().cycle());
    assert_eq!(h.settle_all(call).await, [APPLIED; 8]);
    let expected = |offset: usize| sorted(vec![leases[offset].id, leases[offset + 4].id]);
    assert_eq!(sorted(h.drain().await), expected(3));
    h.advance(HOUR).await;
    assert_eq!(sorted(h.drain().await), expected(1));
}

/// A call without settlements does nothing.
pub async fn nothing_to_settle_is_fine(h: &impl Harness) {
    assert!(h.settle_all([]).await.is_empty());
    assert!(h.extend(&[], HOUR).await.is_empty());
}

/// A large call settles every message, whatever the number of parameters of a statement.
pub async fn large_call_settles_every_message(h: &impl Harness) {
    h.enqueue(drafts(3_000)).await;
    let mut claimed = Vec::new();
    for _ in 0..3 {
        claimed.extend(h.claim(1_000).await);
    }
    let outcomes = [Outcome::Done, retry(HOUR), dead("no"), Outcome::Release];
    let call = claimed.iter().map(|claimed| claimed.lease).zip(outcomes.into_iter().cycle());
    assert_eq!(h.settle_all(call).await, vec![APPLIED; 3_000]);
    assert_eq!(h.drain().await.len(), 750);
    h.advance(HOUR).await;
    assert_eq!(h.drain().await.len(), 750);
}

/// An error text of any kind is taken: the message must not be stuck because of it.
pub async fn any_error_text_is_taken(h: &impl Harness) {
    let texts = ["a\0b".to_owned(), "é".repeat(5_000_000), String::new(), "'; --\u{202e}😀".to_owned()];
    h.enqueue(drafts(texts.len())).await;
    for error in &texts {
        let claimed = h.claim(1).await;
        let failed = Outcome::Retry { after: HOUR, error: error.clone() };
        assert_eq!(h.settle(claimed[0].lease, failed).await, APPLIED);
    }
    h.advance(HOUR).await;
    for error in texts {
        let claimed = h.claim(1).await;
        assert_eq!(h.settle(claimed[0].lease, Outcome::Dead { error }).await, APPLIED);
    }
    h.assert_nothing_to_claim().await;
}

/// Settling and extending the same leases at once, in opposite order, neither hangs nor spoils anything.
pub async fn settling_and_extending_at_once_is_sound(h: &impl Harness) {
    h.enqueue(drafts(60)).await;
    let leases: Vec<_> = h.claim(60).await.iter().map(|claimed| claimed.lease).collect();
    let extending = tokio::spawn({
        let (repository, leases) = (h.repository().clone(), leases.clone());
        let reversed: Vec<_> = leases.into_iter().rev().collect();
        async move {
            for _ in 0..10 {
                insist(|| repository.extend(reversed.clone(), HOUR)).await;
            }
        }
    });
    for chunk in leases.chunks(20) {
        let call: Vec<_> = chunk.iter().map(|lease| Settlement::new(*lease, Outcome::Done)).collect();
        let settled = insist(|| h.repository().settle(call.clone())).await;
        assert_eq!(settled, [APPLIED; 20]);
    }
    soon("the end of the extensions", extending).await.expect("extensions");
    h.expire().await;
    h.assert_nothing_to_claim().await;
}

/// A settlement that is dropped half-way has either happened or not; the message is never lost.
pub async fn cancelled_settlement_loses_nothing(h: &impl Harness) {
    for n in 1..=20 {
        let id = h.enqueue(draft()).await[0];
        let claimed = h.claim_one().await;
        let call = vec![Settlement::new(claimed.lease, retry(Duration::ZERO))];
        let finished = super::steps::cancelled_at(n, h.repository().settle(call)).await;
        assert_eq!(drain_what_comes_back(h).await, [id]);
        if finished.is_some() {
            return;
        }
    }
}

/// Expires leases and drains until something is there: a statement that was abandoned may take effect later,
/// also between two steps of a claim.
async fn drain_what_comes_back(h: &impl Harness) -> Vec<MessageId> {
    for _ in 0..100 {
        h.expire().await;
        let drained = h.drain().await;
        if !drained.is_empty() {
            return drained;
        }
    }
    Vec::new()
}
