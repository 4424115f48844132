use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use outbox_dispatcher::{Config, Dispatcher, Limit, Message, Rate, Router};
use tokio::time::sleep;

use crate::support::*;

/// Two topics whose calls are kept apart.
fn two(limited: &Calls, other: &Calls, time: Duration) -> Router {
    let (limited, other) = (limited.clone(), other.clone());
    let router = Router::new().on("limited", async move |message: Message| {
        limited.record(&message);
        sleep(time).await;
        Ok(())
    });
    router.on("other", async move |message: Message| {
        other.record(&message);
        Ok(())
    })
}

fn limited(rate: Rate) -> Config {
    config().with_limit(Limit::new(["limited"]).with_rate(rate))
}

#[tokio::test(start_paused = true)]
async fn no_more_handlers_of_limited_topics_run_than_allowed() {
    let (store, n_running, most) =
        (Store::new(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    store.enqueue_n("a", 50).await;
    store.enqueue_n("b", 50).await;
    store.enqueue_n("t", 100).await;
    let handle = {
        let (n, max) = (n_running.clone(), most.clone());
        async move |_: Message| {
            max.fetch_max(n.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            sleep(milliseconds(10)).await;
            n.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    };
    let calls = Calls::new();
    let router = calls.taking(milliseconds(10)).on("a", handle.clone()).on("b", handle);
    let config = config().with_limit(Limit::new(["a", "b"]).with_concurrency(3));
    let running = start(&store, router, config);
    until(|| calls.n() == 100).await;
    assert!(store.elapsed() < milliseconds(150), "13 places are left to others: {:?}", store.elapsed());
    until_async(async || store.n_left().await == 0).await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
    assert!(store.elapsed() < milliseconds(500), "and the three stay busy: {:?}", store.elapsed());
    assert_eq!(running.stop().await.n_done, 200);
}

#[tokio::test(start_paused = true)]
async fn a_slow_limited_topic_keeps_its_backlog_for_others() {
    let (store, slow, other) = (Store::new(), Calls::new(), Calls::new());
    store.enqueue_n("limited", 1_000).await;
    store.enqueue_n("other", 10).await;
    let config = config().with_limit(Limit::new(["limited"]).with_concurrency(2));
    let running = start(&store, two(&slow, &other, seconds(5)), config);
    until(|| other.n() == 10).await;
    assert!(store.elapsed() < milliseconds(10), "{:?}", store.elapsed());
    sleep(seconds(26)).await;
    let n_claimed: usize = store.state().claims.iter().map(|claim| claim.n).sum();
    assert!(n_claimed <= 10 + 2 * 6 + 4, "{n_claimed} claimed, {} started", slow.n());
    assert_eq!(slow.n(), 12);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn messages_are_started_no_faster_than_the_rate() {
    let (store, calls, other) = (Store::new().with_hints(), Calls::new(), Calls::new());
    store.enqueue_n("limited", 100).await;
    let rate = Rate::new(10, seconds(1)).with_burst(5);
    let running = start(&store, two(&calls, &other, milliseconds(0)), limited(rate));
    until(|| calls.n() == 100).await;
    for (n, call) in calls.all().iter().enumerate() {
        let earliest = milliseconds(100) * (n as u32).saturating_sub(4);
        let at = call.at - calls.all()[0].at;
        let lateness = at.checked_sub(earliest).unwrap_or_else(|| panic!("message {n} came at {at:?}"));
        assert!(lateness <= milliseconds(5), "message {n} came at {at:?}: the rate is used up");
    }
    let n_statements = store.state().calls.len();
    assert!(n_statements < 250, "{n_statements} statements for 100 messages in 10 s");
    assert_eq!(running.stop().await.n_done, 100);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_rate_keeps_its_lease_and_holds_nobody_up() {
    let (store, calls, other) = (Store::new().with_hints(), Calls::new(), Calls::new());
    store.enqueue_n("limited", 300).await;
    let rate = Rate::new(6, seconds(60)).with_burst(1);
    let config = limited(rate).with_lease(seconds(3)).with_concurrency(2).with_max_attempts(1);
    let running = start(&store, two(&calls, &other, milliseconds(0)), config);
    for n in 1..=60 {
        store.enqueue_n("other", 1).await;
        sleep(seconds(1)).await;
        assert_eq!(other.n(), n, "at once");
    }
    assert!((6..=8).contains(&calls.n()), "{} in a minute", calls.n());
    let n_claimed: usize = store.state().claims.iter().map(|claim| claim.n).sum();
    assert!(n_claimed - 60 <= calls.n() + 1, "{n_claimed}: the backlog stays claimable");
    let report = running.stop().await;
    assert_eq!((report.n_lease_lost, report.n_dead), (0, 0));
    assert_eq!(report.n_done, 60 + calls.n() as u64);
}

#[tokio::test(start_paused = true)]
async fn a_limit_for_all_others_bounds_the_whole_dispatcher() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 100).await;
    let limit = Limit::others().with_rate(Rate::new(20, seconds(1)));
    let running = start(&store, calls.answering(fine), config().with_limit(limit));
    until(|| calls.n() == 100).await;
    let took = store.elapsed();
    assert!((milliseconds(3_900)..milliseconds(4_200)).contains(&took), "20 at once, then 80: {took:?}");
    assert_eq!(running.stop().await.n_done, 100);
}

#[tokio::test(start_paused = true)]
async fn batches_keep_their_rate() {
    let (store, sizes) = (Store::new(), Arc::new(std::sync::Mutex::new(Vec::new())));
    store.enqueue_n("t", 200).await;
    let seen = sizes.clone();
    let router = Router::new().on_batch("t", 50, async move |messages: Vec<Message>| {
        seen.lock().expect("sizes").push(messages.len());
        Ok(())
    });
    let limit = Limit::new(["t"]).with_rate(Rate::new(100, seconds(1)).with_burst(50));
    let running = start(&store, router, config().with_limit(limit));
    until_async(async || store.n_left().await == 0).await;
    let took = store.elapsed();
    assert!((milliseconds(1_490)..milliseconds(1_600)).contains(&took), "{took:?}");
    assert_eq!(*sizes.lock().expect("sizes"), [50, 50, 50, 50]);
    assert_eq!(running.stop().await.n_done, 200);
}

#[tokio::test(start_paused = true)]
async fn drain_once_keeps_to_the_rate() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 25).await;
    let limit = Limit::others().with_rate(Rate::new(10, seconds(1)));
    let dispatcher = Dispatcher::new(store.clone(), calls.answering(fine));
    let dispatcher = dispatcher.with_config(config().with_limit(limit)).expect("config");
    assert_eq!(dispatcher.drain_once().await.expect("report").n_done, 25);
    assert!((milliseconds(1_500)..milliseconds(1_700)).contains(&store.elapsed()), "{:?}", store.elapsed());
}

#[tokio::test(start_paused = true)]
async fn stopping_releases_what_waits_for_its_rate() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 10).await;
    let limit = Limit::others().with_rate(Rate::new(2, seconds(1)));
    let running = start(&store, calls.answering(fine), config().with_limit(limit));
    until(|| calls.n() == 2).await;
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_unsettled, store.n_left().await), (2, 0, 8));
}

#[tokio::test(start_paused = true)]
async fn limits_that_do_not_fit_the_router_are_refused() {
    let store = Store::new();
    let refused = async |router: Router, limit: Limit| {
        let dispatcher = Dispatcher::new(store.clone(), router).with_config(config().with_limit(limit));
        dispatcher.expect("config").drain_once().await.expect_err("refused").to_string()
    };
    let limit = || Limit::new(["x"]).with_concurrency(1);
    let unknown = refused(Calls::new().answering(fine), limit()).await;
    assert_eq!(unknown, "invalid limit.topics: topic \"x\" has no handler");
    let router = Router::new().on("x", async |_| Ok(())).dead_letter_unknown();
    let both = refused(router, limit()).await;
    assert!(both.starts_with("invalid router: one for every topic claims every topic"), "{both}");
    assert_eq!(store.n_calls("claim"), 0);
}

#[test]
fn errors_of_limits_name_the_field_and_the_values() {
    let text = |limit: Limit| config().with_limit(limit).validate().expect_err("refused").to_string();
    let rate = |n, per| Limit::others().with_rate(Rate::new(n, per));
    assert_eq!(text(Limit::others()), "limit needs a concurrency or a rate");
    assert_eq!(text(Limit::others().with_concurrency(0)), "limit.concurrency (0) must be at least 1");
    assert_eq!(
        text(Limit::others().with_concurrency(17)),
        "limit.concurrency (17) must not exceed concurrency (16)"
    );
    assert_eq!(text(rate(0, seconds(1))), "rate.messages (0) must be at least 1");
    assert_eq!(text(rate(5, seconds(0))), "rate.per (0ns) must be 1us for each of 5 messages to 24h");
    assert_eq!(text(rate(5, seconds(90_000))), "rate.per (90000s) must be 1us for each of 5 messages to 24h");
    let burst = Limit::others().with_rate(Rate::new(1, seconds(3_600)).with_burst(25));
    assert_eq!(text(burst), "rate.burst (25) must not be more than what comes in 24h");
    let burst = Limit::others().with_rate(Rate::new(1, seconds(1)).with_burst(0));
    assert_eq!(text(burst), "rate.burst (0) must be at least 1");
    let twice = config().with_limit(Limit::new(["a", "a"]).with_concurrency(1));
    assert_eq!(twice.validate().expect_err("refused").to_string(), "limit.topics: \"a\" is named twice");
    let others = || Limit::others().with_concurrency(1);
    let twice = config().with_limit(others()).with_limit(others()).validate().expect_err("refused");
    assert_eq!(twice.to_string(), "limit.topics must not be empty in more than one limit (2)");
}

#[test]
fn limits_are_read_from_files() {
    let json = r#"{"limits": [{"topics": ["mail"], "concurrency": 2, "rate": {"messages": 100, "per": "1m"}},
                              {"rate": {"messages": 5, "burst": 1}}]}"#;
    let expected = Config::default()
        .with_limit(Limit::new(["mail"]).with_concurrency(2).with_rate(Rate::new(100, seconds(60))))
        .with_limit(Limit::others().with_rate(Rate::new(5, seconds(1)).with_burst(1)));
    assert_eq!(serde_json::from_str::<Config>(json).expect("legal"), expected);
    let typo = r#"{"limits": [{"rates": {"messages": 5}}]}"#;
    let error = serde_json::from_str::<Config>(typo).expect_err("refused").to_string();
    assert!(error.starts_with("unknown field `rates`"), "{error}");
}
