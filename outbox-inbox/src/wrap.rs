use std::fmt;
use std::sync::Arc;

use outbox_core::{
    Context, Error, ErrorKind, Handler, HandlerError, HandlerResult, Message, ProcessedStore, Transactions,
};

use crate::{Inbox, Incoming};

type Identify = Arc<dyn Fn(&Message) -> Incoming + Send + Sync>;

impl<S: ProcessedStore + Transactions + 'static> Inbox<S> {
    /// Gives a handler an exactly-once database effect: it runs inside [`process`](Inbox::process), with
    /// the transaction, the message's headers, the deadline and the cancellation on its context, and a duplicate
    /// is `Ok`.
    ///
    /// The message is named as [`Incoming::from`] does: by its id, with a hash of topic and payload as
    /// fingerprint; [`InboxHandler::identified_by`] changes that. Where the context has a transaction
    /// already (an inbox around an inbox), it is joined.
    ///
    /// What an error asks of the dispatcher:
    ///
    /// | error | answer |
    /// |---|---|
    /// | of the handler | as it says; the transaction is rolled back |
    /// | [`Conflict`](ErrorKind::Conflict), [`InvalidInput`](ErrorKind::InvalidInput) | dead letter: it will not change |
    /// | of the storage, [retryable](Error::is_retryable) or [`CommitUnknown`](ErrorKind::CommitUnknown) | unavailable: no attempt is counted |
    /// | any other | retry |
    ///
    /// # Examples
    /// ```
    /// # use outbox_core::{Context, Draft, MemoryRepository, Message, Repository};
    /// # use outbox_inbox::Inbox;
    /// # fn example(store: MemoryRepository, inbox: Inbox<MemoryRepository>) -> impl outbox_core::Handler {
    /// use outbox_core::handler_fn;
    /// inbox.wrap(handler_fn(async move |cx: Context, message: Message| {
    ///     store.enqueue(&cx, vec![Draft::new("ledger.credited", message.payload)]).await?;
    ///     Ok(())
    /// }))
    /// # }
    /// ```
    pub fn wrap<H: Handler>(&self, handler: H) -> InboxHandler<S, H> {
        InboxHandler { inbox: self.clone(), handler, identify: Arc::new(|message| Incoming::from(message)) }
    }
}

/// A handler inside an inbox, made by [`Inbox::wrap`].
pub struct InboxHandler<S, H> {
    inbox: Inbox<S>,
    handler: H,
    identify: Identify,
}

impl<S, H> InboxHandler<S, H> {
    /// Names messages in another way than by their id, for example by the event in a header that a
    /// producer may enqueue twice.
    ///
    /// # Examples
    /// ```
    /// # use outbox_core::{Handler, MemoryRepository, Message};
    /// # use outbox_inbox::Inbox;
    /// # fn example(inbox: Inbox<MemoryRepository>, handler: impl Handler) -> impl Handler {
    /// use outbox_inbox::Incoming;
    /// inbox.wrap(handler).identified_by(|message: &Message| match message.header("event-id") {
    ///     Some(event) => Incoming::from_source("orders", event),
    ///     None => Incoming::from(message),
    /// })
    /// # }
    /// ```
    #[must_use]
    pub fn identified_by(mut self, identify: impl Fn(&Message) -> Incoming + Send + Sync + 'static) -> Self {
        self.identify = Arc::new(identify);
        self
    }

    /// The handler inside.
    pub fn get_ref(&self) -> &H {
        &self.handler
    }

    /// Gives the handler back.
    pub fn into_inner(self) -> H {
        self.handler
    }
}

impl<S, H> Handler for InboxHandler<S, H>
where
    S: ProcessedStore + Transactions + 'static,
    H: Handler,
{
    async fn handle(&self, outer: Context, message: Message) -> HandlerResult {
        let incoming = (self.identify)(&message);
        let run = async |cx: &Context| self.run(cx, &outer, message).await;
        let processed = if outer.has_transaction() {
            self.inbox.process_in(&outer, incoming, run).await
        } else {
            self.inbox.process(incoming, run).await
        };
        processed.map(drop).map_err(Failure::into_handler_error)
    }
}

impl<S, H: Handler> InboxHandler<S, H> {
    async fn run(&self, cx: &Context, outer: &Context, message: Message) -> Result<(), Failure> {
        let headers = outer.headers().iter();
        let mut cx = headers.fold(cx.clone(), |cx, (name, value)| cx.with_header(name, value));
        if let Some(delivery) = outer.delivery() {
            cx = cx.with_delivery(Arc::clone(delivery));
        }
        cx.clone().scope(self.handler.handle(cx, message)).await.map_err(Failure::Handler)
    }
}

/// Keeps what went wrong in the inbox apart from what the handler says.
enum Failure {
    Inbox(Error),
    Handler(HandlerError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Inbox(error)
    }
}

impl Failure {
    fn into_handler_error(self) -> HandlerError {
        match self {
            Self::Handler(error) => error,
            Self::Inbox(error) => match error.kind() {
                ErrorKind::Conflict | ErrorKind::InvalidInput => HandlerError::dead_letter(error),
                ErrorKind::CommitUnknown => HandlerError::unavailable(error),
                _ if error.is_retryable() => HandlerError::unavailable(error),
                _ => error.into(),
            },
        }
    }
}

impl<S, H> fmt::Debug for InboxHandler<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboxHandler").field("inbox", &self.inbox).finish_non_exhaustive()
    }
}
