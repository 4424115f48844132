//! An operator sees what there is, and moves dead letters only.

use std::time::Duration;

use outbox_core::{
    DeadLetter, DeadLetterFilter, DeadLetterQuery, Diagnosis, Draft, ErrorKind, FailedAttempt, MAX_BATCH,
    MAX_ERROR_BYTES, MAX_HISTORY, MAX_HISTORY_ERROR, MessageId, Moved, Operations, OperationsExt, Outcome,
    Repository, Settled, Severity, TopicStats,
};
use uuid::Uuid;

use super::lacks;
use super::steps::{
    HOUR, MINUTE, Steps, assert_invalid, assert_near, dead, draft, drafts, ids, insist, kind, on, request,
    retry, sorted,
};
use crate::{Corruption, Harness, OperationsHarness};

const APPLIED: Moved = Moved::Applied;
const NOT_DEAD: Moved = Moved::NotDead;

async fn bury(h: &impl Harness, error: &str, n: usize) -> Vec<MessageId> {
    h.enqueue(drafts(n)).await;
    let claimed = h.claim(n).await;
    let buried = h.settle_all(claimed.iter().map(|claimed| (claimed.lease, dead(error)))).await;
    assert_eq!(buried, vec![Settled::Applied; n]);
    ids(&claimed)
}

async fn letters(h: &impl OperationsHarness, query: DeadLetterQuery) -> Vec<DeadLetter> {
    h.operations().dead_letters(query).await.expect("dead letters").letters
}

async fn only_letter(h: &impl OperationsHarness) -> DeadLetter {
    let mut letters = letters(h, DeadLetterQuery::new(10)).await;
    assert_eq!(letters.len(), 1);
    letters.remove(0)
}

async fn total(h: &impl OperationsHarness) -> TopicStats {
    h.operations().stats().await.expect("stats").total()
}

async fn redrive(h: &impl OperationsHarness, ids: &[MessageId]) -> Vec<Moved> {
    h.operations().redrive(ids.to_vec()).await.expect("redrive")
}

async fn discard(h: &impl OperationsHarness, ids: &[MessageId]) -> Vec<Moved> {
    h.operations().discard(ids.to_vec()).await.expect("discard")
}

/// A storage that is there answers and is complete.
pub async fn ping_and_check_pass(h: &impl OperationsHarness) {
    h.operations().ping().await.expect("ping");
    h.operations().check().await.expect("check");
}

/// An empty table has no statistics.
pub async fn empty_table_has_no_statistics(h: &impl OperationsHarness) {
    let stats = h.operations().stats().await.expect("stats");
    assert!(stats.topics.is_empty());
    assert_eq!(stats.total(), TopicStats::default());
}

/// Every message is counted once, by what it waits for.
pub async fn stats_count_every_message_once(h: &impl OperationsHarness) {
    h.enqueue(drafts(8)).await;
    let claimed = h.claim(5).await;
    let outcomes = [Outcome::Done, retry(2 * HOUR), dead("no")];
    let call = claimed.iter().map(|claimed| claimed.lease).zip(outcomes);
    assert_eq!(h.settle_all(call).await, [Settled::Applied; 3]);
    h.enqueue(draft().delay(2 * HOUR)).await;
    let counts = |stats: TopicStats| (stats.n_pending, stats.n_due, stats.n_claimed, stats.n_dead);
    assert_eq!(counts(total(h).await), (5, 3, 2, 1));
    h.advance(HOUR).await;
    assert_eq!(counts(total(h).await), (7, 5, 0, 1), "an expired lease is pending and due");
    h.advance(HOUR).await;
    assert_eq!(counts(total(h).await), (7, 7, 0, 1), "what is due is due before it is promoted");
    assert_eq!(total(h).await.highest_attempt, 1);
}

/// The counts stand under their topics, also of topics that nobody serves.
pub async fn stats_stand_under_their_topics(h: &impl OperationsHarness) {
    h.enqueue([on("a"), on("b"), on("b"), on("A")]).await;
    let stats = h.operations().stats().await.expect("stats");
    let counts: Vec<_> = stats.topics.iter().map(|(topic, stats)| (topic.as_str(), stats.n_due)).collect();
    assert_eq!(counts, [("A", 1), ("a", 1), ("b", 2)]);
}

/// The oldest due message says how far behind delivery is; what is not due yet does not count.
pub async fn stats_say_how_long_the_oldest_waits(h: &impl OperationsHarness) {
    h.enqueue(draft().delay(100 * HOUR)).await;
    h.advance(5 * HOUR).await;
    assert_eq!(total(h).await.oldest_due, None);
    h.enqueue_one().await;
    h.advance(2 * HOUR).await;
    h.enqueue_one().await;
    assert_near(total(h).await.oldest_due, 2 * HOUR);
}

/// A dead letter shows the message, the attempt in which it died, why, and since when.
pub async fn dead_letter_shows_message_and_error(h: &impl OperationsHarness) {
    let draft = on("topic").key("key").header("name", "wert");
    h.enqueue(draft.clone()).await;
    let claimed = h.claim_one().await;
    assert_eq!(h.settle(claimed.lease, retry(HOUR)).await, Settled::Applied);
    h.advance(HOUR).await;
    let claimed = h.claim_one().await;
    assert_eq!(h.settle(claimed.lease, dead("beyond help: 42 \"quoted\"")).await, Settled::Applied);
    let letter = only_letter(h).await;
    assert_eq!(letter.error, "beyond help: 42 \"quoted\"");
    let message = letter.message;
    assert_eq!((message.id, message.topic, message.key), (draft.id, draft.topic, draft.key));
    assert_eq!((message.payload, message.headers, message.attempt), (draft.payload, draft.headers, 2));
    let since_creation = (letter.dead_at - message.created_at).to_std().expect("dead after it was created");
    assert_near(Some(since_creation), HOUR);
}

/// A stored error text has no NUL, at most 2 KiB, and is cut at a character.
pub async fn error_text_is_cut_and_cleaned(h: &impl OperationsHarness) {
    let long = format!("a{}", "é\0".repeat(5_000_000));
    bury(h, &long, 1).await;
    let error = only_letter(h).await.error;
    assert!(error.starts_with("aéé") && !error.contains('\0'));
    assert!((MAX_ERROR_BYTES - 3..=MAX_ERROR_BYTES).contains(&error.len()), "{} bytes", error.len());
}

/// A message lost in its last attempt says in which attempt its lease expired.
pub async fn lost_message_says_in_which_attempt(h: &impl OperationsHarness) {
    h.enqueue_one().await;
    for _ in 0..3 {
        h.claim_with(request(1).with_max_attempts(2)).await;
        h.expire().await;
    }
    let letter = only_letter(h).await;
    assert_eq!(letter.error, "lease expired in attempt 2");
    assert_eq!(letter.message.attempt, 2, "no attempt beyond the limit");
}

/// A message that a lowered limit made dead says so.
pub async fn lowered_limit_is_the_reason(h: &impl OperationsHarness) {
    h.enqueue_one().await;
    for _ in 0..2 {
        let claimed = h.claim_one().await;
        assert_eq!(h.settle(claimed.lease, retry(HOUR)).await, Settled::Applied);
        h.advance(HOUR).await;
    }
    assert_eq!(h.claim_with(request(1).with_max_attempts(1)).await.n_dead, 1);
    let letter = only_letter(h).await;
    assert_eq!((letter.error.as_str(), letter.message.attempt), ("attempt limit 1 reached", 2));
}

/// A row that cannot be decoded is a dead letter with a reason, and listing it fails nobody.
pub async fn undecodable_row_is_a_dead_letter<H: OperationsHarness>(h: &H) {
    if !h.capabilities().corrupt_rows {
        return lacks::<H>("operations::undecodable_row_is_a_dead_letter", "corrupt_rows");
    }
    let mut buried = bury(h, "whole", 1).await;
    for corruption in Corruption::ALL {
        let id = h.enqueue_one().await;
        if h.corrupt(id, corruption).await {
            buried.push(id);
        }
        h.drain().await;
    }
    let letters = letters(h, DeadLetterQuery::new(10)).await;
    let listed = letters.iter().map(|letter| letter.message.id).collect();
    assert_eq!(sorted(listed), sorted(buried.clone()));
    assert!(letters.iter().all(|letter| !letter.error.is_empty()), "{letters:?}");
    assert_eq!(discard(h, &buried).await, vec![APPLIED; buried.len()]);
}

/// Pages list every dead letter once, in order, whatever the size of a page.
pub async fn dead_letters_page_through_everything(h: &impl OperationsHarness) {
    let buried = bury(h, "no", 10).await;
    for limit in [1, 3, 5, 10, 1_000] {
        assert_eq!(page_through(h, DeadLetterQuery::new(limit)).await, buried, "pages of {limit}");
    }
}

async fn page_through(h: &impl OperationsHarness, mut query: DeadLetterQuery) -> Vec<MessageId> {
    let mut listed = Vec::new();
    for _ in 0..100 {
        let page = h.operations().dead_letters(query.clone()).await.expect("dead letters");
        assert!(page.letters.len() <= query.limit);
        listed.extend(page.letters.iter().map(|letter| letter.message.id));
        match page.next {
            Some(next) => query = query.with_after(next),
            None => return listed,
        }
    }
    panic!("the pages do not end");
}

/// Dead letters can be listed by topic; others are never listed.
pub async fn dead_letters_are_filtered_by_topic(h: &impl OperationsHarness) {
    let mixed = h.enqueue([on("a"), on("b"), on("a"), on("a")]).await;
    for claimed in h.claim(3).await {
        assert_eq!(h.settle(claimed.lease, dead("no")).await, Settled::Applied);
    }
    for limit in [1, 2, 10] {
        let of_topic = |topic| DeadLetterQuery::new(limit).with_topic(topic);
        assert_eq!(page_through(h, of_topic("a")).await, [mixed[0], mixed[2]]);
        assert!(page_through(h, of_topic("c")).await.is_empty());
    }
}

/// A page of none, or of more than 1,000, is refused.
pub async fn page_size_out_of_bounds_is_refused(h: &impl OperationsHarness) {
    for limit in [0, 1_001, usize::MAX] {
        assert_invalid(h.operations().dead_letters(DeadLetterQuery::new(limit)).await, "limit");
    }
}

/// A redriven message has all its attempts again.
pub async fn redriven_message_has_all_attempts(h: &impl OperationsHarness) {
    let id = h.enqueue_one().await;
    for _ in 0..2 {
        for attempt in 1..=2 {
            let claim = h.claim_with(request(1).with_max_attempts(2)).await;
            assert_eq!(claim.messages[0].message.attempt, attempt);
            h.expire().await;
        }
        assert_eq!(h.claim_with(request(1).with_max_attempts(2)).await.n_dead, 1);
        assert_eq!(redrive(h, &[id]).await, [APPLIED]);
    }
    let claim = h.claim_with(request(1)).await;
    assert_eq!((ids(&claim.messages), claim.recovered), (vec![id], false));
    assert_eq!(total(h).await.n_dead, 0);
}

/// A redriven message is a new arrival, behind what was enqueued meanwhile.
pub async fn redriven_message_comes_as_a_new_arrival<H: OperationsHarness>(h: &H) {
    let buried = bury(h, "no", 1).await[0];
    let fresh = h.enqueue_one().await;
    assert_eq!(redrive(h, &[buried]).await, [APPLIED]);
    let claimed = ids(&h.claim(10).await);
    if h.capabilities().exact_order {
        assert_eq!(claimed, [fresh, buried]);
    } else {
        lacks::<H>("operations::redriven_message_comes_as_a_new_arrival", "exact_order");
        assert_eq!(sorted(claimed), sorted(vec![fresh, buried]));
    }
}

/// The fence goes on rising over a redrive, and a lease from before it is lost.
pub async fn redrive_keeps_the_fence(h: &impl OperationsHarness) {
    let id = h.enqueue_one().await;
    let (mut last, mut stale) = (i64::MIN, None);
    for _ in 0..3 {
        let claimed = h.claim_one().await;
        assert!(claimed.message.fence > last, "{} after {last}", claimed.message.fence);
        last = claimed.message.fence;
        if let Some(stale) = stale.replace(claimed.lease) {
            assert_eq!(h.settle(stale, Outcome::Done).await, Settled::LeaseLost);
        }
        assert_eq!(h.settle(claimed.lease, dead("no")).await, Settled::Applied);
        assert_eq!(redrive(h, &[id]).await, [APPLIED]);
        assert_eq!(h.settle(claimed.lease, Outcome::Done).await, Settled::LeaseLost);
    }
    assert_eq!(h.drain().await, [id]);
}

/// Only dead letters can be redriven; the others stay as they are, and the answers tell which.
pub async fn only_dead_letters_are_redriven(h: &impl OperationsHarness) {
    only_dead_letters_move(h, async |ids| redrive(h, ids).await).await;
    assert_eq!(h.drain().await.len(), 2, "the pending and the redriven one");
}

/// Only dead letters can be discarded; the others stay as they are, and the answers tell which.
pub async fn only_dead_letters_are_discarded(h: &impl OperationsHarness) {
    only_dead_letters_move(h, async |ids| discard(h, ids).await).await;
    assert_eq!(h.drain().await.len(), 1, "the pending one");
}

async fn only_dead_letters_move(h: &impl OperationsHarness, act: impl AsyncFn(&[MessageId]) -> Vec<Moved>) {
    let buried = bury(h, "no", 1).await[0];
    let claimed = {
        h.enqueue_one().await;
        h.claim_one().await
    };
    let [pending, delayed] = h.enqueue([draft(), draft().delay(HOUR)]).await[..] else { unreachable!("two") };
    let ids = [pending, claimed.message.id, buried, Uuid::now_v7(), delayed, buried];
    assert_eq!(act(&ids).await, [NOT_DEAD, NOT_DEAD, APPLIED, NOT_DEAD, NOT_DEAD, NOT_DEAD]);
    assert_eq!(h.settle(claimed.lease, Outcome::Done).await, Settled::Applied);
}

/// A discarded message is gone for good, and its id is free.
pub async fn discarded_message_is_gone(h: &impl OperationsHarness) {
    let id = bury(h, "no", 1).await[0];
    assert_eq!(discard(h, &[id]).await, [APPLIED]);
    assert_eq!(redrive(h, &[id]).await, [NOT_DEAD]);
    assert!(h.operations().stats().await.expect("stats").topics.is_empty());
    h.enqueue(draft().id(id)).await;
    assert_eq!(h.drain().await, [id]);
}

/// The id of a dead letter is taken: enqueueing it again is reported and revives nothing. Where only messages to be
/// delivered have their ids remembered, it is another message, and the dead letter stays.
pub async fn id_of_a_dead_letter_is_taken<H: OperationsHarness>(h: &H) {
    if !h.capabilities().unique_ids {
        return lacks::<H>("operations::id_of_a_dead_letter_is_taken", "unique_ids");
    }
    let id = bury(h, "no", 1).await[0];
    if !h.capabilities().ended_ids {
        lacks::<H>("operations::id_of_a_dead_letter_is_taken", "ended_ids");
        h.enqueue(draft().id(id)).await;
        assert_eq!(redrive(h, &[id]).await, [NOT_DEAD], "its id is in use");
        assert_eq!(h.drain().await, [id]);
        assert_eq!(redrive(h, &[id]).await, [APPLIED]);
        assert_eq!(h.drain().await, [id]);
        return;
    }
    let cx = h.begin().await;
    let answer = h.repository().enqueue(&cx, vec![draft().id(id)]).await;
    assert_eq!(kind(answer), ErrorKind::AlreadyEnqueued);
    h.commit(cx).await;
    h.assert_nothing_to_claim().await;
    assert_eq!(only_letter(h).await.message.id, id);
}

/// Moving nothing, and moving a thousand, are calls like any other.
pub async fn many_dead_letters_move_in_one_call(h: &impl OperationsHarness) {
    assert!(redrive(h, &[]).await.is_empty());
    assert!(discard(h, &[]).await.is_empty());
    let buried = bury(h, "no", 1_000).await;
    assert_eq!(redrive(h, &buried[..500]).await, vec![APPLIED; 500]);
    assert_eq!(discard(h, &buried[500..]).await, vec![APPLIED; 500]);
    assert_eq!(sorted(h.drain().await), sorted(buried[..500].to_vec()));
    assert_eq!(total(h).await, TopicStats::default());
}

/// What failed and waits for its next attempt is counted apart from what was delayed by its producer.
pub async fn stats_tell_retries_from_delays(h: &impl OperationsHarness) {
    h.enqueue([draft().delay(HOUR), draft().delay(5 * HOUR), draft(), draft()]).await;
    let claimed = h.claim(2).await;
    assert_eq!(h.settle_all(claimed.iter().map(|claimed| (claimed.lease, retry(2 * HOUR)))).await.len(), 2);
    let counts = |stats: TopicStats| (stats.n_pending, stats.n_due, stats.n_retrying);
    assert_eq!(counts(total(h).await), (4, 0, 2));
    h.advance(3 * HOUR).await;
    assert_eq!(counts(total(h).await), (4, 3, 0), "what is due waits for nothing");
}

/// How long the oldest has been due counts from the end of its delay, its retry, its lease, or from its redrive.
pub async fn oldest_due_counts_from_when_it_became_due(h: &impl OperationsHarness) {
    h.enqueue(draft().delay(5 * HOUR)).await;
    h.advance(6 * HOUR).await;
    assert_near(total(h).await.oldest_due, HOUR);
    let lease = h.claim_one().await.lease;
    assert_eq!(total(h).await.oldest_due, None);
    assert_eq!(h.settle(lease, Outcome::Release).await, Settled::Applied);
    assert_near(total(h).await.oldest_due, HOUR);
    let lease = h.claim_one().await.lease;
    h.advance(3 * HOUR).await;
    assert_near(total(h).await.oldest_due, 2 * HOUR);
    assert_eq!(h.settle(lease, retry(HOUR)).await, Settled::Applied);
    h.advance(HOUR + HOUR / 2).await;
    assert_near(total(h).await.oldest_due, HOUR / 2);
    let claimed = h.claim_one().await;
    assert_eq!(h.settle(claimed.lease, dead("no")).await, Settled::Applied);
    assert_eq!(total(h).await.oldest_due, None);
    assert_eq!(redrive(h, &[claimed.message.id]).await, [APPLIED]);
    h.advance(HOUR).await;
    assert_near(total(h).await.oldest_due, HOUR);
}

/// The diagnosis follows the counts of the table.
pub async fn diagnosis_says_why_messages_wait(h: &impl OperationsHarness) {
    let diagnose = async || h.operations().diagnose(MINUTE).await.expect("diagnose");
    assert_eq!(diagnose().await, [Diagnosis::Idle]);
    h.enqueue([on("a"), on("b")]).await;
    assert_eq!(diagnose().await, [Diagnosis::Healthy]);
    h.advance(HOUR).await;
    let found = diagnose().await;
    assert!(matches!(found[..], [Diagnosis::DispatcherDown { n_due: 2, .. }]), "{found:?}");
    let claim = h.claim_with(request(1).with_topics(["b"])).await;
    let found = diagnose().await;
    assert!(matches!(&found[..], [Diagnosis::Unserved { topic, n_due: 1, .. }] if topic == "a"), "{found:?}");
    assert_eq!(h.settle(claim.messages[0].lease, dead("no")).await, Settled::Applied);
    let found = diagnose().await;
    let dead = Diagnosis::DeadLetters { topic: "b".into(), n_dead: 1 };
    assert!(found.contains(&dead), "{found:?}");
}

/// Makes messages dead with these errors; their ids in the order of the drafts.
async fn bury_drafts<const N: usize>(h: &impl Harness, letters: [(Draft, &str); N]) -> [MessageId; N] {
    let buried = letters.clone().map(|(draft, _)| draft.id);
    h.enqueue(letters.clone().map(|(draft, _)| draft)).await;
    let mut n_dead = 0;
    // an ordered table may hand out the messages of a key one by one
    while n_dead < N {
        let claimed = h.claim(N).await;
        assert!(!claimed.is_empty(), "{n_dead} of {N}");
        let settlements = claimed.iter().map(|claimed| {
            let place = buried.iter().position(|id| *id == claimed.message.id).expect("one of ours");
            (claimed.lease, dead(letters[place].1))
        });
        assert_eq!(h.settle_all(settlements).await, vec![Settled::Applied; claimed.len()]);
        n_dead += claimed.len();
    }
    buried
}

async fn matching(h: &impl OperationsHarness, filter: DeadLetterFilter) -> Vec<MessageId> {
    let letters = letters(h, DeadLetterQuery::new(100).with_filter(filter)).await;
    letters.into_iter().map(|letter| letter.message.id).collect()
}

fn only() -> DeadLetterFilter {
    DeadLetterFilter::default()
}

/// Dead letters can be listed by key; an empty key is not no key.
pub async fn dead_letters_are_filtered_by_key(h: &impl OperationsHarness) {
    let [a, _, c, empty] = bury_drafts(
        h,
        [(draft().key("a"), "no"), (draft(), "no"), (on("other").key("a"), "no"), (draft().key(""), "no")],
    )
    .await;
    assert_eq!(matching(h, only().with_key("a")).await, [a, c]);
    assert_eq!(matching(h, only().with_key("")).await, [empty]);
    assert!(matching(h, only().with_key("A")).await.is_empty());
}

/// Dead letters can be listed by a part of their error, character by character.
pub async fn dead_letters_are_filtered_by_error(h: &impl OperationsHarness) {
    let errors = ["connection refused: 10% left", "connection reset_by peer", "Connection refused"];
    let [percent, underscore, upper] = bury_drafts(h, errors.map(|error| (draft(), error))).await;
    for (text, found) in [
        ("connection", vec![percent, underscore]),
        ("Connection", vec![upper]),
        ("refused", vec![percent, upper]),
        ("10% l", vec![percent]),
        ("0%t", vec![]),
        ("reset_by", vec![underscore]),
        ("res_t", vec![]),
        ("", vec![percent, underscore, upper]),
    ] {
        assert_eq!(matching(h, only().with_error(text)).await, found, "{text:?}");
    }
}

/// Dead letters can be listed by how long they have been dead.
pub async fn dead_letters_are_filtered_by_age(h: &impl OperationsHarness) {
    let old = bury(h, "no", 2).await;
    h.advance(5 * HOUR).await;
    let young = bury(h, "no", 1).await;
    h.advance(HOUR).await;
    assert_eq!(matching(h, only().with_min_age(3 * HOUR)).await, old);
    assert_eq!(matching(h, only().with_max_age(3 * HOUR)).await, young);
    assert!(matching(h, only().with_min_age(2 * HOUR).with_max_age(4 * HOUR)).await.is_empty());
    assert_eq!(matching(h, only().with_min_age(Duration::ZERO)).await.len(), 3);
}

/// A letter must meet every condition, on every page.
pub async fn conditions_of_a_filter_add_up(h: &impl OperationsHarness) {
    let (filter, matches, _) = assortment(h).await;
    for limit in [1, 2, 10] {
        let query = DeadLetterQuery::new(limit).with_filter(filter.clone());
        assert_eq!(page_through(h, query).await, matches);
    }
}

/// Texts that no message can have, and endless ages, are refused by field.
pub async fn impossible_filter_is_refused(h: &impl OperationsHarness) {
    for (filter, field) in [
        (only().with_topic("a\0"), "topic"),
        (only().with_key("\0"), "key"),
        (only().with_error("a\0b"), "error"),
        (only().with_min_age(Duration::MAX), "min_age"),
        (only().with_max_age(Duration::MAX), "max_age"),
    ] {
        let query = DeadLetterQuery::new(1).with_filter(filter.clone());
        assert_invalid(h.operations().dead_letters(query).await, field);
        assert_invalid(h.operations().redrive_matching(filter.clone(), 1).await, field);
        assert_invalid(h.operations().discard_matching(filter, 1).await, field);
    }
}

/// Dead letters of which two match a filter with every condition, and each of the others fails one; what matches and
/// what does not.
async fn assortment(h: &impl Harness) -> (DeadLetterFilter, Vec<MessageId>, Vec<MessageId>) {
    let good = || on("a").key("k");
    let [old] = bury_drafts(h, [(good(), "boom")]).await;
    h.advance(5 * HOUR).await;
    let [first, topic, key, error, second] = bury_drafts(
        h,
        [
            (good(), "boom 1"),
            (on("b").key("k"), "boom"),
            (on("a").key("l"), "boom"),
            (good(), "bang"),
            (good(), "boom 2"),
        ],
    )
    .await;
    h.advance(5 * HOUR).await;
    let [young] = bury_drafts(h, [(good(), "boom")]).await;
    let filter = only().with_topic("a").with_key("k").with_error("boom");
    let filter = filter.with_min_age(3 * HOUR).with_max_age(7 * HOUR);
    (filter, vec![first, second], vec![old, topic, key, error, young])
}

/// A bulk redrive moves what meets every condition, in order, and nothing else.
pub async fn matching_dead_letters_are_redriven<H: OperationsHarness>(h: &H) {
    let (filter, mut expected, others) = assortment(h).await;
    let pending = h.enqueue([on("a").key("k"), on("a").delay(HOUR)]).await;
    expected.insert(0, pending[0]);
    assert_eq!(h.operations().redrive_matching(filter, 10).await.expect("redrive"), 2);
    assert_eq!(matching(h, only()).await, others);
    let claimed = h.claim(10).await;
    assert!(claimed.iter().all(|claimed| claimed.message.attempt == 1));
    if h.capabilities().exact_order {
        assert_eq!(ids(&claimed), expected);
    } else {
        lacks::<H>("operations::matching_dead_letters_are_redriven", "exact_order");
        assert_eq!(sorted(ids(&claimed)), sorted(expected));
    }
}

/// A bulk discard removes what meets every condition and nothing else.
pub async fn matching_dead_letters_are_discarded(h: &impl OperationsHarness) {
    let (filter, matches, others) = assortment(h).await;
    let pending = h.enqueue([on("a").key("k"), on("a").delay(HOUR)]).await;
    assert_eq!(h.operations().discard_matching(filter, 10).await.expect("discard"), 2);
    assert_eq!(matching(h, only()).await, others);
    assert_eq!(redrive(h, &matches).await, [NOT_DEAD; 2]);
    h.advance(HOUR).await;
    assert_eq!(h.drain().await, pending);
}

/// A bulk operation moves no more than its limit, from the front; its limit has bounds.
pub async fn bulk_operations_are_bounded(h: &impl OperationsHarness) {
    let buried = bury(h, "no", 5).await;
    assert_eq!(h.operations().discard_matching(only(), 2).await.expect("discard"), 2);
    assert_eq!(h.operations().redrive_matching(only(), 2).await.expect("redrive"), 2);
    assert_eq!(only_letter(h).await.message.id, buried[4]);
    assert_eq!(h.operations().redrive_matching(only(), 2).await.expect("redrive"), 1);
    assert_eq!(h.operations().redrive_matching(only(), 2).await.expect("redrive"), 0);
    assert_eq!(sorted(h.drain().await), sorted(buried[2..].to_vec()));
    for limit in [0, MAX_BATCH + 1] {
        assert_invalid(h.operations().redrive_matching(only(), limit).await, "limit");
        assert_invalid(h.operations().discard_matching(only(), limit).await, "limit");
    }
}

/// Bulk redrives at the same time move each letter once.
pub async fn concurrent_bulk_redrives_move_each_letter_once(h: &impl OperationsHarness) {
    let buried = bury(h, "no", 60).await;
    let redrive = async || {
        let mut n_moved = 0;
        for _ in 0..60 {
            n_moved += insist(|| h.operations().redrive_matching(only(), 7)).await;
        }
        n_moved
    };
    let (a, b, c) = tokio::join!(redrive(), redrive(), redrive());
    assert_eq!(a + b + c, 60);
    assert_eq!(sorted(h.drain().await), sorted(buried));
}

async fn history(h: &impl OperationsHarness, id: MessageId) -> Vec<FailedAttempt> {
    h.operations().history(id).await.expect("history")
}

fn brief(history: &[FailedAttempt]) -> Vec<(u32, &str)> {
    history.iter().map(|failed| (failed.attempt, failed.error.as_str())).collect()
}

/// Every failed attempt is told with its error and time, the oldest first, also while the message waits.
pub async fn history_tells_what_failed(h: &impl OperationsHarness) {
    let id = h.enqueue_one().await;
    assert!(history(h, id).await.is_empty());
    let failures = ["\"quoted\" \\ näh", "second", "third"];
    for (error, is_last) in failures.iter().zip([false, false, true]) {
        let lease = h.claim_one().await.lease;
        let outcome = match is_last {
            false => Outcome::Retry { after: Duration::ZERO, error: (*error).into() },
            true => dead(error),
        };
        assert_eq!(h.settle(lease, outcome).await, Settled::Applied);
    }
    let history = history(h, id).await;
    assert_eq!(brief(&history), [(1, failures[0]), (2, failures[1]), (3, failures[2])]);
    assert!(history.is_sorted_by_key(|failed| failed.failed_at));
    let message = only_letter(h).await.message;
    assert!(history[0].failed_at >= message.created_at);
}

/// An attempt that was never settled is told as an expired lease; one that was given back is not told.
pub async fn history_tells_a_crash_from_a_failure(h: &impl OperationsHarness) {
    let id = h.enqueue_one().await;
    let claim = || h.claim_with(request(1).with_max_attempts(3));
    let lease = claim().await.messages[0].lease;
    assert_eq!(h.settle(lease, retry(Duration::ZERO)).await, Settled::Applied);
    let lease = claim().await.messages[0].lease;
    assert_eq!(h.settle(lease, Outcome::Release).await, Settled::Applied);
    claim().await;
    h.expire().await;
    claim().await;
    h.expire().await;
    assert_eq!(claim().await.n_dead, 1);
    let history = history(h, id).await;
    assert_eq!(brief(&history), [(1, "refused"), (2, "lease expired"), (3, "lease expired")]);
}

/// A redriven message keeps its history; its attempts count from the start.
pub async fn history_survives_a_redrive(h: &impl OperationsHarness) {
    let id = bury(h, "first", 1).await[0];
    assert_eq!(redrive(h, &[id]).await, [APPLIED]);
    assert_eq!(brief(&history(h, id).await), [(1, "first")]);
    let lease = h.claim_one().await.lease;
    assert_eq!(h.settle(lease, dead("again")).await, Settled::Applied);
    assert_eq!(brief(&history(h, id).await), [(1, "first"), (1, "again")]);
}

/// The last failures are remembered, and a part of each error.
pub async fn history_is_bounded(h: &impl OperationsHarness) {
    let id = h.enqueue_one().await;
    for attempt in 1..=MAX_HISTORY as u32 + 3 {
        let claim = h.claim_with(request(1).with_max_attempts(1_000)).await;
        let error = format!("{attempt}{}", "é".repeat(1_000));
        assert_eq!(
            h.settle(claim.messages[0].lease, Outcome::Retry { after: Duration::ZERO, error }).await,
            Settled::Applied
        );
    }
    let history = history(h, id).await;
    let attempts: Vec<u32> = history.iter().map(|failed| failed.attempt).collect();
    assert_eq!(attempts, (4..=MAX_HISTORY as u32 + 3).collect::<Vec<_>>());
    for failed in history {
        assert_eq!(failed.error.chars().count(), MAX_HISTORY_ERROR);
        assert!(failed.error.starts_with(&format!("{}é", failed.attempt)));
    }
}

/// A message that is not there, and one that was delivered, have no history.
pub async fn history_of_the_unknown_is_empty(h: &impl OperationsHarness) {
    assert!(history(h, Uuid::now_v7()).await.is_empty());
    let id = h.enqueue_one().await;
    let lease = h.claim_one().await.lease;
    assert_eq!(h.settle(lease, retry(Duration::ZERO)).await, Settled::Applied);
    assert_eq!(h.drain().await, [id]);
    assert!(history(h, id).await.is_empty());
}

/// A storage on which everything works has no critical finding, before and after it was used.
pub async fn doctor_finds_nothing_critical_in_a_healthy_storage(h: &impl OperationsHarness) {
    let critical = async || {
        let found = h.operations().doctor(HOUR).await.expect("doctor");
        found.into_iter().filter(|finding| finding.severity == Severity::Critical).collect::<Vec<_>>()
    };
    assert_eq!(critical().await, []);
    h.enqueue(drafts(3)).await;
    h.drain().await;
    assert_eq!(critical().await, []);
}
