//! What deduplication keys do on each database beyond the suite.

use std::time::Duration;

use outbox_core::{DEDUP_RETENTION, Draft, ErrorKind, MessageId, Result, Transactions};
use outbox_sea_orm::OutboxTable;
use sea_orm::{IsolationLevel, TransactionTrait};
use tokio::time::timeout;

use crate::support::{Log, PATIENCE, Pool, Site, eventually, on_mysql, on_postgres, on_sqlite, run_logged};

fn keyed() -> Draft {
    Draft::new("t", "payload").dedup_key("k")
}

/// In a transaction whose snapshot is older than the first message with the key; what came of that, and the first id.
async fn repeat_under_repeatable_read(site: &Site) -> (MessageId, Result<Vec<MessageId>>) {
    let level = Some(IsolationLevel::RepeatableRead);
    let transaction = site.db.begin_with_config(level, None).await.expect("begin");
    let n: i64 = crate::support::value(
        &transaction,
        &format!("SELECT count(*) FROM {}", site.sql_name("outbox_dedup")),
    )
    .await;
    assert_eq!(n, 0, "the snapshot");
    let first = site.outbox.enqueue_autocommit(keyed()).await.expect("enqueue")[0];
    let answer = site.outbox.enqueue_in(&transaction, keyed()).await;
    match &answer {
        Ok(_) => transaction.commit().await.expect("commit"),
        Err(_) => transaction.rollback().await.expect("rollback"),
    }
    (first, answer)
}

/// The key is there and cannot be seen, so the transaction must be repeated.
async fn a_key_behind_the_snapshot_is_contention(site: &Site) {
    let (_, answer) = repeat_under_repeatable_read(site).await;
    let error = answer.expect_err("not visible");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Contention, true), "{error:?}");
}

/// MySQL: rows that are locked are read as they are, whatever the snapshot. MariaDB refuses that from 11.6 by default.
async fn a_key_behind_the_snapshot_is_found(site: &Site) {
    if site
        .value::<String>("SELECT IF(version() REGEXP '^1(1.([6-9]|1[0-9])|[2-9]).*MariaDB', 'yes', 'no')")
        .await
        == "yes"
    {
        return a_key_behind_the_snapshot_is_contention(site).await;
    }
    let (first, answer) = repeat_under_repeatable_read(site).await;
    assert_eq!(answer.expect("enqueue"), [first]);
    assert_eq!(site.drain().await, [first]);
}

/// Repeats of a key that is committed take no lock, so open transactions do not queue up behind one another.
async fn repeats_do_not_wait_for_each_other(site: &Site) {
    let first = site.outbox.enqueue_autocommit(keyed()).await.expect("enqueue");
    let one = site.outbox.begin().await.expect("begin");
    let other = site.outbox.begin().await.expect("begin");
    for call in [vec![keyed()], vec![keyed(), Draft::new("t", "").dedup_key("of its own")]] {
        assert_eq!(site.outbox.enqueue(&one, call).await.expect("repeat")[0], first[0]);
        for repeat in [vec![keyed()], vec![keyed(), Draft::new("t", "").dedup_key("of the other")]] {
            let repeat = timeout(PATIENCE, site.outbox.enqueue(&other, repeat)).await;
            assert_eq!(repeat.expect("it waits").expect("repeat")[0], first[0]);
        }
    }
    site.outbox.commit(one).await.expect("commit");
    site.outbox.commit(other).await.expect("commit");
}

/// What fails with its message leaves no key behind, not even without a transaction of the caller's.
async fn no_key_stays_without_its_message(site: &Site) {
    site.execute(&format!("ALTER TABLE {0} RENAME TO {1}", site.sql_name("outbox"), renamed(site))).await;
    let error = site.outbox.enqueue_autocommit(keyed()).await.expect_err("no table");
    assert_eq!(error.kind(), ErrorKind::Schema, "{error:?}");
    assert_eq!(site.count("outbox_dedup").await, 0);
}

/// PostgreSQL renames within a schema.
fn renamed(site: &Site) -> String {
    let away = site.sql_name("away");
    if site.is_postgres() { "away".to_owned() } else { away }
}

async fn a_savepoint_that_rolls_back_frees_its_key(site: &Site) {
    let transaction = site.db.begin().await.expect("begin");
    let savepoint = transaction.begin().await.expect("savepoint");
    site.outbox.enqueue_in(&savepoint, keyed()).await.expect("enqueue");
    savepoint.rollback().await.expect("rollback to the savepoint");
    let draft = keyed();
    let own = draft.id;
    assert_eq!(site.outbox.enqueue_in(&transaction, draft).await.expect("enqueue"), [own]);
    transaction.commit().await.expect("commit");
    assert_eq!(site.drain().await, [own]);
}

/// The handle that takes a key says for how long; what is zero or endless is refused before any statement.
async fn retention_is_the_handles(site: &Site) {
    let handle = |retention| site.outbox.clone().with_dedup_retention(retention);
    for retention in [Duration::ZERO, Duration::MAX] {
        let error = handle(retention).enqueue_autocommit(keyed()).await.expect_err("out of bounds");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().starts_with("invalid dedup_retention: "), "{error}");
    }
    let repeat = async |outbox: &OutboxTable| outbox.enqueue_autocommit(keyed()).await.expect("enqueue")[0];
    let first = repeat(&handle(Duration::from_millis(1))).await;
    eventually("the key's end", async || repeat(&site.outbox).await != first).await;
    let second = repeat(&handle(DEDUP_RETENTION)).await;
    assert_eq!(repeat(&handle(Duration::from_millis(1))).await, second, "a repeat changes nothing");
}

/// How many statements a call sends within its transaction.
async fn n_statements(outbox: &OutboxTable, log: &Log, drafts: Vec<Draft>) -> usize {
    let cx = outbox.begin().await.expect("begin");
    log.take();
    outbox.enqueue(&cx, drafts).await.expect("enqueue");
    let n = log.take().matches(" sqlx::query: ").count();
    outbox.commit(cx).await.expect("commit");
    n
}

async fn a_key_costs_one_statement(site: &Site, log: &Log) {
    let db = site.connect(Pool { logs: true, ..Pool::of(2) }).await;
    let outbox = OutboxTable::new(&db, site.name("outbox"));
    let many = || (0..10).map(|n| Draft::new("t", "").dedup_key(n)).collect::<Vec<_>>();
    for (drafts, n, why) in [
        (vec![Draft::new("t", "")], 1, "without a key: the messages"),
        (vec![keyed()], 2, "the key, the message"),
        (vec![keyed()], 3, "the key, once whether it may read, the first id"),
        (vec![keyed()], 2, "the key, the first id"),
        (many(), 2, "the keys, the messages"),
        (many(), 2, "the keys, the first ids"),
        (vec![keyed(), Draft::new("t", "")], 3, "the key, the first id, the other message"),
    ] {
        assert_eq!(n_statements(&outbox, log, drafts).await, n, "{why}");
    }
}

#[tokio::test]
async fn a_key_costs_one_statement_on_postgres() {
    run_logged("dedup::a_key_costs_one_statement_on_postgres", async |site, log| {
        a_key_costs_one_statement(site, log).await
    })
    .await;
}

on_postgres! {
    a_key_behind_the_snapshot_is_contention,
    repeats_do_not_wait_for_each_other,
    no_key_stays_without_its_message,
    a_savepoint_that_rolls_back_frees_its_key,
    retention_is_the_handles,
}

on_mysql! {
    a_key_behind_the_snapshot_is_found,
    no_key_stays_without_its_message,
    a_savepoint_that_rolls_back_frees_its_key,
    retention_is_the_handles,
}

on_sqlite! {
    no_key_stays_without_its_message,
    a_savepoint_that_rolls_back_frees_its_key,
    retention_is_the_handles,
}
