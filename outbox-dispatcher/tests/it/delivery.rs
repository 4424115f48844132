use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use outbox_core::{Context, Draft, ErrorKind};
use outbox_dispatcher::{Dispatcher, HandlerError, Message, Router, handler_fn};
use tokio::time::{Instant, sleep};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a14_a_backlog_drains_without_sleeping() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 2_000).await;
    let running = start(&store, calls.answering(fine), config().with_batch(100));
    until(|| calls.n() == 2_000).await;
    assert!(store.elapsed() <= milliseconds(20), "{:?}", store.elapsed());
    let report = running.stop().await;
    assert_eq!((report.n_claimed, report.n_done), (2_000, 2_000));
    assert_eq!(store.n_left().await, 0);
    let n_full = store.state().claims.iter().filter(|claim| claim.n == 100).count();
    let n_statements = store.n_calls("claim") + store.n_calls("settle");
    assert!(n_full >= 16 && n_statements <= 20 * 3, "{n_full} full, {n_statements} statements");
}

#[tokio::test(start_paused = true)]
async fn drain_once_works_off_what_is_due_and_returns() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 250).await;
    store.enqueue([Draft::new("t", "later").delay(seconds(60))]).await;
    let router = calls.answering(|message| match &message.payload[..] {
        b"7" => broken(message),
        b"8" => Err(HandlerError::dead_letter("never")),
        _ => Ok(()),
    });
    let dispatcher = Dispatcher::new(store.clone(), router).with_config(config()).expect("config");
    let report = dispatcher.drain_once().await.expect("report");
    assert_eq!((report.n_done, report.n_retried, report.n_dead, report.n_unsettled), (248, 1, 1, 0));
    assert_eq!(store.elapsed(), milliseconds(0), "no sleep");
    sleep(seconds(61)).await;
    assert_eq!(dispatcher.drain_once().await.expect("report").n_retried, 1);
    assert_eq!(calls.n(), 252);
    let n_claims = store.n_calls("claim");
    assert_eq!(dispatcher.drain_once().await.expect("report").n_claimed, 0);
    assert_eq!(store.n_calls("claim") - n_claims, 1, "an empty outbox costs one statement");
}

#[tokio::test(start_paused = true)]
async fn drain_once_reports_an_error_of_the_database() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 3).await;
    let dispatcher = Dispatcher::new(store.clone(), calls.answering(fine));
    for operation in ["claim", "settle"] {
        store.state().failing.insert(operation, ErrorKind::PermissionDenied);
        let error = dispatcher.drain_once().await.expect_err("the database refuses");
        assert_eq!((error.kind(), error.operation()), (ErrorKind::PermissionDenied, operation));
        store.state().failing.clear();
    }
    sleep(seconds(31)).await;
    assert_eq!(dispatcher.drain_once().await.expect("report").n_done, 3);
}

#[tokio::test(start_paused = true)]
async fn no_more_handlers_run_than_concurrency_allows() {
    let (store, n_running, most) =
        (Store::new(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    store.enqueue_n("t", 100).await;
    let (n, max) = (n_running.clone(), most.clone());
    let router = Router::new().on("t", async move |_| {
        max.fetch_max(n.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        sleep(milliseconds(10)).await;
        n.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    });
    let running = start(&store, router, config().with_concurrency(7));
    until_async(async || store.n_left().await == 0).await;
    assert_eq!(most.load(Ordering::SeqCst), 7);
    assert!(store.elapsed() < milliseconds(300), "the places stay busy: {:?}", store.elapsed());
    assert_eq!(running.stop().await.n_done, 100);
}

#[tokio::test(start_paused = true)]
async fn slow_handlers_do_not_hoard() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 1_000).await;
    let running = start(&store, calls.taking(seconds(5)), config().with_concurrency(4).with_batch(1_000));
    sleep(seconds(26)).await;
    let n_claimed: usize = store.state().claims.iter().map(|claim| claim.n).sum();
    assert!((24..=28).contains(&n_claimed), "{n_claimed} claimed for 24 started");
    let report = running.stop().await;
    assert_eq!(report.n_done as usize, calls.n());
}

#[tokio::test(start_paused = true)]
async fn a16_an_unknown_topic_is_not_claimed() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("new", 5).await;
    store.enqueue_n("t", 5).await;
    let running = start(&store, calls.answering(fine), config());
    until(|| calls.n() == 5).await;
    assert_eq!(running.stop().await.n_claimed, 5);
    assert_eq!(store.n_left().await, 5);
}

#[tokio::test(start_paused = true)]
async fn a16_an_unknown_topic_goes_to_the_fallback() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("new", 2).await;
    store.enqueue_n("t", 1).await;
    let others = calls.clone();
    let fallback = handler_fn(async move |_: Context, message: Message| {
        assert_eq!(message.topic, "new");
        others.record(&message);
        Ok(())
    });
    let running = start(&store, calls.answering(fine).fallback(fallback), config());
    until(|| calls.n() == 3).await;
    assert_eq!(running.stop().await.n_done, 3);
}

#[tokio::test(start_paused = true)]
async fn a16_an_unknown_topic_is_dead_by_policy() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("new", 2).await;
    store.enqueue_n("t", 1).await;
    let running = start(&store, calls.answering(fine).dead_letter_unknown(), config());
    until_async(async || store.n_left().await == 0).await;
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_dead), (1, 2));
    assert_eq!(store.dead().await, ["no handler for topic new", "no handler for topic new"]);
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_is_no_json_is_dead_at_once() {
    let store = Store::new();
    store.enqueue([Draft::new("t", "7"), Draft::new("t", "{S3CR3T")]).await;
    let router = Router::new().on_json("t", async |n: u64| {
        assert_eq!(n, 7);
        Ok(())
    });
    let report = Dispatcher::new(store.clone(), router).drain_once().await.expect("report");
    assert_eq!((report.n_done, report.n_dead), (1, 1));
    let dead = store.dead().await;
    assert!(dead[0].contains("JSON payload at line 1") && !dead[0].contains("S3CR3T"), "{dead:?}");
}

#[tokio::test(start_paused = true)]
async fn handlers_get_the_trace_of_their_message() {
    let store = Store::new();
    store.enqueue([Draft::new("t", "").header("traceparent", "00-a").header("tenant", "acme")]).await;
    let router = Router::new().route(
        "t",
        handler_fn(async |cx: Context, _| {
            assert_eq!(cx.headers().get("traceparent").map(String::as_str), Some("00-a"));
            assert!(cx.headers().len() == 1 && !cx.has_transaction());
            Ok(())
        }),
    );
    assert_eq!(Dispatcher::new(store, router).drain_once().await.expect("report").n_done, 1);
}

#[tokio::test(start_paused = true)]
async fn handlers_see_their_attempt_fence_and_deadline() {
    let store = Store::new();
    store.enqueue_n("t", 1).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sights = seen.clone();
    let handler = handler_fn(async move |cx: Context, message: Message| {
        let left = Instant::from_std(cx.deadline().expect("a time-out")) - Instant::now();
        assert!(!cx.is_cancelled());
        sights.lock().expect("seen").push((message.attempt, message.fence, left));
        match message.attempt {
            1 => broken(&message),
            _ => Ok(()),
        }
    });
    let config = config().with_handler_timeout(seconds(45));
    let running = start(&store, Router::new().route("t", handler), config);
    until_async(async || store.n_left().await == 0).await;
    running.stop().await;
    let seen = seen.lock().expect("seen");
    let [(1, first, left), (2, second, _)] = seen[..] else { panic!("{seen:?}") };
    assert!(second > first && left == seconds(45), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_has_started_elsewhere_learns_that_its_run_is_over() {
    for end in ["ended", "timed out", "lease lost", "stopped"] {
        let (store, n_told) = (Store::new(), Arc::new(AtomicUsize::new(0)));
        store.enqueue_n("t", 1).await;
        let told = n_told.clone();
        let handler = handler_fn(async move |cx: Context, _: Message| {
            tokio::spawn(async move {
                cx.cancelled().await;
                assert!(cx.is_cancelled());
                told.fetch_add(1, Ordering::SeqCst);
            });
            sleep(seconds(if end == "ended" { 5 } else { 3_600 })).await;
            Ok(())
        });
        let timeout = if end == "timed out" { seconds(5) } else { seconds(600) };
        let config =
            config().with_handler_timeout(timeout).with_lease(seconds(6)).with_drain_timeout(seconds(1));
        let running = start(&store, Router::new().route("t", handler), config);
        sleep(milliseconds(4_100)).await;
        assert_eq!(n_told.load(Ordering::SeqCst), 0, "{end}");
        match end {
            "lease lost" => store.state().loses = vec!["0".into()],
            "stopped" => running.cancel(),
            _ => {}
        }
        sleep(seconds(2)).await;
        assert_eq!(n_told.load(Ordering::SeqCst), 1, "{end}");
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_router_without_a_handler_is_refused_before_a_claim() {
    let store = Store::new();
    let error = Dispatcher::new(store.clone(), Router::new()).drain_once().await.expect_err("refused");
    assert_eq!(error.to_string(), "invalid router: no topic has a handler");
    let error = Dispatcher::new(store.clone(), Router::new()).run(Default::default()).await;
    assert_eq!(error.expect_err("refused").kind(), ErrorKind::InvalidInput);
    let error = Dispatcher::new(store.clone(), Router::new()).with_config(config().with_batch(0));
    assert_eq!(error.expect_err("refused").to_string(), "batch (0) must be 1 to 1000");
    assert_eq!(store.n_calls("claim"), 0);
}
