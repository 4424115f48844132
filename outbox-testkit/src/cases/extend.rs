//! Who holds a lease can make it last.

use outbox_core::{Lease, Outcome, Settled};
use uuid::Uuid;

use super::steps::{HOUR, LEASE, Steps, drafts, ids};
use crate::Harness;

/// An extended lease lasts as long as the extension says.
pub async fn extended_lease_lasts(h: &impl Harness) {
    h.enqueue_one().await;
    let lease = h.claim_one().await.lease;
    for _ in 0..3 {
        h.advance(LEASE / 2).await;
        assert_eq!(h.extend(&[lease], LEASE).await, [Settled::Applied]);
    }
    h.advance(LEASE / 2).await;
    h.assert_nothing_to_claim().await;
    assert_eq!(h.settle(lease, Outcome::Done).await, Settled::Applied);
}

/// The extension counts from now, not from the end of the lease, so it can also shorten it.
pub async fn extension_counts_from_now(h: &impl Harness) {
    h.enqueue_one().await;
    let lease = h.claim_one().await.lease;
    assert_eq!(h.extend(&[lease], 10 * HOUR).await, [Settled::Applied]);
    assert_eq!(h.extend(&[lease], 2 * HOUR).await, [Settled::Applied]);
    h.advance(HOUR).await;
    h.assert_nothing_to_claim().await;
    h.advance(HOUR).await;
    assert_eq!(h.claim_one().await.message.attempt, 2);
}

/// An extension that comes after the lease has expired applies while nobody has claimed the message again.
pub async fn late_extension_applies_until_the_next_claim(h: &impl Harness) {
    h.enqueue_one().await;
    let lease = h.claim_one().await.lease;
    h.expire().await;
    assert_eq!(h.extend(&[lease], LEASE).await, [Settled::Applied]);
    h.assert_nothing_to_claim().await;
    assert_eq!(h.settle(lease, Outcome::Done).await, Settled::Applied);
}

/// A lease that was overtaken, settled or never given is not extended, and nobody else's is.
pub async fn lost_lease_is_not_extended(h: &impl Harness) {
    h.enqueue(drafts(2)).await;
    let stale = h.claim(2).await;
    assert_eq!(h.settle(stale[1].lease, Outcome::Done).await, Settled::Applied);
    h.expire().await;
    let current = h.claim_one().await;
    let forged = Lease { token: Uuid::new_v4(), ..current.lease };
    let lost = [stale[0].lease, stale[1].lease, forged];
    assert_eq!(h.extend(&lost, 10 * LEASE).await, [Settled::LeaseLost; 3]);
    h.advance(LEASE).await;
    assert_eq!(h.claim_one().await.message.attempt, 3);
}

/// One lost lease in a call touches no other; answers come in the order of the call.
pub async fn lost_lease_touches_no_other(h: &impl Harness) {
    h.enqueue(drafts(5)).await;
    let claimed = h.claim(5).await;
    assert_eq!(h.settle(claimed[1].lease, Outcome::Done).await, Settled::Applied);
    let leases: Vec<_> = claimed.iter().rev().map(|claimed| claimed.lease).collect();
    let answers = h.extend(&leases, 3 * LEASE).await;
    let lost: Vec<_> = answers.iter().map(|answer| *answer == Settled::LeaseLost).collect();
    assert_eq!(lost, [false, false, false, true, false]);
    h.expire().await;
    h.assert_nothing_to_claim().await;
}

/// A call that names a stale and the current lease of one message tells them apart.
pub async fn stale_lease_beside_the_current_one_is_lost(h: &impl Harness) {
    h.enqueue_one().await;
    let stale = h.claim_one().await.lease;
    h.expire().await;
    let current = h.claim_one().await.lease;
    let expected = [Settled::LeaseLost, Settled::Applied, Settled::LeaseLost];
    assert_eq!(h.extend(&[stale, current, stale], 3 * LEASE).await, expected);
    h.expire().await;
    h.assert_nothing_to_claim().await;
}

/// A lease that is named twice in a call is extended, and both answers say so.
pub async fn lease_named_twice_is_extended(h: &impl Harness) {
    h.enqueue_one().await;
    let lease = h.claim_one().await.lease;
    assert_eq!(h.extend(&[lease, lease], 3 * LEASE).await, [Settled::Applied; 2]);
    h.expire().await;
    h.assert_nothing_to_claim().await;
}

/// An extension does not count as an attempt, and leaves the neighbours alone.
pub async fn extension_is_no_attempt(h: &impl Harness) {
    h.enqueue(drafts(2)).await;
    let claimed = h.claim(2).await;
    assert_eq!(h.extend(&[claimed[1].lease], 3 * LEASE).await, [Settled::Applied]);
    h.expire().await;
    let first = h.claim(10).await;
    assert_eq!((ids(&first), first[0].message.attempt), (ids(&claimed[..1]), 2));
    h.expire().await;
    let both = [h.claim(10).await, h.claim(10).await].concat();
    let second = both.iter().find(|again| again.message.id == claimed[1].message.id).expect("recovered");
    assert_eq!(second.message.attempt, 2);
}
