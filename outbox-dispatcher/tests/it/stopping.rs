use outbox_core::{ErrorKind, Operations};
use tokio::time::sleep;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a6_stopping_in_mid_batch_settles_what_is_done_and_gives_the_rest_back() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 100).await;
    let config = config().with_concurrency(10);
    let running = start(&store, calls.taking(milliseconds(100)), config);
    until(|| calls.n() == 20).await;
    let before = store.elapsed();
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_unsettled), (20, 0));
    assert!(report.n_released > 0, "what had been claimed and not started");
    assert!(store.elapsed() - before < milliseconds(200), "running handlers are waited for, no longer");
    let stats = store.memory.stats().await.expect("memory");
    let topic = &stats.topics["t"];
    assert_eq!((topic.n_due, topic.n_claimed, topic.highest_attempt), (80, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn g12_no_claim_after_the_signal_and_what_a_claim_under_way_brings_is_released() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 50).await;
    store.state().latency = milliseconds(200);
    let running = start(&store, calls.answering(fine), config());
    sleep(milliseconds(100)).await;
    let report = running.stop().await;
    assert_eq!((report.n_released, report.n_claimed, calls.n()), (report.n_claimed, report.n_claimed, 0));
    assert!(report.n_claimed > 0);
    assert_eq!(store.n_calls("claim"), 1);
    let stats = store.memory.stats().await.expect("memory");
    assert_eq!((stats.topics["t"].n_due, stats.topics["t"].highest_attempt), (50, 0));
}

#[tokio::test(start_paused = true)]
async fn g12_a_handler_that_outlives_the_drain_time_out_is_released() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 3).await;
    let running = start(&store, calls.taking(seconds(50)), config().with_drain_timeout(seconds(5)));
    until(|| calls.n() == 3).await;
    let before = store.elapsed();
    let events = running.events.clone();
    let report = running.stop().await;
    let took = store.elapsed() - before;
    assert!((seconds(5)..seconds(6)).contains(&took), "{took:?}");
    assert_eq!((report.n_released, report.n_done, report.n_unsettled), (3, 0, 0));
    let stats = store.memory.stats().await.expect("memory");
    assert_eq!((stats.topics["t"].n_due, stats.topics["t"].highest_attempt), (3, 0));
    assert_eq!(events.all().last().map(String::as_str), Some("stopped"));
}

#[tokio::test(start_paused = true)]
async fn a_long_handler_finishes_within_the_drain_time_out() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 1).await;
    let running = start(&store, calls.taking(seconds(20)), config().with_lease(seconds(3)));
    until(|| calls.n() == 1).await;
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_released), (1, 0), "its lease is renewed meanwhile");
}

#[tokio::test(start_paused = true)]
async fn stopping_ends_while_the_database_is_away_and_says_what_is_unsettled() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 8).await;
    store.state().failing.insert("settle", ErrorKind::Unavailable);
    let running = start(&store, calls.answering(fine), config().with_drain_timeout(seconds(10)));
    until(|| calls.n() == 8).await;
    let before = store.elapsed();
    let report = running.stop().await;
    assert_eq!((report.n_unsettled, report.n_done), (8, 0));
    assert!(store.elapsed() - before <= seconds(11), "{:?}", store.elapsed() - before);
}

#[tokio::test(start_paused = true)]
async fn stopping_is_prompt_while_asleep_paused_or_without_a_database() {
    for operation in [None, Some("claim"), Some("listen")] {
        let store = Store::new().with_hints();
        if let Some(operation) = operation {
            store.state().failing.insert(operation, ErrorKind::Unavailable);
        }
        let running = start(&store, Calls::new().answering(fine), config());
        sleep(seconds(100)).await;
        let before = store.elapsed();
        let report = running.stop().await;
        assert_eq!((report.n_claimed, store.elapsed() - before), (0, milliseconds(0)), "{operation:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_cancelled_before_claims_nothing() {
    let store = Store::new();
    store.enqueue_n("t", 1).await;
    let running = start(&store, Calls::new().answering(fine), config());
    running.cancel();
    assert_eq!(running.join().await.n_claimed, 0);
}

#[tokio::test(start_paused = true)]
async fn the_report_counts_every_message_once() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 60).await;
    let router = calls.answering(|message| match message.payload.last() {
        Some(b'0') => broken(message),
        Some(b'1') => Err(outbox_dispatcher::HandlerError::dead_letter("fatal")),
        _ => Ok(()),
    });
    let running = start(&store, router, config());
    until(|| calls.n() == 60).await;
    let report = running.stop().await;
    assert_eq!((report.n_claimed, report.n_done, report.n_retried, report.n_dead), (60, 48, 6, 6));
}
