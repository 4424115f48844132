use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use outbox_core::{Draft, ErrorKind};
use outbox_dispatcher::{Batching, HandlerError, Limit, Message, Router};
use tokio::time::sleep;

use crate::support::*;

/// Messages `a0`, `b0`, `a1`, `b1` … of the keys `a` and `b`.
async fn enqueue(store: &Store, n: usize) {
    let draft = |n: usize, key: &str| Draft::new("t", format!("{key}{n}")).key(key);
    store.enqueue((0..n).flat_map(|n| [draft(n, "a"), draft(n, "b")])).await;
}

fn payloads(calls: &Calls, key: &str) -> Vec<String> {
    calls.all().into_iter().map(|call| call.payload).filter(|payload| payload.starts_with(key)).collect()
}

fn of(key: &str, n: usize) -> Vec<String> {
    (0..n).map(|n| format!("{key}{n}")).collect()
}

#[tokio::test(start_paused = true)]
async fn messages_of_a_key_run_one_after_another_and_keys_side_by_side() {
    let (store, calls) = (Store::new().ordered(), Calls::new());
    enqueue(&store, 20).await;
    let n_running = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let (seen, running) = (calls.clone(), n_running.clone());
    let router = Router::new().on("t", async move |message: Message| {
        let key = message.key.clone().expect("key");
        {
            let mut running = running.lock().expect("running");
            let n = running.entry(key.clone()).or_default();
            assert_eq!(*n, 0, "two of key {key} at once");
            *n += 1;
        }
        seen.record(&message);
        sleep(milliseconds(10)).await;
        *running.lock().expect("running").get_mut(&key).expect("key") -= 1;
        Ok(())
    });
    let running = start(&store, router, config());
    until(|| calls.n() == 40).await;
    assert!(store.elapsed() < milliseconds(250), "side by side: {:?}", store.elapsed());
    assert_eq!((payloads(&calls, "a"), payloads(&calls, "b")), (of("a", 20), of("b", 20)));
    sleep(milliseconds(50)).await;
    assert_eq!(running.stop().await.n_done, 40);
}

#[tokio::test(start_paused = true)]
async fn a_pause_releases_the_runs_of_its_topics_and_no_other() {
    let (store, calls) = (Store::new().ordered(), Calls::new());
    let half_away = |n: usize, key: &str| Draft::new("half away", format!("{key}{n}")).key(key);
    store.enqueue((0..5).flat_map(|n| [half_away(n, "c"), half_away(n, "d")])).await;
    enqueue(&store, 20).await;
    let seen = calls.clone();
    let router = calls.taking(milliseconds(10)).on("half away", async move |message: Message| {
        seen.record(&message);
        if message.payload.starts_with(b"d") {
            return Err(HandlerError::unavailable("gone"));
        }
        sleep(milliseconds(55)).await;
        Ok(())
    });
    let limit = Limit::new(["half away"]).with_concurrency(10);
    let running = start(&store, router, config().with_limit(limit));
    until(|| payloads(&calls, "a").len() + payloads(&calls, "b").len() == 40).await;
    assert!(store.elapsed() < milliseconds(250), "the other keys go on: {:?}", store.elapsed());
    assert_eq!((payloads(&calls, "a"), payloads(&calls, "b")), (of("a", 20), of("b", 20)));
    assert_eq!((payloads(&calls, "c"), payloads(&calls, "d")), (of("c", 1), of("d", 1)), "what runs may end");
    sleep(milliseconds(50)).await;
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_released), (41, 4 + 5));
}

#[tokio::test(start_paused = true)]
async fn a_failure_in_the_middle_releases_the_rest_of_its_key() {
    for answer in ["retry", "dead", "panic", "unavailable"] {
        let (store, calls) = (Store::new().ordered(), Calls::new());
        enqueue(&store, 5).await;
        store.state().max_claims = Some(1);
        let router = calls.answering(move |message| match (&message.payload[..], answer) {
            (b"a2", "retry") => broken(message),
            (b"a2", "dead") => Err(HandlerError::dead_letter("fatal")),
            (b"a2", "panic") => panic!("S3CR3T"),
            (b"a2", "unavailable") => Err(HandlerError::unavailable("gone")),
            _ => Ok(()),
        });
        let running = start(&store, router, config());
        sleep(milliseconds(100)).await;
        let n_events = running.events.matching("released").len();
        let report = running.stop().await;
        assert_eq!((payloads(&calls, "a"), report.n_released as usize), (of("a", 3), n_events), "{answer}");
        let n_b = payloads(&calls, "b").len();
        let n_released = 2 + (5 - n_b) + usize::from(answer == "unavailable");
        assert_eq!((report.n_released as usize, report.n_unsettled), (n_released, 0), "{answer}");
        assert_eq!(report.n_done as usize, 2 + n_b, "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_claim_of_a_key_that_is_held_waits_its_turn() {
    let (store, calls) = (Store::new(), Calls::new());
    enqueue(&store, 30).await;
    // a backend that hands out more of a key that is held
    store.state().says_ordered = true;
    let running = start(&store, calls.taking(milliseconds(5)), config().with_batch(4));
    until(|| calls.n() == 60).await;
    assert_eq!((payloads(&calls, "a"), payloads(&calls, "b")), (of("a", 30), of("b", 30)));
    let times: Vec<_> = calls.all().into_iter().filter(|call| call.payload.starts_with('a')).collect();
    assert!(times.windows(2).all(|pair| pair[1].at >= pair[0].at + milliseconds(5)));
    sleep(milliseconds(50)).await;
    assert_eq!(running.stop().await.n_done, 60);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_releases_the_rest_of_its_key() {
    let (store, calls) = (Store::new().ordered(), Calls::new());
    enqueue(&store, 3).await;
    store.state().max_claims = Some(1);
    let running = start(&store, calls.taking(seconds(20)), config().with_lease(seconds(6)));
    until(|| calls.n() == 2).await;
    store.state().loses = vec!["a0".into()];
    sleep(seconds(3)).await;
    assert_eq!(running.events.matching("lease lost").len(), 1);
    assert_eq!(running.events.matching("released").len(), 2, "a1 and a2");
    sleep(seconds(60)).await;
    assert_eq!(payloads(&calls, "a"), ["a0"]);
    assert_eq!(payloads(&calls, "b"), of("b", 3), "the other key goes on");
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_released, report.n_lease_lost), (3, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn what_waits_behind_a_key_keeps_its_lease() {
    let (store, calls) = (Store::new().ordered(), Calls::new());
    enqueue(&store, 10).await;
    let running = start(&store, calls.taking(seconds(4)), config().with_lease(seconds(3)));
    until(|| calls.n() == 20).await;
    sleep(seconds(5)).await;
    let report = running.stop().await;
    assert_eq!((report.n_done, report.n_lease_lost), (20, 0));
    assert_eq!(payloads(&calls, "a"), of("a", 10));
}

#[tokio::test(start_paused = true)]
async fn the_next_message_of_a_key_is_claimed_when_its_head_is_settled() {
    let (store, calls) = (Store::new().ordered().with_hints(), Calls::new());
    let running = start(&store, calls.taking(milliseconds(500)), config());
    sleep(seconds(1)).await;
    let begin = store.elapsed();
    store.enqueue([Draft::new("t", "a0").key("a")]).await;
    sleep(milliseconds(100)).await;
    // its hint finds nothing: the key is held
    store.enqueue([Draft::new("t", "a1").key("a")]).await;
    until(|| calls.n() == 2).await;
    let took = store.elapsed() - begin;
    assert!(took < milliseconds(510), "{took:?}: not at the next poll");
    sleep(seconds(1)).await;
    assert_eq!(running.stop().await.n_done, 2);
}

#[tokio::test(start_paused = true)]
async fn a_hot_key_needs_no_round_trip_per_message() {
    let (store, calls) = (Store::new().ordered(), Calls::new());
    store.enqueue((0..2_000).map(|n| Draft::new("t", format!("a{n}")).key("a"))).await;
    store.state().latency = milliseconds(2);
    let running = start(&store, calls.answering(fine), config());
    until(|| calls.n() == 2_000).await;
    assert!(store.elapsed() < milliseconds(500), "{:?}", store.elapsed());
    assert_eq!(payloads(&calls, "a"), of("a", 2_000));
    sleep(milliseconds(50)).await;
    assert_eq!(running.stop().await.n_done, 2_000);
}

#[tokio::test(start_paused = true)]
async fn many_keys_with_slow_handlers_use_every_place() {
    let (store, calls) = (Store::new().ordered(), Calls::new());
    // one long run before the others
    store.enqueue((0..500).map(|n| Draft::new("t", format!("a{n}")).key("a"))).await;
    store.enqueue((0..15).map(|n| Draft::new("t", "b").key(n.to_string()))).await;
    let running = start(&store, calls.taking(seconds(1)), config().with_batch(1_000));
    sleep(milliseconds(500)).await;
    assert_eq!(calls.n(), 16);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_holds_one_message_of_a_key() {
    let (store, batches) = (Store::new().ordered(), Arc::new(Mutex::new(Vec::new())));
    enqueue(&store, 5).await;
    let seen = batches.clone();
    let batching = Batching::new(10).with_linger(milliseconds(5));
    let router = Router::new().on_batch("t", batching, async move |messages: Vec<Message>| {
        let payloads = messages.iter().map(|message| String::from_utf8_lossy(&message.payload).into_owned());
        seen.lock().expect("batches").push(payloads.collect::<Vec<_>>().join(" "));
        Ok(())
    });
    let running = start(&store, router, config());
    until_async(async || store.n_left().await == 0).await;
    assert_eq!(running.stop().await.n_done, 10);
    let batches = batches.lock().expect("batches").concat();
    for key in ["a", "b"] {
        let places: Vec<_> = (0..5).map(|n| batches.find(&format!("{key}{n}")).expect("handled")).collect();
        assert!(places.is_sorted(), "{batches}");
    }
}

#[tokio::test(start_paused = true)]
async fn order_survives_failures_of_the_storage() {
    let (store, calls, n_failures) = (Store::new().ordered(), Calls::new(), Arc::new(AtomicUsize::new(0)));
    enqueue(&store, 30).await;
    let failures = n_failures.clone();
    let router = calls.answering(move |message| match failures.fetch_add(1, Ordering::SeqCst) % 7 == 3 {
        true => broken(message),
        false => Ok(()),
    });
    let running = start(&store, router, config().with_max_attempts(100).with_batch(6));
    for operation in ["claim", "settle", "extend"] {
        sleep(seconds(2)).await;
        store.state().failing.insert(operation, ErrorKind::Unavailable);
        sleep(seconds(1)).await;
        store.state().failing.clear();
    }
    until_async(async || store.n_left().await == 0).await;
    running.stop().await;
    for key in ["a", "b"] {
        let mut seen = payloads(&calls, key);
        seen.dedup();
        assert_eq!(seen, of(key, 30), "only the head is repeated");
    }
}
