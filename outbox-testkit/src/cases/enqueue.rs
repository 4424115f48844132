//! What is enqueued is delivered, byte for byte, once it is committed.

use bytes::Bytes;
use outbox_core::{Claimed, Draft, ErrorKind, Headers, Message, Repository};

use super::lacks;
use super::steps::{HOUR, MINUTE, Steps, draft, drafts, ids, kind, request, soon};
use crate::Harness;

/// A message of a transaction that committed is handed out.
pub async fn committed_message_is_delivered(h: &impl Harness) {
    let id = h.enqueue_one().await;
    let claimed = h.claim_one().await;
    assert_eq!((claimed.message.id, claimed.lease.id), (id, id));
    assert_eq!(claimed.message.attempt, 1);
}

/// The ids come back in the order of the drafts.
pub async fn ids_come_back_in_the_order_of_the_drafts(h: &impl Harness) {
    let mut drafts = drafts(20);
    drafts.reverse();
    let expected: Vec<_> = drafts.iter().map(|draft| draft.id).collect();
    assert_eq!(h.enqueue(drafts).await, expected);
}

/// A call without drafts does nothing, and the transaction goes on.
pub async fn nothing_to_enqueue_is_fine(h: &impl Harness) {
    let cx = h.begin().await;
    assert!(h.enqueue_in(&cx, []).await.is_empty());
    let id = h.enqueue_in(&cx, draft()).await[0];
    h.commit(cx).await;
    assert_eq!(h.drain().await, [id]);
}

/// A large call is stored whole, whatever the number of parameters of a statement.
pub async fn five_thousand_messages_in_one_call(h: &impl Harness) {
    let ids = h.enqueue(drafts(5_000)).await;
    let mut claimed = Vec::new();
    for _ in 0..5 {
        claimed.extend(h.claim(1_000).await);
    }
    assert_eq!(claimed.iter().map(|claimed| claimed.message.id).collect::<Vec<_>>(), ids);
    h.finish_all(&claimed).await;
    h.assert_nothing_to_claim().await;
}

/// Payloads are bytes: empty, not UTF-8, with NUL, and as large as the limit allows.
pub async fn payload_is_byte_exact(h: &impl Harness) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let payloads =
        [Bytes::new(), Bytes::from(every_byte), vec![0xC0, 0x80, 0, 0xFF].into(), vec![b'x'; 1 << 20].into()];
    h.enqueue(payloads.clone().map(|payload| Draft::new("topic", payload)).to_vec()).await;
    let claimed = h.claim(10).await;
    assert!(claimed.iter().map(|claimed| &claimed.message.payload).eq(&payloads));
}

/// Header names and values keep every character.
pub async fn headers_are_exact(h: &impl Harness) {
    let headers = [
        ("content-type", "application/json"),
        ("Mixed-Case", "Grüße, \u{202e}😀"),
        ("größe", ""),
        ("quoted", r#"'"\ $1 {} -- /* */ null"#),
    ];
    let with_headers =
        headers.iter().fold(Draft::new("topic", ""), |draft, (name, value)| draft.header(*name, *value));
    h.enqueue(with_headers).await;
    let expected: Headers = headers.map(|(name, value)| (name.into(), value.into())).into();
    assert_eq!(h.claim_one().await.message.headers, expected);
}

/// Keys keep every character, line breaks included, up to the longest.
pub async fn keys_are_exact(h: &impl Harness) {
    let longest = "k".repeat(255);
    let keys = ["a\nb\r\n\tc", "😀\u{202e}\u{301}", "'; DROP TABLE outbox; --", " ", "NULL", &longest];
    h.enqueue(keys.map(|key| draft().key(key)).to_vec()).await;
    let claimed = h.claim(10).await;
    let stored: Vec<_> = claimed.iter().map(|claimed| claimed.message.key.as_deref()).collect();
    assert_eq!(stored, keys.map(Some));
}

/// The empty key is a key; no key is none.
pub async fn empty_key_is_not_no_key(h: &impl Harness) {
    h.enqueue([draft().key(""), draft()]).await;
    let claimed = h.claim(10).await;
    let keys: Vec<_> = claimed.into_iter().map(|claimed| claimed.message.key).collect();
    assert_eq!(keys, [Some(String::new()), None]);
}

/// Topics are data: what looks like SQL stays text, also in the filter of a claim.
pub async fn topics_are_data(h: &impl Harness) {
    let topics = ["it's", "\"quoted\"", "a,b {c}", "$1 ? :x", "%_", "\\", "x'; DROP TABLE outbox; --"];
    h.enqueue(topics.map(|topic| Draft::new(topic, "x")).to_vec()).await;
    for topic in topics {
        let claimed = h.claim_with(request(10).with_topics([topic])).await.messages;
        assert!(claimed.iter().map(|claimed| claimed.message.topic.as_str()).eq([topic]), "{topic}");
    }
}

/// Trace headers of the context travel with the message, unless it has its own; other headers do not.
pub async fn trace_headers_travel_with_the_message(h: &impl Harness) {
    let cx = h.begin().await;
    let traced = cx.clone().with_header("traceparent", "00-cx").with_header("tracestate", "cx=1");
    let traced = traced.with_header("secret", "of the context");
    let plain = || Draft::new("topic", "payload");
    h.enqueue_in(&traced, [plain(), plain().header("traceparent", "00-own")]).await;
    drop(traced);
    h.commit(cx).await;
    let claimed = h.claim(2).await;
    let headers = |pairs: &[(&str, &str)]| -> Headers {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let of_the_context = headers(&[("traceparent", "00-cx"), ("tracestate", "cx=1")]);
    assert_eq!(claimed[0].message.headers, of_the_context);
    assert_eq!(
        claimed[1].message.headers,
        headers(&[("traceparent", "00-own")]),
        "the state is of another trace"
    );
}

/// An id that is stored already is reported; the other drafts are stored and the transaction commits.
pub async fn repeated_id_is_reported_and_the_rest_is_stored<H: Harness>(h: &H) {
    if !h.capabilities().unique_ids {
        return repeated_id_is_another_message(h, "repeated_id_is_reported_and_the_rest_is_stored").await;
    }
    let known = h.enqueue_one().await;
    let cx = h.begin().await;
    let before = h.enqueue_in(&cx, draft()).await[0];
    let beside = draft();
    let repeat = vec![Draft::new("topic", "another payload").id(known), beside.clone()];
    assert_eq!(kind(h.repository().enqueue(&cx, repeat).await), ErrorKind::AlreadyEnqueued);
    let after = h.enqueue_in(&cx, draft()).await[0];
    h.commit(cx).await;
    let claimed = h.claim(10).await;
    assert_eq!(ids(&claimed), [known, before, beside.id, after]);
    assert_eq!(claimed[0].message.payload, draft().payload, "the stored message must stay as it is");
}

/// What holds where repeated ids are not noticed: both messages are delivered.
async fn repeated_id_is_another_message<H: Harness>(h: &H, case: &str) {
    lacks::<H>(&format!("enqueue::{case}"), "unique_ids");
    let id = h.enqueue_one().await;
    h.enqueue(draft().id(id)).await;
    assert_eq!(h.drain().await, [id, id]);
}

/// An id that this transaction has enqueued before is reported too.
pub async fn id_repeated_in_one_transaction_is_reported<H: Harness>(h: &H) {
    if !h.capabilities().unique_ids {
        return repeated_id_is_another_message(h, "id_repeated_in_one_transaction_is_reported").await;
    }
    let cx = h.begin().await;
    let id = h.enqueue_in(&cx, draft()).await[0];
    let repeat = vec![draft().id(id)];
    assert_eq!(kind(h.repository().enqueue(&cx, repeat).await), ErrorKind::AlreadyEnqueued);
    h.commit(cx).await;
    assert_eq!(h.drain().await, [id]);
}

/// The id of a claimed message is taken like any other.
pub async fn id_of_a_claimed_message_is_taken<H: Harness>(h: &H) {
    if !h.capabilities().unique_ids {
        return repeated_id_is_another_message(h, "id_of_a_claimed_message_is_taken").await;
    }
    let id = h.enqueue_one().await;
    let claimed = h.claim_one().await;
    let cx = h.begin().await;
    assert_eq!(kind(h.repository().enqueue(&cx, vec![draft().id(id)]).await), ErrorKind::AlreadyEnqueued);
    h.commit(cx).await;
    h.finish_all(&[claimed]).await;
    h.assert_nothing_to_claim().await;
}

/// An id is taken while its message is stored, not longer.
pub async fn id_is_free_again_after_delivery(h: &impl Harness) {
    let id = h.enqueue_one().await;
    assert_eq!(h.drain().await, [id]);
    h.enqueue(draft().id(id)).await;
    assert_eq!(h.drain().await, [id]);
}

/// Two transactions that enqueue one id at once store one message.
pub async fn concurrent_repeat_of_an_id_is_stored_once<H: Harness>(h: &H) {
    if !h.capabilities().concurrent_writers {
        return lacks::<H>("enqueue::concurrent_repeat_of_an_id_is_stored_once", "concurrent_writers");
    }
    if !h.capabilities().unique_ids {
        return repeated_id_is_another_message(h, "concurrent_repeat_of_an_id_is_stored_once").await;
    }
    let (first, second, id) = (h.begin().await, h.begin().await, draft().id);
    h.enqueue_in(&first, draft().id(id)).await;
    let repeat = tokio::spawn({
        let (repository, second) = (h.repository().clone(), second.clone());
        async move { repository.enqueue(&second, vec![draft().id(id)]).await }
    });
    h.commit(first).await;
    let answer = soon("the answer to the second", repeat).await.expect("joined");
    assert_eq!(kind(answer), ErrorKind::AlreadyEnqueued);
    h.commit(second).await;
    assert_eq!(h.drain().await, [id]);
}

/// A delayed message is handed out when its delay has passed, and not before.
pub async fn delayed_message_waits_for_its_delay(h: &impl Harness) {
    let delayed = h.enqueue(draft().delay(2 * HOUR)).await[0];
    let due = h.enqueue_one().await;
    assert_eq!(h.drain().await, [due]);
    h.advance(HOUR).await;
    h.assert_nothing_to_claim().await;
    h.advance(HOUR).await;
    assert_eq!(h.drain().await, [delayed]);
}

/// The longest delay is stored.
pub async fn longest_delay_is_kept(h: &impl Harness) {
    let delayed = h.enqueue(draft().delay(outbox_core::MAX_DELAY)).await[0];
    h.assert_nothing_to_claim().await;
    h.advance(outbox_core::MAX_DELAY - HOUR).await;
    h.assert_nothing_to_claim().await;
    h.advance(HOUR).await;
    assert_eq!(h.drain().await, [delayed]);
}

/// `created_at` is the storage's time of the enqueue, and no retry changes it.
pub async fn created_at_is_when_it_was_enqueued<H: Harness>(h: &H) {
    if !h.capabilities().moved_enqueues {
        return lacks::<H>("enqueue::created_at_is_when_it_was_enqueued", "moved_enqueues");
    }
    h.enqueue_one().await;
    h.advance(3 * HOUR).await;
    h.enqueue_one().await;
    let first = h.claim(10).await;
    let age = |claimed: &[Claimed]| {
        let created = |message: &Message| message.created_at;
        (created(&claimed[1].message) - created(&claimed[0].message)).to_std().expect("in order")
    };
    assert!(age(&first).abs_diff(3 * HOUR) < MINUTE, "{:?}", age(&first));
    h.expire().await;
    assert_eq!(age(&h.claim(10).await), age(&first));
}
