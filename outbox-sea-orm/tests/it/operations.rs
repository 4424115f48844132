//! What an operator sees of a real table.

use std::time::Duration;

use outbox_core::{
    Draft, MAX_COUNTED, Mark, MessageId, Operations, Outcome, ProcessedStore, Retention, TopicStats,
    Transactions,
};
use serde_json::json;
use uuid::Uuid;

use crate::support::{Site, on_each, settle_all};

const N: u64 = 60_000;

/// `n` ready rows, of which each tenth has the topic `rare`, created two hours ago.
async fn fill(site: &Site, n: u64) {
    let outbox = site.sql_name("outbox");
    let topic = "CASE WHEN i % 10 = 0 THEN 'rare' ELSE 'usual' END";
    let sql = match (site.is_postgres(), site.is_mysql()) {
        (true, _) => format!(
            "INSERT INTO {outbox} (id, topic, payload, created_at)
             SELECT gen_random_uuid(), {topic}, convert_to(repeat('x', 100), 'UTF8'), now() - interval '2 hours'
               FROM generate_series(1, {n}) AS i"
        ),
        (_, true) => {
            let (digits, now) =
                ("JSON_TABLE('[0,1,2,3,4,5,6,7,8,9]', '$[*]' COLUMNS (d INT PATH '$'))", "UTC_TIMESTAMP(6)");
            let ago = format!("(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {now}) - 7200000000) * 1000");
            format!(
                "INSERT INTO {outbox} (id, topic, payload, headers, created_at, place, due, due_since)
                 SELECT UNHEX(REPLACE(UUID(), '-', '')), {topic}, REPEAT('x', 100), '{{}}', {now} - INTERVAL 2 HOUR, {ago}, {ago}, {ago}
                   FROM (SELECT a.d + 10 * b.d + 100 * c.d + 1000 * e.d + 10000 * f.d AS i
                           FROM {digits} AS a, {digits} AS b, {digits} AS c, {digits} AS e, {digits} AS f) AS g
                  WHERE i < {n}"
            )
        }
        _ => format!(
            "WITH RECURSIVE g (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM g WHERE i < {n})
             INSERT INTO {outbox} (id, topic, payload, created_at)
             SELECT randomblob(16), {topic}, zeroblob(100), (unixepoch() - 7200) * 1000 FROM g"
        ),
    };
    site.execute(&sql).await;
}

fn assert_about(actual: u64, expected: u64) {
    let share = actual as f64 / expected as f64;
    assert!((0.7..1.4).contains(&share), "{actual} is not about {expected}");
}

async fn stats_of_a_large_table_are_an_estimate(site: &Site) {
    fill(site, MAX_COUNTED as u64).await;
    site.execute(&format!("UPDATE {} SET topic = 'usual'", site.sql_name("outbox"))).await;
    let stats = site.outbox.stats().await.expect("stats");
    assert!(!stats.is_estimate);
    assert_eq!(stats.topics["usual"].n_due, MAX_COUNTED as u64);
    fill(site, N).await;
    let outbox = site.sql_name("outbox");
    let rare = format!(
        "SELECT id FROM (SELECT id FROM {outbox} WHERE topic = 'rare' ORDER BY seq DESC LIMIT 7) AS rare"
    );
    site.execute(&format!("UPDATE {outbox} SET state = 2 WHERE id IN ({rare})")).await;
    let stats = site.outbox.stats().await.expect("stats");
    assert!(stats.is_estimate);
    let TopicStats { n_pending, n_due, n_dead, oldest_due, .. } = stats.topics["rare"];
    assert_about(n_due, N / 10);
    assert_eq!((n_pending, n_dead), (n_due, 7), "a state with few messages is counted");
    assert_about(stats.topics["usual"].n_due, N / 10 * 9 + MAX_COUNTED as u64);
    let two_hours = Duration::from_secs(7_200);
    assert!(
        oldest_due.is_some_and(|age| age.abs_diff(two_hours) < Duration::from_secs(60)),
        "{oldest_due:?}"
    );
}

const OPERATIONS: &str = include_str!("../../../docs/operations.md");

/// The statements of the chapter on erasure, on these tables.
async fn the_sql_for_erasure_removes_what_a_key_has(site: &Site) {
    let keeping = site.outbox.clone().with_retention(Retention::Keep);
    let of = |key: &str| Draft::new("t", "x").key(key);
    for outcome in [Outcome::Done, Outcome::Dead { error: String::new() }] {
        keeping.enqueue_autocommit(of("customer-7")).await.expect("enqueue");
        settle_all(&keeping, &site.claim(1).await, outcome).await;
    }
    keeping
        .enqueue_autocommit([of("customer-7"), of("customer-7"), of("customer-8")])
        .await
        .expect("enqueue");
    let at_work = site.claim(1).await.messages.remove(0);
    let cx = site.inbox.begin().await.expect("begin");
    for key in ["customer-7", "customer-8"] {
        let mark = Mark::new("g", Uuid::now_v7()).with_metadata(json!({ "key": key }));
        let _ = site.inbox.mark_processed(&cx, mark).await.expect("mark");
    }
    site.inbox.commit(cx).await.expect("commit");
    let (_, chapter) = OPERATIONS.split_once("## Erasure").expect("the chapter");
    let sql = chapter.split("```").nth(1).and_then(|block| block.strip_prefix("sql\n")).expect("its SQL");
    let named = |sql: String, table: &str| sql.replace(&format!("\"{table}\""), &site.sql_name(table));
    site.execute(&named(named(sql.to_owned(), "outbox"), "inbox")).await;
    let outbox = site.sql_name("outbox");
    let left: Vec<MessageId> =
        site.values(&format!("SELECT id FROM {outbox} WHERE key = 'customer-7'")).await;
    assert_eq!(left, [at_work.message.id], "what is being handled stays until it is settled");
    assert_eq!((site.count("outbox").await, site.count("inbox").await), (2, 1));
}

on_each! {
    on_postgres { the_sql_for_erasure_removes_what_a_key_has }, on_mysql, on_sqlite => {
        stats_of_a_large_table_are_an_estimate,
    }
}
