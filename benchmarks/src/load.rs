//! The messages and business rows that the scenarios write.

use std::time::Duration;

use bytes::Bytes;
use outbox_core::Draft;

/// Payload of every message unless a scenario says otherwise.
pub(crate) const PAYLOAD_BYTES: usize = 200;
/// Messages of one enqueuing transaction and of one claim.
pub(crate) const BATCH: usize = 1_000;
/// What the handlers of the scenarios serve.
pub(crate) const TOPIC: &str = "order.placed";
/// What no handler serves.
pub(crate) const UNSERVED: &str = "order.archived";

const STAMP_BYTES: usize = 16;

/// One message: a key of its own, two headers, about 400 bytes as a row.
pub(crate) fn draft(topic: &str, number: u64, payload_bytes: usize) -> Draft {
    Draft::new(topic, payload(number, payload_bytes))
        .key(format_args!("order-{number}"))
        .header("content-type", "application/octet-stream")
        .header("traceparent", format!("00-{:032x}-{:016x}-01", scramble(number), scramble(!number)))
}

/// Drafts in groups of `size`, in order.
pub(crate) fn batches(topic: &str, n_messages: u64, size: usize, delay: Duration) -> Vec<Vec<Draft>> {
    let size = size.max(1) as u64;
    (0..n_messages)
        .step_by(size as usize)
        .map(|first| {
            let numbers = first..n_messages.min(first + size);
            numbers.map(|number| draft(topic, number, PAYLOAD_BYTES).delay(delay)).collect()
        })
        .collect()
}

/// A message that carries when it began and which one it is.
pub(crate) fn stamped(topic: &str, number: u64, began: u64) -> Draft {
    let mut draft = draft(topic, number, PAYLOAD_BYTES);
    let mut payload = draft.payload.to_vec();
    payload[..8].copy_from_slice(&began.to_be_bytes());
    payload[8..STAMP_BYTES].copy_from_slice(&number.to_be_bytes());
    draft.payload = Bytes::from(payload);
    draft
}

/// When a stamped message began, and which one it is.
pub(crate) fn stamp(payload: &[u8]) -> Option<(u64, u64)> {
    let (began, rest) = payload.split_first_chunk()?;
    let (number, _) = rest.split_first_chunk()?;
    Some((u64::from_be_bytes(*began), u64::from_be_bytes(*number)))
}

/// Splits work among tasks, as evenly as it goes.
pub(crate) fn split<T>(items: Vec<T>, n_tasks: usize) -> Vec<Vec<T>> {
    let mut parts: Vec<Vec<T>> = (0..n_tasks.max(1)).map(|_| Vec::new()).collect();
    let n_parts = parts.len();
    for (index, item) in items.into_iter().enumerate() {
        parts[index % n_parts].push(item);
    }
    parts
}

/// Bytes that do not compress.
fn payload(number: u64, length: usize) -> Vec<u8> {
    let words = (0..length.div_ceil(8) as u64).map(|index| scramble(number << 20 | index));
    let mut bytes: Vec<u8> = words.flat_map(u64::to_be_bytes).collect();
    bytes.truncate(length);
    bytes
}

/// The finaliser of splitmix64: every bit of the answer depends on every bit of the question.
pub(crate) fn scramble(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_come_back() {
        let draft = stamped("t", 7, 9);
        assert_eq!(draft.payload.len(), PAYLOAD_BYTES);
        assert_eq!(stamp(&draft.payload), Some((9, 7)));
        assert_eq!(stamp(b"short"), None);
    }

    #[test]
    fn batches_hold_every_message_once() {
        let sizes: Vec<usize> = batches("t", 2_500, 1_000, Duration::ZERO).iter().map(Vec::len).collect();
        assert_eq!(sizes, [1_000, 1_000, 500]);
        let parts: Vec<usize> = split((0..10).collect(), 3).iter().map(Vec::len).collect();
        assert_eq!(parts, [4, 3, 3]);
    }
}
