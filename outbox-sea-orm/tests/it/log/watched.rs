//! What is to be known of a group: depth, lag, in flight, failures, latency, dead letters, and what holds it back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outbox_core::{
    ClaimRequest, DeadLetterFilter, DeadLetterQuery, Draft, HandlerError, Operations, Repository, TopicStats,
};
use outbox_dispatcher::{DepthWatch, Dispatcher, Event, Message, Observer, Router};
use outbox_sea_orm::{OutboxLog, Subscription};
use sea_orm::TransactionTrait;

use crate::support::{LEASE, Site, on_postgres};

on_postgres!(what_is_to_be_known_of_a_group_is_told);

/// What an observer has been told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    depth: BTreeMap<String, TopicStats>,
    held_back: Vec<(u64, bool)>,
    latencies: Vec<Duration>,
    n_retried: usize,
    n_dead: usize,
}

impl Observer for Told {
    fn on(&self, event: &Event<'_>) {
        let mut known = self.0.lock().expect("told");
        match *event {
            Event::Depth { topic, stats, .. } => drop(known.depth.insert(topic.into(), stats.clone())),
            Event::HeldBack { n_numbers, by, .. } => known.held_back.push((n_numbers, by.is_some())),
            Event::Handled { outcome: "ok", age, .. } => known.latencies.push(age),
            Event::Retried { .. } => known.n_retried += 1,
            Event::Dead { .. } => known.n_dead += 1,
            _ => {}
        }
    }

    fn times_handlers(&self) -> bool {
        true
    }
}

async fn what_is_to_be_known_of_a_group_is_told(site: &Site) {
    let log = OutboxLog::new(&site.db, site.name("events"));
    log.migrate().await.expect("migrate");
    let group = log.register(Subscription::new("billing")).await.expect("register");
    let of = |topic: &str| Draft::new(topic, "x");
    log.enqueue_autocommit([of("good"), of("bad"), of("dead"), of("good")]).await.expect("enqueue");
    let told = Told::default();
    let router = Router::new()
        .on("good", async |_: Message| Ok(()))
        .on("bad", async |_: Message| Err(HandlerError::from("no")))
        .on("dead", async |_: Message| Err(HandlerError::dead_letter("no")));
    Dispatcher::new(group.clone(), router).with_observer(told.clone()).drain_once().await.expect("drain");
    log.enqueue_autocommit([of("good"), of("good"), of("good")]).await.expect("enqueue");
    let claimed = group.claim(ClaimRequest::new(1, LEASE)).await.expect("claim");
    assert_eq!(claimed.messages.len(), 1);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let open = site.db.begin().await.expect("begin");
    log.enqueue_in(&open, of("good")).await.expect("enqueue");
    let mut watch = DepthWatch::new(group.clone(), told.clone());
    watch.look(LEASE).await.expect("look");
    open.rollback().await.expect("rollback");
    watch.look(LEASE).await.expect("look");

    let known = std::mem::take(&mut *told.0.lock().expect("told"));
    let good = &known.depth["good"];
    assert_eq!((good.n_due, good.n_claimed), (2, 1), "depth and in flight");
    assert!(good.oldest_due >= Some(Duration::from_millis(20)), "lag: {:?}", good.oldest_due);
    assert_eq!(known.depth["bad"].n_retrying, 1);
    assert_eq!(known.depth["dead"].n_dead, 1);
    assert_eq!((known.latencies.len(), known.n_retried, known.n_dead), (2, 1, 1));
    assert!(known.latencies.iter().all(|latency| *latency < LEASE));
    assert_eq!(known.held_back.len(), 2);
    assert!(known.held_back[0].0 > 0 && known.held_back[0].1, "{:?}", known.held_back);
    assert_eq!(known.held_back[1], (0, false));
    settle_dead_letters(&group).await;
}

async fn settle_dead_letters(group: &impl Operations) {
    let letters = group.dead_letters(DeadLetterQuery::new(10)).await.expect("list").letters;
    assert_eq!(letters.len(), 1);
    assert_eq!(group.redrive_matching(DeadLetterFilter::default(), 10).await.expect("redrive"), 1);
    assert_eq!(group.stats().await.expect("stats").topics["dead"].n_due, 1);
}
