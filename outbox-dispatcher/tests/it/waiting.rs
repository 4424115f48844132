use outbox_core::{Draft, ErrorKind};
use tokio::time::sleep;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn an_idle_minute_with_a_listener_costs_at_most_ten_statements() {
    let store = Store::new().with_hints();
    let running = start(&store, Calls::new().answering(fine), config());
    sleep(seconds(30)).await;
    let before = store.state().calls.len();
    sleep(seconds(600)).await;
    let n_calls = store.state().calls.len() - before;
    assert!(n_calls <= 100, "{n_calls} in ten minutes");
    assert!(store.n_calls("probe") >= 8, "hints are tried about once a minute");
    assert_eq!(store.n_calls("prepare"), 1);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a14_empty_polls_keep_their_interval() {
    let store = Store::new();
    let running = start(&store, Calls::new().answering(fine), config());
    sleep(seconds(60)).await;
    let times = store.times_of("claim");
    let gaps: Vec<_> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert_eq!(gaps[..5], [100, 200, 400, 800, 1_000], "{gaps:?}");
    assert!(gaps[5..].iter().all(|gap| *gap == 1_000), "{gaps:?}");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hint_is_answered_at_once() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    let running = start(&store, calls.answering(fine), config());
    for _ in 0..20 {
        sleep(seconds(3)).await;
        let before = calls.n();
        store.enqueue_n("t", 1).await;
        sleep(milliseconds(1)).await;
        assert_eq!(calls.n(), before + 1);
    }
    assert_eq!(running.stop().await.n_done, 20);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_forged_hints_costs_a_hundred_looks_a_second() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    let running = start(&store, calls.answering(fine), config());
    sleep(seconds(1)).await;
    let before = store.n_calls("claim");
    for _ in 0..5_000 {
        store.hint();
        sleep(milliseconds(1)).await;
    }
    let n_claims = store.n_calls("claim") - before;
    assert!((400..=510).contains(&n_claims), "{n_claims} in five seconds");
    store.enqueue_n("t", 1).await;
    sleep(milliseconds(12)).await;
    assert_eq!(calls.n(), 1);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn fifty_messages_a_second_cost_two_statements_each() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    let running = start(&store, calls.answering(fine), config());
    sleep(seconds(1)).await;
    let before = store.state().calls.len();
    for _ in 0..500 {
        store.enqueue_n("t", 1).await;
        sleep(milliseconds(20)).await;
    }
    let n_calls = store.state().calls.len() - before;
    assert!((1_000..1_050).contains(&n_calls), "{n_calls} for 500 messages");
    assert_eq!(running.stop().await.n_done, 500);
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_polled_without_hints_and_ends_in_sleep() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    let running = start(&store, calls.answering(fine), config());
    sleep(seconds(1)).await;
    let before = store.n_calls("prepare");
    for _ in 0..1_000 {
        store.enqueue_n("t", 1).await;
        sleep(milliseconds(1)).await;
    }
    assert_eq!((store.n_calls("stand_down"), store.n_calls("prepare") - before), (1, 0));
    sleep(seconds(1)).await;
    assert_eq!((store.n_calls("stand_down"), store.n_calls("prepare") - before), (1, 1));
    let n_claims = store.n_calls("claim");
    sleep(seconds(8)).await;
    assert_eq!(store.n_calls("claim"), n_claims, "asleep");
    assert_eq!(running.stop().await.n_done, 1_000);
}

#[tokio::test(start_paused = true)]
async fn nothing_committed_while_going_to_sleep_waits_for_a_poll() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    store.state().looks = vec![milliseconds(50); 4];
    let running = start(&store, calls.answering(fine), config());
    sleep(milliseconds(120)).await;
    // a commit that gave no hint, as one does that began before the first look
    store.enqueue([Draft::new("t", "late")]).await;
    sleep(milliseconds(60)).await;
    assert_eq!(calls.n(), 1);
    until(|| store.state().looks.is_empty()).await;
    sleep(seconds(1)).await;
    let n_claims = store.n_calls("claim");
    sleep(seconds(8)).await;
    assert_eq!(store.n_calls("claim"), n_claims);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_delayed_message_is_delivered_when_it_is_due() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    let running = start(&store, calls.answering(fine), config());
    store.enqueue([Draft::new("t", "").delay(milliseconds(4_321))]).await;
    until(|| calls.n() == 1).await;
    assert!((4_321..4_330).contains(&store.elapsed().as_millis()), "{:?}", store.elapsed());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_of_a_foreign_topic_that_is_due_causes_no_hot_loop() {
    let store = Store::new().with_hints();
    let running = start(&store, Calls::new().answering(fine), config());
    store.enqueue([Draft::new("other", "").delay(seconds(2))]).await;
    sleep(seconds(60)).await;
    assert!(store.n_calls("claim") < 20, "{}", store.n_calls("claim"));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_listener_costs_no_message_and_comes_back() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    let running = start(&store, calls.answering(fine), config());
    sleep(seconds(1)).await;
    for operation in ["hint", "listen"] {
        store.state().failing.insert(operation, ErrorKind::Unavailable);
    }
    store.enqueue_n("t", 1).await;
    sleep(milliseconds(1)).await;
    assert_eq!(calls.n(), 1, "a lost listener looks at once");
    sleep(seconds(5)).await;
    store.enqueue_n("t", 1).await;
    sleep(milliseconds(1_001)).await;
    assert_eq!(calls.n(), 2, "by polling");
    assert!(store.n_calls("listen") <= 5, "with backoff");
    store.state().failing.clear();
    sleep(seconds(120)).await;
    store.enqueue_n("t", 1).await;
    sleep(milliseconds(1)).await;
    assert_eq!(calls.n(), 3, "by hint");
    let events = running.events.clone();
    running.stop().await;
    assert_eq!(events.matching("wake-up"), ["wake-up ready false", "wake-up lost", "wake-up ready true"]);
}

#[tokio::test(start_paused = true)]
async fn hints_that_do_not_arrive_are_noticed_and_replaced_by_polling() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    let running = start(&store, calls.answering(fine), config());
    sleep(seconds(5)).await;
    store.state().is_deaf = true;
    until(|| !running.events.matching("deaf").is_empty()).await;
    assert!(store.elapsed() < seconds(75));
    let n_claims = store.n_calls("claim");
    sleep(seconds(10)).await;
    assert!(store.n_calls("claim") - n_claims >= 10, "polling");
    store.state().is_deaf = false;
    sleep(seconds(301)).await;
    assert_eq!(running.events.matching("ready true").len(), 1);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_late_commit_that_gave_no_hint_is_found_within_a_tenth_of_a_second() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    let running = start(&store, calls.answering(fine), config());
    sleep(seconds(1)).await;
    store.enqueue_n("t", 1).await;
    sleep(milliseconds(1)).await;
    store.enqueue_without_hint([Draft::new("t", "late")]).await;
    sleep(milliseconds(115)).await;
    assert_eq!(calls.n(), 2);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_on_time_also_when_the_backend_does_not_know_what_is_due() {
    let (store, calls) = (Store::new().with_hints(), Calls::new());
    store.state().hides_due = true;
    let running = start(&store, calls.answering(broken), config().with_max_attempts(2));
    sleep(seconds(1)).await;
    store.enqueue_n("t", 1).await;
    sleep(milliseconds(1_010)).await;
    assert_eq!(calls.n(), 2);
    running.stop().await;
}
