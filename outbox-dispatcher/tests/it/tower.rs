use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as Task, Poll};
use std::time::Duration;

use outbox_dispatcher::{Context, Dispatcher, HandlerError, Message, Router, ServiceHandler};
use tokio::time::sleep;
use tower::{Service, ServiceBuilder, service_fn};

use crate::support::*;

fn served<S>(service: S) -> Router
where
    ServiceHandler<S>: outbox_dispatcher::Handler,
{
    Router::new().route("t", ServiceHandler::new(service))
}

#[tokio::test(start_paused = true)]
async fn a_service_is_called_when_it_is_ready() {
    let (store, n_running, most) =
        (Store::new(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    store.enqueue_n("t", 60).await;
    let (n, max) = (n_running.clone(), most.clone());
    let service =
        ServiceBuilder::new().concurrency_limit(3).service(service_fn(move |(_, _): (Context, Message)| {
            let (n, max) = (n.clone(), max.clone());
            async move {
                max.fetch_max(n.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sleep(milliseconds(10)).await;
                n.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, HandlerError>(())
            }
        }));
    let report = Dispatcher::new(store.clone(), served(service)).drain_once().await.expect("report");
    assert_eq!((report.n_done, most.load(Ordering::SeqCst)), (60, 3));
    assert!(store.elapsed() < milliseconds(300), "{:?}", store.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_slow_to_be_ready_costs_no_attempt() {
    let store = Store::new();
    store.enqueue_n("t", 40).await;
    let service = service_fn(async |(_, message): (Context, Message)| {
        assert_eq!(message.attempt, 1);
        Ok::<_, HandlerError>(())
    });
    let service = ServiceBuilder::new().rate_limit(1, seconds(1)).service(service);
    let config = config().with_handler_timeout(seconds(4)).with_max_attempts(1);
    let running = start(&store, served(service), config);
    until_async(async || store.n_left().await == 0).await;
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_dead), (40, 0));
}

#[tokio::test(start_paused = true)]
async fn errors_of_a_call_say_what_becomes_of_the_message() {
    let store = Store::new();
    store.enqueue_n("t", 3).await;
    let service = service_fn(async |(_, message): (Context, Message)| match &message.payload[..] {
        b"0" => Err(HandlerError::dead_letter("fatal")),
        b"1" => Err("broken".into()),
        _ => Ok(()),
    });
    let report = Dispatcher::new(store.clone(), served(service)).drain_once().await.expect("report");
    assert_eq!((report.n_done, report.n_retried, report.n_dead), (1, 1, 1));
    assert_eq!(store.dead().await, ["fatal"]);
}

/// Fails when it is asked whether it is ready, so many times.
struct Broken(usize);

impl Service<(Context, Message)> for Broken {
    type Response = ();
    type Error = String;
    type Future = Ready<Result<(), String>>;

    fn poll_ready(&mut self, _: &mut Task<'_>) -> Poll<Result<(), String>> {
        match self.0 {
            0 => Poll::Ready(Ok(())),
            _ => {
                self.0 -= 1;
                Poll::Ready(Err("gone".into()))
            }
        }
    }

    fn call(&mut self, _: (Context, Message)) -> Self::Future {
        ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_to_be_ready_is_unavailable() {
    let store = Store::new();
    store.enqueue_n("t", 5).await;
    let running = start(&store, served(Broken(4)), config().with_max_attempts(1).with_concurrency(1));
    until_async(async || store.n_left().await == 0).await;
    let events = running.events.clone();
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_dead), (5, 0));
    assert_eq!(events.matching("paused").len(), 4);
    assert!(store.elapsed() > Duration::from_secs(10), "{:?}", store.elapsed());
}
