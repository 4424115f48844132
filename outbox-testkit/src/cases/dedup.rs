//! A draft with a deduplication key is stored once, and every repeat is told which message was the first.

use std::time::Duration;

use outbox_core::{Draft, ErrorKind, MAX_NAME_BYTES, MessageId, Repository, Result, Transactor};

use super::lacks;
use super::steps::{HOUR, Steps, assert_invalid, dead, draft, drafts, insist, kind, soon};
use crate::Harness;
use crate::secrets::TOKEN;

const DAY: Duration = Duration::from_secs(86_400);

/// With a secret in its key.
fn keyed(key: &str) -> Draft {
    draft().dedup_key(format!("{TOKEN} {key}"))
}

fn exactly(key: &str) -> Draft {
    draft().dedup_key(key)
}

/// Ends the case on a backend without keys, which must refuse one rather than ignore it.
macro_rules! needs_keys {
    ($h:ident, $case:literal) => {
        if !$h.capabilities().dedup_keys {
            lacks::<H>(concat!("dedup::", $case), "dedup_keys");
            return assert_refused($h).await;
        }
    };
    ($h:ident, $case:literal, concurrent_writers) => {
        needs_keys!($h, $case);
        if !$h.capabilities().concurrent_writers {
            return lacks::<H>(concat!("dedup::", $case), "concurrent_writers");
        }
    };
}

async fn assert_refused(h: &impl Harness) {
    let cx = h.begin().await;
    assert_eq!(kind(h.repository().enqueue(&cx, vec![keyed("k")]).await), ErrorKind::Unsupported);
    h.roll_back(cx).await;
    h.assert_nothing_to_claim().await;
}

/// A repeat in a transaction of its own gets the first id, and adds nothing.
async fn assert_repeat(h: &impl Harness, key: &str, first: MessageId) {
    assert_eq!(h.enqueue(keyed(key)).await, [first]);
}

/// A repeat in the same call gets the id of the first draft.
pub async fn repeat_in_one_call_is_stored_once<H: Harness>(h: &H) {
    needs_keys!(h, "repeat_in_one_call_is_stored_once");
    let first = keyed("k");
    let id = first.id;
    assert_eq!(h.enqueue([first, keyed("k"), keyed("k")]).await, [id; 3]);
    assert_eq!(h.drain().await, [id]);
}

/// A repeat in a later call of the same transaction gets the first id.
pub async fn repeat_in_one_transaction_is_stored_once<H: Harness>(h: &H) {
    needs_keys!(h, "repeat_in_one_transaction_is_stored_once");
    let cx = h.begin().await;
    let first = h.enqueue_in(&cx, keyed("k")).await;
    assert_eq!(h.enqueue_in(&cx, keyed("k")).await, first);
    h.commit(cx).await;
    assert_eq!(h.drain().await, first);
}

/// A repeat in another transaction gets the first id, whatever else the drafts say.
pub async fn repeat_in_another_transaction_is_stored_once<H: Harness>(h: &H) {
    needs_keys!(h, "repeat_in_another_transaction_is_stored_once");
    let first = h.enqueue(keyed("k")).await[0];
    let other = Draft::new("another topic", "another payload").key("another key").delay(HOUR);
    let other = other.dedup_key(format!("{TOKEN} k"));
    assert_eq!(h.enqueue(other).await, [first]);
    let claimed = h.claim_one().await;
    assert_eq!((claimed.message.id, claimed.message.payload), (first, draft().payload));
}

/// The transaction of a repeat goes on: what it stores before, beside and after it is stored.
pub async fn transaction_goes_on_after_a_repeat<H: Harness>(h: &H) {
    needs_keys!(h, "transaction_goes_on_after_a_repeat");
    let first = h.enqueue(keyed("k")).await[0];
    let cx = h.begin().await;
    let before = h.enqueue_in(&cx, draft()).await[0];
    let beside = h.enqueue_in(&cx, [keyed("k"), draft()]).await;
    let after = h.enqueue_in(&cx, keyed("other")).await[0];
    h.commit(cx).await;
    assert_eq!(beside[0], first);
    assert_eq!(h.drain().await, [first, before, beside[1], after]);
}

/// A call may mix plain drafts, new keys and repeats: the ids stand in the order of the drafts, and that of a
/// repeat is not its own.
pub async fn mixed_call_says_which_were_there<H: Harness>(h: &H) {
    needs_keys!(h, "mixed_call_says_which_were_there");
    let [a, b] = [h.enqueue(keyed("a")).await[0], h.enqueue(keyed("b")).await[0]];
    let call = [draft(), keyed("b"), keyed("new"), draft(), keyed("a"), keyed("new"), keyed("later")];
    let own: Vec<_> = call.iter().map(|draft| draft.id).collect();
    let ids = h.enqueue(call).await;
    assert_eq!(ids, [own[0], b, own[2], own[3], a, own[2], own[6]]);
    let is_new: Vec<_> = ids.iter().zip(&own).map(|(id, own)| id == own).collect();
    assert_eq!(is_new, [true, false, true, true, false, false, true]);
    assert_eq!(h.drain().await, [a, b, own[0], own[2], own[3], own[6]]);
}

/// Keys are compared byte by byte.
pub async fn different_keys_do_not_collide<H: Harness>(h: &H) {
    needs_keys!(h, "different_keys_do_not_collide");
    let longest = "k".repeat(MAX_NAME_BYTES);
    let longest_but_one = "k".repeat(MAX_NAME_BYTES - 1);
    let keys = [
        "a",
        "A",
        "a ",
        " a",
        "ä",
        "a\u{308}",
        "ａ",
        "a\nb",
        "a\u{200b}",
        "😀",
        "'; --",
        "%",
        "_",
        "\\",
        &longest,
        &longest_but_one,
    ];
    let ids = h.enqueue(keys.map(exactly).to_vec()).await;
    assert_eq!(h.drain().await, ids, "each is a message of its own");
    assert_eq!(h.enqueue(keys.map(exactly).to_vec()).await, ids, "and each repeat is known");
    h.assert_nothing_to_claim().await;
}

/// A key is that of its table: the same key in another one is another message.
pub async fn tables_have_keys_of_their_own<H: Harness>(h: &H) {
    needs_keys!(h, "tables_have_keys_of_their_own");
    let Ok(other) = H::start().await else { return };
    let ids = [h.enqueue(keyed("k")).await, other.enqueue(keyed("k")).await];
    assert_ne!(ids[0], ids[1]);
    assert_eq!([h.drain().await, other.drain().await], ids);
    other.finish().await;
}

/// A key is honoured after its message was delivered.
pub async fn key_outlives_its_message<H: Harness>(h: &H) {
    needs_keys!(h, "key_outlives_its_message");
    let first = h.enqueue(keyed("k")).await[0];
    assert_eq!(h.drain().await, [first]);
    assert_repeat(h, "k", first).await;
    h.advance(DAY - HOUR).await;
    assert_repeat(h, "k", first).await;
    h.assert_nothing_to_claim().await;
}

/// A key is honoured after its message has died.
pub async fn key_of_a_dead_letter_is_taken<H: Harness>(h: &H) {
    needs_keys!(h, "key_of_a_dead_letter_is_taken");
    let first = h.enqueue(keyed("k")).await[0];
    let claimed = h.claim_one().await;
    let _ = h.settle(claimed.lease, dead("refused")).await;
    assert_repeat(h, "k", first).await;
    h.assert_nothing_to_claim().await;
}

/// After its retention a key is new: the next message with it is stored, and is the first from then on.
pub async fn expired_key_is_new<H: Harness>(h: &H) {
    needs_keys!(h, "expired_key_is_new");
    let first = h.enqueue([keyed("k"), keyed("other")]).await;
    h.advance(DAY).await;
    let second = h.enqueue([keyed("k"), keyed("k")]).await;
    assert_eq!(second[0], second[1]);
    assert_ne!(second[0], first[0]);
    h.advance(DAY - HOUR).await;
    assert_repeat(h, "k", second[0]).await;
    assert_eq!(h.drain().await, [first[0], first[1], second[0]]);
}

/// A transaction that rolls back leaves the key free.
pub async fn rolled_back_key_is_free<H: Harness>(h: &H) {
    needs_keys!(h, "rolled_back_key_is_free");
    let cx = h.begin().await;
    let lost = h.enqueue_in(&cx, keyed("k")).await[0];
    h.roll_back(cx).await;
    let stored = h.enqueue(keyed("k")).await[0];
    assert_ne!(stored, lost);
    assert_eq!(h.drain().await, [stored]);
}

/// A retry with a clone of the draft, after a commit of unknown end, is there already and adds nothing, also when
/// the message was delivered meanwhile.
pub async fn retry_with_the_same_id_is_there_already<H: Harness>(h: &H) {
    needs_keys!(h, "retry_with_the_same_id_is_there_already");
    let draft = keyed("k");
    let id = h.enqueue(draft.clone()).await[0];
    assert_eq!(h.enqueue(draft.clone()).await, [id]);
    assert_eq!(h.drain().await, [id]);
    assert_eq!(h.enqueue(draft).await, [id]);
    h.assert_nothing_to_claim().await;
}

/// A new key does not make up for an id that is there.
pub async fn repeated_id_is_reported_with_a_key_too<H: Harness>(h: &H) {
    needs_keys!(h, "repeated_id_is_reported_with_a_key_too");
    let known = h.enqueue_one().await;
    let cx = h.begin().await;
    let beside = keyed("other");
    let own = beside.id;
    let repeat = vec![keyed("k").id(known), beside];
    assert_eq!(kind(h.repository().enqueue(&cx, repeat).await), ErrorKind::AlreadyEnqueued);
    h.commit(cx).await;
    assert_repeat(h, "k", known).await;
    assert_eq!(h.drain().await, [known, own]);
}

async fn second_writer<H: Harness>(
    h: &H,
    first_commits: bool,
) -> (MessageId, Result<Vec<MessageId>>, MessageId) {
    let (first, second) = (h.begin().await, h.begin().await);
    let id = h.enqueue_in(&first, keyed("k")).await[0];
    let repeat = keyed("k");
    let own = repeat.id;
    let answer = tokio::spawn({
        let (repository, second) = (h.repository().clone(), second.clone());
        async move { repository.enqueue(&second, vec![repeat]).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!answer.is_finished(), "it must wait for what becomes of the first");
    if first_commits {
        h.commit(first).await;
    } else {
        h.roll_back(first).await;
    }
    let answer = soon("the answer to the second", answer).await.expect("joined");
    h.enqueue_in(&second, draft().delay(HOUR)).await;
    h.commit(second).await;
    (id, answer, own)
}

/// A concurrent second writer waits for the first one's commit, gets its id, and goes on.
pub async fn concurrent_repeat_waits_for_the_first<H: Harness>(h: &H) {
    needs_keys!(h, "concurrent_repeat_waits_for_the_first", concurrent_writers);
    let (first, answer, _) = second_writer(h, true).await;
    assert_eq!(answer.expect("enqueue"), [first]);
    assert_eq!(h.drain().await, [first]);
}

/// When the first one rolls back, the second stores its message.
pub async fn concurrent_repeat_is_first_after_a_rollback<H: Harness>(h: &H) {
    needs_keys!(h, "concurrent_repeat_is_first_after_a_rollback", concurrent_writers);
    let (_, answer, own) = second_writer(h, false).await;
    assert_eq!(answer.expect("enqueue"), [own]);
    assert_eq!(h.drain().await, [own]);
}

/// Two calls with the same keys in opposite order wait for each other and do not deadlock.
pub async fn opposite_orders_do_not_deadlock<H: Harness>(h: &H) {
    needs_keys!(h, "opposite_orders_do_not_deadlock", concurrent_writers);
    const N: usize = 300;
    for round in 0..10 {
        let forth: Vec<_> = (0..N).map(|n| keyed(&format!("{round} {n:03}"))).collect();
        let back: Vec<_> = (0..N).rev().map(|n| keyed(&format!("{round} {n:03}"))).collect();
        let call = |drafts: Vec<Draft>| {
            let repository = h.repository().clone();
            tokio::spawn(async move {
                Transactor::over(&repository).run(async |cx| repository.enqueue(cx, drafts).await).await
            })
        };
        let (forth, back) = (call(forth), call(back));
        let forth = soon("the one call", forth).await.expect("joined").expect("no deadlock");
        let mut back = soon("the other call", back).await.expect("joined").expect("no deadlock");
        back.reverse();
        assert_eq!(forth, back, "one of them was first with every key");
    }
    assert_eq!(h.drain().await.len(), 10 * N);
}

/// Of many transactions at once with one key, one stores its message, and all get its id.
pub async fn many_writers_of_one_key_agree<H: Harness>(h: &H) {
    needs_keys!(h, "many_writers_of_one_key_agree");
    let call = || {
        let repository = h.repository().clone();
        tokio::spawn(async move {
            insist(|| async {
                Transactor::over(&repository)
                    .run(async |cx| repository.enqueue(cx, vec![keyed("k")]).await)
                    .await
            })
            .await
        })
    };
    let calls: Vec<_> = (0..16).map(|_| call()).collect();
    let mut ids = Vec::new();
    for call in calls {
        ids.extend(soon("an answer", call).await.expect("joined"));
    }
    assert_eq!(ids, vec![ids[0]; 16]);
    assert_eq!(h.drain().await, [ids[0]]);
}

/// A call may have more keys than a statement has parameters.
pub async fn five_thousand_keys_in_one_call<H: Harness>(h: &H) {
    needs_keys!(h, "five_thousand_keys_in_one_call");
    let call =
        || drafts(5_000).into_iter().enumerate().map(|(n, draft)| draft.dedup_key(n)).collect::<Vec<_>>();
    let ids = h.enqueue(call()).await;
    assert_eq!(h.enqueue(call()).await, ids);
    assert_eq!(h.drain().await, ids);
}

/// A key out of bounds is refused before anything is stored, and the transaction goes on.
pub async fn impossible_key_is_refused<H: Harness>(h: &H) {
    needs_keys!(h, "impossible_key_is_refused");
    let cx = h.begin().await;
    for key in ["", "a\0b", &"k".repeat(MAX_NAME_BYTES + 1), &"ä".repeat(128)] {
        assert_invalid(h.repository().enqueue(&cx, vec![draft(), exactly(key)]).await, "dedup_key");
    }
    let stored = h.enqueue_in(&cx, exactly("\u{1}\n")).await;
    h.commit(cx).await;
    assert_eq!(h.drain().await, stored);
}
