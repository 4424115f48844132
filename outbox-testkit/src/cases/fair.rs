//! Claims take turns, so that nobody's backlog keeps another waiting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outbox_core::{
    Claim, ClaimRequest, Claimed, Claimer, Declaration, Draft, Fairness, MessageId, Outcome, Repository,
    Settled, Settlement,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::steps::{HOUR, Steps, ids, insist, on, request, retry, soon, sorted};
use crate::{DeclaredHarness, Harness};

async fn by_key<H: DeclaredHarness>(h: &H) -> H {
    h.declared(Declaration::new().fair(Fairness::Key)).await
}

async fn by_tenant<H: DeclaredHarness>(h: &H) -> H {
    h.declared(Declaration::new().fair(Fairness::Header("tenant".into()))).await
}

fn of(key: &str) -> Draft {
    Draft::new("topic", "").key(key)
}

fn from_tenant(tenant: &str) -> Draft {
    Draft::new("topic", "").header("tenant", tenant)
}

fn many(n: usize, draft: impl Fn() -> Draft) -> Vec<Draft> {
    (0..n).map(|_| draft()).collect()
}

/// How many messages there are of each key.
fn keys(messages: &[Claimed]) -> BTreeMap<&str, usize> {
    let mut keys = BTreeMap::new();
    for claimed in messages {
        *keys.entry(claimed.message.key.as_deref().unwrap_or_default()).or_default() += 1;
    }
    keys
}

/// A claim loop.
struct Loop<'a, H> {
    h: &'a H,
    claimer: Claimer,
}

impl<'a, H: DeclaredHarness> Loop<'a, H> {
    fn new(h: &'a H) -> Self {
        Self { h, claimer: Claimer::new() }
    }

    async fn claim(&self, limit: usize) -> Vec<Claimed> {
        self.h.claim_with(request(limit).with_claimer(self.claimer.clone())).await.messages
    }

    /// Claims and settles a batch.
    async fn deliver(&self, limit: usize) -> Vec<Claimed> {
        let messages = self.claim(limit).await;
        self.h.finish_all(&messages).await;
        messages
    }

    /// Two batches, which must hold the message.
    async fn assert_within_two_batches(&self, id: MessageId, what: &str) {
        for _ in 0..2 {
            if ids(&self.deliver(10).await).contains(&id) {
                return;
            }
        }
        panic!("{what} has waited for more than two batches");
    }
}

/// A single message is claimed within two batches beside another key's backlog, wherever the claim loop is.
pub async fn quiet_key_is_claimed_within_two_batches(h: &impl DeclaredHarness) {
    let h = by_key(h).await;
    h.enqueue(many(3_000, || of("m"))).await;
    let claims = Loop::new(&h);
    for quiet in ["a", "z", "", "mm", "l", "ä", "a"] {
        let id = h.enqueue(of(quiet)).await[0];
        claims.assert_within_two_batches(id, quiet).await;
        assert_eq!(claims.deliver(10).await.len(), 10, "the backlog goes on");
    }
}

/// Turns go by a header, whatever the keys are.
pub async fn tenants_take_turns(h: &impl DeclaredHarness) {
    let h = by_tenant(h).await;
    let mut n = 0;
    let mut loud = || {
        n += 1;
        from_tenant("loud").key(n)
    };
    let backlog: Vec<_> = std::iter::repeat_with(&mut loud).take(2_000).collect();
    h.enqueue(backlog).await;
    let claims = Loop::new(&h);
    for tenant in ["acme", "zebra", "acme"] {
        let id = h.enqueue(from_tenant(tenant)).await[0];
        claims.assert_within_two_batches(id, tenant).await;
    }
    let id = h.enqueue(of("a key and no tenant")).await[0];
    claims.assert_within_two_batches(id, "the message without the header").await;
}

/// Messages without a key have no turn each, but one together.
pub async fn messages_without_a_key_take_turns_as_one(h: &impl DeclaredHarness) {
    let h = by_key(h).await;
    h.enqueue(many(500, || Draft::new("topic", ""))).await;
    h.enqueue(many(500, || of("a"))).await;
    let claims = Loop::new(&h);
    assert_eq!(keys(&claims.deliver(20).await), BTreeMap::from([("", 10), ("a", 10)]));
    let id = h.enqueue(of("b")).await[0];
    claims.assert_within_two_batches(id, "the key beside a backlog without keys").await;
}

/// A backlog of one topic does not keep the same key's messages of another waiting.
pub async fn topics_of_a_key_take_turns(h: &impl DeclaredHarness) {
    let h = by_key(h).await;
    h.enqueue(many(500, || of("a"))).await;
    let id = h.enqueue(on("another").key("a")).await[0];
    Loop::new(&h).assert_within_two_batches(id, "the other topic").await;
}

/// Each gets the same share of a claim; what some leave goes to those that have more.
pub async fn claim_is_divided_evenly(h: &impl DeclaredHarness) {
    let h = by_key(h).await;
    for key in ["a", "b", "c"] {
        h.enqueue(many(300, || of(key))).await;
    }
    let claims = Loop::new(&h);
    assert_eq!(keys(&claims.deliver(30).await), BTreeMap::from([("a", 10), ("b", 10), ("c", 10)]));
    h.enqueue((0..7).map(|n| of(&format!("single {n}"))).collect::<Vec<_>>()).await;
    let messages = claims.deliver(100).await;
    let keys = keys(&messages);
    assert_eq!((messages.len(), keys.len()), (100, 10), "a claim is full while there is enough: {keys:?}");
    for key in ["a", "b", "c"] {
        assert!((25..=37).contains(&keys[key]), "{keys:?}");
    }
}

/// Where a claim takes fewer messages than there are keys, the next one goes on behind it.
pub async fn claims_of_one_message_take_turns(h: &impl DeclaredHarness) {
    let h = by_key(h).await;
    for key in ["a", "b", "c", "d"] {
        h.enqueue(many(5, || of(key))).await;
    }
    let claims = Loop::new(&h);
    for _ in 0..5 {
        let mut round = Vec::new();
        for _ in 0..4 {
            round.extend(claims.deliver(1).await);
        }
        assert_eq!(keys(&round), BTreeMap::from([("a", 1), ("b", 1), ("c", 1), ("d", 1)]));
    }
    h.assert_nothing_to_claim().await;
}

/// What a claim took comes in the order in which it became claimable.
pub async fn messages_of_a_claim_come_in_the_order_of_arrival(h: &impl DeclaredHarness) {
    let h = by_key(h).await;
    let mut sent = Vec::new();
    for key in ["z", "a", "m", "a", "z", "m", "b"] {
        sent.extend(h.enqueue(of(key)).await);
    }
    let claims = Loop::new(&h);
    let first = claims.claim(4).await;
    assert_eq!(keys(&first).len(), 4, "one of each key");
    let is_sent = |id: &MessageId| sent.iter().position(|sent| sent == id);
    assert!(ids(&first).iter().map(is_sent).is_sorted());
    assert_eq!(ids(&claims.claim(10).await), [sent[3], sent[4], sent[5]]);
}

/// Within a key and topic, messages come in the order in which they became claimable.
pub async fn key_keeps_its_order_of_arrival(h: &impl DeclaredHarness) {
    let h = by_key(h).await;
    let a = h.enqueue(many(30, || of("a"))).await;
    h.enqueue(many(30, || of("b"))).await;
    let claims = Loop::new(&h);
    let mut delivered = Vec::new();
    for _ in 0..8 {
        delivered.extend(claims.deliver(8).await);
    }
    delivered.retain(|claimed| claimed.message.key.as_deref() == Some("a"));
    assert_eq!(ids(&delivered), a);
}

/// What is claimed does not count: neither does it take turns, nor does it hide what is behind it.
pub async fn claimed_messages_take_no_turns(h: &impl DeclaredHarness) {
    let h = by_key(h).await;
    h.enqueue(many(300, || of("a"))).await;
    h.enqueue(many(300, || of("b"))).await;
    let other = Loop::new(&h);
    assert_eq!(other.claim(200).await.len(), 200);
    let claims = Loop::new(&h);
    assert_eq!(keys(&claims.claim(100).await), BTreeMap::from([("a", 50), ("b", 50)]));
}

/// A message that comes back is claimed within two batches, however it does.
pub async fn returning_messages_take_turns(h: &impl DeclaredHarness) {
    let h = by_key(h).await;
    h.enqueue(many(2_000, || of("m"))).await;
    let id = h.enqueue(of("quiet").delay(HOUR / 2)).await[0];
    h.advance(HOUR / 2).await;
    for outcome in [Outcome::Release, retry(Duration::ZERO), retry(HOUR / 2)] {
        let claimed = claim_of(&h, id).await;
        let _ = h.settle(claimed.lease, outcome).await;
        h.advance(HOUR / 2).await;
    }
    let _ = claim_of(&h, id).await;
    h.expire().await;
    let recovered = h.claim_with(request(10)).await;
    assert!(recovered.recovered && ids(&recovered.messages) == [id]);
}

/// The message, which must come within two batches of a new loop; the others are settled.
async fn claim_of<H: DeclaredHarness>(h: &H, id: MessageId) -> Claimed {
    let claims = Loop::new(h);
    for _ in 0..2 {
        let (own, others): (Vec<_>, Vec<_>) =
            claims.claim(10).await.into_iter().partition(|claimed| claimed.message.id == id);
        h.finish_all(&others).await;
        if let Some(claimed) = own.into_iter().next() {
            return claimed;
        }
    }
    panic!("the message has waited for more than two batches");
}

/// A backlog that nobody serves has no turn.
pub async fn unserved_topic_has_no_turn(h: &impl DeclaredHarness) {
    let h = by_key(h).await;
    h.enqueue(many(1_000, || on("unserved").key("a"))).await;
    let served = h.enqueue(vec![of("a"), of("b"), of("b")]).await;
    let claim = h.claim_with(request(3).with_topics(["topic"])).await;
    assert_eq!(ids(&claim.messages), served);
}

/// A byte limit cuts the rounds, not the keys.
pub async fn byte_limit_cuts_the_rounds(h: &impl DeclaredHarness) {
    let h = by_key(h).await;
    for key in ["a", "b", "c", "d"] {
        h.enqueue(many(3, || Draft::new("topic", "0123456789").key(key))).await;
    }
    let claimer = Claimer::new();
    let request = request(12).with_max_bytes(25).with_claimer(claimer);
    for expected in [["a", "b"], ["c", "d"], ["a", "b"]] {
        let messages = h.claim_with(request.clone()).await.messages;
        assert_eq!(keys(&messages), expected.into_iter().map(|key| (key, 1)).collect());
    }
    let claim = h.claim_with(request.clone().with_max_bytes(1)).await;
    assert_eq!(claim.messages.len(), 1, "the first message passes");
}

/// Messages out of attempts are dead instead of being handed out, and keep nobody waiting.
pub async fn messages_out_of_attempts_keep_nobody_waiting(h: &impl DeclaredHarness) {
    let h = by_key(h).await;
    h.enqueue(many(5, || of("a"))).await;
    let failed = h.claim(5).await;
    let _ = h.settle_all(failed.iter().map(|claimed| (claimed.lease, retry(Duration::ZERO)))).await;
    let sent = h.enqueue(of("b")).await;
    let mut found = Claim::default();
    for _ in 0..3 {
        let claim = h.claim_with(request(10).with_max_attempts(1)).await;
        found.n_dead += claim.n_dead;
        found.messages.extend(claim.messages);
    }
    assert_eq!((found.n_dead, ids(&found.messages)), (5, sent));
}

const N_LOUD: usize = 2_000;
const N_QUIET: usize = 40;

/// Four loops share the table: everything is delivered once, and small keys are through long before the large one.
pub async fn several_loops_share_fairly(h: &impl DeclaredHarness) {
    let h = Arc::new(by_key(h).await);
    let mut sent = h.enqueue(many(N_LOUD, || of("m"))).await;
    for key in ["a", "b", "y", "z"] {
        sent.extend(h.enqueue(many(N_QUIET, || of(key))).await);
    }
    let (seen, mut all) = mpsc::unbounded_channel();
    let mut loops = JoinSet::new();
    for _ in 0..4 {
        loops.spawn(deliver_until_empty(Arc::clone(&h), seen.clone()));
    }
    drop(seen);
    soon("the end of the loops", loops.join_all()).await;
    let mut delivered = Vec::new();
    while let Some(message) = all.recv().await {
        delivered.push(message);
    }
    let is_quiet = |(key, _): &(Option<String>, MessageId)| key.as_deref() != Some("m");
    let last_quiet = delivered.iter().rposition(is_quiet).expect("a message of a small key");
    assert!(last_quiet < delivered.len() / 2, "the last one came as number {last_quiet}");
    assert_eq!(sorted(delivered.into_iter().map(|(_, id)| id).collect()), sorted(sent));
}

async fn deliver_until_empty<H: Harness>(
    h: Arc<H>,
    seen: mpsc::UnboundedSender<(Option<String>, MessageId)>,
) {
    let claimer = Claimer::new();
    let mut n_empty = 0;
    while n_empty < 3 {
        let request = ClaimRequest::new(20, HOUR).with_claimer(claimer.clone());
        let claim = insist(|| h.repository().claim(request.clone())).await;
        n_empty = if claim.is_empty() { n_empty + 1 } else { 0 };
        let mut settlements = Vec::new();
        for Claimed { message, lease } in claim.messages {
            let _ = seen.send((message.key, message.id));
            settlements.push(Settlement::new(lease, Outcome::Done));
        }
        let settled = insist(|| h.repository().settle(settlements.clone())).await;
        assert!(settled.iter().all(|settled| *settled == Settled::Applied), "nobody else may have them");
        sleep(Duration::from_millis(n_empty)).await;
    }
}
