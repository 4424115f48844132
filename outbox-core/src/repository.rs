use std::future::Future;
use std::time::Duration;

use crate::{Claim, ClaimRequest, Context, Draft, Lease, MessageId, Outcome, Result, Settled, Settlement};

/// The storage of one outbox.
///
/// Implement it with plain `async fn`s and run the conformance suite of `outbox-testkit` against it: every
/// sentence under *Guarantees* is a case there.
///
/// # Guarantees
/// * A message exists if and only if the transaction on the context commits.
/// * Claims are disjoint; each has a fresh token, and a stale token changes nothing and is reported.
/// * The attempt is counted by the claim, and the claim enforces the limit.
/// * The storage's own clock decides what is due and what has expired.
///
/// # Cancel safety
/// Dropping any of these futures leaves the storage either unchanged or as if the call had finished. A
/// dropped claim's messages become claimable again when the lease has expired.
pub trait Repository: Send + Sync {
    /// Stores messages in the transaction on `cx` and returns their ids in the order of `drafts`.
    ///
    /// A draft whose [`dedup_key`](Draft::dedup_key) is taken is not stored, and the id in its place is that of the first
    /// message with the key, also of one of the same call. While another transaction that has taken the key is open, the
    /// call waits for its end. A call takes its keys in the order of their bytes, so two calls with the same keys do not
    /// deadlock, whatever the order of their drafts.
    ///
    /// No drafts: no statement. The transaction is never begun, committed or rolled back here. Headers
    /// `traceparent` and `tracestate` of the context are added where a draft has no `traceparent` of its own.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) before any statement;
    /// [`NoTransaction`](crate::ErrorKind::NoTransaction) and
    /// [`ForeignTransaction`](crate::ErrorKind::ForeignTransaction) for a context without a transaction of
    /// this backend; [`AlreadyEnqueued`](crate::ErrorKind::AlreadyEnqueued) when a message with one of the
    /// ids is in the table: it is left as it is, the other drafts are stored, and the transaction stays
    /// usable, to commit or to roll back. The same when a deduplication key is taken and the storage's role may not
    /// read by which message.
    fn enqueue(
        &self,
        cx: &Context,
        drafts: Vec<Draft>,
    ) -> impl Future<Output = Result<Vec<MessageId>>> + Send;

    /// Leases messages that are due, in the order in which they became claimable. On an
    /// [ordered](crate::Declaration::ordered) table, those of which every earlier one of the same key is done, or
    /// claimed with it; whatever its topic.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) before any statement.
    fn claim(&self, request: ClaimRequest) -> impl Future<Output = Result<Claim>> + Send;

    /// Ends leases; the answers stand in the order of `settlements`.
    ///
    /// Each settlement takes effect or not by itself. One that comes after the lease has expired still
    /// applies as long as nobody has claimed the message again. Of two for the same lease in one call the
    /// first counts.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) before any statement.
    fn settle(&self, settlements: Vec<Settlement>) -> impl Future<Output = Result<Vec<Settled>>> + Send;

    /// Makes leases last `by` from now; the answers stand in the order of `leases`.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) before any statement.
    fn extend(&self, leases: Vec<Lease>, by: Duration) -> impl Future<Output = Result<Vec<Settled>>> + Send;
}

impl<R: Repository> Repository for &R {
    async fn enqueue(&self, cx: &Context, drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        (**self).enqueue(cx, drafts).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claim> {
        (**self).claim(request).await
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        (**self).settle(settlements).await
    }

    async fn extend(&self, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        (**self).extend(leases, by).await
    }
}

/// The one-message forms of [`Repository::settle`].
pub trait RepositoryExt: Repository {
    /// The message was delivered.
    ///
    /// # Errors
    /// Those of [`Repository::settle`].
    fn mark_done(&self, lease: Lease) -> impl Future<Output = Result<Settled>> + Send {
        settle_one(self, lease, Outcome::Done)
    }

    /// The message was not delivered and is due again `after` from now.
    ///
    /// # Errors
    /// Those of [`Repository::settle`].
    fn mark_failed(
        &self,
        lease: Lease,
        error: impl ToString,
        after: Duration,
    ) -> impl Future<Output = Result<Settled>> + Send {
        settle_one(self, lease, Outcome::Retry { after, error: error.to_string() })
    }

    /// The message cannot be delivered and becomes a dead letter.
    ///
    /// # Errors
    /// Those of [`Repository::settle`].
    fn mark_dead(&self, lease: Lease, error: impl ToString) -> impl Future<Output = Result<Settled>> + Send {
        settle_one(self, lease, Outcome::Dead { error: error.to_string() })
    }

    /// The message was not tried.
    ///
    /// # Errors
    /// Those of [`Repository::settle`].
    fn release(&self, lease: Lease) -> impl Future<Output = Result<Settled>> + Send {
        settle_one(self, lease, Outcome::Release)
    }
}

impl<R: Repository + ?Sized> RepositoryExt for R {}

async fn settle_one<R: Repository + ?Sized>(
    repository: &R,
    lease: Lease,
    outcome: Outcome,
) -> Result<Settled> {
    let settled = repository.settle(vec![Settlement::new(lease, outcome)]).await?;
    Ok(settled.first().copied().unwrap_or(Settled::LeaseLost))
}
