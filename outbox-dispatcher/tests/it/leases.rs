use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use outbox_core::{ClaimRequest, ErrorKind, Operations, Repository};
use outbox_dispatcher::{Message, Router};
use tokio::time::sleep;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn f7_the_heartbeat_keeps_the_lease_of_a_slow_handler() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 40).await;
    let config = config().with_lease(seconds(3)).with_concurrency(10);
    let first = start(&store, calls.taking(seconds(20)), config.clone());
    sleep(seconds(1)).await;
    let second = start(&store, calls.taking(seconds(20)), config);
    until_async(async || store.n_left().await == 0).await;
    assert_eq!(calls.n(), 40, "one run each, those that waited in the buffer too");
    let (first, second) = (first.stop().await, second.stop().await);
    assert_eq!((first.n_done + second.n_done, first.n_lease_lost + second.n_lease_lost), (40, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_finished_keeps_its_lease_until_it_is_settled() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 3).await;
    let config = config().with_lease(seconds(3)).with_operation_timeout(seconds(600));
    store.state().failing.insert("settle", ErrorKind::Unavailable);
    let first = start(&store, calls.answering(fine), config.clone());
    sleep(seconds(1)).await;
    let second = start(&store, calls.answering(fine), config);
    sleep(seconds(60)).await;
    store.state().failing.clear();
    until_async(async || store.n_left().await == 0).await;
    assert_eq!((calls.n(), first.stop().await.n_done, second.stop().await.n_claimed), (3, 3, 0));
}

/// Counts the handlers that were dropped before they ended.
struct Dropped(Arc<AtomicUsize>, bool);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(usize::from(!self.1), Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn f8_a_lost_lease_cancels_the_handler_and_settles_nothing() {
    let (store, calls, n_dropped) = (Store::new(), Calls::new(), Arc::new(AtomicUsize::new(0)));
    let ids = store.enqueue_n("t", 2).await;
    let (seen, dropped) = (calls.clone(), n_dropped.clone());
    let router = Router::new().on("t", async move |message: Message| {
        seen.record(&message);
        let mut guard = Dropped(dropped, false);
        sleep(seconds(50)).await;
        guard.1 = true;
        Ok(())
    });
    let running = start(&store, router, config().with_lease(seconds(6)));
    until(|| calls.n() == 2).await;
    // the database is away for longer than the lease, and somebody else takes the messages first
    for operation in ["extend", "claim"] {
        store.state().failing.insert(operation, ErrorKind::Unavailable);
    }
    sleep(seconds(8)).await;
    store.sync();
    let thief = store.memory.claim(ClaimRequest::new(10, seconds(600))).await.expect("memory");
    assert_eq!(thief.messages.len(), ids.len());
    assert_eq!(n_dropped.load(Ordering::SeqCst), 0, "an unknown answer cancels nothing");
    store.state().failing.clear();
    sleep(seconds(4)).await;
    assert_eq!(n_dropped.load(Ordering::SeqCst), 2);
    let events = running.events.clone();
    let report = running.stop().await;
    assert_eq!((report.n_lease_lost, report.n_done, report.n_released), (2, 0, 0));
    assert_eq!((events.matching("lease lost").len(), store.n_calls("settle")), (2, 0));
    let stats = store.memory.stats().await.expect("memory");
    assert_eq!(stats.topics["t"].n_claimed, 2, "the thief has them");
}

#[tokio::test(start_paused = true)]
async fn a_late_settle_of_a_lease_that_was_taken_is_reported() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 1).await;
    let running = start(&store, calls.taking(seconds(10)), config().with_lease(seconds(3)));
    until(|| calls.n() == 1).await;
    for operation in ["extend", "claim"] {
        store.state().failing.insert(operation, ErrorKind::Unavailable);
    }
    sleep(seconds(5)).await;
    store.sync();
    let thief = store.memory.claim(ClaimRequest::new(10, seconds(600))).await.expect("memory");
    assert_eq!(thief.messages.len(), 1);
    sleep(seconds(10)).await;
    let report = running.stop().await;
    assert_eq!((report.n_lease_lost, report.n_done), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn hole_1_one_group_of_suspects_is_at_work_at_a_time() {
    let (store, calls) = (Store::new(), Calls::new());
    store.enqueue_n("t", 300).await;
    let crashed = store.memory.claim(ClaimRequest::new(300, seconds(1))).await.expect("memory");
    assert_eq!(crashed.messages.len(), 300);
    let again = store.memory.claim(ClaimRequest::new(300, seconds(1))).await.expect("memory");
    assert!(again.is_empty());
    sleep(seconds(2)).await;
    store.enqueue_n("t", 100).await;
    let running = start(&store, calls.taking(milliseconds(50)), config().with_concurrency(50));
    until_async(async || store.n_left().await == 0).await;
    let claims = store.state().claims.clone();
    for (index, claim) in claims.iter().enumerate() {
        assert!(!claim.recovered || claim.recover);
        let until_next = claims[index + 1..].iter().take_while(|next| next.at < claim.at + milliseconds(50));
        if claim.recovered {
            assert!(until_next.clone().all(|next| !next.recover), "{claims:#?}");
        }
    }
    assert!(claims.iter().filter(|claim| claim.recovered).count() >= 2, "in groups");
    assert!(claims.iter().any(|claim| !claim.recover && claim.n > 0), "fresh ones go on meanwhile");
    assert_eq!(running.stop().await.n_done, 400);
}

#[tokio::test(start_paused = true)]
async fn f6_a_message_that_kills_every_process_dies_without_its_neighbours() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    store.enqueue_n("t", 200).await;
    let killed = Arc::new(AtomicUsize::new(0));
    for _ in 0..60 {
        let (seen, kills) = (calls.clone(), killed.clone());
        let router = Router::new().on("t", async move |message: Message| {
            seen.record(&message);
            if &message.payload[..] == b"13" {
                kills.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
            sleep(milliseconds(5)).await;
            Ok(())
        });
        let before = killed.load(Ordering::SeqCst);
        let running = start(&store, router, config().with_lease(seconds(2)));
        for _ in 0..20_000 {
            if killed.load(Ordering::SeqCst) > before || store.n_left().await == 0 {
                break;
            }
            sleep(milliseconds(1)).await;
        }
        running.kill().await;
        if store.n_left().await == 0 {
            break;
        }
    }
    assert_eq!(store.n_left().await, 0);
    let dead = store.dead().await;
    assert!(dead.len() == 1 && killed.load(Ordering::SeqCst) == 5, "{dead:?}, {killed:?} kills");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_back_to_its_own_dispatcher_is_handled_by_one_handler() {
    let (store, calls, n_dropped) = (Store::new(), Calls::new(), Arc::new(AtomicUsize::new(0)));
    store.enqueue_n("t", 1).await;
    let (seen, dropped) = (calls.clone(), n_dropped.clone());
    let router = Router::new().on("t", async move |message: Message| {
        seen.record(&message);
        let mut guard = Dropped(dropped, false);
        sleep(seconds(5)).await;
        guard.1 = true;
        Ok(())
    });
    store.state().failing.insert("extend", ErrorKind::Unavailable);
    let running = start(&store, router, config().with_lease(seconds(3)));
    until(|| calls.n() == 2).await;
    store.state().failing.clear();
    sleep(milliseconds(1)).await;
    assert_eq!(n_dropped.load(Ordering::SeqCst), 1, "the first one ends when the second begins");
    until_async(async || store.n_left().await == 0).await;
    let report = running.stop().await;
    assert_eq!((report.n_claimed, report.n_lease_lost, report.n_done), (2, 1, 1));
}
