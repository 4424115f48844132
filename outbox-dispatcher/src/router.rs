use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use outbox_core::{
    BatchHandler, Context, DynBatchHandler, DynHandler, Error, Handled, Handler, HandlerError,
    HandlerErrorKind, HandlerResult, HandlerResultExt, MAX_BATCH, Message, Result, batch_fn, handler_fn,
};
use serde::de::DeserializeOwned;

use crate::decision::Ending;
use crate::lane::Batching;

const MAX_LINGER: Duration = Duration::from_secs(60);

/// Which handler serves which topic.
///
/// By default a dispatcher claims only the topics that it has a handler for, so that a message nobody here
/// knows yet waits for a newer release without costing an attempt. [`fallback`](Self::fallback) and
/// [`dead_letter_unknown`](Self::dead_letter_unknown) make it claim every topic.
///
/// # Examples
/// ```
/// use outbox_dispatcher::{HandlerResultExt, Message, Router};
/// # #[derive(serde::Deserialize)] struct OrderPlaced { order: u64 }
/// # #[derive(Clone)] struct Mailer;
/// # impl Mailer { async fn send(&self, order: u64) -> Result<(), String> { Ok(()) } }
/// # let mailer = Mailer;
/// let router = Router::new()
///     .on("order.cancelled", async move |message: Message| {
///         println!("{} bytes", message.payload.len());
///         Ok(())
///     })
///     .on_json("order.placed", async move |event: OrderPlaced| {
///         mailer.send(event.order).await?;
///         Ok(())
///     });
/// ```
#[derive(Clone, Default)]
pub struct Router {
    routes: Vec<(Arc<str>, Service)>,
    index: HashMap<String, usize>,
    unknown: Unknown,
    repeated: Option<String>,
}

#[derive(Clone, Default)]
enum Unknown {
    #[default]
    NotClaimed,
    Fallback(Service),
    DeadLetter,
}

/// What serves a topic.
#[derive(Clone)]
pub(crate) enum Service {
    One(Arc<dyn DynHandler>),
    Batch(Batching, Arc<dyn DynBatchHandler>),
}

impl Service {
    fn batching(&self) -> Option<Batching> {
        match self {
            Self::One(_) => None,
            Self::Batch(batching, _) => Some(*batching),
        }
    }

    fn validate(&self) -> Result<()> {
        let Some(Batching { max, linger }) = self.batching() else { return Ok(()) };
        if !(1..=MAX_BATCH).contains(&max) {
            return Err(Error::invalid("batching.max", format_args!("{max}, must be 1 to {MAX_BATCH}")));
        }
        if linger > MAX_LINGER {
            let why = format_args!("{linger:?}, must be up to {MAX_LINGER:?}");
            return Err(Error::invalid("batching.linger", why));
        }
        Ok(())
    }
}

impl Router {
    /// A router that serves nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves `topic` with a closure: `async move |message: Message| { …; Ok(()) }`. What it captures is
    /// cloned for each message.
    #[must_use]
    pub fn on<F, Fut>(self, topic: impl Into<String>, f: F) -> Self
    where
        F: FnOnce(Message) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = HandlerResult> + Send,
    {
        self.route(topic, handler_fn(move |_: Context, message| f(message)))
    }

    /// Serves `topic` with a closure that takes the payload decoded from JSON. A payload that cannot be
    /// decoded is a dead letter.
    #[must_use]
    pub fn on_json<T, F, Fut>(self, topic: impl Into<String>, f: F) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        F: FnOnce(T) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = HandlerResult> + Send,
    {
        self.on(topic, async move |message: Message| {
            let value = message.json::<T>().dead_letter()?;
            f(value).await
        })
    }

    /// Serves `topic` with a closure that takes several messages at once and ends in `Ok(())`, when all were
    /// delivered, or in `Ok(results)` with a `Vec` of one result for each message, in their order. `batching`
    /// is the most messages of a batch, or a [`Batching`]. Each batch handler claims for itself.
    ///
    /// # Examples
    /// ```
    /// use outbox_dispatcher::{Message, Router};
    /// # #[derive(Clone)] struct Broker;
    /// # impl Broker {
    /// #     async fn publish(&self, _: Vec<Message>) -> Result<Vec<Result<(), String>>, String> { Ok(vec![]) }
    /// # }
    /// # let broker = Broker;
    /// let router = Router::new().on_batch("order.placed", 500, async move |messages: Vec<Message>| {
    ///     let receipts = broker.publish(messages).await?; // an error: none was delivered
    ///     Ok(receipts.into_iter().map(|receipt| Ok(receipt?)).collect::<Vec<_>>())
    /// });
    /// ```
    #[must_use]
    pub fn on_batch<F, Fut, R>(self, topic: impl Into<String>, batching: impl Into<Batching>, f: F) -> Self
    where
        F: FnOnce(Vec<Message>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send,
        R: Into<Handled>,
    {
        self.route_batch(topic, batching, batch_fn(move |_: Context, messages| f(messages)))
    }

    /// Serves `topic` with a handler. A topic can have one only: the dispatcher refuses to run otherwise.
    #[must_use]
    pub fn route(self, topic: impl Into<String>, handler: impl Handler) -> Self {
        self.serve(topic.into(), Service::One(Arc::new(handler)))
    }

    /// Serves `topic` with a batch handler.
    #[must_use]
    pub fn route_batch(
        self,
        topic: impl Into<String>,
        batching: impl Into<Batching>,
        handler: impl BatchHandler,
    ) -> Self {
        self.serve(topic.into(), Service::Batch(batching.into(), Arc::new(handler)))
    }

    fn serve(mut self, topic: String, service: Service) -> Self {
        if self.index.insert(topic.clone(), self.routes.len()).is_some() {
            self.repeated = Some(topic.clone());
        }
        self.routes.push((topic.into(), service));
        self
    }

    /// Claims every topic, and serves those without a handler of their own with this one.
    #[must_use]
    pub fn fallback(mut self, handler: impl Handler) -> Self {
        self.unknown = Unknown::Fallback(Service::One(Arc::new(handler)));
        self
    }

    /// Claims every topic and serves all with this batch handler; beside it the router can have no other. A
    /// batch may then hold messages of several topics.
    #[must_use]
    pub fn fallback_batch(mut self, batching: impl Into<Batching>, handler: impl BatchHandler) -> Self {
        self.unknown = Unknown::Fallback(Service::Batch(batching.into(), Arc::new(handler)));
        self
    }

    /// Claims every topic, and makes the messages of those without a handler dead letters.
    #[must_use]
    pub fn dead_letter_unknown(mut self) -> Self {
        self.unknown = Unknown::DeadLetter;
        self
    }

    pub(crate) fn claims_all(&self) -> bool {
        !matches!(self.unknown, Unknown::NotClaimed)
    }

    /// Every topic with a handler of its own, and how that is batched.
    pub(crate) fn batchings(&self) -> impl Iterator<Item = (&str, Option<Batching>)> {
        self.routes.iter().map(|(topic, service)| (&**topic, service.batching()))
    }

    pub(crate) fn fallback_batching(&self) -> Option<Batching> {
        match &self.unknown {
            Unknown::Fallback(service) => service.batching(),
            Unknown::NotClaimed | Unknown::DeadLetter => None,
        }
    }

    /// # Errors
    /// [`InvalidInput`](outbox_core::ErrorKind::InvalidInput) for a router that cannot work.
    pub(crate) fn validate(&self) -> Result<()> {
        if let Some(topic) = &self.repeated {
            return Err(Error::invalid("router", format_args!("topic {topic:?} has two handlers")));
        }
        if self.routes.is_empty() && !self.claims_all() {
            return Err(Error::invalid("router", "no topic has a handler"));
        }
        let fallback = match &self.unknown {
            Unknown::Fallback(service) => Some(service),
            Unknown::NotClaimed | Unknown::DeadLetter => None,
        };
        self.routes.iter().map(|(_, service)| service).chain(fallback).try_for_each(Service::validate)
    }

    pub(crate) fn find(&self, topic: &str) -> Route {
        match self.index.get(topic) {
            Some(index) => Route::Own(*index),
            None => Route::Unknown(topic.into()),
        }
    }

    pub(crate) fn service(&self, route: &Route) -> Option<&Service> {
        match (route, &self.unknown) {
            (Route::Own(index), _) => self.routes.get(*index).map(|(_, service)| service),
            (Route::Unknown(_), Unknown::Fallback(service)) => Some(service),
            (Route::Unknown(_), _) => None,
        }
    }

    /// How it ends when [`service`](Self::service) has none. A message that was not asked for is not dead at
    /// once: another release may know its topic.
    pub(crate) fn unrouted(&self, topic: String) -> Ending {
        match self.unknown {
            Unknown::DeadLetter => Ending::Unrouted(topic),
            _ => Ending::Failed {
                kind: HandlerErrorKind::Retry,
                text: format!("no handler for topic {topic}"),
            },
        }
    }

    pub(crate) fn topic<'a>(&'a self, route: &'a Route) -> &'a str {
        match route {
            Route::Own(index) => self.routes.get(*index).map_or("", |(topic, _)| topic),
            Route::Unknown(topic) => topic,
        }
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = match self.unknown {
            Unknown::NotClaimed => "not claimed",
            Unknown::Fallback(_) => "fallback",
            Unknown::DeadLetter => "dead letter",
        };
        let topics: Vec<_> = self.routes.iter().map(|(topic, _)| topic).collect();
        f.debug_struct("Router").field("topics", &topics).field("unknown", &unknown).finish()
    }
}

/// Where a message goes, without a copy of its topic where the router has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Own(usize),
    Unknown(Arc<str>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::plan::Plan;

    fn refused(router: Router) -> String {
        let plan = router.validate().and_then(|()| Plan::try_new(&router, &Config::default()));
        plan.expect_err("must be refused").to_string()
    }

    fn on(router: Router, topic: &str) -> Router {
        router.on(topic, async |_| Ok(()))
    }

    fn on_batch(router: Router, topic: &str, batching: impl Into<Batching>) -> Router {
        router.on_batch(topic, batching, async |_| Ok(()))
    }

    #[test]
    fn a_router_that_cannot_work_is_refused() {
        assert_eq!(refused(Router::new()), "invalid router: no topic has a handler");
        assert_eq!(refused(on(on(Router::new(), "a"), "a")), "invalid router: topic \"a\" has two handlers");
        assert_eq!(
            refused(on_batch(on(Router::new(), "a"), "a", 5)),
            "invalid router: topic \"a\" has two handlers"
        );
        assert_eq!(refused(on_batch(Router::new(), "a", 0)), "invalid batching.max: 0, must be 1 to 1000");
        let linger = Batching::new(5).with_linger(Duration::from_secs(61));
        assert_eq!(
            refused(on_batch(Router::new(), "a", linger)),
            "invalid batching.linger: 61s, must be up to 60s"
        );
        let fallback = handler_fn(async |_, _| Ok(()));
        let both = "invalid router: one for every topic claims every topic, so no other topic can have a limit or batches";
        assert_eq!(refused(on_batch(Router::new(), "a", 5).fallback(fallback)), both);
    }
}
