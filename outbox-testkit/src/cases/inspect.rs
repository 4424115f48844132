//! What waits can be looked at without being claimed.

use std::time::Duration;

use outbox_core::{
    Context, Enqueued, ErrorKind, Inspect, MemoryRepository, MessageId, Outcome, Transactions,
};

use super::steps::{HOUR, MINUTE, Steps, assert_invalid, dead, draft, drafts, kind, retry};
use crate::InspectHarness;

async fn enqueued(h: &impl InspectHarness, cx: &Context) -> Vec<Enqueued> {
    h.repository().enqueued(cx, 1_000).await.expect("list")
}

async fn committed(h: &impl InspectHarness) -> Vec<Enqueued> {
    enqueued(h, &Context::new()).await
}

fn ids(all: &[Enqueued]) -> Vec<MessageId> {
    all.iter().map(|one| one.message.id).collect()
}

/// Everything that was enqueued is there with its parts, in order.
pub async fn waiting_messages_come_in_the_order_of_enqueueing(h: &impl InspectHarness) {
    let draft = draft().key("k").header("name", "value");
    let first = h.enqueue(draft.clone()).await;
    let others = h.enqueue(drafts(3)).await;
    let all = committed(h).await;
    assert_eq!(ids(&all), [first, others].concat());
    let message = &all[0].message;
    assert_eq!((&message.topic, &message.key, &message.payload), (&draft.topic, &draft.key, &draft.payload));
    assert_eq!((&message.headers, message.attempt), (&draft.headers, 0));
}

/// A delay is shown as it was asked for, however much of it is over; none is zero.
pub async fn delay_is_shown(h: &impl InspectHarness) {
    h.enqueue([draft(), draft().delay(HOUR)]).await;
    h.advance(MINUTE).await;
    let all = committed(h).await;
    assert_eq!(all[0].delay, Duration::ZERO);
    assert!(all[1].delay >= HOUR && all[1].delay < HOUR + MINUTE, "{:?}", all[1].delay);
}

/// A claimed message waits, and so does one that failed, with the attempts that it has had.
pub async fn claimed_and_retried_messages_wait_still(h: &impl InspectHarness) {
    let id = h.enqueue_one().await;
    let claimed = h.claim_one().await;
    assert_eq!(ids(&committed(h).await), [id]);
    let _ = h.settle(claimed.lease, retry(HOUR)).await;
    let all = committed(h).await;
    assert_eq!((all[0].message.id, all[0].message.attempt), (id, 1));
    assert!(all[0].delay >= HOUR && all[0].delay < HOUR + MINUTE, "{:?}", all[0].delay);
}

/// What was delivered and what is dead does not wait.
pub async fn finished_messages_do_not_wait(h: &impl InspectHarness) {
    h.enqueue(drafts(2)).await;
    let claimed = h.claim(2).await;
    let outcomes = [Outcome::Done, dead("refused")];
    h.settle_all(claimed.iter().map(|claimed| claimed.lease).zip(outcomes)).await;
    assert_eq!(committed(h).await, []);
}

/// A transaction sees what it has enqueued behind what was there, and nobody else sees it.
pub async fn transaction_sees_its_own_messages(h: &impl InspectHarness) {
    let before = h.enqueue_one().await;
    let cx = h.begin().await;
    let own = h.enqueue_in(&cx, drafts(2)).await;
    assert_eq!(ids(&enqueued(h, &cx).await), [vec![before], own].concat());
    assert_eq!(ids(&committed(h).await), [before]);
    h.roll_back(cx).await;
    assert_eq!(ids(&committed(h).await), [before]);
}

/// A limit keeps the last ones, still in order.
pub async fn last_messages_are_shown(h: &impl InspectHarness) {
    let stored = h.enqueue(drafts(5)).await;
    let last = h.repository().enqueued(&Context::new(), 2).await.expect("list");
    assert_eq!(ids(&last), stored[3..]);
}

/// Looking changes nothing.
pub async fn listing_claims_nothing(h: &impl InspectHarness) {
    let id = h.enqueue_one().await;
    assert_eq!(committed(h).await, committed(h).await);
    let claimed = h.claim_one().await;
    assert_eq!((claimed.message.id, claimed.message.attempt), (id, 1));
}

/// A limit out of bounds is refused.
pub async fn impossible_limit_is_refused(h: &impl InspectHarness) {
    for limit in [0, 1_001] {
        assert_invalid(h.repository().enqueued(&Context::new(), limit).await, "limit");
    }
}

/// A transaction of another backend is refused, and not read past.
pub async fn foreign_transaction_is_refused(h: &impl InspectHarness) {
    let cx = MemoryRepository::new().begin().await.expect("begin");
    assert_eq!(kind(h.repository().enqueued(&cx, 10).await), ErrorKind::ForeignTransaction);
}
