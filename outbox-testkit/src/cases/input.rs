//! Input out of bounds is refused before anything changes, by an error that names the field.

use std::time::Duration;

use outbox_core::{ClaimRequest, Draft, Outcome, Repository, Settled, Settlement};
use uuid::Uuid;

use super::steps::{HOUR, LEASE, Steps, assert_invalid, draft, request};
use crate::Harness;

/// The drafts are refused, and the transaction goes on and commits its other messages.
async fn refused(h: &impl Harness, field: &str, bad: impl IntoIterator<Item = Draft>) {
    let cx = h.begin().await;
    let before = h.enqueue_in(&cx, draft()).await[0];
    for bad in bad {
        assert_invalid(h.repository().enqueue(&cx, vec![draft(), bad]).await, field);
    }
    let after = h.enqueue_in(&cx, draft()).await[0];
    h.commit(cx).await;
    assert_eq!(h.drain().await, [before, after]);
}

/// No topic.
pub async fn empty_topic_is_refused(h: &impl Harness) {
    refused(h, "topic", [Draft::new("", "x")]).await;
}

/// A topic with NUL or a control character.
pub async fn control_character_in_a_topic_is_refused(h: &impl Harness) {
    refused(h, "topic", ["a\0b", "a\nb", "\u{7f}"].map(|topic| Draft::new(topic, "x"))).await;
}

/// A topic longer than 255 bytes.
pub async fn long_topic_is_refused(h: &impl Harness) {
    refused(h, "topic", [256, 1 << 20].map(|n| Draft::new("t".repeat(n), "x"))).await;
}

/// A key with NUL, which no SQL text can hold.
pub async fn nul_in_a_key_is_refused(h: &impl Harness) {
    refused(h, "key", [draft().key("a\0b"), draft().key("\0")]).await;
}

/// A key longer than 255 bytes, which an index could not hold.
pub async fn long_key_is_refused(h: &impl Harness) {
    refused(h, "key", [256, 1 << 20].map(|n| draft().key("k".repeat(n)))).await;
}

/// A payload over the limit of the table.
pub async fn oversized_payload_is_refused(h: &impl Harness) {
    refused(h, "payload", [Draft::new("topic", vec![0; (1 << 20) + 1])]).await;
}

/// The nil UUID as id.
pub async fn nil_id_is_refused(h: &impl Harness) {
    refused(h, "id", [draft().id(Uuid::nil())]).await;
}

/// A delay over ten years, up to what a duration can hold.
pub async fn endless_delay_is_refused(h: &impl Harness) {
    let longer = outbox_core::MAX_DELAY + Duration::from_nanos(1);
    refused(h, "delay", [longer, Duration::from_secs(1 << 43), Duration::MAX].map(|by| draft().delay(by)))
        .await;
}

/// A line break or NUL in a header, which a broker could take for another header.
pub async fn control_character_in_a_header_is_refused(h: &impl Harness) {
    let bad = [("a\r\nb", "x"), ("a", "x\r\ny"), ("a\0", "x"), ("a", "x\0"), ("", "x")];
    refused(h, "header", bad.map(|(name, value)| draft().header(name, value))).await;
}

/// Headers of more than 16 KiB in all.
pub async fn large_headers_are_refused(h: &impl Harness) {
    let long_name = draft().header("n".repeat(256), "x");
    refused(h, "header", [16_384, 1 << 20].map(|n| draft().header("a", "x".repeat(n)))).await;
    refused(h, "header", [long_name]).await;
}

/// More than 64 headers.
pub async fn too_many_headers_are_refused(h: &impl Harness) {
    let with = |n: usize| (0..n).fold(draft(), |draft, number| draft.header(format!("h{number}"), "x"));
    refused(h, "header", [65, 10_000].map(with)).await;
}

/// One id twice in one call.
pub async fn id_named_twice_in_one_call_is_refused(h: &impl Harness) {
    let (cx, twice) = (h.begin().await, draft());
    assert_invalid(h.repository().enqueue(&cx, vec![twice.clone(), draft(), twice.clone()]).await, "id");
    h.enqueue_in(&cx, twice.clone()).await;
    h.commit(cx).await;
    assert_eq!(h.drain().await, [twice.id]);
}

async fn claim_refused(h: &impl Harness, field: &str, bad: impl IntoIterator<Item = ClaimRequest>) {
    h.enqueue_one().await;
    for bad in bad {
        assert_invalid(h.repository().claim(bad).await, field);
    }
    assert_eq!(h.claim_one().await.message.attempt, 1, "a refused claim must change nothing");
}

/// A claim of none, or of more than 1,000.
pub async fn claim_limit_out_of_bounds_is_refused(h: &impl Harness) {
    claim_refused(h, "limit", [0, 1_001, 1_000_000, usize::MAX].map(request)).await;
}

/// A lease of nothing, or of more than a day.
pub async fn lease_out_of_bounds_is_refused(h: &impl Harness) {
    let bad = [Duration::ZERO, 24 * HOUR + Duration::from_secs(1), Duration::MAX];
    claim_refused(h, "lease", bad.map(|lease| ClaimRequest::new(1, lease))).await;
}

/// An attempt limit of zero, with which nothing would ever run.
pub async fn zero_attempts_are_refused(h: &impl Harness) {
    claim_refused(h, "max_attempts", [request(1).with_max_attempts(0)]).await;
}

/// A list of topics that is empty or holds an impossible one.
pub async fn impossible_topics_are_refused(h: &impl Harness) {
    let long = "t".repeat(256);
    let lists = [vec![], vec![""], vec!["topic", "a\0"], vec!["topic", &long]];
    claim_refused(h, "topics", lists.map(|topics| request(1).with_topics(topics))).await;
}

/// The highest attempt limit is none.
pub async fn highest_attempt_limit_is_legal(h: &impl Harness) {
    h.enqueue_one().await;
    for attempt in 1..=3 {
        let claim = h.claim_with(request(1).with_max_attempts(u32::MAX)).await;
        assert_eq!(claim.messages[0].message.attempt, attempt);
        h.expire().await;
    }
}

/// A retry after more than ten years refuses the whole call; no settlement of it takes effect.
pub async fn endless_retry_delay_refuses_the_call(h: &impl Harness) {
    h.enqueue([draft(), draft()]).await;
    let leases: Vec<_> = h.claim(2).await.iter().map(|claimed| claimed.lease).collect();
    for after in [outbox_core::MAX_DELAY + Duration::from_nanos(1), Duration::MAX] {
        let endless = Outcome::Retry { after, error: String::new() };
        let call = vec![Settlement::new(leases[0], Outcome::Done), Settlement::new(leases[1], endless)];
        assert_invalid(h.repository().settle(call).await, "after");
    }
    let done = leases.iter().map(|lease| (*lease, Outcome::Done));
    assert_eq!(h.settle_all(done).await, [Settled::Applied; 2]);
}

/// An extension by nothing or by more than a day is refused, and the lease stays as it is.
pub async fn extension_out_of_bounds_is_refused(h: &impl Harness) {
    h.enqueue_one().await;
    let lease = h.claim_one().await.lease;
    for by in [Duration::ZERO, 24 * HOUR + Duration::from_secs(1), Duration::MAX] {
        assert_invalid(h.repository().extend(vec![lease], by).await, "by");
    }
    h.advance(LEASE / 2).await;
    h.assert_nothing_to_claim().await;
    h.expire().await;
    assert_eq!(h.claim_one().await.message.attempt, 2);
}
