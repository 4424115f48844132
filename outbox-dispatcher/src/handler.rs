//! Runs one handler: nothing it does reaches the task that runs it, except blocking.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use futures_util::future::poll_immediate;
use outbox_core::{DynHandler, HandlerResult, Message};
use tokio::time::sleep;
use tracing::Span;

use crate::decision::Ending;
use crate::{TraceRelation, span};

type Running<'a> = Pin<Box<dyn Future<Output = HandlerResult> + Send + 'a>>;

/// Runs `handler` on `message` in a span of its own until it ends, `timeout` is over or `stop` is ready.
pub(crate) async fn run(
    handler: &dyn DynHandler,
    message: Message,
    trace: TraceRelation,
    timeout: Option<Duration>,
    stop: impl Future<Output = ()>,
) -> Ending {
    let span = span::process(&message, trace);
    let ending = run_in(&span, handler, message, timeout, stop).await;
    span::end(&span, ending.name());
    ending
}

async fn run_in(
    span: &Span,
    handler: &dyn DynHandler,
    message: Message,
    timeout: Option<Duration>,
    stop: impl Future<Output = ()>,
) -> Ending {
    let mut guarded = Guarded::start(span, handler, message);
    // a handler that is ready at once costs no timer
    if let Some(ending) = poll_immediate(&mut guarded).await {
        return ending;
    }
    tokio::select! {
        biased;
        ending = &mut guarded => ending,
        () = stop => Ending::Abandoned,
        timeout = elapsed(timeout) => Ending::TimedOut(timeout),
    }
}

async fn elapsed(timeout: Option<Duration>) -> Duration {
    match timeout {
        Some(timeout) => sleep(timeout).await,
        None => std::future::pending().await,
    }
    timeout.unwrap_or_default()
}

/// A handler's future whose panics, also those of its drop and of its error's text, become an [`Ending`].
struct Guarded<'a> {
    span: &'a Span,
    future: Option<Running<'a>>,
}

impl<'a> Guarded<'a> {
    fn start(span: &'a Span, handler: &'a dyn DynHandler, message: Message) -> Self {
        let cx = span::handler_context(span, &message.headers);
        let future = span.in_scope(|| guard(|| handler.handle_dyn(cx, message)));
        Self { span, future }
    }
}

impl Future for Guarded<'_> {
    type Output = Ending;

    fn poll(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Ending> {
        let Self { span, future } = &mut *self;
        let Some(running) = future else { return Poll::Ready(Ending::Panicked) };
        let polled = span.in_scope(|| guard(|| running.as_mut().poll(task).map(ending)));
        match polled.unwrap_or(Poll::Ready(Ending::Panicked)) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(ending) => match discard(future.take()) {
                true => Poll::Ready(ending),
                false => Poll::Ready(Ending::Panicked),
            },
        }
    }
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        let future = self.future.take();
        self.span.in_scope(|| discard(future));
    }
}

fn ending(result: HandlerResult) -> Ending {
    match result {
        Ok(()) => Ending::Delivered,
        Err(error) => Ending::Failed { kind: error.kind(), text: error.text() },
    }
}

fn guard<T>(f: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(f)).map_err(forget).ok()
}

/// Whether the value could be dropped without a panic.
fn discard<T>(value: T) -> bool {
    guard(|| drop(value)).is_some()
}

/// The payload of a panic may panic itself when it is dropped.
fn forget(payload: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::future::pending;

    use outbox_core::{
        ClaimRequest, Context, Draft, Handler, HandlerErrorKind, MemoryRepository, Repository, Transactor,
        handler_fn,
    };

    use super::*;

    async fn message() -> Message {
        let outbox = MemoryRepository::new();
        let drafts = vec![Draft::new("t", "x")];
        let tx = Transactor::over(outbox.clone());
        tx.run(async |cx| outbox.enqueue(cx, drafts).await).await.expect("memory");
        let claim = outbox.claim(ClaimRequest::new(1, Duration::from_secs(1))).await.expect("memory");
        claim.messages.into_iter().next().expect("one").message
    }

    async fn ended(handler: impl Handler) -> Ending {
        run(&handler, message().await, TraceRelation::default(), Some(Duration::from_secs(30)), pending())
            .await
    }

    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("S3CR3T");
        }
    }

    #[derive(Debug)]
    struct Unspeakable;

    impl fmt::Display for Unspeakable {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("S3CR3T");
        }
    }

    impl std::error::Error for Unspeakable {}

    struct PanicsEarly;

    impl Handler for PanicsEarly {
        fn handle(&self, _: Context, _: Message) -> impl Future<Output = HandlerResult> + Send {
            panic!("S3CR3T");
            #[allow(unreachable_code)]
            std::future::ready(Ok(()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_kind_of_panic_is_a_failed_attempt_without_its_text() {
        assert_eq!(ended(handler_fn(async |_, _| panic!("S3CR3T"))).await, Ending::Panicked);
        assert_eq!(ended(PanicsEarly).await, Ending::Panicked);
        let with_bomb = handler_fn(async |_, _| std::panic::panic_any(Bomb));
        assert_eq!(ended(with_bomb).await, Ending::Panicked);
        assert_eq!(ended(handler_fn(async |_, _| Err(Unspeakable)?)).await, Ending::Panicked);
        let in_drop = handler_fn(async |_, _| {
            let _bomb = Bomb;
            sleep(Duration::from_secs(60)).await;
            Ok(())
        });
        assert_eq!(ended(in_drop).await, Ending::TimedOut(Duration::from_secs(30)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_keeps_its_kind_and_text() {
        let failed = ended(handler_fn(async |_, _| Err("broken")?)).await;
        assert_eq!(failed, Ending::Failed { kind: HandlerErrorKind::Retry, text: "broken".into() });
        assert_eq!(ended(handler_fn(async |_, _| Ok(()))).await, Ending::Delivered);
    }
}
