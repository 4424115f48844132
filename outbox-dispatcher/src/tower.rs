//! A `tower::Service` as a handler.

use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::Arc;

use outbox_core::{Context, Handler, HandlerError, HandlerResult, HandlerResultExt, Message};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};
use tower_service::Service;

/// Delivers messages through a [`Service`], with all the layers around it.
///
/// A message is handed over when the service says that it is ready; until then it keeps its place among the
/// running handlers, so that a service that is not ready holds back claims. One that is not ready for half of
/// `handler_timeout`, or that fails when it is asked, is [`unavailable`](HandlerResultExt::unavailable): the
/// dispatcher pauses and counts no attempt. An error of a call means retry, or what a [`HandlerError`] says.
///
/// The service need not be `Clone`: there is one, and its calls run side by side.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use outbox_dispatcher::{Context, HandlerError, Message, Router, ServiceHandler};
/// use tower::{ServiceBuilder, service_fn};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let service = ServiceBuilder::new()
///     .concurrency_limit(4)
///     .rate_limit(100, Duration::from_secs(1))
///     .service(service_fn(async |(_cx, message): (Context, Message)| {
///         println!("{} on {}", message.id, message.topic);
///         Ok::<_, HandlerError>(())
///     }));
/// let router = Router::new().route("order.placed", ServiceHandler::new(service));
/// # }
/// ```
pub struct ServiceHandler<S>(Arc<Mutex<S>>);

impl<S> ServiceHandler<S> {
    /// Makes a handler of `service`.
    pub fn new(service: S) -> Self {
        Self(Arc::new(Mutex::new(service)))
    }
}

/// Clones share the service.
impl<S> Clone for ServiceHandler<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> fmt::Debug for ServiceHandler<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceHandler")
    }
}

impl<S> Handler for ServiceHandler<S>
where
    S: Service<(Context, Message), Response = ()> + Send + 'static,
    S::Error: Into<HandlerError>,
    S::Future: Future<Output = Result<(), S::Error>> + Send,
{
    async fn handle(&self, cx: Context, message: Message) -> HandlerResult {
        let call = match cx.deadline() {
            Some(deadline) => {
                let now = Instant::now();
                let half = Instant::from_std(deadline).saturating_duration_since(now) / 2;
                let ready = timeout_at(now + half, self.ready()).await;
                ready.map_err(|_| format!("the service was not ready for {half:?}")).unavailable()??
            }
            None => self.ready().await?,
        }
        .call((cx, message));
        call.await.map_err(Into::into)
    }
}

impl<S: Service<(Context, Message)>> ServiceHandler<S>
where
    S::Error: Into<HandlerError>,
{
    async fn ready(&self) -> Result<MutexGuard<'_, S>, HandlerError> {
        let mut service = self.0.lock().await;
        poll_fn(|task| service.poll_ready(task)).await.unavailable()?;
        Ok(service)
    }
}
