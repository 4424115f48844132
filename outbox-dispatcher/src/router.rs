use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use outbox_core::{
    ClaimRequest, Context, DynHandler, Error, Handler, HandlerErrorKind, HandlerResult, HandlerResultExt,
    Message, Result, handler_fn,
};
use serde::de::DeserializeOwned;

use crate::decision::Ending;

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
    routes: Vec<(Arc<str>, Arc<dyn DynHandler>)>,
    index: HashMap<String, usize>,
    unknown: Unknown,
    repeated: Option<String>,
}

#[derive(Clone, Default)]
enum Unknown {
    #[default]
    NotClaimed,
    Fallback(Arc<dyn DynHandler>),
    DeadLetter,
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

    /// Serves `topic` with a handler. A topic can have one only: the dispatcher refuses to run otherwise.
    #[must_use]
    pub fn route(mut self, topic: impl Into<String>, handler: impl Handler) -> Self {
        let topic = topic.into();
        if self.index.insert(topic.clone(), self.routes.len()).is_some() {
            self.repeated = Some(topic.clone());
        }
        self.routes.push((topic.into(), Arc::new(handler)));
        self
    }

    /// Claims every topic, and serves those without a handler of their own with this one.
    #[must_use]
    pub fn fallback(mut self, handler: impl Handler) -> Self {
        self.unknown = Unknown::Fallback(Arc::new(handler));
        self
    }

    /// Claims every topic, and makes the messages of those without a handler dead letters.
    #[must_use]
    pub fn dead_letter_unknown(mut self) -> Self {
        self.unknown = Unknown::DeadLetter;
        self
    }

    /// The topics to claim; `None` for all.
    pub(crate) fn topics(&self) -> Option<Vec<String>> {
        match self.unknown {
            Unknown::NotClaimed => Some(self.routes.iter().map(|(topic, _)| topic.to_string()).collect()),
            Unknown::Fallback(_) | Unknown::DeadLetter => None,
        }
    }

    /// Checks that `request`, made with [`topics`](Self::topics), can be sent.
    pub(crate) fn validate(&self, request: &ClaimRequest) -> Result<()> {
        if let Some(topic) = &self.repeated {
            return Err(Error::invalid("router", format_args!("topic {topic:?} has two handlers")));
        }
        if matches!(&request.topics, Some(topics) if topics.is_empty()) {
            return Err(Error::invalid("router", "no topic has a handler"));
        }
        request.validate()
    }

    pub(crate) fn find(&self, topic: &str) -> Route {
        match self.index.get(topic) {
            Some(index) => Route::Own(*index),
            None => Route::Unknown(topic.into()),
        }
    }

    pub(crate) fn handler(&self, route: &Route) -> Option<&dyn DynHandler> {
        match (route, &self.unknown) {
            (Route::Own(index), _) => self.routes.get(*index).map(|(_, handler)| &**handler),
            (Route::Unknown(_), Unknown::Fallback(handler)) => Some(&**handler),
            (Route::Unknown(_), _) => None,
        }
    }

    /// How it ends when [`handler`](Self::handler) has none. A message that was not asked for is not dead at
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
    use std::time::Duration;

    use super::*;

    fn refused(router: Router) -> String {
        let mut request = ClaimRequest::new(1, Duration::from_secs(1));
        request.topics = router.topics();
        router.validate(&request).expect_err("must be refused").to_string()
    }

    fn on(router: Router, topic: &str) -> Router {
        router.on(topic, async |_| Ok(()))
    }

    #[test]
    fn a_router_that_cannot_work_is_refused() {
        assert_eq!(refused(Router::new()), "invalid router: no topic has a handler");
        assert_eq!(refused(on(on(Router::new(), "a"), "a")), "invalid router: topic \"a\" has two handlers");
        assert_eq!(refused(on(Router::new(), "")), "invalid topics: must not be empty");
    }

    #[test]
    fn only_a_policy_for_unknown_topics_claims_all_topics() {
        assert_eq!(on(Router::new(), "a").topics(), Some(vec!["a".to_owned()]));
        assert_eq!(on(Router::new(), "a").dead_letter_unknown().topics(), None);
        assert_eq!(Router::new().fallback(handler_fn(async |_, _| Ok(()))).topics(), None);
    }
}
