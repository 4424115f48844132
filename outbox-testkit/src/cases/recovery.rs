//! What a process that died had claimed is recovered, apart from other messages and not for ever.

use outbox_core::{Claim, MessageId, Outcome, Settled, recovery_group};

use super::steps::{HOUR, Steps, draft, drafts, ids, on, request, retry, sorted};
use crate::Harness;

/// An expired lease makes its message claimable again, as the next attempt.
pub async fn expired_lease_is_reclaimed(h: &impl Harness) {
    let id = h.enqueue_one().await;
    let first = h.claim_one().await;
    h.expire().await;
    let claim = h.claim_with(request(10)).await;
    assert!(claim.recovered);
    assert_eq!(ids(&claim.messages), [id]);
    assert_eq!(claim.messages[0].message.attempt, 2);
    assert_ne!(claim.messages[0].lease.token, first.lease.token);
}

/// A claim that may not recover leaves expired leases alone and takes the rest.
pub async fn claim_without_recovery_leaves_expired_leases_alone(h: &impl Harness) {
    let lost = h.enqueue_one().await;
    h.claim_one().await;
    h.expire().await;
    let fresh = h.enqueue_one().await;
    let claim = h.claim_with(request(10).with_recover(false)).await;
    assert_eq!((ids(&claim.messages), claim.recovered), (vec![fresh], false));
    assert_eq!(h.claim_one().await.message.id, lost);
}

/// Recovered messages are claimed apart from others, and said to be recovered.
pub async fn recovered_messages_come_apart_from_fresh_ones(h: &impl Harness) {
    let lost = h.enqueue(drafts(3)).await;
    h.claim(3).await;
    h.expire().await;
    let fresh = h.enqueue(drafts(3)).await;
    let mut recovered = Vec::new();
    while recovered.len() < 3 {
        let claim = h.claim_with(request(10)).await;
        assert!(claim.recovered, "expired leases come first");
        assert!(claim.messages.iter().all(|claimed| lost.contains(&claimed.message.id)));
        recovered.extend(ids(&claim.messages));
    }
    let claim = h.claim_with(request(10)).await;
    assert_eq!((ids(&claim.messages), claim.recovered), (fresh, false));
    assert_eq!(recovered, lost, "expired leases come in the order of their messages");
}

/// What was lost in one claim comes back in groups that become smaller with each attempt, down to one.
pub async fn groups_shrink_towards_the_last_attempt(h: &impl Harness) {
    h.enqueue(drafts(20)).await;
    assert_eq!(h.claim(20).await.len(), 20);
    for attempts in 1..4 {
        h.expire().await;
        let mut n_recovered = 0;
        while n_recovered < 20 {
            let claim = h.claim_with(request(1_000).with_max_attempts(4)).await;
            let largest = recovery_group(1_000, attempts, 4);
            assert!(claim.recovered && claim.messages.len() <= largest, "{claim:?}");
            assert!(claim.messages.iter().all(|claimed| claimed.message.attempt == attempts + 1));
            n_recovered += claim.messages.len();
        }
        assert_eq!(n_recovered, 20);
    }
    h.expire().await;
    assert_eq!(deaths(h, 1_000, 4).await, 20);
}

/// Claims until nothing is found; nothing may be handed out; how many died.
async fn deaths(h: &impl Harness, limit: usize, max_attempts: u32) -> usize {
    let mut n_dead = 0;
    for _ in 0..100 {
        let claim = h.claim_with(request(limit).with_max_attempts(max_attempts)).await;
        assert!(claim.messages.is_empty(), "{:?}", claim.messages);
        n_dead += claim.n_dead;
        if claim.is_empty() {
            return n_dead;
        }
    }
    panic!("the table does not become empty");
}

/// Messages in different attempts are not recovered in one group.
pub async fn group_has_one_count_of_attempts(h: &impl Harness) {
    h.enqueue(drafts(3)).await;
    h.claim(3).await;
    h.expire().await;
    h.claim(1).await;
    h.enqueue(drafts(3)).await;
    for _ in 0..4 {
        h.claim(10).await;
    }
    h.expire().await;
    let mut n_recovered = 0;
    while n_recovered < 6 {
        let claim = h.claim_with(request(10)).await;
        let attempts = claim.messages.iter().map(|claimed| claimed.message.attempt);
        assert!(claim.recovered);
        assert_eq!(attempts.clone().min(), attempts.max(), "attempts mixed in one group");
        n_recovered += claim.messages.len();
    }
}

/// The limits of a claim hold for recovered messages too.
pub async fn limits_hold_for_recovered_messages(h: &impl Harness) {
    h.enqueue(drafts(30)).await;
    h.claim(30).await;
    h.expire().await;
    assert!((1..=3).contains(&h.claim(3).await.len()));
    let bytes = h.claim_with(request(10).with_max_bytes(3)).await.messages;
    assert!((1..=3).contains(&bytes.len()), "{bytes:?}");
}

/// Only expired leases of the claimed topics are recovered.
pub async fn topics_hold_for_recovered_messages(h: &impl Harness) {
    let mixed = h.enqueue([on("a"), on("b")]).await;
    h.claim(2).await;
    h.expire().await;
    assert_eq!(ids(&h.claim_with(request(10).with_topics(["b"])).await.messages), [mixed[1]]);
    assert_eq!(h.claim_one().await.message.id, mixed[0]);
}

/// A message whose last attempt was lost is dead, and is not handed out again.
pub async fn message_lost_in_its_last_attempt_is_dead(h: &impl Harness) {
    h.enqueue_one().await;
    for _ in 0..2 {
        assert_eq!(h.claim_with(request(1).with_max_attempts(2)).await.messages.len(), 1);
        h.expire().await;
    }
    assert_eq!(deaths(h, 1, 2).await, 1);
    h.expire().await;
    assert!(h.claim_with(request(10).with_max_attempts(100)).await.is_empty(), "dead for good");
}

/// The limit is the number of times that a message is handed out, however each attempt ends.
pub async fn limit_is_the_number_of_attempts(h: &impl Harness) {
    h.enqueue_one().await;
    let mut n_handed_out = 0;
    for ending in [Some(retry(HOUR)), None, Some(retry(HOUR)), None, None] {
        let claim = h.claim_with(request(10).with_max_attempts(3)).await;
        n_handed_out += claim.messages.len();
        if let (Some(claimed), Some(ending)) = (claim.messages.first(), ending) {
            assert_eq!(h.settle(claimed.lease, ending).await, Settled::Applied);
        }
        h.expire().await;
    }
    assert_eq!(n_handed_out, 3);
}

/// A lowered limit applies to messages that wait for a retry.
pub async fn lowered_limit_applies_to_waiting_messages(h: &impl Harness) {
    h.enqueue_one().await;
    for _ in 0..3 {
        let claimed = h.claim_one().await;
        assert_eq!(h.settle(claimed.lease, retry(HOUR)).await, Settled::Applied);
        h.expire().await;
    }
    assert_eq!(deaths(h, 10, 3).await, 1);
    assert!(h.claim_with(request(10).with_max_attempts(100)).await.is_empty(), "dead for good");
}

/// A claim that finds only messages out of attempts counts them, so it does not look like an empty table.
pub async fn claim_that_only_buries_is_not_empty(h: &impl Harness) {
    h.enqueue(drafts(5)).await;
    h.claim(5).await;
    h.expire().await;
    let claim = h.claim_with(request(10).with_max_attempts(1)).await;
    assert_eq!((claim.messages.len(), claim.n_dead, claim.is_empty()), (0, 5, false));
    assert!(h.claim_with(request(10).with_max_attempts(1)).await.is_empty());
}

/// Messages out of attempts keep nobody waiting, however many they are.
pub async fn messages_out_of_attempts_block_nobody(h: &impl Harness) {
    h.enqueue(drafts(50)).await;
    h.claim(50).await;
    h.expire().await;
    let fresh = h.enqueue(drafts(5)).await;
    let (mut delivered, mut n_dead) = (Vec::new(), 0);
    for _ in 0..10 {
        let claim = h.claim_with(request(10).with_max_attempts(1)).await;
        n_dead += claim.n_dead;
        delivered.extend(ids(&claim.messages));
    }
    assert_eq!((delivered, n_dead), (fresh, 50));
}

/// One message that kills every process that has it costs its thousand neighbours nothing.
pub async fn poison_message_does_not_kill_its_neighbours(h: &impl Harness) {
    let mut enqueued = h.enqueue(drafts(1_001)).await;
    let poison = enqueued.swap_remove(500);
    let (mut delivered, mut n_dead) = (Vec::new(), 0);
    for _ in 0..1_000 {
        let claim = h.claim_with(request(1_000).with_max_attempts(5)).await;
        n_dead += claim.n_dead;
        if claim.is_empty() && (delivered.len(), n_dead) == (1_000, 1) {
            return assert_eq!(sorted(delivered), sorted(enqueued));
        }
        match process(h, claim, poison).await {
            Some(ids) => delivered.extend(ids),
            None => h.expire().await,
        }
    }
    panic!("{} of 1000 delivered, {n_dead} of 1 dead", delivered.len());
}

/// What a process delivers that dies, before it has settled anything, of the poison message.
async fn process(h: &impl Harness, claim: Claim, poison: MessageId) -> Option<Vec<MessageId>> {
    let ids = ids(&claim.messages);
    if claim.messages.is_empty() || ids.contains(&poison) {
        return None;
    }
    h.finish_all(&claim.messages).await;
    Some(ids)
}

/// A message that was retried after a crash is no longer recovered: it comes with the others.
pub async fn settled_message_is_no_longer_recovered(h: &impl Harness) {
    let id = h.enqueue_one().await;
    h.claim_one().await;
    h.expire().await;
    let recovered = h.claim_one().await;
    assert_eq!(h.settle(recovered.lease, Outcome::Release).await, Settled::Applied);
    let fresh = h.enqueue(draft()).await[0];
    let claim = h.claim_with(request(10)).await;
    assert_eq!((sorted(ids(&claim.messages)), claim.recovered), (sorted(vec![id, fresh]), false));
}
