use std::fmt;
use std::future::Future;
use std::pin::Pin;

use crate::{Context, HandlerError, HandlerResult, Message};

/// The result of handling a batch; an error is that of every message in it.
pub type BatchResult = Result<Handled, HandlerError>;

/// What became of the messages of a batch.
#[derive(Debug)]
pub enum Handled {
    /// All were delivered.
    All,
    /// One result for each message, in their order. Any other number of results is a failed attempt of every
    /// message.
    Each(Vec<HandlerResult>),
}

impl From<()> for Handled {
    fn from((): ()) -> Self {
        Self::All
    }
}

impl From<Vec<HandlerResult>> for Handled {
    fn from(results: Vec<HandlerResult>) -> Self {
        Self::Each(results)
    }
}

impl FromIterator<HandlerResult> for Handled {
    fn from_iter<I: IntoIterator<Item = HandlerResult>>(results: I) -> Self {
        Self::Each(results.into_iter().collect())
    }
}

/// User code that delivers several messages of one topic at once.
///
/// # Examples
/// ```
/// use outbox_core::{BatchHandler, BatchResult, Context, Handled, Message};
/// # struct Broker;
/// # impl Broker { async fn publish(&self, _: &[Message]) -> Result<Vec<Result<(), String>>, String> { Ok(vec![]) } }
/// struct Publisher(Broker);
/// impl BatchHandler for Publisher {
///     async fn handle_batch(&self, _cx: Context, messages: Vec<Message>) -> BatchResult {
///         let receipts = self.0.publish(&messages).await?; // an error: none was delivered
///         Ok(receipts.into_iter().map(|receipt| Ok(receipt?)).collect())
///     }
/// }
/// ```
pub trait BatchHandler: Send + Sync + 'static {
    /// Delivers `messages`: at least one, all of one topic unless the handler serves every topic, in the order
    /// in which they were claimed, and of an ordered key at most one. `Ok(().into())` says that all were delivered.
    ///
    /// The context carries no message's trace headers, only the batch's own where its span is exported.
    ///
    /// # Errors
    /// Any error means that none was delivered and all are to be tried again; see
    /// [`HandlerResultExt`](crate::HandlerResultExt) for the other answers.
    fn handle_batch(&self, cx: Context, messages: Vec<Message>) -> impl Future<Output = BatchResult> + Send;
}

/// The object-safe twin of [`BatchHandler`], implemented for every batch handler.
pub trait DynBatchHandler: Send + Sync + 'static {
    /// See [`BatchHandler::handle_batch`].
    fn handle_batch_dyn(
        &self,
        cx: Context,
        messages: Vec<Message>,
    ) -> Pin<Box<dyn Future<Output = BatchResult> + Send + '_>>;
}

impl<H: BatchHandler> DynBatchHandler for H {
    fn handle_batch_dyn(
        &self,
        cx: Context,
        messages: Vec<Message>,
    ) -> Pin<Box<dyn Future<Output = BatchResult> + Send + '_>> {
        Box::pin(self.handle_batch(cx, messages))
    }
}

/// A closure as a [`BatchHandler`], made by [`batch_fn`].
#[derive(Clone)]
pub struct BatchFn<F>(F);

impl<F> fmt::Debug for BatchFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BatchFn")
    }
}

/// Makes a batch handler of a closure that ends in `Ok(())` or in `Ok(results)` with a `Vec` of one result for
/// each message: `batch_fn(async move |cx: Context, messages: Vec<Message>| { …; Ok(()) })`.
///
/// What the closure captures is cloned for each batch.
pub fn batch_fn<F, Fut, R>(f: F) -> BatchFn<F>
where
    F: FnOnce(Context, Vec<Message>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<R, HandlerError>> + Send,
    R: Into<Handled>,
{
    BatchFn(f)
}

impl<F, Fut, R> BatchHandler for BatchFn<F>
where
    F: FnOnce(Context, Vec<Message>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<R, HandlerError>> + Send,
    R: Into<Handled>,
{
    async fn handle_batch(&self, cx: Context, messages: Vec<Message>) -> BatchResult {
        let handled = (self.0.clone())(cx, messages);
        handled.await.map(Into::into)
    }
}
