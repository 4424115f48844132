use std::fmt;
use std::future::Future;
use std::time::Duration;

use outbox_core::{
    BlockedPage, BlockedQuery, Claim, ClaimRequest, Context, DeadLetterFilter, DeadLetterPage,
    DeadLetterQuery, Draft, Enqueued, FailedAttempt, Finding, Inspect, Lease, Mark, Marked, MessageId, Moved,
    Operations, ProcessedStore, Prune, Repository, Result, Settled, Settlement, Stats, Transactions,
    Unblocked, Wakeup,
};
use serde_json::Value;
use tokio::time::Instant;
use tracing::Instrument;

use crate::observer::Observers;
use crate::{CallEnd, Event, Observer, TracingObserver, span};

/// A storage that tells an observer of each call: how long it took and how it ended ([`Event::Called`]), and
/// what was enqueued ([`Event::Enqueued`]).
///
/// Enqueueing happens in a producer's span of `tracing`. With the feature `opentelemetry`, messages carry its
/// trace; without it, or without a layer of tracing-opentelemetry, they carry what the caller has set on the
/// [`Context`].
///
/// What else the storage can do ([`Operations`], [`Inspect`], [`Wakeup`], [`ProcessedStore`], [`Transactions`]) it
/// can do in here as well.
///
/// # Examples
/// ```
/// use outbox_core::{Draft, MemoryRepository, Transactor};
/// use outbox_dispatcher::{Dispatcher, Instrumented, Message, Router, TracingObserver};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> outbox_core::Result<()> {
/// let outbox = Instrumented::new(MemoryRepository::new()).with_observer(TracingObserver);
/// let draft = Draft::new("greeting", "hello");
/// Transactor::over(&outbox).run(async |cx| outbox.enqueue(cx, draft).await).await?;
///
/// let router = Router::new().on("greeting", async |_: Message| Ok(()));
/// assert_eq!(Dispatcher::new(outbox, router).drain_once().await?.n_done, 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Instrumented<R> {
    inner: R,
    observers: Observers,
}

impl<R> Instrumented<R> {
    /// Tells [`TracingObserver`] of each call.
    pub fn new(inner: R) -> Self {
        Self { inner, observers: Observers::new(TracingObserver) }
    }

    /// Replaces the observer; `(TracingObserver, mine)` keeps the default one.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Observer) -> Self {
        self.observers = Observers::new(observer);
        self
    }

    /// The storage inside.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// Gives the storage back.
    pub fn into_inner(self) -> R {
        self.inner
    }

    async fn call<T>(&self, operation: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
        let mut watch =
            Watch { observers: &self.observers, operation, begun: Instant::now(), is_over: false };
        let result = call.await;
        watch.is_over = true;
        watch.tell(match &result {
            Ok(_) => CallEnd::Ok,
            Err(error) => CallEnd::Failed(error),
        });
        result
    }

    fn tell_enqueued(&self, topics: &[(String, usize)]) {
        for (topic, n_messages) in topics {
            self.observers.emit(&Event::Enqueued { topic, n_messages: *n_messages });
        }
    }

    /// Enqueues in a way of its own that the storage has, for example in a transaction of SeaORM, with the same
    /// span and the same events: `outbox.enqueue_with(draft, async |table, drafts| table.enqueue_in(&txn,
    /// drafts).await)`. The drafts carry the trace.
    ///
    /// # Errors
    /// Those of `enqueue`.
    pub async fn enqueue_with<T, F>(&self, drafts: impl Into<Vec<Draft>>, enqueue: F) -> Result<T>
    where
        F: AsyncFnOnce(&R, Vec<Draft>) -> Result<T>,
    {
        let mut drafts = drafts.into();
        let span = span::enqueue(&drafts);
        span::add_trace(&span, &mut drafts);
        let topics = count_topics(&drafts);
        let call = self.call("enqueue", enqueue(&self.inner, drafts));
        let result = call.instrument(span.clone()).await;
        match &result {
            Ok(_) => self.tell_enqueued(&topics),
            Err(error) => span::end(&span, error.kind().name()),
        }
        result
    }
}

impl<R: Repository> Instrumented<R> {
    /// Stores messages in the transaction on `cx`; see [`Repository::enqueue`].
    ///
    /// # Errors
    /// Those of [`Repository::enqueue`].
    pub async fn enqueue(&self, cx: &Context, drafts: impl Into<Vec<Draft>>) -> Result<Vec<MessageId>> {
        self.enqueue_with(drafts, async |inner, drafts| inner.enqueue(cx, drafts).await).await
    }
}

/// Neighbours of the same topic together.
fn count_topics(drafts: &[Draft]) -> Vec<(String, usize)> {
    let chunks = drafts.chunk_by(|one, next| one.topic == next.topic);
    chunks.map(|chunk| (chunk[0].topic.clone(), chunk.len())).collect()
}

/// Tells of a call also when it is dropped.
struct Watch<'a> {
    observers: &'a Observers,
    operation: &'static str,
    begun: Instant,
    is_over: bool,
}

impl Watch<'_> {
    fn tell(&self, end: CallEnd<'_>) {
        let (operation, took) = (self.operation, self.begun.elapsed());
        self.observers.emit(&Event::Called { operation, took, end });
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.tell(CallEnd::Dropped);
        }
    }
}

impl<R: Repository> Repository for Instrumented<R> {
    async fn enqueue(&self, cx: &Context, drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        Self::enqueue(self, cx, drafts).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claim> {
        self.call("claim", self.inner.claim(request)).await
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        self.call("settle", self.inner.settle(settlements)).await
    }

    async fn extend(&self, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        self.call("extend", self.inner.extend(leases, by)).await
    }
}

impl<R: Wakeup> Wakeup for Instrumented<R> {
    type Listener = R::Listener;

    async fn listen(&self) -> Result<Option<R::Listener>> {
        self.call("listen", self.inner.listen()).await
    }
}

impl<R: Transactions> Transactions for Instrumented<R> {
    async fn begin(&self) -> Result<Context> {
        self.call("begin", self.inner.begin()).await
    }

    async fn commit(&self, cx: Context) -> Result<()> {
        self.call("commit", self.inner.commit(cx)).await
    }

    async fn rollback(&self, cx: Context) -> Result<()> {
        self.call("rollback", self.inner.rollback(cx)).await
    }
}

impl<R: Operations> Operations for Instrumented<R> {
    async fn stats(&self) -> Result<Stats> {
        self.call("stats", self.inner.stats()).await
    }

    async fn dead_letters(&self, query: DeadLetterQuery) -> Result<DeadLetterPage> {
        self.call("dead_letters", self.inner.dead_letters(query)).await
    }

    async fn redrive(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        self.call("redrive", self.inner.redrive(ids)).await
    }

    async fn redrive_matching(&self, filter: DeadLetterFilter, limit: usize) -> Result<u64> {
        self.call("redrive_matching", self.inner.redrive_matching(filter, limit)).await
    }

    async fn discard(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        self.call("discard", self.inner.discard(ids)).await
    }

    async fn discard_matching(&self, filter: DeadLetterFilter, limit: usize) -> Result<u64> {
        self.call("discard_matching", self.inner.discard_matching(filter, limit)).await
    }

    async fn blocked_keys(&self, query: BlockedQuery) -> Result<BlockedPage> {
        self.call("blocked_keys", self.inner.blocked_keys(query)).await
    }

    async fn skip_head(&self, key: String, head: MessageId) -> Result<Unblocked> {
        self.call("skip_head", self.inner.skip_head(key, head)).await
    }

    async fn release_head(&self, key: String, head: MessageId) -> Result<Unblocked> {
        self.call("release_head", self.inner.release_head(key, head)).await
    }

    async fn history(&self, id: MessageId) -> Result<Vec<FailedAttempt>> {
        self.call("history", self.inner.history(id)).await
    }

    async fn prune(&self, prune: Prune) -> Result<u64> {
        self.call("prune", self.inner.prune(prune)).await
    }

    async fn ping(&self) -> Result<()> {
        self.call("ping", self.inner.ping()).await
    }

    async fn check(&self) -> Result<()> {
        self.call("check", self.inner.check()).await
    }

    async fn doctor(&self, patience: Duration) -> Result<Vec<Finding>> {
        self.call("doctor", self.inner.doctor(patience)).await
    }
}

impl<R: Inspect> Inspect for Instrumented<R> {
    async fn enqueued(&self, cx: &Context, limit: usize) -> Result<Vec<Enqueued>> {
        self.call("enqueued", self.inner.enqueued(cx, limit)).await
    }
}

impl<R: ProcessedStore> ProcessedStore for Instrumented<R> {
    async fn is_processed(&self, group: &str, id: MessageId) -> Result<bool> {
        self.call("is_processed", self.inner.is_processed(group, id)).await
    }

    async fn mark_processed(&self, cx: &Context, mark: Mark) -> Result<Marked> {
        self.call("mark_processed", self.inner.mark_processed(cx, mark)).await
    }

    async fn store_result(&self, cx: &Context, group: &str, id: MessageId, result: Value) -> Result<()> {
        self.call("store_result", self.inner.store_result(cx, group, id, result)).await
    }

    async fn purge_before(&self, group: &str, age: Duration, limit: usize) -> Result<u64> {
        self.call("purge_before", self.inner.purge_before(group, age, limit)).await
    }
}

impl<R: fmt::Debug> fmt::Debug for Instrumented<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Instrumented").field(&self.inner).finish()
    }
}
