//! Runs one handler: nothing it does reaches the task that runs it, except blocking.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use futures_util::future::poll_immediate;
use outbox_core::{
    BatchResult, Delivery, DynBatchHandler, DynHandler, Handled, HandlerResult, Headers, Message,
};
use tokio::time::{Instant, sleep_until};
use tracing::Span;

use crate::decision::Ending;
use crate::{TraceRelation, span};

type Running<'a, R> = Pin<Box<dyn Future<Output = R> + Send + 'a>>;

/// Until when a handler may run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeLimit {
    timeout: Option<Duration>,
    deadline: Option<Instant>,
}

impl TimeLimit {
    pub(crate) fn starting(now: Instant, timeout: Option<Duration>) -> Self {
        Self { timeout, deadline: timeout.map(|timeout| now + timeout) }
    }

    fn delivery(&self) -> Arc<Delivery> {
        Arc::new(Delivery::new(self.deadline.map(Instant::into_std)))
    }

    async fn elapsed(self) -> Duration {
        match self.deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => std::future::pending().await,
        }
        self.timeout.unwrap_or_default()
    }
}

/// Runs `handler` on `message` until it ends, its time is up or `stop` is ready.
pub(crate) async fn run(
    handler: &dyn DynHandler,
    message: Message,
    trace: TraceRelation,
    limit: TimeLimit,
    stop: impl Future<Output = ()>,
) -> Ending {
    let span = span::process(&message, trace);
    let delivery = limit.delivery();
    let cx = span::handler_context(&span, &message.headers).with_delivery(Arc::clone(&delivery));
    let start = || handler.handle_dyn(cx, message);
    let ended = guarded(&span, delivery, start, ending, limit, stop).await;
    let ending = ended.unwrap_or_else(|ending| ending);
    span::end(&span, ending.name());
    ending
}

/// Runs `handler` on all of `messages` at once; as many endings as messages.
pub(crate) async fn run_batch(
    handler: &dyn DynBatchHandler,
    messages: Vec<Message>,
    limit: TimeLimit,
    stop: impl Future<Output = ()>,
) -> Vec<Ending> {
    let n = messages.len();
    let span = span::process_batch(&messages);
    let delivery = limit.delivery();
    let cx = span::handler_context(&span, &Headers::new()).with_delivery(Arc::clone(&delivery));
    let start = || handler.handle_batch_dyn(cx, messages);
    let ended = guarded(&span, delivery, start, |result| endings(result, n), limit, stop).await;
    let endings = ended.unwrap_or_else(|ending| vec![ending; n]);
    let failed = endings.iter().find(|ending| **ending != Ending::Delivered);
    span::end(&span, failed.unwrap_or(&Ending::Delivered).name());
    endings
}

/// Reads what a handler returns; `Err`: it was cut off, or panicked.
async fn guarded<'a, R, T>(
    span: &'a Span,
    delivery: Arc<Delivery>,
    start: impl FnOnce() -> Running<'a, R>,
    read: impl Fn(R) -> T + Unpin,
    limit: TimeLimit,
    stop: impl Future<Output = ()>,
) -> Result<T, Ending> {
    let future = span.in_scope(|| guard(start));
    let mut guarded = Guarded { span, delivery, future, read };
    // a handler that is ready at once costs no timer
    if let Some(ended) = poll_immediate(&mut guarded).await {
        return ended;
    }
    tokio::select! {
        biased;
        ended = &mut guarded => ended,
        () = stop => Err(Ending::Abandoned),
        timeout = limit.elapsed() => Err(Ending::TimedOut(timeout)),
    }
}

/// A handler's future whose panics, also those of its drop and of its error's text, become an [`Ending`].
struct Guarded<'a, R, F> {
    span: &'a Span,
    delivery: Arc<Delivery>,
    future: Option<Running<'a, R>>,
    read: F,
}

impl<R, T, F: Fn(R) -> T + Unpin> Future for Guarded<'_, R, F> {
    type Output = Result<T, Ending>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let Self { span, future, read, .. } = &mut *self;
        let Some(running) = future else { return Poll::Ready(Err(Ending::Panicked)) };
        let polled = span.in_scope(|| guard(|| running.as_mut().poll(task).map(&*read)));
        let ended = match polled {
            Some(Poll::Pending) => return Poll::Pending,
            Some(Poll::Ready(ended)) => Ok(ended),
            None => Err(Ending::Panicked),
        };
        Poll::Ready(match discard(future.take()) {
            true => ended,
            false => Err(Ending::Panicked),
        })
    }
}

impl<R, F> Drop for Guarded<'_, R, F> {
    fn drop(&mut self) {
        self.delivery.cancel();
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

fn endings(result: BatchResult, n: usize) -> Vec<Ending> {
    match result {
        Ok(Handled::All) => vec![Ending::Delivered; n],
        Ok(Handled::Each(results)) if results.len() == n => results.into_iter().map(ending).collect(),
        Ok(Handled::Each(results)) => vec![Ending::Miscounted { n_results: results.len(), n_messages: n }; n],
        Err(error) => vec![ending(Err(error)); n],
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
    use tokio::time::sleep;

    use super::*;

    async fn message() -> Message {
        let outbox = MemoryRepository::new();
        let drafts = vec![Draft::new("t", "x")];
        let tx = Transactor::over(outbox.clone());
        tx.run(async |cx| outbox.enqueue(cx, drafts).await).await.expect("memory");
        let claim = outbox.claim(ClaimRequest::new(1, Duration::from_secs(1))).await.expect("memory");
        claim.messages.into_iter().next().expect("one").message
    }

    fn half_a_minute() -> TimeLimit {
        TimeLimit::starting(Instant::now(), Some(Duration::from_secs(30)))
    }

    async fn ended(handler: impl Handler) -> Ending {
        run(&handler, message().await, TraceRelation::default(), half_a_minute(), pending()).await
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
