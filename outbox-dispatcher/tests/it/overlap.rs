//! Claims of a storage that says that two at once do not get in each other's way.

use std::time::Duration;

use outbox_core::{ClaimRequest, Repository};
use outbox_dispatcher::{Limit, Message};
use rand::SeedableRng;
use rand::rngs::StdRng;
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

#[tokio::test(start_paused = true)]
async fn stopping_gives_back_what_both_claims_bring() {
    let store = distant();
    store.enqueue_n("t", 4_000).await;
    let calls = Calls::new();
    let running = start(&store, calls.answering(fine), config().with_batch(100));
    until(|| store.state().n_claiming[0] == 2).await;
    let n_before = store.state().claims.len();
    running.cancel();
    let report = running.join().await;
    let brought: Vec<usize> = store.state().claims[n_before..].iter().map(|claim| claim.n).collect();
    assert!(
        brought.len() == 2 && report.n_released as usize == brought.iter().sum::<usize>(),
        "{report:?}, {brought:?}"
    );
    assert_eq!(store.n_left().await, 4_000 - report.n_done);
    let mut n = 0;
    loop {
        let claim = store.memory.claim(ClaimRequest::new(1_000, seconds(600))).await.expect("claim");
        if claim.is_empty() {
            break;
        }
        n += claim.messages.len() as u64;
    }
    assert_eq!(n, 4_000 - report.n_done, "nobody has to wait for a lease");
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_fails_takes_nothing_from_the_other() {
    let (store, calls) = (distant(), Calls::new());
    store.enqueue_n("t", 2_000).await;
    store.state().random = Some((StdRng::seed_from_u64(7), 0.2));
    let running = start(&store, calls.answering(fine), config().with_batch(100));
    until_async(async || store.n_left().await == 0).await;
    store.state().random = None;
    sleep(seconds(1)).await;
    running.stop().await;
    assert_eq!(store.state().most_claiming[0], 2);
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
