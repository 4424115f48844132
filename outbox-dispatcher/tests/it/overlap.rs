//! Claims of a storage that says that two at once do not get in each other's way.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use outbox_core::{ClaimRequest, ErrorKind, Repository};
use outbox_dispatcher::{CancellationToken, Dispatcher, Event, Limit, Message, Observer};
use tokio::time::sleep;

use crate::support::*;

/// One whose answers take a while.
fn distant() -> Store {
    let store = Store::new();
    store.state().latency = milliseconds(10);
    store.state().says_overlaps = true;
    store
}

/// Drains a backlog; how long it took, and the most claims at once.
async fn drained(store: Store) -> (Duration, usize) {
    let calls = Calls::new();
    store.enqueue_n("t", 4_000).await;
    let running = start(&store, calls.answering(fine), config().with_batch(100));
    until(|| calls.n() == 4_000).await;
    let (took, [most, most_recovering]) = (store.elapsed(), store.state().most_claiming);
    assert_eq!(most_recovering, 1, "what expired is worked on alone");
    assert_eq!(running.stop().await.n_done, 4_000);
    (took, most)
}

#[tokio::test(start_paused = true)]
async fn two_claims_at_once_drain_a_backlog_sooner() {
    let alone = distant();
    alone.state().says_overlaps = false;
    let (alone, most) = drained(alone).await;
    assert_eq!(most, 1);
    let (beside, most) = drained(distant()).await;
    assert_eq!(most, 2);
    assert!(beside < alone * 2 / 3, "{beside:?}, one at a time {alone:?}");
}

#[tokio::test(start_paused = true)]
async fn what_trickles_in_is_claimed_by_one_at_a_time() {
    let (store, calls) = (distant(), Calls::new());
    let running = start(&store, calls.answering(fine), config());
    for n in 1..=50 {
        store.enqueue_n("t", 1).await;
        until(|| calls.n() == n).await;
    }
    assert_eq!(store.state().most_claiming[0], 1);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn lanes_that_wait_for_each_other_claim_one_at_a_time() {
    let (store, calls) = (distant(), Calls::new());
    store.enqueue_n("t", 500).await;
    store.enqueue_n("b", 500).await;
    let recording = calls.clone();
    let router = calls.answering(fine).on("b", async move |message: Message| {
        recording.record(&message);
        Ok(())
    });
    let limit = Limit::new(["b"]).with_concurrency(8);
    let running = start(&store, router, config().with_limit(limit));
    until(|| calls.n() == 1_000).await;
    assert_eq!(store.state().most_claiming[0], 1);
    running.stop().await;
}

/// In the middle of a backlog, with two claims under way.
async fn in_full_swing() -> (Store, Calls, Running) {
    in_full_swing_of(milliseconds(0)).await
}

/// The same with handlers that take so long.
async fn in_full_swing_of(time: Duration) -> (Store, Calls, Running) {
    let (store, calls) = (distant(), Calls::new());
    store.enqueue_n("t", 4_000).await;
    let running = start(&store, calls.taking(time), config().with_batch(100));
    until(|| calls.n() >= 1_000 && store.state().n_claiming[0] == 2).await;
    (store, calls, running)
}

/// Everything that was not delivered can be claimed at once.
async fn assert_nothing_is_leased(store: &Store, n_done: u64) {
    let mut n_claimable = 0;
    loop {
        let request = ClaimRequest::new(1_000, seconds(600)).with_recover(false);
        let n = store.memory.claim(request).await.expect("claim").messages.len() as u64;
        if n == 0 {
            break;
        }
        n_claimable += n;
    }
    assert_eq!(n_claimable + n_done, 4_000, "nobody has to wait for a lease");
}

#[tokio::test(start_paused = true)]
async fn stopping_gives_back_what_both_claims_bring() {
    let (store, _, running) = in_full_swing().await;
    let n_before = store.state().claims.len();
    running.cancel();
    let report = running.join().await;
    let brought: Vec<usize> = store.state().claims[n_before..].iter().map(|claim| claim.n).collect();
    assert_eq!((brought.len(), report.n_released), (2, brought.iter().sum::<usize>() as u64));
    assert_nothing_is_leased(&store, report.n_done).await;
}

/// Cancels when so many claims have brought something.
struct Cancelling {
    token: CancellationToken,
    n_left: AtomicUsize,
}

impl Observer for Cancelling {
    fn on(&self, event: &Event<'_>) {
        if matches!(event, Event::Claimed { .. }) && self.n_left.fetch_sub(1, SeqCst) == 1 {
            self.token.cancel();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stopping_when_one_claim_has_been_answered_waits_for_the_other() {
    for n_claims in 10..16 {
        let (store, token) = (distant(), CancellationToken::new());
        store.enqueue_n("t", 4_000).await;
        let router = Calls::new().answering(fine);
        let dispatcher = Dispatcher::new(store.clone(), router).with_config(config().with_batch(100));
        let observer = Cancelling { token: token.clone(), n_left: AtomicUsize::new(n_claims) };
        let dispatcher = dispatcher.expect("config").with_observer(observer);
        let report = dispatcher.run(token).await.expect("report");
        assert_balanced(&report);
        assert_nothing_is_leased(&store, report.n_done).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_fails_or_hangs_takes_nothing_from_the_other() {
    for hangs in [false, true] {
        let (store, calls, running) = in_full_swing().await;
        let counts = |state: &mut State| match hangs {
            true => state.hangs.insert("claim", 1),
            false => state.fails.insert("claim", 1),
        };
        counts(&mut store.state());
        until(|| calls.n() == 4_000).await;
        assert!(store.elapsed() < seconds(20), "before any lease expires: {:?}", store.elapsed());
        assert!(calls.all().iter().all(|call| call.attempt == 1));
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn claims_that_go_on_failing_are_not_sent_again_at_once() {
    // whoever is done has room, and says so
    let (store, calls, running) = in_full_swing_of(milliseconds(2)).await;
    store.state().failing.insert("claim", ErrorKind::PermissionDenied);
    let n_before = store.n_calls("claim");
    sleep(seconds(20)).await;
    let n_claims = store.n_calls("claim") - n_before;
    assert!(n_claims <= 30, "{n_claims} claims in 20 seconds");
    store.state().failing.clear();
    until(|| calls.n() == 4_000).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn slow_handlers_are_not_claimed_for_ahead() {
    let (store, calls) = (distant(), Calls::new());
    store.enqueue_n("t", 2_000).await;
    let running = start(&store, calls.taking(seconds(5)), config().with_batch(100));
    sleep(seconds(60)).await;
    let n_claimed: usize = store.state().claims.iter().map(|claim| claim.n).sum();
    assert!(n_claimed - calls.n() <= 16, "{n_claimed} claimed for {} started", calls.n());
    running.stop().await;
}
