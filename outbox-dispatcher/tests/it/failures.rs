use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use outbox_core::{Draft, ErrorKind, HandlerErrorKind};
use outbox_dispatcher::{Config, Dispatcher, HandlerError, Limit, Message, Router};
use tokio::time::sleep;

use crate::support::*;

async fn settled(store: &Store) {
    until_async(async || store.n_left().await == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a7_max_attempts_is_the_number_of_handler_calls_and_delays_double() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    let running = start(&store, calls.answering(broken), config());
    store.enqueue_n("t", 1).await;
    settled(&store).await;
    let calls = calls.all();
    assert_eq!(calls.iter().map(|call| call.attempt).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    for (pair, delay) in calls.windows(2).zip([1, 2, 4, 8]) {
        let waited = pair[1].at - pair[0].at;
        assert!((seconds(delay)..seconds(delay) + milliseconds(20)).contains(&waited), "{waited:?}");
    }
    assert_eq!(store.dead().await, ["broken"]);
    let events = running.events.clone();
    let report = running.stop().await;
    assert_eq!((report.n_claimed, report.n_retried, report.n_dead), (5, 4, 1));
    assert_eq!(
        events.matching("broken"),
        [
            "retried 1 after 1s: broken",
            "retried 2 after 2s: broken",
            "retried 3 after 4s: broken",
            "retried 4 after 8s: broken",
            "dead 5: broken"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a19_a_retry_waits_for_its_backoff_while_others_go_on() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    let router = calls.answering(|message| match &message.payload[..] {
        b"bad" if message.attempt == 1 => Err(HandlerError::retry_after(seconds(30), "later")),
        _ => Ok(()),
    });
    let running = start(&store, router, config());
    store.enqueue([Draft::new("t", "bad")]).await;
    for _ in 0..10 {
        sleep(seconds(1)).await;
        store.enqueue_n("t", 1).await;
    }
    settled(&store).await;
    let bad: Vec<_> = calls.all().into_iter().filter(|call| call.payload == "bad").collect();
    let waited = bad[1].at - bad[0].at;
    assert!((seconds(30)..milliseconds(30_020)).contains(&waited), "{waited:?}");
    assert_eq!(running.stop().await.n_done, 11);
}

#[tokio::test(start_paused = true)]
async fn a15_one_failure_in_a_batch_touches_no_other_message() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 100).await;
    let router = calls.answering(|message| match &message.payload[..] {
        b"7" => broken(message),
        b"8" => Err(HandlerError::new(HandlerErrorKind::DeadLetter, "fatal")),
        b"9" => panic!("S3CR3T"),
        _ => Ok(()),
    });
    let report = Dispatcher::new(store.clone(), router).drain_once().await.expect("report");
    assert_eq!((report.n_done, report.n_retried, report.n_dead), (97, 2, 1));
    assert_eq!(store.dead().await, ["fatal"]);
}

#[tokio::test(start_paused = true)]
async fn a17_a_panic_is_a_failed_attempt() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 1).await;
    let router = calls.answering(|_| panic!("S3CR3T"));
    let running = start(&store, router, config().with_max_attempts(2));
    settled(&store).await;
    assert_eq!((calls.n(), store.dead().await), (2, vec!["panicked".to_owned()]));
    let events = running.events.clone();
    running.stop().await;
    assert!(events.matching("S3CR3T").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_takes_too_long_is_dropped_and_has_failed() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 1).await;
    let config = config().with_handler_timeout(seconds(45)).with_max_attempts(1);
    let running = start(&store, calls.taking(seconds(3_600)), config);
    settled(&store).await;
    assert_eq!(store.dead().await, ["timed out after 45s"]);
    assert!((seconds(45)..seconds(46)).contains(&store.elapsed()), "{:?}", store.elapsed());
    assert_eq!(running.stop().await.n_dead, 1);
}

#[tokio::test(start_paused = true)]
async fn an_error_text_is_cut_and_free_of_nul() {
    let store = Store::new();
    store.enqueue_n("t", 1).await;
    let router = Router::new().on("t", async |_| Err(HandlerError::dead_letter("\0x".repeat(3_000))));
    let report = Dispatcher::new(store.clone(), router).drain_once().await.expect("report");
    assert_eq!((report.n_dead, store.dead().await), (1, vec!["x".repeat(2_048)]));
}

#[tokio::test(start_paused = true)]
async fn f14_unavailable_pauses_burns_no_attempt_and_resumes() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    let is_up = Arc::new(AtomicBool::new(false));
    let up = is_up.clone();
    let router = calls.answering(move |_| match up.load(Ordering::SeqCst) {
        true => Ok(()),
        false => Err(HandlerError::unavailable("broker gone")),
    });
    store.enqueue_n("t", 500).await;
    let running = start(&store, router, config().with_concurrency(4));
    sleep(seconds(60)).await;
    let n_tried = calls.n();
    assert!((6..=10).contains(&n_tried), "{n_tried} calls in a minute of pauses of 1, 2, 4 … s");
    assert!(calls.all().iter().all(|call| call.attempt == 1), "no attempt is burnt");
    assert_eq!(store.n_left().await, 500);
    is_up.store(true, Ordering::SeqCst);
    settled(&store).await;
    assert_eq!(calls.n() - n_tried, 500);
    let events = running.events.clone();
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_retried, report.n_dead), (500, 0, 0));
    assert_eq!(
        events.matching("paused")[..3],
        ["paused 1s: broker gone", "paused 2s: broker gone", "paused 4s: broker gone"]
    );
    assert_eq!(events.matching("resumed").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pause_in_drain_once_ends_it() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 50).await;
    let router = calls.answering(|_| Err(HandlerError::unavailable("gone")));
    let report = Dispatcher::new(store.clone(), router).drain_once().await.expect("report");
    assert_eq!((report.n_released, store.n_left().await), (report.n_claimed, 50));
    assert_eq!(store.elapsed(), milliseconds(0));
}

/// The handler of `away` finds nobody; `t` records.
fn half_away(calls: &Calls) -> Router {
    calls.answering(fine).on("away", async |_: Message| Err(HandlerError::unavailable("gone")))
}

#[tokio::test(start_paused = true)]
async fn a_topic_with_a_limit_pauses_alone() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    let config = config().with_limit(Limit::new(["away"]).with_concurrency(4));
    let running = start(&store, half_away(&calls), config);
    store.enqueue_n("away", 500).await;
    for n in 1..=60 {
        store.enqueue_n("t", 1).await;
        sleep(seconds(1)).await;
        assert_eq!(calls.n(), n, "the other topic is delivered at once");
    }
    assert_eq!(store.n_left().await, 500);
    let n_pauses = running.events.matching("paused").len();
    assert!((5..=8).contains(&n_pauses), "{n_pauses} pauses of 1, 2, 4 … s in a minute");
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_retried, report.n_dead), (60, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_topic_with_a_limit_goes_on_while_the_others_pause() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    let config = config().with_limit(Limit::new(["t"]).with_concurrency(4));
    let running = start(&store, half_away(&calls), config);
    store.enqueue_n("away", 50).await;
    sleep(seconds(30)).await;
    store.enqueue_n("t", 100).await;
    until(|| calls.n() == 100).await;
    assert!(store.elapsed() < seconds(31), "{:?}", store.elapsed());
    assert_eq!(running.stop().await.n_done, 100);
}

#[tokio::test(start_paused = true)]
async fn drain_once_works_off_what_does_not_pause() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("away", 50).await;
    store.enqueue_n("t", 500).await;
    let config = config().with_limit(Limit::new(["away"]).with_concurrency(4));
    let dispatcher = Dispatcher::new(store.clone(), half_away(&calls)).with_config(config).expect("config");
    let report = dispatcher.drain_once().await.expect("report");
    assert_eq!((report.n_done, store.n_left().await), (500, 50));
    assert_eq!(store.elapsed(), milliseconds(0));
}

#[tokio::test(start_paused = true)]
async fn a_database_outage_ends_nothing_and_is_told_once() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    let running = start(&store, calls.answering(fine), config());
    store.enqueue_n("t", 10).await;
    settled(&store).await;
    store.enqueue_n("t", 20).await;
    for operation in ["claim", "settle", "extend", "prepare", "listen", "probe", "stand_down"] {
        store.state().failing.insert(operation, ErrorKind::Unavailable);
    }
    store.hint();
    sleep(seconds(120)).await;
    let n_claims = store.n_calls("claim");
    assert!(n_claims < 60, "{n_claims} claims: it backs off");
    store.state().failing.clear();
    settled(&store).await;
    let events = running.events.clone();
    assert_eq!(running.stop().await.n_done, 30);
    assert_eq!(events.matching("claim fails").len(), 1);
    assert_eq!(events.matching("claim works").len(), 1);
    assert_eq!(calls.n(), 30);
}

#[tokio::test(start_paused = true)]
async fn errors_that_retrying_cannot_mend_end_nothing_either() {
    for kind in [ErrorKind::PermissionDenied, ErrorKind::Schema, ErrorKind::Other] {
        let (store, calls) = (Store::new(), Calls::new());
        store.enqueue_n("t", 3).await;
        store.state().failing = HashMap::from([("claim", kind)]);
        let running = start(&store, calls.answering(fine), config());
        sleep(seconds(20)).await;
        store.state().failing = HashMap::from([("settle", kind)]);
        sleep(seconds(20)).await;
        assert_eq!(calls.n(), 3);
        store.state().failing.clear();
        settled(&store).await;
        assert_eq!((running.stop().await.n_done, calls.n()), (3, 3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_settle_whose_answer_was_lost_is_repeated_and_counted_apart() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 5).await;
    store.state().loses_answers.insert("settle", 1);
    let running = start(&store, calls.answering(fine), config());
    settled(&store).await;
    sleep(seconds(1)).await;
    let events = running.events.clone();
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_unconfirmed, report.n_lease_lost), (0, 5, 0));
    assert_eq!((calls.n(), events.matching("lease lost").len()), (5, 0));
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_never_answers_is_cut_off() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 1).await;
    store.state().hangs = HashMap::from([("claim", 1), ("settle", 1)]);
    let config = config().with_operation_timeout(seconds(2));
    let running = start(&store, calls.answering(fine), config);
    settled(&store).await;
    assert!((seconds(4)..seconds(5)).contains(&store.elapsed()), "{:?}", store.elapsed());
    assert_eq!(running.stop().await.n_done, 1);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_observer_stops_nothing() {
    struct Grump;
    impl outbox_dispatcher::Observer for Grump {
        fn on(&self, _: &outbox_dispatcher::Event<'_>) {
            panic!("S3CR3T");
        }
    }
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 3).await;
    let dispatcher = Dispatcher::new(store.clone(), calls.answering(fine)).with_observer(Grump);
    assert_eq!(dispatcher.drain_once().await.expect("report").n_done, 3);
}

#[test]
fn f12_a_handler_that_blocks_its_thread_loses_no_lease() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build();
    runtime.expect("runtime").block_on(async {
        let (store, calls) = (Store::new(), Calls::new());
        store.enqueue_n("t", 1).await;
        let router = calls.answering(|_| {
            std::thread::sleep(milliseconds(700));
            Ok(())
        });
        let config = Config::default().with_lease(milliseconds(300));
        let running = start(&store, router, config);
        settled(&store).await;
        let report = running.stop().await;
        assert_eq!((report.n_done, calls.n()), (1, 1), "{report:?}");
        assert!(store.n_calls("extend") >= 4);
    });
}
