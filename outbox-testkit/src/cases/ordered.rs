//! Messages of one key are claimed one after another, whatever becomes of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outbox_core::{
    BlockedKey, BlockedQuery, Blocker, Claim, ClaimRequest, Claimed, Claimer, DeadLetterFilter, Declaration,
    Draft, ErrorKind, Fairness, Listener, MAX_BEHIND, MessageId, Moved, OnDead, Operations, Outcome, Prune,
    Repository, Settled, Settlement, Unblocked,
};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::lacks;
use super::steps::{HOUR, Steps, dead, draft, drafts, hinted, ids, insist, on, request, retry, soon, sorted};
use crate::random::Random;
use crate::{Corruption, DeclaredHarness, Harness, OperationsHarness};

async fn continuing<H: DeclaredHarness>(h: &H) -> H {
    h.declared(Declaration::new().ordered(OnDead::Continue)).await
}

async fn blocking<H: DeclaredHarness>(h: &H) -> H {
    h.declared(Declaration::new().ordered(OnDead::Block)).await
}

fn of(key: &str) -> Draft {
    draft().key(key)
}

/// Enqueues `n` messages of a key, each in a transaction of its own.
async fn enqueue_run(h: &impl Harness, key: &str, n: usize) -> Vec<MessageId> {
    let mut ids = Vec::new();
    for _ in 0..n {
        ids.extend(h.enqueue(of(key)).await);
    }
    ids
}

/// A claim on an ordered table says that it is ordered, also an empty one.
pub async fn claim_says_that_it_is_ordered(h: &impl DeclaredHarness) {
    assert!(!h.claim_with(request(1)).await.ordered);
    let h = continuing(h).await;
    assert!(h.claim_with(request(1)).await.ordered);
    h.enqueue(of("a")).await;
    assert!(h.claim_with(request(1)).await.ordered);
}

/// While one message of a key is claimed, no claim takes the next.
pub async fn claimed_message_holds_those_behind_it(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let sent = enqueue_run(&h, "a", 3).await;
    for id in sent {
        let claim = h.claim(1).await;
        assert_eq!(ids(&claim), [id]);
        h.assert_nothing_to_claim().await;
        h.finish_all(&claim).await;
    }
    h.assert_nothing_to_claim().await;
}

/// A claim may take several messages of a key, which then stand in their order and leave none out.
pub async fn run_of_a_key_comes_in_order(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let sent = enqueue_run(&h, "a", 20).await;
    let mut delivered = Vec::new();
    while delivered.len() < sent.len() {
        let claim = h.claim(7).await;
        assert!(!claim.is_empty());
        delivered.extend(ids(&claim));
        h.finish_all(&claim).await;
    }
    assert_eq!(delivered, sent);
}

/// Keys do not wait for each other.
pub async fn keys_run_side_by_side(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let a = enqueue_run(&h, "a", 2).await;
    let held = h.claim(1).await;
    let b = enqueue_run(&h, "b", 2).await;
    let mut delivered = Vec::new();
    while delivered.len() < 2 {
        let claim = h.claim(10).await;
        assert!(!claim.is_empty(), "another key is free");
        h.finish_all(&claim).await;
        delivered.extend(ids(&claim));
    }
    assert_eq!((ids(&held), delivered), (vec![a[0]], b));
}

/// The empty key is a key, and no key is none: such messages have no order.
pub async fn messages_without_a_key_hold_nobody(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let loose = h.enqueue(vec![draft(), draft()]).await;
    let empty = enqueue_run(&h, "", 2).await;
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.extend(ids(&h.claim(1).await));
    }
    taken.sort_unstable();
    let mut expected = vec![loose[0], loose[1], empty[0]];
    expected.sort_unstable();
    assert_eq!(taken, expected);
    h.assert_nothing_to_claim().await;
}

/// Claims of one message find what has a key and what has none.
pub async fn claims_of_one_message_find_everything(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    h.enqueue(drafts(10)).await;
    enqueue_run(&h, "a", 10).await;
    for _ in 0..20 {
        let claim = h.claim(1).await;
        assert_eq!(claim.len(), 1);
        h.finish_all(&claim).await;
    }
    h.assert_nothing_to_claim().await;
}

/// A message that waits for a retry holds those behind it, and comes before them.
pub async fn retried_message_keeps_its_place(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let sent = enqueue_run(&h, "a", 3).await;
    let first = h.claim(1).await;
    let _ = h.settle(first[0].lease, retry(HOUR)).await;
    h.assert_nothing_to_claim().await;
    h.advance(2 * HOUR).await;
    assert_eq!(h.drain().await, sent);
}

/// The rest of a run is released behind a message that is retried; it keeps its place and its attempts.
pub async fn released_rest_of_a_run_keeps_its_place(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let sent = enqueue_run(&h, "a", 3).await;
    let run = h.claim(3).await;
    assert_eq!(ids(&run), sent);
    let outcomes = [retry(HOUR), Outcome::Release, Outcome::Release];
    let settled = h.settle_all(run.iter().map(|claimed| claimed.lease).zip(outcomes)).await;
    assert_eq!(settled, [Settled::Applied; 3]);
    h.assert_nothing_to_claim().await;
    h.advance(2 * HOUR).await;
    let again = h.claim(3).await;
    let attempts: Vec<_> = again.iter().map(|claimed| claimed.message.attempt).collect();
    assert_eq!((ids(&again), attempts), (sent, vec![2, 1, 1]));
}

/// A released message is not overtaken by those behind it.
pub async fn released_message_keeps_its_place(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let sent = enqueue_run(&h, "a", 3).await;
    let first = h.claim(1).await;
    let _ = h.settle(first[0].lease, Outcome::Release).await;
    assert_eq!(h.drain().await, sent);
}

/// A message without a key is a new arrival when it is released, as on any table.
pub async fn released_message_without_a_key_is_a_new_arrival<H: DeclaredHarness>(h: &H) {
    let h = continuing(h).await;
    if !h.capabilities().exact_order {
        return lacks::<H>("ordered::released_message_without_a_key_is_a_new_arrival", "exact_order");
    }
    let sent = h.enqueue(vec![draft(), draft()]).await;
    let first = h.claim(1).await;
    let _ = h.settle(first[0].lease, Outcome::Release).await;
    assert_eq!(h.drain().await, [sent[1], sent[0]]);
}

/// A delayed message holds those of its key that were enqueued after it.
pub async fn delayed_message_holds_those_behind_it(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let first = enqueue_run(&h, "a", 1).await;
    let delayed = h.enqueue(of("a").delay(HOUR)).await;
    let last = enqueue_run(&h, "a", 2).await;
    assert_eq!(h.drain().await, first);
    h.advance(2 * HOUR).await;
    assert_eq!(h.drain().await, [delayed, last].concat());
}

/// A message of a topic that the claim does not serve holds those of its key, too: the order is that of the key.
pub async fn unserved_topic_holds_its_key(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let other = h.enqueue(on("other").key("a")).await;
    let served = h.enqueue(vec![on("served").key("a"), on("served").key("b")]).await;
    let only = |topic: &str| request(10).with_topics([topic]);
    let claim = h.claim_with(only("served")).await;
    assert_eq!(ids(&claim.messages), [served[1]]);
    let claim = h.claim_with(only("other")).await;
    assert_eq!(ids(&claim.messages), other);
    h.finish_all(&claim.messages).await;
    assert_eq!(ids(&h.claim_with(only("served")).await.messages), [served[0]]);
}

/// A limit of bytes cuts a run, and never takes a message before an earlier one.
pub async fn byte_limit_keeps_the_order(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let mut sent = Vec::new();
    for bytes in [10, 900, 10, 10] {
        sent.extend(h.enqueue(Draft::new("topic", vec![b'x'; bytes]).key("a")).await);
    }
    let mut delivered = Vec::new();
    while delivered.len() < sent.len() {
        let claim = h.claim_with(request(10).with_max_bytes(100)).await;
        assert!(!claim.is_empty());
        delivered.extend(ids(&claim.messages));
        h.finish_all(&claim.messages).await;
    }
    assert_eq!(delivered, sent);
}

/// A lease that has expired holds those behind its message until that has been recovered and settled.
pub async fn expired_lease_holds_those_behind_it(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let sent = enqueue_run(&h, "a", 2).await;
    h.claim(1).await;
    h.expire().await;
    let without = h.claim_with(request(10).with_recover(false)).await;
    assert!(without.is_empty(), "{without:?}");
    let claim = h.claim_with(request(10)).await;
    assert_eq!((ids(&claim.messages), claim.recovered), (vec![sent[0]], true));
    h.assert_nothing_to_claim().await;
    h.finish_all(&claim.messages).await;
    assert_eq!(h.drain().await, [sent[1]]);
}

/// A run that was lost is recovered in its order.
pub async fn lost_run_is_recovered_in_order(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let a = enqueue_run(&h, "a", 5).await;
    let b = enqueue_run(&h, "b", 5).await;
    while !h.claim(10).await.is_empty() {}
    let mut delivered = Vec::new();
    h.expire().await;
    for _ in 0..20 {
        let claim = h.claim_with(request(10)).await;
        h.finish_all(&claim.messages).await;
        delivered.extend(ids(&claim.messages));
    }
    let of =
        |ids: &[MessageId]| -> Vec<_> { delivered.iter().copied().filter(|id| ids.contains(id)).collect() };
    assert_eq!((of(&a), of(&b)), (a.clone(), b.clone()));
}

/// What was lost behind a message that now waits for a retry is not recovered before it, and keeps nobody else
/// from being recovered.
pub async fn lost_rest_of_a_run_waits_for_its_turn(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let a = enqueue_run(&h, "a", 3).await;
    let run = h.claim(3).await;
    assert_eq!(ids(&run), a);
    let b = enqueue_run(&h, "b", 1).await;
    assert_eq!(ids(&h.claim(1).await), b);
    let _ = h.settle(run[0].lease, retry(9 * HOUR)).await;
    h.expire().await;
    let claim = h.claim_with(request(10)).await;
    assert_eq!((ids(&claim.messages), claim.recovered), (b, true));
    h.finish_all(&claim.messages).await;
    h.assert_nothing_to_claim().await;
    h.advance(10 * HOUR).await;
    let mut delivered = Vec::new();
    for _ in 0..6 {
        let claim = h.claim_with(request(10)).await;
        h.finish_all(&claim.messages).await;
        delivered.extend(ids(&claim.messages));
    }
    assert_eq!(delivered, a);
}

/// Behind a dead letter the key goes on, where that is declared.
pub async fn dead_letter_lets_its_key_go_on(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let sent = enqueue_run(&h, "a", 3).await;
    let first = h.claim(1).await;
    let _ = h.settle(first[0].lease, dead("beyond help")).await;
    assert_eq!(h.drain().await, sent[1..]);
}

/// A redriven message comes last of its key, where the key has gone on.
pub async fn redriven_message_comes_last(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let sent = enqueue_run(&h, "a", 3).await;
    let first = h.claim(1).await;
    let _ = h.settle(first[0].lease, dead("beyond help")).await;
    let held = h.claim(1).await;
    assert_eq!(h.operations().redrive(vec![sent[0]]).await.expect("redrive"), [Moved::Applied]);
    h.assert_nothing_to_claim().await;
    h.finish_all(&held).await;
    assert_eq!(h.drain().await, [sent[2], sent[0]]);
}

/// Nothing behind a dead letter is claimed, where that is declared; other keys go on.
pub async fn dead_letter_blocks_its_key(h: &impl DeclaredHarness) {
    let h = blocking(h).await;
    let sent = enqueue_run(&h, "a", 3).await;
    let run = h.claim(2).await;
    assert_eq!(ids(&run), sent[..2]);
    let _ = h.settle_all([(run[0].lease, dead("beyond help")), (run[1].lease, Outcome::Release)]).await;
    h.assert_nothing_to_claim().await;
    let other = enqueue_run(&h, "b", 1).await;
    assert_eq!(h.drain().await, other);
}

/// Discarding the dead letter lets a blocked key go on.
pub async fn discarding_the_head_unblocks_its_key(h: &impl DeclaredHarness) {
    let h = blocking(h).await;
    let sent = enqueue_run(&h, "a", 3).await;
    let first = h.claim(1).await;
    let _ = h.settle(first[0].lease, dead("beyond help")).await;
    assert_eq!(h.operations().discard(vec![sent[0]]).await.expect("discard"), [Moved::Applied]);
    assert_eq!(h.drain().await, sent[1..]);
}

/// A redriven message of a blocked key keeps its place.
pub async fn redriving_the_head_keeps_its_place(h: &impl DeclaredHarness) {
    let h = blocking(h).await;
    let sent = enqueue_run(&h, "a", 3).await;
    let first = h.claim(1).await;
    let _ = h.settle(first[0].lease, dead("beyond help")).await;
    assert_eq!(h.operations().redrive(vec![sent[0]]).await.expect("redrive"), [Moved::Applied]);
    let again = h.claim(1).await;
    assert_eq!((ids(&again), again[0].message.attempt), (vec![sent[0]], 1));
    h.assert_nothing_to_claim().await;
    h.finish_all(&again).await;
    assert_eq!(h.drain().await, sent[1..]);
}

/// A message that the claim itself makes dead blocks those that it could have taken with it.
pub async fn message_out_of_attempts_blocks_its_run(h: &impl DeclaredHarness) {
    for (on_dead, n_behind) in [(OnDead::Continue, 2), (OnDead::Block, 0)] {
        let h = h.declared(Declaration::new().ordered(on_dead)).await;
        let sent = enqueue_run(&h, "a", 3).await;
        let first = h.claim(1).await;
        let _ = h.settle(first[0].lease, retry(Duration::ZERO)).await;
        let mut claim = Claim::default();
        for _ in 0..3 {
            let next = h.claim_with(request(10).with_max_attempts(1)).await;
            claim.n_dead += next.n_dead;
            claim.messages.extend(next.messages);
        }
        assert_eq!(claim.n_dead, 1, "{on_dead:?}");
        assert_eq!(ids(&claim.messages), sent[1..=n_behind], "{on_dead:?}");
    }
}

/// A row that cannot be decoded is a dead letter like any other.
pub async fn undecodable_row_follows_the_policy<H: DeclaredHarness>(h: &H) {
    if !h.capabilities().corrupt_rows {
        return lacks::<H>("ordered::undecodable_row_follows_the_policy", "corrupt_rows");
    }
    for (on_dead, n_behind) in [(OnDead::Continue, 2), (OnDead::Block, 0)] {
        let h = h.declared(Declaration::new().ordered(on_dead)).await;
        let sent = enqueue_run(&h, "a", 3).await;
        assert!(h.corrupt(sent[0], Corruption::Headers).await);
        let claim = h.claim_with(request(10)).await;
        assert_eq!(claim.n_dead, 1);
        assert_eq!(ids(&claim.messages), sent[1..=n_behind], "{on_dead:?}");
        h.finish_all(&claim.messages).await;
        assert_eq!(h.operations().discard(vec![sent[0]]).await.expect("discard"), [Moved::Applied]);
        let rest = h.claim(10).await;
        assert_eq!(ids(&rest), sent[1 + n_behind..], "{on_dead:?}");
        assert!(rest.iter().all(|claimed| claimed.message.attempt == 1), "the release gave the attempt back");
    }
}

/// The backlog of a key whose first message is held does not hide other keys, nor does that of those without a key.
pub async fn backlog_of_a_key_hides_no_other(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let hot: Vec<_> = (0..2_000).map(|_| of("m")).collect();
    h.enqueue(hot).await;
    let held = h.claim(10).await;
    assert!(!held.is_empty());
    let others = h.enqueue(vec![of("a"), of("z"), draft()]).await;
    let claimer = Claimer::new();
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.extend(ids(&h.claim_with(request(10).with_claimer(claimer.clone())).await.messages));
    }
    taken.sort_unstable();
    assert_eq!(taken, sorted(others));
}

/// A claim loop reaches every key, wherever it was when the message came.
pub async fn loop_reaches_every_key(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let claimer = Claimer::new();
    let mut sent = BTreeSet::new();
    let mut delivered = BTreeSet::new();
    for key in ["m", "a", "z", "m", "", "zz", "k", "ä", "A"] {
        sent.extend(h.enqueue(vec![of(key), of(key)]).await);
        let claim = h.claim_with(request(1).with_claimer(claimer.clone())).await;
        h.finish_all(&claim.messages).await;
        delivered.extend(ids(&claim.messages));
    }
    for _ in 0..20 {
        let claim = h.claim_with(request(3).with_claimer(claimer.clone())).await;
        h.finish_all(&claim.messages).await;
        delivered.extend(ids(&claim.messages));
    }
    assert_eq!(delivered, sent);
}

/// What is blocked, one page.
async fn blocked(h: &impl OperationsHarness) -> Vec<BlockedKey> {
    h.operations().blocked_keys(BlockedQuery::new(100)).await.expect("blocked keys").keys
}

/// A blocked key is listed with its first message, what holds it, and how many wait behind it.
pub async fn blocked_keys_say_what_holds_them(h: &impl DeclaredHarness) {
    let h = blocking(h).await;
    let mut heads = Vec::new();
    for key in ["claimed", "dead", "retried"] {
        let head = enqueue_run(&h, key, 1).await;
        let claim = h.claim(1).await;
        assert_eq!(ids(&claim), head);
        match key {
            "dead" => drop(h.settle(claim[0].lease, dead("beyond help")).await),
            "retried" => drop(h.settle(claim[0].lease, retry(HOUR)).await),
            _ => {}
        }
        enqueue_run(&h, key, 2).await;
        heads.extend(head);
    }
    enqueue_run(&h, "free", 1).await;
    let keys = blocked(&h).await;
    let seen: Vec<_> = keys.iter().map(|key| (&*key.key, key.head, key.n_behind, key.is_estimate)).collect();
    assert_eq!(
        seen,
        [("claimed", heads[0], 2, false), ("dead", heads[1], 2, false), ("retried", heads[2], 2, false)]
    );
    assert!(matches!(keys[0].blocker, Blocker::Claimed { expires_in } if expires_in > Duration::ZERO));
    assert_eq!(keys[1].blocker, Blocker::Dead { error: "beyond help".into() });
    assert!(matches!(keys[2].blocker, Blocker::Waiting { due_in } if due_in > HOUR / 2 && due_in <= HOUR));
    assert_eq!(keys[1].topic, "topic");
}

/// A key that can go on is not listed: one whose message nobody waits behind, or whose dead letter lets it go on.
pub async fn free_keys_are_not_listed(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    h.enqueue(draft()).await;
    enqueue_run(&h, "dead", 2).await;
    let claim = h.claim(2).await;
    let head = claim.iter().find(|claimed| claimed.message.key.is_some()).expect("of the key");
    let _ = h.settle(head.lease, dead("beyond help")).await;
    assert_eq!(blocked(&h).await, []);
    enqueue_run(&h, "alone", 1).await;
    while !h.claim(10).await.is_empty() {}
    assert_eq!(blocked(&h).await, []);
}

/// A page looks at so many keys and says where the next one begins; together they miss nothing.
pub async fn blocked_keys_come_in_pages(h: &impl DeclaredHarness) {
    let h = blocking(h).await;
    let names = ["", "a", "b", "c", "ä"];
    for key in names {
        enqueue_run(&h, key, 2).await;
    }
    while !h.claim_with(request(1)).await.is_empty() {}
    let mut found = Vec::new();
    let mut query = BlockedQuery::new(2);
    loop {
        let page = h.operations().blocked_keys(query).await.expect("a page");
        assert!(page.keys.len() <= 2);
        found.extend(page.keys.into_iter().map(|key| key.key));
        let Some(next) = page.next else { break };
        query = BlockedQuery::new(2).with_from(next);
    }
    assert_eq!(found, names);
}

/// A long backlog behind a head is counted up to a bound, and says so.
pub async fn long_backlog_is_an_estimate(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    enqueue_run(&h, "a", 1).await;
    assert_eq!(h.claim(1).await.len(), 1);
    h.enqueue((0..MAX_BEHIND).map(|_| of("a")).collect::<Vec<_>>()).await;
    let n_behind = async || blocked(&h).await.first().map(|key| (key.n_behind, key.is_estimate));
    assert_eq!(n_behind().await, Some((MAX_BEHIND as u64, false)));
    enqueue_run(&h, "a", 1).await;
    assert_eq!(n_behind().await, Some((MAX_BEHIND as u64, true)));
}

/// A head that is skipped is gone, and the next one of its key can be claimed; only that head is.
pub async fn skipped_head_lets_its_key_go_on(h: &impl DeclaredHarness) {
    let h = blocking(h).await;
    for outcome in [dead("beyond help"), retry(HOUR)] {
        let sent = enqueue_run(&h, "a", 3).await;
        let first = h.claim(1).await;
        assert_eq!(ids(&first), sent[..1]);
        let skip = async |key: &str, id| h.operations().skip_head(key.into(), id).await.expect("skip");
        assert_eq!(skip("a", sent[0]).await, Unblocked::NotBlocking, "it is claimed");
        let _ = h.settle(first[0].lease, outcome).await;
        assert_eq!(skip("b", sent[0]).await, Unblocked::NotBlocking, "of another key");
        assert_eq!(skip("a", sent[1]).await, Unblocked::NotBlocking, "not the first");
        assert_eq!(skip("a", sent[0]).await, Unblocked::Applied);
        assert_eq!(skip("a", sent[0]).await, Unblocked::NotBlocking, "once");
        assert_eq!(h.drain().await, sent[1..]);
    }
}

/// A head that is released is claimed at its place: a dead one with all its attempts, a waiting one with those left.
pub async fn released_head_comes_first(h: &impl DeclaredHarness) {
    let h = blocking(h).await;
    for (outcome, attempt) in [(dead("beyond help"), 1), (retry(HOUR), 2)] {
        let sent = enqueue_run(&h, "a", 2).await;
        let first = h.claim(1).await;
        let release = async |id| h.operations().release_head("a".into(), id).await.expect("release");
        assert_eq!(release(sent[0]).await, Unblocked::NotBlocking, "it is claimed");
        let _ = h.settle(first[0].lease, outcome).await;
        assert_eq!(release(sent[1]).await, Unblocked::NotBlocking, "not the first");
        assert_eq!(release(sent[0]).await, Unblocked::Applied);
        let again = h.claim(1).await;
        assert_eq!((ids(&again), again[0].message.attempt), (vec![sent[0]], attempt));
        h.finish_all(&again).await;
        assert_eq!(h.drain().await, sent[1..]);
    }
}

/// A delayed message is no head while an earlier one of its key is ready, delayed or dead.
pub async fn message_behind_another_is_no_head<H: DeclaredHarness>(h: &H) {
    let h = blocking(h).await;
    for earlier in ["dead", "delayed", "ready"] {
        let delay = if earlier == "delayed" { HOUR } else { Duration::ZERO };
        h.enqueue(of(earlier).delay(delay)).await;
        if earlier == "dead" {
            let claim = h.claim(1).await;
            let _ = h.settle(claim[0].lease, dead("beyond help")).await;
        }
        let second = h.enqueue(of(earlier).delay(HOUR)).await[0];
        let operations = h.operations();
        let answers = [
            operations.skip_head(earlier.into(), second).await.expect("skip"),
            operations.release_head(earlier.into(), second).await.expect("release"),
        ];
        assert_eq!(answers, [Unblocked::NotBlocking; 2], "behind one that is {earlier}");
    }
}

/// Whoever sleeps while a dead letter blocks its key is woken when an operator has done something about it.
pub async fn unblocked_key_gives_a_hint<H: DeclaredHarness>(h: &H) {
    if !h.capabilities().hints {
        return lacks::<H>("ordered::unblocked_key_gives_a_hint", "hints");
    }
    let h = blocking(h).await;
    for action in ["discard", "discard_matching", "prune", "skip", "redrive", "redrive_matching", "release"] {
        let head = enqueue_run(&h, "a", 1).await[0];
        let claim = h.claim(1).await;
        let _ = h.settle(claim[0].lease, dead("beyond help")).await;
        h.advance(HOUR).await;
        let mut listener = h.asleep().await;
        unblock(h.operations(), action, head).await;
        hinted(&mut listener).await;
        // the next one must not rely on one that is about to vanish
        listener.stand_down().await.expect("stand down");
        h.drain().await;
    }
}

async fn unblock(operations: &impl Operations, action: &str, head: MessageId) {
    let all = DeadLetterFilter::default();
    match action {
        "discard" => drop(operations.discard(vec![head]).await.expect(action)),
        "discard_matching" => drop(operations.discard_matching(all, 1).await.expect(action)),
        "prune" => drop(operations.prune(Prune::dead(HOUR / 2)).await.expect(action)),
        "redrive" => drop(operations.redrive(vec![head]).await.expect(action)),
        "redrive_matching" => drop(operations.redrive_matching(all, 1).await.expect(action)),
        "skip" => _ = operations.skip_head("a".into(), head).await.expect(action),
        _ => _ = operations.release_head("a".into(), head).await.expect(action),
    }
}

/// A dead letter that lets its key go on is no head: discarding and redriving it are for that.
pub async fn dead_letter_that_holds_nobody_is_no_head(h: &impl DeclaredHarness) {
    let h = continuing(h).await;
    let sent = enqueue_run(&h, "a", 1).await;
    let first = h.claim(1).await;
    let _ = h.settle(first[0].lease, dead("beyond help")).await;
    let operations = h.operations();
    assert_eq!(operations.skip_head("a".into(), sent[0]).await.expect("skip"), Unblocked::NotBlocking);
    assert_eq!(operations.release_head("a".into(), sent[0]).await.expect("release"), Unblocked::NotBlocking);
}

/// Without order there are no blocked keys; bad input is named.
pub async fn blocked_keys_need_order(h: &impl DeclaredHarness) {
    let plain = h.operations();
    let kinds = [
        plain.blocked_keys(BlockedQuery::new(1)).await.expect_err("plain").kind(),
        plain.skip_head("a".into(), MessageId::new_v4()).await.expect_err("plain").kind(),
        plain.release_head("a".into(), MessageId::new_v4()).await.expect_err("plain").kind(),
    ];
    assert_eq!(kinds, [ErrorKind::Unsupported; 3]);
    let ordered = continuing(h).await;
    let error = ordered.operations().blocked_keys(BlockedQuery::new(0)).await.expect_err("no limit");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let error = ordered.operations().skip_head("a\0".into(), MessageId::new_v4()).await.expect_err("NUL");
    assert_eq!(error.to_string(), "invalid key: contains NUL (U+0000)");
}

/// What does not go together is refused by name.
pub async fn order_and_turns_by_header_are_refused(h: &impl DeclaredHarness) {
    let both = Declaration::new().ordered(OnDead::Block).fair(Fairness::Header("tenant".into()));
    assert_eq!(both.validate().expect_err("refused").kind(), ErrorKind::Unsupported);
    let h = h.declared(Declaration::new().ordered(OnDead::Block).fair(Fairness::Key)).await;
    let sent = enqueue_run(&h, "a", 2).await;
    assert_eq!(h.drain().await, sent);
}

const N_PRODUCERS: usize = 8;
const N_CLAIMERS: usize = 4;
const N_MESSAGES: usize = 30;

/// Eight producers and four claimers at once, with failures, lost claims, releases, dead letters and redrives: what is
/// claimed of a key always follows what is over with.
pub async fn order_survives_any_interleaving(h: &impl DeclaredHarness) {
    for on_dead in [OnDead::Continue, OnDead::Block] {
        let h = Arc::new(h.declared(Declaration::new().ordered(on_dead)).await);
        let mut random = Random::announced("ordered::order_survives_any_interleaving");
        let ledger = Arc::new(Mutex::new(Ledger { blocks: on_dead == OnDead::Block, ..Ledger::default() }));
        let mut tasks = JoinSet::new();
        for number in 0..N_PRODUCERS {
            tasks.spawn(produce(Arc::clone(&h), Arc::clone(&ledger), number));
        }
        for _ in 0..N_CLAIMERS {
            tasks.spawn(deliver(Arc::clone(&h), Arc::clone(&ledger), random.fork()));
        }
        soon("the end of the claimers", tasks.join_all()).await;
        h.assert_nothing_to_claim().await;
    }
}

/// What the tasks know of the messages.
#[derive(Default)]
struct Ledger {
    /// Key and place in it; of a message that was redriven behind the others, none.
    places: HashMap<MessageId, (usize, usize)>,
    /// What need not be waited for any more, by key.
    over: HashMap<usize, BTreeSet<usize>>,
    n_ended: usize,
    blocks: bool,
}

impl Ledger {
    fn check(&self, claimed: &[Claimed]) {
        let mut over = self.over.clone();
        for claimed in claimed {
            let Some((key, place)) = self.places.get(&claimed.message.id) else { continue };
            let over = over.entry(*key).or_default();
            let missing = (0..*place).find(|earlier| !over.contains(earlier));
            assert_eq!(missing, None, "{place} of key {key} is claimed before an earlier one is over with");
            over.insert(*place);
        }
    }

    /// To be called before the storage is told.
    fn is_over(&mut self, id: MessageId) {
        if let Some((key, place)) = self.places.get(&id) {
            self.over.entry(*key).or_default().insert(*place);
        }
    }

    /// Done, retry, dead or release by chance.
    fn decide(&mut self, id: MessageId, random: &mut Random) -> Outcome {
        match random.below(8) {
            0 => Outcome::Release,
            1 => retry(Duration::ZERO),
            2 => {
                if !self.blocks {
                    self.is_over(id);
                }
                dead("by chance")
            }
            _ => {
                self.is_over(id);
                Outcome::Done
            }
        }
    }
}

fn locked(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Each producer has a key of its own, so that the order of its transactions is known.
async fn produce<H: Harness>(h: Arc<H>, ledger: Arc<Mutex<Ledger>>, number: usize) {
    for place in 0..N_MESSAGES {
        let draft = of(&format!("key {number}"));
        locked(&ledger).places.insert(draft.id, (number, place));
        h.enqueue(draft).await;
    }
}

async fn deliver<H: DeclaredHarness>(h: Arc<H>, ledger: Arc<Mutex<Ledger>>, mut random: Random) {
    let claimer = Claimer::new();
    while locked(&ledger).n_ended < N_PRODUCERS * N_MESSAGES {
        let is_lost = random.below(8) == 0;
        let lease = if is_lost { Duration::from_millis(5) } else { HOUR };
        let mut request = ClaimRequest::new(1 + random.below(20), lease).with_max_attempts(u32::MAX);
        if random.below(2) == 0 {
            request = request.with_claimer(claimer.clone());
        }
        let claim = insist(|| h.repository().claim(request.clone())).await;
        locked(&ledger).check(&claim.messages);
        if !is_lost {
            handle(&*h, &ledger, &claim.messages, &mut random).await;
        }
        if claim.is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// One message after another; behind one that is not done, the rest of its key is released.
async fn handle<H: DeclaredHarness>(h: &H, ledger: &Mutex<Ledger>, claimed: &[Claimed], random: &mut Random) {
    let mut stopped = BTreeSet::new();
    for Claimed { message, lease } in claimed {
        let outcome = match stopped.contains(&message.key) {
            true => Outcome::Release,
            false => locked(ledger).decide(message.id, random),
        };
        if outcome != Outcome::Done {
            stopped.insert(message.key.clone());
        }
        let settlements = vec![Settlement::new(*lease, outcome.clone())];
        let settled = insist(|| h.repository().settle(settlements.clone())).await;
        assert_eq!(settled, [Settled::Applied], "nobody else may have it");
        match outcome {
            Outcome::Done => locked(ledger).n_ended += 1,
            Outcome::Dead { .. } => end_dead(h, ledger, message.id, random).await,
            _ => {}
        }
    }
}

/// What an operator does with a dead letter: where it blocks, sometimes by its key.
async fn end_dead<H: DeclaredHarness>(h: &H, ledger: &Mutex<Ledger>, id: MessageId, random: &mut Random) {
    tokio::task::yield_now().await;
    let (is_redriven, blocks) = (random.below(2) == 0, locked(ledger).blocks);
    let key = locked(ledger).places.get(&id).map(|(key, _)| format!("key {key}"));
    match is_redriven {
        true if !blocks => drop(locked(ledger).places.remove(&id)),
        true => {}
        false => locked(ledger).is_over(id),
    }
    let operations = h.operations();
    match key.filter(|_| blocks && random.below(2) == 0) {
        Some(key) => {
            let unblocked = match is_redriven {
                true => insist(|| operations.release_head(key.clone(), id)).await,
                false => insist(|| operations.skip_head(key.clone(), id)).await,
            };
            assert_eq!(unblocked, Unblocked::Applied, "nothing of its key comes before it");
        }
        None => {
            let moved = match is_redriven {
                true => insist(|| operations.redrive(vec![id])).await,
                false => insist(|| operations.discard(vec![id])).await,
            };
            assert_eq!(moved, [Moved::Applied]);
        }
    }
    if !is_redriven {
        locked(ledger).n_ended += 1;
    }
}
