//! A sleeping dispatcher is woken by what becomes claimable.

use outbox_core::{Listener, Outcome, Settled, Wakeup};

use super::lacks;
use super::steps::{Steps, cancelled_at, drafts, hinted, ids, soon};
use crate::Harness;

/// Storages without hints say so; those with hints say that they arrive.
pub async fn storage_says_whether_it_gives_hints<H: Harness>(h: &H) {
    let listener = h.repository().listen().await.expect("listen");
    assert_eq!(listener.is_some(), h.capabilities().hints);
    match listener {
        Some(mut listener) => assert!(soon("the probe", listener.probe()).await.expect("probe")),
        None => lacks::<H>("wakeup::storage_says_whether_it_gives_hints", "hints"),
    }
}

/// Every commit after the listener went to sleep gives a hint.
pub async fn commit_gives_a_hint<H: Harness>(h: &H) {
    if !h.capabilities().hints {
        return lacks::<H>("wakeup::commit_gives_a_hint", "hints");
    }
    for n in 1..=3 {
        let mut listener = h.asleep().await;
        let enqueued = h.enqueue(drafts(n)).await;
        hinted(&mut listener).await;
        assert_eq!(h.drain().await, enqueued);
        // the next one must not rely on one that is about to vanish
        listener.stand_down().await.expect("stand down");
    }
}

/// One listener can sleep and be woken again and again.
pub async fn listener_can_sleep_again<H: Harness>(h: &H) {
    if !h.capabilities().hints {
        return lacks::<H>("wakeup::listener_can_sleep_again", "hints");
    }
    let mut listener = h.asleep().await;
    for _ in 0..5 {
        h.enqueue_one().await;
        hinted(&mut listener).await;
        listener.stand_down().await.expect("stand down");
        h.drain().await;
        h.send_to_sleep(&mut listener).await;
    }
}

/// A hint that came before anybody waited for it is kept, and dropping the wait loses none.
pub async fn hint_is_not_lost<H: Harness>(h: &H) {
    if !h.capabilities().hints {
        return lacks::<H>("wakeup::hint_is_not_lost", "hints");
    }
    let mut listener = h.asleep().await;
    if cancelled_at(1, listener.hint()).await.is_some() {
        // one that has been acted upon
        h.send_to_sleep(&mut listener).await;
    }
    let enqueued = h.enqueue(drafts(2)).await;
    hinted(&mut listener).await;
    assert_eq!(h.drain().await, enqueued);
}

/// A release gives a hint to the other dispatchers.
pub async fn release_gives_a_hint<H: Harness>(h: &H) {
    if !h.capabilities().hints {
        return lacks::<H>("wakeup::release_gives_a_hint", "hints");
    }
    h.enqueue(drafts(1)).await;
    let claimed = h.claim(1).await;
    let mut listener = h.asleep().await;
    assert_eq!(h.settle(claimed[0].lease, Outcome::Release).await, Settled::Applied);
    hinted(&mut listener).await;
    assert_eq!(ids(&h.claim(1).await), ids(&claimed));
}
