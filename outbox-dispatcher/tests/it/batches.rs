use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outbox_core::{Draft, Operations};
use outbox_dispatcher::{
    Batching, Context, Dispatcher, HandlerError, HandlerResult, Limit, Message, Router, batch_fn,
};
use tokio::time::sleep;

use crate::support::*;

/// The batches that a handler saw.
#[derive(Clone, Default)]
struct Batches(Arc<Mutex<Vec<Vec<String>>>>);

impl Batches {
    fn record(&self, messages: &[Message]) {
        self.0.lock().expect("batches").push(messages.iter().map(text).collect());
    }

    fn all(&self) -> Vec<Vec<String>> {
        self.0.lock().expect("batches").clone()
    }

    fn sizes(&self) -> Vec<usize> {
        self.all().iter().map(Vec::len).collect()
    }

    /// Serves topic `t`; one answer for each message.
    fn answering<F>(&self, batching: impl Into<Batching>, f: F) -> Router
    where
        F: Fn(&Message) -> HandlerResult + Clone + Send + Sync + 'static,
    {
        let batches = self.clone();
        Router::new().on_batch("t", batching, async move |messages: Vec<Message>| {
            batches.record(&messages);
            Ok(messages.iter().map(f).collect::<Vec<_>>())
        })
    }
}

fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.payload).into_owned()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_backlog_comes_in_full_batches_and_in_order() {
    let (store, batches) = (Store::new(), Batches::default());
    store.enqueue_n("t", 1_000).await;
    let config = config().with_limit(Limit::new(["t"]).with_concurrency(1));
    let running = start(&store, batches.answering(100, fine), config);
    until_async(async || store.n_left().await == 0).await;
    assert_eq!(running.stop().await.n_done, 1_000);
    assert_eq!(batches.all().concat(), numbers(0..1_000));
    let n_full = batches.sizes().iter().filter(|size| **size == 100).count();
    assert!(n_full >= 9, "{:?}", batches.sizes());
}

#[tokio::test(start_paused = true)]
async fn a_batch_may_be_larger_than_a_claim() {
    let (store, batches) = (Store::new(), Batches::default());
    store.enqueue_n("t", 500).await;
    let batching = Batching::new(250).with_linger(seconds(1));
    let running = start(&store, batches.answering(batching, fine), config().with_batch(20));
    until_async(async || store.n_left().await == 0).await;
    assert_eq!((running.stop().await.n_done, batches.sizes()), (500, vec![250, 250]));
    assert!(store.elapsed() < milliseconds(100), "full ones do not linger");
}

#[tokio::test(start_paused = true)]
async fn a_batch_lingers_for_others_and_no_longer() {
    let (store, batches) = (Store::new().with_hints(), Batches::default());
    let batching = Batching::new(100).with_linger(milliseconds(50));
    let running = start(&store, batches.answering(batching, fine), config());
    sleep(seconds(1)).await;
    for _ in 0..5 {
        store.enqueue_n("t", 1).await;
        sleep(milliseconds(9)).await;
    }
    assert_eq!(batches.sizes(), [0; 0]);
    sleep(milliseconds(6)).await;
    assert_eq!(batches.sizes(), [5]);
    assert_eq!(running.stop().await.n_done, 5);
}

#[tokio::test(start_paused = true)]
async fn each_message_has_an_outcome_of_its_own() {
    let (store, batches) = (Store::new(), Batches::default());
    store.enqueue_n("t", 10).await;
    let router = batches.answering(10, |message| match &message.payload[..] {
        b"3" => Err("broken".into()),
        b"4" => Err(HandlerError::retry_after(seconds(30), "later")),
        b"5" => Err(HandlerError::dead_letter("fatal")),
        _ => Ok(()),
    });
    let report = Dispatcher::new(store.clone(), router).drain_once().await.expect("report");
    assert_eq!((report.n_done, report.n_retried, report.n_dead), (7, 2, 1));
    assert_eq!((batches.sizes(), store.dead().await), (vec![10], vec!["fatal".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_wrong_number_of_results_is_a_failed_attempt_of_every_message() {
    for n_results in [0, 2, 4] {
        let store = Store::new();
        store.enqueue_n("t", 3).await;
        let router = Router::new().on_batch("t", 3, async move |_| {
            Ok((0..n_results).map(|_| Ok(())).collect::<Vec<HandlerResult>>())
        });
        let config = config().with_max_attempts(1);
        let dispatcher = Dispatcher::new(store.clone(), router).with_config(config).expect("config");
        assert_eq!(dispatcher.drain_once().await.expect("report").n_dead, 3);
        let text = format!("the batch handler gave {n_results} results for 3 messages");
        assert_eq!(store.dead().await, vec![text; 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_or_a_time_out_is_a_failed_attempt_of_its_batch_only() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 20).await;
    store.enqueue_n("panics", 3).await;
    store.enqueue_n("hangs", 3).await;
    let router = calls
        .answering(fine)
        .on_batch("panics", 3, async |_| -> Result<(), HandlerError> { panic!("S3CR3T") })
        .on_batch("hangs", 3, async |_| {
            sleep(seconds(3_600)).await;
            Ok(())
        });
    let config = config().with_max_attempts(1).with_handler_timeout(seconds(45));
    let running = start(&store, router, config);
    until_async(async || store.n_left().await == 0).await;
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_dead), (20, 6));
    let dead = store.dead().await;
    assert_eq!(dead.iter().filter(|error| *error == "panicked").count(), 3, "{dead:?}");
    assert_eq!(dead.iter().filter(|error| *error == "timed out after 45s").count(), 3, "{dead:?}");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_makes_every_batch_fail_uses_up_no_other_attempts() {
    let (store, batches) = (Store::new().with_hints(), Batches::default());
    store.enqueue_n("t", 600).await;
    let seen = batches.clone();
    let router = Router::new().on_batch("t", 600, async move |messages: Vec<Message>| {
        seen.record(&messages);
        match messages.iter().any(|message| &message.payload[..] == b"13") {
            true => Err("one of them is bad".into()),
            false => Ok(()),
        }
    });
    let running = start(&store, router, config().with_batch(1_000));
    until_async(async || store.n_left().await == 0).await;
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_dead), (599, 1));
    assert!(batches.all().contains(&vec!["13".to_owned()]), "the last attempt alone");
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_downstream_costs_a_batch_no_attempt() {
    let (store, batches, n_calls) = (Store::new(), Batches::default(), Arc::new(AtomicUsize::new(0)));
    store.enqueue_n("t", 50).await;
    let (seen, n) = (batches.clone(), n_calls.clone());
    let router = Router::new().on_batch("t", 10, async move |messages: Vec<Message>| {
        assert!(messages.iter().all(|message| message.attempt == 1));
        if n.fetch_add(1, Ordering::SeqCst) < 3 {
            return Err(HandlerError::unavailable("gone"));
        }
        seen.record(&messages);
        Ok(())
    });
    let running = start(&store, router, config());
    until_async(async || store.n_left().await == 0).await;
    let events = running.events.clone();
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_retried, report.n_dead), (50, 0, 0));
    assert!(!events.matching("paused").is_empty() && events.matching("resumed").len() == 1);
    assert_eq!(batches.all().concat().len(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_takes_its_message_out_of_a_batch_and_the_last_one_drops_it() {
    let (store, n_ended, n_cancelled) =
        (Store::new(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    store.enqueue_n("t", 3).await;
    let (ended, cancelled) = (n_ended.clone(), n_cancelled.clone());
    let handler = batch_fn(async move |cx: Context, _| {
        let n = cancelled.clone();
        tokio::spawn(async move {
            cx.cancelled().await;
            n.fetch_add(1, Ordering::SeqCst);
        });
        sleep(seconds(30)).await;
        ended.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let running = start(&store, Router::new().route_batch("t", 3, handler), config().with_lease(seconds(6)));
    sleep(seconds(1)).await;
    store.state().loses = vec!["0".into(), "1".into()];
    sleep(seconds(3)).await;
    assert_eq!(running.events.matching("lease lost").len(), 2);
    assert_eq!(n_cancelled.load(Ordering::SeqCst), 0, "one of them is still ours");
    store.state().loses.push("2".into());
    sleep(seconds(3)).await;
    assert_eq!((n_cancelled.load(Ordering::SeqCst), n_ended.load(Ordering::SeqCst)), (1, 0));
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_lease_lost, report.n_released), (0, 3, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_batch_is_settled_without_the_lost_ones() {
    let (store, batches) = (Store::new(), Batches::default());
    store.enqueue_n("t", 3).await;
    let seen = batches.clone();
    let router = Router::new().on_batch("t", 3, async move |messages: Vec<Message>| {
        seen.record(&messages);
        sleep(seconds(5)).await;
        Ok(())
    });
    let running = start(&store, router, config().with_lease(seconds(6)));
    store.state().loses = vec!["1".into()];
    sleep(seconds(6)).await;
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_lease_lost, batches.sizes()), (2, 1, vec![3]));
}

#[tokio::test(start_paused = true)]
async fn stopping_releases_a_batch_that_lingers() {
    let (store, batches) = (Store::new().with_hints(), Batches::default());
    store.enqueue_n("t", 5).await;
    let batching = Batching::new(100).with_linger(seconds(60));
    let running = start(&store, batches.answering(batching, fine), config());
    sleep(seconds(1)).await;
    let report = running.stop().await;
    assert_eq!((report.n_released, batches.sizes().len()), (5, 0));
    let stats = store.memory.stats().await.expect("memory");
    assert_eq!((stats.topics["t"].n_due, stats.topics["t"].highest_attempt), (5, 0));
}

#[tokio::test(start_paused = true)]
async fn one_batch_handler_can_serve_every_topic() {
    let (store, batches) = (Store::new(), Batches::default());
    store.enqueue((0..10).map(|n| Draft::new(if n % 2 == 0 { "a" } else { "b" }, n.to_string()))).await;
    let seen = batches.clone();
    let publisher = batch_fn(async move |_: Context, messages: Vec<Message>| {
        seen.record(&messages);
        Ok(())
    });
    let router = Router::new().fallback_batch(Batching::new(10).with_linger(Duration::ZERO), publisher);
    assert_eq!(Dispatcher::new(store, router).drain_once().await.expect("report").n_done, 10);
    assert_eq!(batches.all(), [numbers(0..10)]);
}
