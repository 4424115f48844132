//! Turns, on real backlogs and with a dispatcher.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use outbox_core::{
    ClaimRequest, Claimer, Draft, ErrorKind, Fairness, Operations, PartitionInterval, Repository,
};
use outbox_dispatcher::{Config, Dispatcher, Limit, Message, Router};
use outbox_sea_orm::OutboxTable;
use sea_orm::{ConnectionTrait, TransactionTrait};

use crate::support::{LEASE, Site, on_each};

fn by_tenant(site: &Site, tenant: &str) -> OutboxTable {
    OutboxTable::new(&site.db, site.name("declared")).fair(Fairness::Header(tenant.into()))
}

async fn by_key(site: &Site) -> OutboxTable {
    let table = OutboxTable::new(&site.db, site.name("declared")).fair(Fairness::Key);
    table.migrate().await.expect("migrate");
    table
}

async fn a_hundred_thousand_messages_delay_another_by_two_batches_at_most(site: &Site) {
    let outbox = by_key(site).await;
    for _ in 0..100 {
        let loud: Vec<_> = (0..1_000).map(|_| Draft::new("t", "").key("loud")).collect();
        outbox.enqueue_autocommit(loud).await.expect("enqueue");
    }
    let claimer = Claimer::new();
    for key in ["a", "z", "a"] {
        let id = outbox.enqueue_autocommit(Draft::new("t", "").key(key)).await.expect("enqueue")[0];
        let mut n_claims = 0;
        let mut is_found = false;
        while !is_found {
            let request = ClaimRequest::new(100, LEASE).with_claimer(claimer.clone());
            let claim = outbox.claim(request).await.expect("claim");
            assert_eq!(claim.messages.len(), 100);
            is_found = claim.messages.iter().any(|claimed| claimed.message.id == id);
            n_claims += 1;
        }
        assert!(n_claims <= 2, "{key} came with claim {n_claims}");
    }
}

/// What others hold at the moment takes no place: a claim that is not full lets its dispatcher rest.
async fn turns_of_locked_rows_go_to_others(site: &Site) {
    let outbox = by_key(site).await;
    for key in ["a", "b", "c"] {
        outbox.enqueue_autocommit(Draft::new("t", "").key(key)).await.expect("enqueue");
    }
    let other = site.db.begin().await.expect("begin");
    let lock = format!("SELECT 1 FROM {} WHERE key < 'c' FOR UPDATE", site.sql_name("declared"));
    other.execute_unprepared(&lock).await.expect("lock");
    let claim = outbox.claim(ClaimRequest::new(2, LEASE)).await.expect("claim");
    assert_eq!(
        claim.messages.iter().map(|claimed| claimed.message.key.as_deref()).collect::<Vec<_>>(),
        [Some("c")]
    );
    other.rollback().await.expect("unlock");
}

async fn a_difference_of_turns_is_named(site: &Site) {
    let plain = OutboxTable::new(&site.db, site.name("declared"));
    by_tenant(site, "tenant").migrate().await.expect("migrate");
    by_tenant(site, "tenant").migrate().await.expect("migrate again");
    by_tenant(site, "tenant").check().await.expect("check");
    let theirs = "but the table was made \"fair between headers tenant\"";
    for (other, ours) in [
        (plain.clone(), "plain"),
        (plain.fair(Fairness::Key), "\"fair between keys\""),
        (by_tenant(site, "region"), "\"fair between headers region\""),
    ] {
        let error = other.check().await.expect_err("differs").to_string();
        assert!(error.contains(&format!("declared {ours} here, {theirs}")), "{error}");
        let error = other.migrate().await.expect_err("differs").to_string();
        assert!(error.contains(theirs), "{error}");
    }
}

async fn missing_parts_of_a_fair_table_are_named(site: &Site) {
    let outbox = by_key(site).await;
    let table = site.sql_name("declared");
    let drop = match site.is_mysql() {
        true => format!("DROP INDEX declared_lanes ON {table}"),
        false => format!("DROP INDEX {table}_lanes"),
    };
    site.execute(&drop).await;
    let error = outbox.check().await.expect_err("no index").to_string();
    assert!(error.contains("declared_lanes is missing"), "{error}");
    site.execute(&format!("ALTER TABLE {table} DROP COLUMN lane")).await;
    let error = outbox.check().await.expect_err("no column").to_string();
    assert!(error.contains("column lane is missing"), "{error}");
}

/// A claim loop goes on behind the lane of the last message that it has read, so both must name lanes alike.
async fn lanes_are_those_of_the_contract(site: &Site) {
    let fairness = Fairness::Header("x-tenant.id_2".into());
    let outbox = OutboxTable::new(&site.db, site.name("declared")).fair(fairness.clone());
    outbox.migrate().await.expect("migrate");
    let tenants =
        ["acme", "Acme", "acme ", "", " ", "\"", "\\", "/", "null", "1", "ä", "a\u{308}", "😀", "'", "{}"];
    let draft = |tenant: &str| Draft::new("t", "").key("k").header("x-tenant.id_2", tenant);
    let drafts: Vec<_> = tenants.into_iter().flat_map(|tenant| [draft(tenant), draft(tenant)]).collect();
    let lane = |draft: &Draft| fairness.lane(&draft.topic, draft.key.as_deref(), &draft.headers);
    let expected: BTreeSet<_> = drafts.iter().map(lane).collect();
    outbox.enqueue_autocommit(drafts).await.expect("enqueue");
    outbox
        .enqueue_autocommit(Draft::new("t", "").header("x-tenant", "another header"))
        .await
        .expect("enqueue");
    let lanes: Vec<String> = site.values(&format!("SELECT lane FROM {}", site.sql_name("declared"))).await;
    assert_eq!(lanes.into_iter().collect::<BTreeSet<_>>(), expected);
    let claim = outbox.claim(ClaimRequest::new(expected.len(), LEASE)).await.expect("claim");
    let lane = |message: &Message| fairness.lane(&message.topic, message.key.as_deref(), &message.headers);
    let taken: BTreeSet<_> = claim.messages.iter().map(|claimed| lane(&claimed.message)).collect();
    assert_eq!(taken, expected, "one message of each");
}

async fn turns_and_partitions_are_refused(site: &Site) {
    let both = by_tenant(site, "tenant").partitioned(PartitionInterval::Day);
    for error in [both.migrate().await.expect_err("refused"), both.check().await.expect_err("refused")] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}

/// Topics with a limit are claimed apart from the others: each of these loops takes turns for itself.
async fn a_dispatcher_takes_turns_within_its_limits(site: &Site) {
    let outbox = by_key(site).await;
    for topic in ["quick", "limited"] {
        let loud: Vec<_> = (0..300).map(|_| Draft::new(topic, "").key("loud")).collect();
        outbox.enqueue_autocommit(loud).await.expect("enqueue");
    }
    for topic in ["quick", "limited"] {
        outbox.enqueue_autocommit(Draft::new(topic, "").key("quiet")).await.expect("enqueue");
    }
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = calls.clone();
    let handle = async move |message: Message| {
        seen.lock().expect("calls").push((message.topic.clone(), message.key.clone()));
        Ok(())
    };
    let router = Router::new().on("quick", handle.clone()).on("limited", handle);
    let config = Config::default().with_batch(20).with_limit(Limit::new(["limited"]).with_concurrency(1));
    let dispatcher = Dispatcher::new(outbox, router).with_config(config).expect("configuration");
    dispatcher.drain_once().await.expect("drain");
    let calls = calls.lock().expect("calls");
    assert_eq!(calls.len(), 602);
    for topic in ["quick", "limited"] {
        let of_topic: Vec<_> = calls.iter().filter(|(of, _)| of == topic).collect();
        let quiet = of_topic.iter().position(|(_, key)| key.as_deref() == Some("quiet"));
        assert!(quiet.expect("the quiet key") < 100, "{topic}: {quiet:?} of {}", of_topic.len());
    }
}

on_each! {
    on_postgres { turns_and_partitions_are_refused, turns_of_locked_rows_go_to_others }, on_mysql, on_sqlite => {
        a_hundred_thousand_messages_delay_another_by_two_batches_at_most, a_difference_of_turns_is_named,
        missing_parts_of_a_fair_table_are_named, a_dispatcher_takes_turns_within_its_limits, lanes_are_those_of_the_contract,
    }
}
