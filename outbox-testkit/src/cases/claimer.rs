//! A claim loop that continues where it left off finds everything.

use std::time::Duration;

use outbox_core::{ClaimRequest, Claimer, Draft, MessageId, Outcome, Repository, Settled, Transactions};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::lacks;
use super::steps::{HOUR, Steps, cancelled_at, draft, drafts, ids, insist, on, request, retry, soon, sorted};
use crate::Harness;
use crate::random::Random;

/// A loop finds what is enqueued while it runs.
pub async fn everything_is_delivered(h: &impl Harness) {
    let claimer = Claimer::new();
    for round in 1..=10 {
        let enqueued = h.enqueue(drafts(round * 5)).await;
        let delivered = h.deliver_with(&claimer, request(12), enqueued.len()).await;
        assert_eq!(delivered, sorted(enqueued));
    }
}

/// A message whose transaction commits after later ones were delivered is delivered.
pub async fn late_commit_is_delivered<H: Harness>(h: &H) {
    if !h.capabilities().concurrent_writers {
        return lacks::<H>("claimer::late_commit_is_delivered", "concurrent_writers");
    }
    if !h.capabilities().overtaking {
        return late_commit_is_waited_for(h).await;
    }
    let claimer = Claimer::new();
    for _ in 0..5 {
        let cx = h.begin().await;
        let late = h.enqueue_in(&cx, drafts(2)).await;
        let early = h.enqueue(drafts(20)).await;
        assert_eq!(h.deliver_with(&claimer, request(7), 20).await, sorted(early));
        h.commit(cx).await;
        assert_eq!(h.deliver_with(&claimer, request(7), 2).await, sorted(late));
    }
}

/// What holds where nothing overtakes an open transaction: what was enqueued behind it comes with it, in order.
async fn late_commit_is_waited_for<H: Harness>(h: &H) {
    lacks::<H>("claimer::late_commit_is_delivered", "overtaking");
    let claimer = Claimer::new();
    for _ in 0..5 {
        let cx = h.begin().await;
        let late = h.enqueue_in(&cx, drafts(2)).await;
        let early = h.enqueue(drafts(20)).await;
        let claim = h.claim_with(request(7).with_claimer(claimer.clone())).await;
        assert!(claim.is_empty(), "{claim:?} is behind an open transaction");
        h.commit(cx).await;
        let all = [late, early].concat();
        assert_eq!(h.deliver_with(&claimer, request(7), 22).await, sorted(all));
    }
}

/// Many transactions that commit out of order, or roll back, while loops run: what has committed is
/// delivered, once.
pub async fn commits_in_any_order_are_delivered<H: Harness>(h: &H) {
    if !h.capabilities().concurrent_writers {
        return lacks::<H>("claimer::commits_in_any_order_are_delivered", "concurrent_writers");
    }
    let mut random = Random::announced("commits_in_any_order_are_delivered");
    let mut producers = JoinSet::new();
    for _ in 0..6 {
        producers.spawn(produce(h.repository().clone(), random.fork()));
    }
    let (claimer, mut delivered, mut committed) = (Claimer::new(), Vec::new(), Vec::new());
    let all = async {
        while !producers.is_empty() || delivered.len() < committed.len() {
            while let Some(ids) = producers.try_join_next() {
                committed.extend(ids.expect("a producer"));
            }
            let claim = h.claim_with(request(10).with_claimer(claimer.clone())).await;
            h.finish_all(&claim.messages).await;
            delivered.extend(ids(&claim.messages));
            tokio::task::yield_now().await;
        }
    };
    soon("the delivery of all", all).await;
    assert_eq!(sorted(delivered), sorted(committed));
    h.assert_nothing_to_claim().await;
}

/// Ten transactions that stay open for a while, a fifth of which roll back; what has committed.
async fn produce<R: Repository + Transactions>(repository: R, mut random: Random) -> Vec<MessageId> {
    let mut committed = Vec::new();
    for _ in 0..10 {
        let cx = repository.begin().await.expect("begin");
        let ids = repository.enqueue(&cx, drafts(1 + random.below(3))).await.expect("enqueue");
        sleep(random.up_to(Duration::from_millis(30))).await;
        if random.below(5) == 0 {
            repository.rollback(cx).await.expect("rollback");
        } else {
            repository.commit(cx).await.expect("commit");
            committed.extend(ids);
        }
    }
    committed
}

/// A transaction that rolls back leaves a gap, and no loop stops at it.
pub async fn rolled_back_transaction_hides_nothing(h: &impl Harness) {
    let claimer = Claimer::new();
    for _ in 0..5 {
        let cx = h.begin().await;
        h.enqueue_in(&cx, drafts(3)).await;
        h.roll_back(cx).await;
        let enqueued = h.enqueue(drafts(3)).await;
        assert_eq!(h.deliver_with(&claimer, request(10), 3).await, sorted(enqueued));
    }
}

/// What a topic filter passed over, the same loop finds when it asks for that topic.
pub async fn other_topics_are_found_later(h: &impl Harness) {
    let claimer = Claimer::new();
    let mixed = h.enqueue([on("a"), on("b"), on("a"), on("b")]).await;
    let only = |topic| request(10).with_topics([topic]);
    assert_eq!(h.deliver_with(&claimer, only("b"), 2).await, sorted(vec![mixed[1], mixed[3]]));
    assert_eq!(h.deliver_with(&claimer, only("a"), 2).await, sorted(vec![mixed[0], mixed[2]]));
    let late = h.enqueue([on("c"), on("b")]).await;
    assert_eq!(h.deliver_with(&claimer, only("b"), 1).await, [late[1]]);
    assert_eq!(h.deliver_with(&claimer, request(10), 1).await, [late[0]]);
}

/// What a byte limit passed over, the same loop finds.
pub async fn large_messages_are_found_later(h: &impl Harness) {
    let claimer = Claimer::new();
    let sizes = (0..40).map(|number| if number % 3 == 0 { 900 } else { 10 });
    let drafts: Vec<_> = sizes.map(|size| Draft::new("topic", vec![0; size])).collect();
    let enqueued = h.enqueue(drafts).await;
    let small = request(1_000).with_max_bytes(1_000);
    assert_eq!(h.deliver_with(&claimer, small, enqueued.len()).await, sorted(enqueued));
}

/// Messages that become claimable again are found by a loop that had passed them.
pub async fn renewed_messages_are_found(h: &impl Harness) {
    let claimer = Claimer::new();
    let renewed = h.enqueue([draft(), draft(), draft(), draft().delay(2 * HOUR)]).await;
    let claim = h.claim_with(request(100).with_claimer(claimer.clone())).await;
    assert_eq!(ids(&claim.messages), renewed[..3]);
    let newer = h.enqueue(drafts(30)).await;
    h.deliver_with(&claimer, request(100), newer.len()).await;
    let outcomes = [Outcome::Release, retry(HOUR), retry(Duration::ZERO)];
    let call = claim.messages.iter().map(|claimed| claimed.lease).zip(outcomes);
    assert_eq!(h.settle_all(call).await, [Settled::Applied; 3]);
    let at_once = sorted(vec![renewed[0], renewed[2]]);
    assert_eq!(h.deliver_with(&claimer, request(100), 2).await, at_once);
    h.advance(3 * HOUR).await;
    let later = sorted(vec![renewed[1], renewed[3]]);
    assert_eq!(h.deliver_with(&claimer, request(100), 2).await, later);
}

/// A loop recovers what others have lost, soon after the lease has expired in real time.
pub async fn expired_lease_is_found_in_time(h: &impl Harness) {
    let claimer = Claimer::new();
    let lost = h.enqueue(drafts(3)).await;
    let mut short = request(3);
    short.lease = Duration::from_millis(400);
    assert_eq!(h.claim_with(short).await.messages.len(), 3);
    let newer = h.enqueue(drafts(30)).await;
    h.deliver_with(&claimer, request(100), newer.len()).await;
    assert_eq!(h.deliver_with(&claimer, request(100), 3).await, sorted(lost));
}

/// A claim that is dropped half-way hides nothing from its loop: what it did not take the loop finds, what
/// it took is recovered.
pub async fn cancelled_claim_hides_nothing(h: &impl Harness) {
    let claimer = Claimer::new();
    for n in 1..=20 {
        let enqueued = h.enqueue(drafts(5)).await;
        let continued = || request(3).with_claimer(claimer.clone());
        let finished = cancelled_at(n, h.repository().claim(continued())).await.is_some();
        let mut delivered = deliver_until_quiet(h, &continued, enqueued.len()).await;
        let missed = h.claim_with(request(10).with_recover(false)).await;
        assert!(missed.is_empty(), "hidden from the loop: {missed:?}");
        h.expire().await;
        delivered.extend(h.drain().await);
        assert_eq!(sorted(delivered), sorted(enqueued));
        if finished {
            return;
        }
    }
}

/// Delivers until nothing was found for longer than a claimer may look at newly arrived messages only; where some of so many are
/// missing, which the cancelled claim may have leased, for longer than a connection needs that went with it.
async fn deliver_until_quiet(
    h: &impl Harness,
    request: &impl Fn() -> ClaimRequest,
    n_messages: usize,
) -> Vec<MessageId> {
    let (mut delivered, mut n_quiet) = (Vec::new(), 0);
    while n_quiet < 5 || (n_quiet < 50 && delivered.len() < n_messages) {
        let claim = h.claim_with(request()).await;
        h.finish_all(&claim.messages).await;
        delivered.extend(ids(&claim.messages));
        n_quiet += 1;
        if !claim.is_empty() {
            n_quiet = 0;
        } else {
            sleep(Duration::from_millis(40)).await;
        }
    }
    delivered
}

/// Loops with a claimer each share the table.
pub async fn two_loops_share_the_table(h: &impl Harness) {
    let (one, other) = (Claimer::new(), Claimer::new());
    let enqueued = h.enqueue(drafts(100)).await;
    let mut delivered = Vec::new();
    for claimer in [&one, &other].into_iter().cycle().take(10) {
        delivered.extend(ids(&h.claim_with(request(5).with_claimer(claimer.clone())).await.messages));
    }
    assert_eq!(delivered.len(), 50, "what is enqueued is found at once");
    for claimer in [one, other] {
        let claim = h.claim_with(request(25).with_claimer(claimer)).await;
        delivered.extend(ids(&claim.messages));
    }
    assert_eq!(sorted(delivered), sorted(enqueued));
}

/// Two claims at once with one claimer are correct.
pub async fn shared_claimer_is_correct(h: &impl Harness) {
    let enqueued = h.enqueue(drafts(60)).await;
    let claimer = Claimer::new();
    let mut claims = JoinSet::new();
    for _ in 0..6 {
        claims.spawn(claim(h.repository().clone(), request(10).with_claimer(claimer.clone())));
    }
    let mut claimed: Vec<_> = soon("the claims", claims.join_all()).await.concat();
    claimed.extend(h.deliver_with(&claimer, request(10), enqueued.len() - claimed.len()).await);
    assert_eq!(sorted(claimed), sorted(enqueued));
}

async fn claim<R: Repository>(repository: R, request: ClaimRequest) -> Vec<MessageId> {
    ids(&insist(|| repository.claim(request.clone())).await.messages)
}
