//! The steps that cases are made of. Each expects what it does to succeed.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use outbox_core::{
    Claim, ClaimRequest, Claimed, Claimer, Context, Draft, Error, ErrorKind, Lease, Listener, MessageId,
    Outcome, Readiness, Repository, Result, Settled, Settlement, Transactions, Wakeup,
};
use tokio::time::{sleep, timeout};

use crate::Harness;
use crate::secrets::TOKEN;

pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// The lease of a claim that does not say otherwise.
pub(crate) const LEASE: Duration = HOUR;

/// What the suite awaits without sleeping comes sooner than this, or the case fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn draft() -> Draft {
    on("topic")
}

/// With a secret in its payload and in a header.
pub(crate) fn on(topic: &str) -> Draft {
    Draft::new(topic, format!("payload {TOKEN}")).header("authorization", TOKEN)
}

pub(crate) fn drafts(n: usize) -> Vec<Draft> {
    (0..n).map(|number| Draft::new("topic", number.to_string())).collect()
}

pub(crate) fn request(limit: usize) -> ClaimRequest {
    ClaimRequest::new(limit, LEASE)
}

pub(crate) fn ids(messages: &[Claimed]) -> Vec<MessageId> {
    messages.iter().map(|claimed| claimed.message.id).collect()
}

pub(crate) fn sorted(mut ids: Vec<MessageId>) -> Vec<MessageId> {
    ids.sort_unstable();
    ids
}

pub(crate) fn retry(after: Duration) -> Outcome {
    Outcome::Retry { after, error: "refused".into() }
}

pub(crate) fn dead(error: &str) -> Outcome {
    Outcome::Dead { error: error.into() }
}

pub(crate) fn assert_near(actual: Option<Duration>, expected: Duration) {
    let actual = actual.expect("a duration");
    assert!(actual.abs_diff(expected) < MINUTE, "{actual:?} is not about {expected:?}");
}

pub(crate) fn assert_invalid<T: std::fmt::Debug>(answer: Result<T>, field: &str) {
    let error = answer.expect_err("input out of bounds must be refused");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains(field), "`{error}` does not name `{field}`");
    assert!(!error.is_retryable(), "{error}");
}

/// Repeats a call that failed in a way that repeating may heal.
pub(crate) async fn insist<T, F: Future<Output = Result<T>>>(mut call: impl FnMut() -> F) -> T {
    for _ in 0..500 {
        match call().await {
            Ok(value) => return value,
            Err(error) if error.is_retryable() => sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the storage stays contended");
}

/// Drops the future at its `n`-th wait; `None` when it was dropped.
pub(crate) async fn cancelled_at<F: Future>(n: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut waits = 0;
    poll_fn(|task| {
        let polled = future.as_mut().poll(task).map(Some);
        waits += 1;
        if polled.is_pending() && waits >= n { Poll::Ready(None) } else { polled }
    })
    .await
}

/// Waits for what must come.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come within {PATIENCE:?}"))
}

pub(crate) trait Steps: Harness {
    async fn begin(&self) -> Context {
        self.repository().begin().await.expect("begin")
    }

    async fn commit(&self, cx: Context) {
        self.repository().commit(cx).await.expect("commit");
    }

    async fn roll_back(&self, cx: Context) {
        self.repository().rollback(cx).await.expect("rollback");
    }

    async fn enqueue_in(&self, cx: &Context, drafts: impl Into<Vec<Draft>>) -> Vec<MessageId> {
        self.repository().enqueue(cx, drafts.into()).await.expect("enqueue")
    }

    /// Enqueues in a transaction of its own and commits it.
    async fn enqueue(&self, drafts: impl Into<Vec<Draft>>) -> Vec<MessageId> {
        let cx = self.begin().await;
        let ids = self.enqueue_in(&cx, drafts).await;
        self.commit(cx).await;
        ids
    }

    async fn enqueue_one(&self) -> MessageId {
        self.enqueue(draft()).await[0]
    }

    async fn claim_with(&self, request: ClaimRequest) -> Claim {
        let limit = request.limit;
        let claim = self.repository().claim(request).await.expect("claim");
        assert!(claim.messages.len() <= limit, "{} messages for a limit of {limit}", claim.messages.len());
        assert!(!claim.recovered || !claim.messages.is_empty(), "recovered nothing");
        claim
    }

    async fn claim(&self, limit: usize) -> Vec<Claimed> {
        self.claim_with(request(limit)).await.messages
    }

    /// Claims the one message that there is to claim.
    async fn claim_one(&self) -> Claimed {
        let mut messages = self.claim(10).await;
        assert_eq!(messages.len(), 1, "exactly one message should be claimable");
        messages.remove(0)
    }

    async fn assert_nothing_to_claim(&self) {
        let claim = self.claim_with(request(1_000)).await;
        assert!(claim.is_empty(), "nothing should be claimable, got {claim:?}");
    }

    async fn settle(&self, lease: Lease, outcome: Outcome) -> Settled {
        self.settle_all([(lease, outcome)]).await[0]
    }

    async fn settle_all(&self, settlements: impl IntoIterator<Item = (Lease, Outcome)>) -> Vec<Settled> {
        let settlements: Vec<_> =
            settlements.into_iter().map(|(lease, outcome)| Settlement::new(lease, outcome)).collect();
        let n = settlements.len();
        let settled = self.repository().settle(settlements).await.expect("settle");
        assert_eq!(settled.len(), n, "one answer for each settlement");
        settled
    }

    async fn extend(&self, leases: &[Lease], by: Duration) -> Vec<Settled> {
        let settled = self.repository().extend(leases.to_vec(), by).await.expect("extend");
        assert_eq!(settled.len(), leases.len(), "one answer for each lease");
        settled
    }

    /// Settles as done, and expects the leases to be held.
    async fn finish_all(&self, messages: &[Claimed]) {
        let settled = self.settle_all(messages.iter().map(|claimed| (claimed.lease, Outcome::Done))).await;
        assert!(settled.iter().all(|settled| *settled == Settled::Applied), "{settled:?}");
    }

    /// Lets every lease of [`LEASE`] run out.
    async fn expire(&self) {
        self.advance(2 * LEASE).await;
    }

    /// Claims and settles until nothing comes; the ids in the order of delivery.
    async fn drain(&self) -> Vec<MessageId> {
        let mut delivered = Vec::new();
        for _ in 0..10_000 {
            let claim = self.claim_with(request(100)).await;
            if claim.is_empty() {
                return delivered;
            }
            self.finish_all(&claim.messages).await;
            delivered.extend(ids(&claim.messages));
        }
        panic!("the table does not become empty");
    }

    /// Claims with `claimer` and settles until `n` messages came; sorted ids.
    async fn deliver_with(&self, claimer: &Claimer, request: ClaimRequest, n: usize) -> Vec<MessageId> {
        let mut delivered = Vec::new();
        for _ in 0..1_000 {
            let claim = self.claim_with(request.clone().with_claimer(claimer.clone())).await;
            self.finish_all(&claim.messages).await;
            delivered.extend(ids(&claim.messages));
            if delivered.len() >= n {
                assert_eq!(delivered.len(), n, "more messages than were enqueued");
                return sorted(delivered);
            }
            if claim.is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
        }
        panic!("{} of {n} messages were found", delivered.len());
    }

    /// A listener that sleeps; the table must be empty.
    async fn asleep(&self) -> <Self::Repository as Wakeup>::Listener {
        let mut listener = self.repository().listen().await.expect("listen").expect("a listener");
        self.send_to_sleep(&mut listener).await;
        listener
    }

    /// Goes to sleep by the protocol of [`Listener`].
    async fn send_to_sleep(&self, listener: &mut impl Listener) {
        let looks = async {
            while let Readiness::Look { after } = listener.prepare().await.expect("prepare") {
                sleep(after.min(Duration::from_millis(100))).await;
                self.assert_nothing_to_claim().await;
            }
        };
        soon("sleep", looks).await;
        self.assert_nothing_to_claim().await;
    }
}

impl<H: Harness> Steps for H {}

pub(crate) async fn hinted(listener: &mut impl Listener) {
    soon("a hint", listener.hint()).await.expect("hint");
}

pub(crate) fn kind<T: std::fmt::Debug>(answer: Result<T, Error>) -> ErrorKind {
    answer.expect_err("must fail").kind()
}
