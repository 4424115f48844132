//! Random handlers and faults, many times over; a failure prints its seed.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outbox_core::{Draft, MessageId};
use outbox_dispatcher::{
    Backoff, Batching, Config, HandlerError, HandlerResult, Jitter, Limit, Message, Rate, Router,
};
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

#[derive(Default)]
struct Notes {
    seen: HashMap<MessageId, Seen>,
    /// The numbers of what was delivered of each key.
    delivered: HashMap<String, Vec<usize>>,
}

type Book = Arc<Mutex<Notes>>;

#[derive(Clone, Copy, PartialEq)]
enum Faults {
    None,
    Storage,
    StorageAndCrashes,
}

fn begin(book: &Book, message: &Message) {
    let mut book = book.lock().expect("book");
    let seen = book.seen.entry(message.id).or_default();
    seen.highest_attempt = seen.highest_attempt.max(message.attempt);
}

async fn pass_time(random: &Mutex<StdRng>) -> bool {
    let (sleeps, time) = {
        let mut random = random.lock().expect("random");
        (random.random_bool(0.5), Duration::from_millis(random.random_range(0..3_000)))
    };
    if sleeps {
        sleep(time).await;
    }
    random.lock().expect("random").random_bool(0.02)
}

fn end(book: &Book, random: &Mutex<StdRng>, message: &Message) -> HandlerResult {
    let choice = random.lock().expect("random").random_range(0..100);
    let mut book = book.lock().expect("book");
    let seen = book.seen.get_mut(&message.id).expect("seen");
    seen.n_failed += u32::from((0..10).contains(&choice));
    match choice {
        0..6 => Err(HandlerError::from("broken")),
        6..8 => Err(HandlerError::retry_after(milliseconds(70), "later")),
        8..10 => Err(HandlerError::dead_letter("fatal")),
        10..12 => Err(HandlerError::unavailable("gone")),
        _ => {
            seen.n_delivered += 1;
            let number = std::str::from_utf8(&message.payload).expect("text").parse().expect("a number");
            book.delivered.entry(message.key.clone().unwrap_or_default()).or_default().push(number);
            Ok(())
        }
    }
}

async fn handle(book: Book, random: Arc<Mutex<StdRng>>, messages: Vec<Message>) -> Vec<HandlerResult> {
    messages.iter().for_each(|message| begin(&book, message));
    if pass_time(&random).await {
        panic!("on purpose");
    }
    messages.iter().map(|message| end(&book, &random, message)).collect()
}

/// One topic with a handler for each message, one with a handler for batches.
fn router(book: Book, handlers: Arc<Mutex<StdRng>>, batching: Batching) -> Router {
    let (books, random) = (book.clone(), handlers.clone());
    let router = Router::new().on("t", async move |message| {
        let mut results = handle(book, handlers, vec![message]).await;
        results.pop().expect("one result")
    });
    router.on_batch("b", batching, async move |messages| Ok(handle(books, random, messages).await))
}

fn drafts(random: &mut StdRng, numbers: Range<usize>, delay: Duration) -> Vec<Draft> {
    let draft = |number: usize| {
        let topic = if random.random_bool(0.6) { "t" } else { "b" };
        let draft = Draft::new(topic, number.to_string()).delay(delay);
        match random.random_range(0..4) {
            0 => draft,
            key => draft.key(key),
        }
    };
    numbers.map(draft).collect()
}

fn limited(random: &mut StdRng, config: Config) -> Config {
    if random.random_bool(0.5) {
        return config;
    }
    let concurrency = random.random_bool(0.5).then(|| random.random_range(1..=config.concurrency));
    let rate =
        Rate::new(random.random_range(1..50), milliseconds(500)).with_burst(random.random_range(1..10));
    let limit = match random.random_range(0..3) {
        0 => Limit::new(["t"]),
        1 => Limit::new(["t", "b"]),
        _ => Limit::others(),
    };
    config.with_limit(limit.with_concurrency(concurrency).with_rate(rate))
}

async fn schedule(seed: u64, faults: Faults) {
    let mut random = seeded(seed);
    let mut store = Store::new();
    if random.random_bool(0.5) {
        store = store.with_hints();
    }
    let is_ordered = random.random_bool(0.5);
    if is_ordered {
        store = store.ordered();
    }
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
    let config = limited(&mut random, config);
    let handlers = Arc::new(Mutex::new(seeded(seed + 2)));
    let batching = Batching::new(random.random_range(1..5));
    let routers = (0..100).map(|_| router(book.clone(), handlers.clone(), batching));
    let mut enqueued = 0;
    let mut report = (0, 0);
    for (round, router) in routers.enumerate() {
        let running = start(&store, router, config.clone());
        for _ in 0..random.random_range(1..6) {
            let more = random.random_range(0..=n - enqueued);
            let delay = Duration::from_millis(random.random_range(0..200));
            store.enqueue(drafts(&mut random, enqueued..enqueued + more, delay)).await;
            enqueued += more;
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
    if is_ordered && faults == Faults::None {
        check_order(&book);
    }
}

/// Also where some of a key were tried several times or are dead.
fn check_order(book: &Book) {
    for (key, numbers) in &book.lock().expect("book").delivered {
        assert!(key.is_empty() || numbers.is_sorted(), "key {key}: {numbers:?}");
    }
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
    let n_delivered = book.seen.values().filter(|seen| seen.n_delivered > 0).count();
    assert!(n_delivered + n_dead >= n, "{n_delivered} delivered and {n_dead} dead of {n}");
    for seen in book.seen.values() {
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
