//! Random handlers and faults, many times over; a failure prints its seed.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outbox_core::{Draft, MessageId};
use outbox_dispatcher::{Backoff, Config, HandlerError, HandlerResult, Jitter, Message, Router};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::sleep;

use crate::support::*;

#[derive(Default)]
struct Seen {
    n_delivered: u32,
    n_failed: u32,
    highest_attempt: u32,
}

type Book = Arc<Mutex<HashMap<MessageId, Seen>>>;

#[derive(Clone, Copy, PartialEq)]
enum Faults {
    None,
    Storage,
    StorageAndCrashes,
}

async fn handle(book: Book, random: Arc<Mutex<StdRng>>, message: Message) -> HandlerResult {
    let (choice, time) = {
        let mut random = random.lock().expect("random");
        (random.random_range(0..100), Duration::from_millis(random.random_range(0..3_000)))
    };
    {
        let mut book = book.lock().expect("book");
        let seen = book.entry(message.id).or_default();
        seen.highest_attempt = seen.highest_attempt.max(message.attempt);
    }
    if choice % 2 == 0 {
        sleep(time).await;
    }
    let mut book = book.lock().expect("book");
    let seen = book.get_mut(&message.id).expect("seen");
    seen.n_failed += u32::from((0..12).contains(&choice));
    match choice {
        0..6 => Err(HandlerError::from("broken")),
        6..8 => Err(HandlerError::retry_after(milliseconds(70), "later")),
        8..10 => Err(HandlerError::dead_letter("fatal")),
        10..12 => {
            drop(book);
            panic!("on purpose")
        }
        12..14 => Err(HandlerError::unavailable("gone")),
        _ => {
            seen.n_delivered += 1;
            Ok(())
        }
    }
}

async fn schedule(seed: u64, faults: Faults) {
    let mut random = seeded(seed);
    let store = match random.random_bool(0.5) {
        true => Store::new().with_hints(),
        false => Store::new(),
    };
    let n = random.random_range(1..40);
    let book = Book::default();
    let backoff = Backoff::default().with_base(milliseconds(100)).with_jitter(Jitter::Full);
    let config = Config::default()
        .with_concurrency(random.random_range(1..8))
        .with_batch(random.random_range(1..20))
        .with_lease(seconds(5))
        .with_handler_timeout(milliseconds(2_500))
        .with_max_attempts(random.random_range(1..5))
        .with_drain_timeout(Duration::from_millis(random.random_range(0..3_000)))
        .with_pause(backoff.clone())
        .with_backoff(backoff);
    store.state().latency = Duration::from_millis(random.random_range(0..20));
    if faults != Faults::None {
        store.state().random = Some((seeded(seed + 1), random.random_range(0.0..0.3)));
    }
    let handlers = Arc::new(Mutex::new(seeded(seed + 2)));
    let router =
        |book: Book| Router::new().on("t", async move |message| handle(book, handlers, message).await);
    let routers = (0..100).map(|_| router.clone()(book.clone()));
    let mut enqueued = 0;
    let mut report = (0, 0);
    for (round, router) in routers.enumerate() {
        let running = start(&store, router, config.clone());
        for _ in 0..random.random_range(1..6) {
            let more = random.random_range(0..=n - enqueued);
            enqueued += more;
            let delay = Duration::from_millis(random.random_range(0..200));
            store.enqueue((0..more).map(|_| Draft::new("t", "x").delay(delay))).await;
            sleep(Duration::from_millis(random.random_range(0..1_500))).await;
        }
        if round == 99 {
            panic!("not drained: {} of {n} left", store.n_left().await);
        }
        if faults == Faults::StorageAndCrashes && random.random_bool(0.3) {
            running.kill().await;
            sleep(seconds(5)).await;
        } else {
            let end = running.stop().await;
            report = (report.0 + end.n_lease_lost, report.1 + end.n_unsettled);
        }
        if enqueued == n && store.n_left().await == 0 {
            break;
        }
    }
    check(&store, &book, n, &config, faults, report).await;
}

async fn check(
    store: &Store,
    book: &Book,
    n: usize,
    config: &Config,
    faults: Faults,
    (n_lost, n_unsettled): (u64, u64),
) {
    let n_dead = store.dead().await.len();
    let book = book.lock().expect("book");
    let n_delivered = book.values().filter(|seen| seen.n_delivered > 0).count();
    assert!(n_delivered + n_dead >= n, "{n_delivered} delivered and {n_dead} dead of {n}");
    for seen in book.values() {
        assert!(seen.highest_attempt <= config.max_attempts);
        if faults == Faults::None {
            assert!(seen.n_delivered <= 1, "delivered twice without a fault");
            assert!(seen.n_delivered + seen.n_failed <= config.max_attempts);
        }
    }
    if faults == Faults::None {
        assert_eq!((n_delivered + n_dead, n_lost, n_unsettled), (n, 0, 0));
    }
}

/// `OUTBOX_TEST_SCHEDULES` sets how many; the seeds are always the same.
fn check_schedules(first: u64, faults: Faults) {
    let n = std::env::var("OUTBOX_TEST_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    for seed in first..first + n {
        let run = || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.expect("runtime").block_on(schedule(seed, faults));
        };
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            panic!("seed {seed}");
        }
    }
}

#[test]
fn without_faults_nothing_is_lost_and_nothing_is_delivered_twice() {
    quiet_on_purpose();
    check_schedules(0, Faults::None);
}

#[test]
fn with_a_failing_storage_nothing_is_lost() {
    quiet_on_purpose();
    check_schedules(1_000_000, Faults::Storage);
}

#[test]
fn with_crashes_nothing_is_lost() {
    quiet_on_purpose();
    check_schedules(2_000_000, Faults::StorageAndCrashes);
}

/// Keeps the panics of handlers out of the test's output.
fn quiet_on_purpose() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let is_on_purpose =
                info.payload().downcast_ref::<&str>().is_some_and(|text| *text == "on purpose");
            if !is_on_purpose {
                before(info);
            }
        }));
    });
}
