//! A group whose log has more than it can ever read.

use std::time::Duration;

use outbox_core::{
    ClaimRequest, Claimer, DeadLetterFilter, Declaration, Draft, MessageId, OnDead, Operations, Outcome,
    Repository,
};
use outbox_sea_orm::{LogGroup, OutboxLog, Subscription};
use tokio::time::sleep;

use crate::support::{LEASE, Site, on_postgres, settle_all};

on_postgres!(redriven_message_comes_soon, redriven_message_of_an_ordered_log_comes_soon);

/// How long claims take from the log only, and a bit.
const SOON: Duration = Duration::from_millis(120);

async fn claim(group: &LogGroup, claimer: &Claimer, outcome: Outcome, limit: usize) -> Vec<MessageId> {
    let request = ClaimRequest::new(limit, LEASE).with_claimer(claimer.clone());
    let claimed = group.claim(request).await.expect("claim");
    settle_all(group, &claimed, outcome).await;
    claimed.messages.iter().map(|claimed| claimed.message.id).collect()
}

/// What is redriven comes with the first claim after a tenth of a second, whatever is unread in the log.
async fn comes_soon(site: &Site, declared: Declaration) {
    let log = OutboxLog::new(&site.db, site.name("events")).declared(declared);
    log.migrate().await.expect("migrate");
    let group = log.register(Subscription::new("g")).await.expect("register");
    let drafts: Vec<Draft> = (0..5_000).map(|key| Draft::new("t", "x").key(key)).collect();
    let sent = log.enqueue_autocommit(drafts).await.expect("enqueue");
    let claimer = Claimer::new();
    assert_eq!(claim(&group, &claimer, Outcome::Dead { error: "no".into() }, 1).await, sent[..1]);
    assert_eq!(claim(&group, &claimer, Outcome::Done, 100).await.len(), 100);
    assert_eq!(group.redrive_matching(DeadLetterFilter::default(), 10).await.expect("redrive"), 1);
    sleep(SOON).await;
    assert!(claim(&group, &claimer, Outcome::Done, 100).await.contains(&sent[0]));
    assert_eq!(claim(&group, &claimer, Outcome::Done, 100).await.len(), 100, "the log goes on");
}

async fn redriven_message_comes_soon(site: &Site) {
    comes_soon(site, Declaration::new()).await;
}

async fn redriven_message_of_an_ordered_log_comes_soon(site: &Site) {
    comes_soon(site, Declaration::new().ordered(OnDead::Continue)).await;
}
