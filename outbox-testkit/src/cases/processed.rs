//! A message is recorded as processed once, in the transaction that processed it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use outbox_core::{
    Context, Error, ErrorKind, MAX_METADATA_BYTES, Mark, Marked, MessageId, Processed, ProcessedStore,
    Repository, Result, Transactions, Transactor,
};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use uuid::Uuid;

use super::lacks;
use super::steps::{HOUR, Steps, assert_invalid, assert_near, draft, insist, kind, soon};
use crate::ProcessedHarness;
use crate::secrets::TOKEN;

const GROUP: &str = "group";

async fn mark_in(h: &impl ProcessedHarness, cx: &Context, mark: Mark) -> Marked {
    h.processed().mark_processed(cx, mark).await.expect("mark")
}

/// Marks in a transaction of its own and commits it.
async fn mark(h: &impl ProcessedHarness, mark: Mark) -> Marked {
    let cx = h.begin().await;
    let marked = mark_in(h, &cx, mark).await;
    h.commit(cx).await;
    marked
}

async fn is_processed(h: &impl ProcessedHarness, group: &str, id: MessageId) -> bool {
    h.processed().is_processed(group, id).await.expect("is processed")
}

fn duplicate(marked: Marked) -> Processed {
    match marked {
        Marked::Duplicate(processed) => processed,
        Marked::First => panic!("it was processed before"),
    }
}

/// The first mark is the first, every other one a duplicate.
pub async fn second_mark_is_a_duplicate(h: &impl ProcessedHarness) {
    let id = Uuid::now_v7();
    assert!(!is_processed(h, GROUP, id).await);
    assert_eq!(mark(h, Mark::new(GROUP, id)).await, Marked::First);
    assert!(is_processed(h, GROUP, id).await);
    for _ in 0..2 {
        let processed = duplicate(mark(h, Mark::new(GROUP, id)).await);
        assert_eq!((processed.fingerprint, processed.result), (None, None));
    }
}

/// Groups process a message each for itself; names are told apart to the letter.
pub async fn groups_are_independent(h: &impl ProcessedHarness) {
    let id = Uuid::now_v7();
    for group in ["a", "A", "a ", "ä", "😀", "it's; --"] {
        assert!(!is_processed(h, group, id).await, "{group}");
        assert_eq!(mark(h, Mark::new(group, id)).await, Marked::First, "{group}");
    }
}

/// A mark whose transaction rolls back is forgotten.
pub async fn rolled_back_mark_is_forgotten(h: &impl ProcessedHarness) {
    let id = Uuid::now_v7();
    let cx = h.begin().await;
    assert_eq!(mark_in(h, &cx, Mark::new(GROUP, id)).await, Marked::First);
    h.roll_back(cx).await;
    assert!(!is_processed(h, GROUP, id).await);
    assert_eq!(mark(h, Mark::new(GROUP, id)).await, Marked::First);
}

/// A duplicate leaves the transaction usable: what it writes besides is committed.
pub async fn transaction_goes_on_after_a_duplicate(h: &impl ProcessedHarness) {
    let (known, other) = (Uuid::now_v7(), Uuid::now_v7());
    assert_eq!(mark(h, Mark::new(GROUP, known)).await, Marked::First);
    let cx = h.begin().await;
    duplicate(mark_in(h, &cx, Mark::new(GROUP, known)).await);
    assert_eq!(mark_in(h, &cx, Mark::new(GROUP, other)).await, Marked::First);
    duplicate(mark_in(h, &cx, Mark::new(GROUP, other)).await);
    let id = h.enqueue_in(&cx, draft()).await[0];
    h.commit(cx).await;
    assert!(is_processed(h, GROUP, other).await);
    assert_eq!(h.drain().await, [id]);
}

/// The mark and the messages that follow from it commit together, or not at all.
pub async fn mark_and_message_share_a_transaction(h: &impl ProcessedHarness) {
    let id = Uuid::now_v7();
    let attempt = async |result: Result<()>| {
        Transactor::over(h.repository())
            .run(async |cx| {
                assert_eq!(mark_in(h, cx, Mark::new(GROUP, id)).await, Marked::First);
                h.enqueue_in(cx, draft()).await;
                result
            })
            .await
    };
    let failed = attempt(Err(Error::new(ErrorKind::Other, "test"))).await;
    assert_eq!(kind(failed), ErrorKind::Other);
    assert!(!is_processed(h, GROUP, id).await);
    h.assert_nothing_to_claim().await;
    attempt(Ok(())).await.expect("committed");
    assert!(is_processed(h, GROUP, id).await);
    assert_eq!(h.drain().await.len(), 1);
}

/// Only what has committed counts as processed.
pub async fn open_mark_is_not_processed_yet<H: ProcessedHarness>(h: &H) {
    let id = Uuid::now_v7();
    let cx = h.begin().await;
    assert_eq!(mark_in(h, &cx, Mark::new(GROUP, id)).await, Marked::First);
    if h.capabilities().concurrent_writers {
        assert!(!is_processed(h, GROUP, id).await);
    } else {
        lacks::<H>("processed::open_mark_is_not_processed_yet", "concurrent_writers");
    }
    h.commit(cx).await;
    assert!(is_processed(h, GROUP, id).await);
}

/// A second mark, in another transaction, while the first one's is open; it waits.
async fn waiting_duplicate<H: ProcessedHarness>(
    h: &H,
    id: MessageId,
) -> (Context, Context, JoinHandle<Result<Marked>>) {
    let (first, second) = (h.begin().await, h.begin().await);
    let metadata = Mark::new(GROUP, id).with_metadata(json!({ "by": "first" }));
    assert_eq!(mark_in(h, &first, metadata).await, Marked::First);
    let (processed, cx) = (h.processed().clone(), second.clone());
    let mut waiting = tokio::spawn(async move { processed.mark_processed(&cx, Mark::new(GROUP, id)).await });
    let answer = timeout(Duration::from_millis(100), &mut waiting).await;
    assert!(answer.is_err(), "the duplicate must wait for the first transaction");
    (first, second, waiting)
}

/// A concurrent duplicate waits for the first transaction and then sees what it recorded.
pub async fn concurrent_duplicate_waits_for_the_first<H: ProcessedHarness>(h: &H) {
    if !h.capabilities().concurrent_writers {
        return lacks::<H>("processed::concurrent_duplicate_waits_for_the_first", "concurrent_writers");
    }
    let (first, second, waiting) = waiting_duplicate(h, Uuid::now_v7()).await;
    h.commit(first).await;
    let marked = soon("the answer", waiting).await.expect("joined").expect("mark");
    assert_eq!(duplicate(marked).metadata, json!({ "by": "first" }));
    h.enqueue_in(&second, draft()).await;
    h.commit(second).await;
    assert_eq!(h.drain().await.len(), 1, "the transaction goes on after the duplicate");
}

/// A concurrent duplicate becomes the first when the other transaction rolls back.
pub async fn concurrent_duplicate_becomes_first_after_a_rollback<H: ProcessedHarness>(h: &H) {
    if !h.capabilities().concurrent_writers {
        return lacks::<H>(
            "processed::concurrent_duplicate_becomes_first_after_a_rollback",
            "concurrent_writers",
        );
    }
    let id = Uuid::now_v7();
    let (first, second, waiting) = waiting_duplicate(h, id).await;
    h.roll_back(first).await;
    let marked = soon("the answer", waiting).await.expect("joined").expect("mark");
    assert_eq!(marked, Marked::First);
    h.commit(second).await;
    assert!(is_processed(h, GROUP, id).await);
}

/// Of many consumers of one message at once, one processes it; each try that fails leaves it to others.
pub async fn concurrent_consumers_process_once(h: &impl ProcessedHarness) {
    for _ in 0..5 {
        let id = Uuid::now_v7();
        let mut consumers = JoinSet::new();
        for number in 0..8 {
            consumers.spawn(consume(h.repository().clone(), h.processed().clone(), id, number % 4 == 0));
        }
        let effects = soon("the consumers", consumers.join_all()).await;
        let n_effects = effects.into_iter().filter(|effect| *effect).count();
        assert_eq!(n_effects, 1);
        assert_eq!(h.drain().await.len(), 1, "one effect is stored");
    }
}

/// Whether this consumer had the effect. One that `fails` rolls its first try back.
async fn consume<R, P>(repository: R, processed: P, id: MessageId, fails: bool) -> bool
where
    R: Repository + Transactions,
    P: ProcessedStore,
{
    let n_tries = AtomicU32::new(0);
    insist(|| {
        let fails = fails && n_tries.fetch_add(1, Ordering::Relaxed) == 0;
        Box::pin(process(&repository, &processed, id, fails))
    })
    .await
}

async fn process<R, P>(repository: &R, processed: &P, id: MessageId, fails: bool) -> Result<bool>
where
    R: Repository + Transactions,
    P: ProcessedStore,
{
    let process = async |cx: &Context| {
        let is_first = processed.mark_processed(cx, Mark::new(GROUP, id)).await? == Marked::First;
        if is_first {
            repository.enqueue(cx, vec![draft()]).await?;
        }
        // retryable, so that the consumer tries again
        if fails { Err(Error::new(ErrorKind::Contention, "test")) } else { Ok(is_first) }
    };
    Transactor::over(repository).run(process).await
}

/// Metadata and fingerprint of the first processing come back to a duplicate.
pub async fn record_of_the_first_comes_back(h: &impl ProcessedHarness) {
    let id = Uuid::now_v7();
    let metadata = json!({
        "text": "Grüße\n\"😀\" \\u0041 ' ; --", "": "", "numbers": [0, -1, 1.5, i64::MAX],
        "nested": { "a": [null, true, { "b": [] }] }, "null": null, "password": TOKEN,
    });
    let first = Mark::new(GROUP, id).with_metadata(metadata.clone()).with_fingerprint("sha256:äöü");
    assert_eq!(mark(h, first).await, Marked::First);
    let other = Mark::new(GROUP, id).with_metadata(json!({ "by": "other" })).with_fingerprint("other");
    let processed = duplicate(mark(h, other).await);
    assert_eq!(processed.metadata, metadata);
    assert_eq!(processed.fingerprint.as_deref(), Some("sha256:äöü"));
}

/// The largest and the deepest metadata within the bounds are stored.
pub async fn metadata_at_its_bounds_is_stored(h: &impl ProcessedHarness) {
    let overhead = json!({ "a": "" }).to_string().len();
    let deep = (0..62).fold(json!({}), |inner, _| json!({ "a": inner }));
    for metadata in [json!({}), json!({ "a": "x".repeat(MAX_METADATA_BYTES - overhead) }), deep] {
        let id = Uuid::now_v7();
        let first = || Mark::new(GROUP, id).with_metadata(metadata.clone());
        assert_eq!(mark(h, first()).await, Marked::First);
        assert_eq!(duplicate(mark(h, first()).await).metadata, metadata);
    }
}

/// A stored result comes back to a duplicate; without one there is none.
pub async fn stored_result_comes_back(h: &impl ProcessedHarness) {
    for result in [json!({ "total": 7 }), json!([]), json!("text"), json!(null), json!(1.5)] {
        let id = Uuid::now_v7();
        let cx = h.begin().await;
        assert_eq!(mark_in(h, &cx, Mark::new(GROUP, id)).await, Marked::First);
        h.processed().store_result(&cx, GROUP, id, result.clone()).await.expect("store the result");
        h.commit(cx).await;
        assert_eq!(duplicate(mark(h, Mark::new(GROUP, id)).await).result, Some(result));
    }
}

/// A result that is stored in a transaction that rolls back is not there.
pub async fn rolled_back_result_is_forgotten(h: &impl ProcessedHarness) {
    let id = Uuid::now_v7();
    let cx = h.begin().await;
    assert_eq!(mark_in(h, &cx, Mark::new(GROUP, id)).await, Marked::First);
    h.processed().store_result(&cx, GROUP, id, json!(1)).await.expect("store the result");
    h.roll_back(cx).await;
    assert_eq!(mark(h, Mark::new(GROUP, id)).await, Marked::First);
    assert_eq!(duplicate(mark(h, Mark::new(GROUP, id)).await).result, None);
}

/// `processed_at` is the storage's time of the mark.
pub async fn processed_at_is_the_time_of_the_mark(h: &impl ProcessedHarness) {
    let (old, new) = (Uuid::now_v7(), Uuid::now_v7());
    assert_eq!(mark(h, Mark::new(GROUP, old)).await, Marked::First);
    h.advance(5 * HOUR).await;
    assert_eq!(mark(h, Mark::new(GROUP, new)).await, Marked::First);
    let old = duplicate(mark(h, Mark::new(GROUP, old)).await).processed_at;
    let new = duplicate(mark(h, Mark::new(GROUP, new)).await).processed_at;
    assert_near((new - old).to_std().ok(), 5 * HOUR);
}

/// A purge removes what is older than the age it is given, and keeps the younger.
pub async fn purge_keeps_the_young(h: &impl ProcessedHarness) {
    let (old, young) = (Uuid::now_v7(), Uuid::now_v7());
    assert_eq!(mark(h, Mark::new(GROUP, old)).await, Marked::First);
    h.advance(10 * HOUR).await;
    assert_eq!(mark(h, Mark::new(GROUP, young)).await, Marked::First);
    let purge = async |age| h.processed().purge_before(GROUP, age, 100).await.expect("purge");
    assert_eq!(purge(11 * HOUR).await, 0);
    assert_eq!(purge(9 * HOUR).await, 1);
    assert!(!is_processed(h, GROUP, old).await);
    duplicate(mark(h, Mark::new(GROUP, young)).await);
    assert_eq!(mark(h, Mark::new(GROUP, old)).await, Marked::First, "the window has passed");
}

/// A purge is of one group; another one in the same storage keeps its window.
pub async fn purge_is_of_one_group(h: &impl ProcessedHarness) {
    let id = Uuid::now_v7();
    assert_eq!(mark(h, Mark::new(GROUP, id)).await, Marked::First);
    assert_eq!(mark(h, Mark::new("other", id)).await, Marked::First);
    h.advance(2 * HOUR).await;
    assert_eq!(h.processed().purge_before(GROUP, HOUR, 100).await.expect("purge"), 1);
    assert!(!is_processed(h, GROUP, id).await);
    assert!(is_processed(h, "other", id).await);
}

/// A purge removes at most as many as it is told to.
pub async fn purge_is_bounded(h: &impl ProcessedHarness) {
    let cx = h.begin().await;
    for _ in 0..10 {
        assert_eq!(mark_in(h, &cx, Mark::new(GROUP, Uuid::now_v7())).await, Marked::First);
    }
    h.commit(cx).await;
    h.advance(2 * HOUR).await;
    for expected in [4, 4, 2, 0] {
        assert_eq!(h.processed().purge_before(GROUP, HOUR, 4).await.expect("purge"), expected);
    }
}

/// Without a transaction on the context nothing is recorded.
pub async fn context_without_a_transaction_is_refused(h: &impl ProcessedHarness) {
    let id = Uuid::now_v7();
    let answer = h.processed().mark_processed(&Context::new(), Mark::new(GROUP, id)).await;
    assert_eq!(kind(answer), ErrorKind::NoTransaction);
    let answer = h.processed().store_result(&Context::new(), GROUP, id, json!(1)).await;
    assert_eq!(kind(answer), ErrorKind::NoTransaction);
    assert!(!is_processed(h, GROUP, id).await);
}

/// The mark is refused, and the transaction goes on.
async fn refused(h: &impl ProcessedHarness, field: &str, bad: impl IntoIterator<Item = Mark>) {
    let cx = h.begin().await;
    for bad in bad {
        assert_invalid(h.processed().mark_processed(&cx, bad).await, field);
    }
    let id = h.enqueue_in(&cx, draft()).await[0];
    assert_eq!(mark_in(h, &cx, Mark::new(GROUP, id)).await, Marked::First);
    h.commit(cx).await;
    assert!(is_processed(h, GROUP, id).await);
    assert_eq!(h.drain().await, [id]);
}

/// A group that is empty, longer than 255 bytes, or holds NUL.
pub async fn impossible_group_is_refused(h: &impl ProcessedHarness) {
    let groups = ["".to_owned(), "g".repeat(300), "a\0".to_owned()];
    for group in &groups {
        assert_invalid(h.processed().is_processed(group, Uuid::now_v7()).await, "group");
    }
    refused(h, "group", groups.map(|group| Mark::new(group, Uuid::now_v7()))).await;
}

/// The nil UUID as id.
pub async fn nil_id_is_refused(h: &impl ProcessedHarness) {
    refused(h, "id", [Mark::new(GROUP, Uuid::nil())]).await;
}

/// A fingerprint that is too long or holds NUL.
pub async fn impossible_fingerprint_is_refused(h: &impl ProcessedHarness) {
    let bad = ["a\0".to_owned(), "f".repeat(256)];
    let bad = bad.map(|fingerprint| Mark::new(GROUP, Uuid::now_v7()).with_fingerprint(fingerprint));
    refused(h, "fingerprint", bad).await;
}

/// Metadata that is no object, holds NUL, is too deep or too large.
pub async fn impossible_metadata_is_refused(h: &impl ProcessedHarness) {
    let no_object = [json!([]), json!(null), json!("text"), json!(7)];
    let bad = no_object.into_iter().chain(impossible_json());
    refused(h, "metadata", bad.map(|bad| Mark::new(GROUP, Uuid::now_v7()).with_metadata(bad))).await;
}

fn impossible_json() -> Vec<Value> {
    let deep = (0..70).fold(json!({}), |inner, _| json!({ "a": inner }));
    let large = json!({ "a": "x".repeat(5 << 20) });
    vec![json!({ "k": "a\0" }), json!({ "k\0": 1 }), json!({ "k": [{ "l": ["\0"] }] }), deep, large]
}

/// A result that holds NUL, is too deep or too large is refused, and the record is kept.
pub async fn impossible_result_is_refused(h: &impl ProcessedHarness) {
    let id = Uuid::now_v7();
    let cx = h.begin().await;
    assert_eq!(mark_in(h, &cx, Mark::new(GROUP, id)).await, Marked::First);
    for bad in impossible_json() {
        assert_invalid(h.processed().store_result(&cx, GROUP, id, bad).await, "result");
    }
    h.commit(cx).await;
    assert_eq!(duplicate(mark(h, Mark::new(GROUP, id)).await).result, None);
}
