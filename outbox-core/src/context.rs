use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use crate::delivery::Cancelled;
use crate::{Delivery, Error, ErrorKind, Headers, Result};

const TRACE_PARENT: &str = "traceparent";
const TRACE_HEADERS: [&str; 2] = [TRACE_PARENT, "tracestate"];

static NO_HEADERS: Headers = Headers::new();

/// Carries the caller's open transaction and its trace headers; inside a handler also until when it may run.
///
/// A cheap handle: clones share the transaction. It is passed on explicitly; [`scope`](Self::scope) also
/// makes it the current one of the task, for code that cannot take an argument.
#[derive(Clone, Default)]
pub struct Context {
    transaction: Option<Arc<dyn Any + Send + Sync>>,
    doomed: Arc<AtomicBool>,
    headers: Option<Arc<Headers>>,
    delivery: Option<Arc<Delivery>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

impl Context {
    /// A context without a transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a backend's transaction on the context.
    #[must_use]
    pub fn with_transaction<T: Any + Send + Sync>(mut self, transaction: Arc<T>) -> Self {
        self.transaction = Some(transaction);
        self.doomed = Arc::default();
        self
    }

    /// The same context without its transaction.
    #[must_use]
    pub fn without_transaction(mut self) -> Self {
        self.transaction = None;
        self
    }

    /// Sets a header of the context. `traceparent` and `tracestate` are given to every message that is
    /// enqueued with it; others stay here.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        Arc::make_mut(self.headers.get_or_insert_default()).insert(name.into(), value.into());
        self
    }

    /// The headers of the context.
    pub fn headers(&self) -> &Headers {
        self.headers.as_deref().unwrap_or(&NO_HEADERS)
    }

    /// Adds this context's trace headers to those of a message that has no `traceparent` of its own.
    pub fn add_trace_headers(&self, headers: &mut Headers) {
        if !self.headers().contains_key(TRACE_PARENT) || headers.contains_key(TRACE_PARENT) {
            return;
        }
        for name in TRACE_HEADERS {
            match self.headers().get(name) {
                Some(value) => headers.insert(name.to_owned(), value.clone()),
                // a state belongs to its parent
                None => headers.remove(name),
            };
        }
    }

    /// A context without a transaction that carries the trace headers of a message on.
    pub fn with_trace_of(headers: &Headers) -> Self {
        TRACE_HEADERS.iter().fold(Self::new(), |cx, name| match headers.get(*name) {
            Some(value) => cx.with_header(*name, value),
            None => cx,
        })
    }

    /// Puts the run of a handler on the context.
    #[must_use]
    pub fn with_delivery(mut self, delivery: impl Into<Arc<Delivery>>) -> Self {
        self.delivery = Some(delivery.into());
        self
    }

    /// The run of the handler that got this context; `None` outside of a handler.
    pub fn delivery(&self) -> Option<&Arc<Delivery>> {
        self.delivery.as_ref()
    }

    /// When the handler is cut off by its time-out; `None` without one.
    pub fn deadline(&self) -> Option<Instant> {
        self.delivery.as_ref()?.deadline()
    }

    /// Whether the handler's run is over: it has ended, or was called off because its time is up, its lease is
    /// lost or the dispatcher stops. Then the message may be delivered somewhere else already.
    pub fn is_cancelled(&self) -> bool {
        self.delivery.as_ref().is_some_and(|delivery| delivery.is_cancelled())
    }

    /// Waits until the handler's run is over; for ever outside of a handler.
    ///
    /// A handler that is called off is dropped at its next `await`, so this is for what it has started
    /// elsewhere: a spawned task, a thread, a request that must be cancelled explicitly.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Examples
    /// ```
    /// # use outbox_core::{Context, HandlerResult, Message};
    /// # async fn upload(_: Message) -> Result<(), String> { Ok(()) }
    /// async fn handle(cx: Context, message: Message) -> HandlerResult {
    ///     let uploading = tokio::spawn(async move {
    ///         tokio::select! {
    ///             uploaded = upload(message) => uploaded,
    ///             () = cx.cancelled() => Err("called off".to_owned()),
    ///         }
    ///     });
    ///     uploading.await??;
    ///     Ok(())
    /// }
    /// ```
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + use<> {
        Cancelled(self.delivery.clone())
    }

    /// Whether the context carries a transaction.
    pub fn has_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// The transaction, for the backend that put it there.
    ///
    /// # Errors
    /// [`ErrorKind::NoTransaction`], or [`ErrorKind::ForeignTransaction`] when it is not a `T`.
    pub fn transaction<T: Any>(&self) -> Result<&T> {
        let transaction = self.transaction.as_deref().ok_or_else(no_transaction)?;
        (transaction as &dyn Any).downcast_ref().ok_or_else(foreign_transaction)
    }

    /// Gives the transaction up, to end it.
    ///
    /// # Errors
    /// [`ErrorKind::NoTransaction`], or [`ErrorKind::ForeignTransaction`] when it is not a `T`.
    pub fn into_transaction<T: Any + Send + Sync>(self) -> Result<Arc<T>> {
        let transaction = self.transaction.ok_or_else(no_transaction)?;
        transaction.downcast().map_err(|_| foreign_transaction())
    }

    /// Makes sure that what was written in the transaction so far is never committed: its commit fails with
    /// [`TransactionDoomed`](ErrorKind::TransactionDoomed) even if somebody swallows the error. For code that has
    /// done half of what belongs together. In a savepoint it concerns the savepoint only.
    pub fn doom(&self) {
        self.doomed.store(true, Relaxed);
    }

    /// Whether the transaction must not commit. Whoever ends transactions asks; [`Transactor`](crate::Transactor) does.
    pub fn is_doomed(&self) -> bool {
        self.doomed.load(Relaxed)
    }

    /// Runs `future` with this context as the current one of the task. A task that it spawns does not
    /// inherit it.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|task| {
            let _restore = Restore(CURRENT.replace(Some(self.clone())));
            future.as_mut().poll(task)
        })
        .await
    }

    /// The current context of the task.
    ///
    /// # Errors
    /// [`ErrorKind::NoTransaction`] outside of [`scope`](Self::scope).
    pub fn current() -> Result<Self> {
        CURRENT.with_borrow(Clone::clone).ok_or_else(no_transaction)
    }
}

struct Restore(Option<Context>);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

fn no_transaction() -> Error {
    Error::new(ErrorKind::NoTransaction, "context")
}

fn foreign_transaction() -> Error {
    Error::new(ErrorKind::ForeignTransaction, "context")
}

/// Hides the headers.
impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("has_transaction", &self.has_transaction())
            .field("n_headers", &self.headers().len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_foreign_transaction_is_an_error_of_its_own() {
        let cx = Context::new();
        assert_eq!(cx.transaction::<u8>().expect_err("none").kind(), ErrorKind::NoTransaction);
        let cx = cx.with_transaction(Arc::new(7_u8));
        assert_eq!(*cx.transaction::<u8>().expect("own"), 7);
        assert_eq!(cx.transaction::<u16>().expect_err("foreign").kind(), ErrorKind::ForeignTransaction);
        assert_eq!(cx.into_transaction::<u16>().expect_err("foreign").kind(), ErrorKind::ForeignTransaction);
    }

    #[tokio::test]
    async fn a_run_that_is_over_is_told_to_every_clone_once_and_for_all() {
        let delivery = Arc::new(Delivery::new(None));
        let cx = Context::new().with_delivery(Arc::clone(&delivery));
        let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(cx.clone().cancelled())).collect();
        tokio::task::yield_now().await;
        assert!(!cx.is_cancelled() && waiting.iter().all(|task| !task.is_finished()));
        delivery.cancel();
        for task in waiting {
            task.await.expect("joined");
        }
        cx.cancelled().await;
        assert!(cx.is_cancelled() && !Context::new().is_cancelled());
    }

    #[tokio::test]
    async fn a_nested_scope_restores_the_outer_one() {
        let name = || Context::current().map(|cx| cx.headers().get("name").cloned());
        let named = |name: &str| Context::new().with_header("name", name);
        named("outer")
            .scope(async {
                named("inner")
                    .scope(async {
                        tokio::task::yield_now().await;
                        assert_eq!(name().expect("scope").as_deref(), Some("inner"));
                    })
                    .await;
                assert_eq!(name().expect("scope").as_deref(), Some("outer"));
                let spawned = tokio::spawn(async move { Context::current().is_err() });
                assert!(spawned.await.expect("joined"), "a spawned task must not inherit the context");
            })
            .await;
        assert!(Context::current().is_err());
    }

    #[test]
    fn only_trace_headers_travel_with_messages() {
        let cx = Context::new().with_header("traceparent", "00-a").with_header("secret", "x");
        let added = |cx: &Context, own: &[(&str, &str)]| {
            let mut headers = own.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            cx.add_trace_headers(&mut headers);
            headers.into_iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>()
        };
        assert_eq!(added(&cx, &[]), ["traceparent: 00-a"]);
        assert_eq!(added(&cx, &[("traceparent", "00-own")]), ["traceparent: 00-own"]);
        assert_eq!(added(&cx, &[("tracestate", "of none")]), ["traceparent: 00-a"]);
        let cx = cx.with_header("tracestate", "a=b");
        assert_eq!(added(&cx, &[]), ["traceparent: 00-a", "tracestate: a=b"]);
        assert_eq!(
            added(&cx, &[("traceparent", "00-own")]),
            ["traceparent: 00-own"],
            "no state of another trace"
        );
    }
}
