//! What an operator sees of a real table.

use std::time::Duration;

use outbox_core::{MAX_COUNTED, Operations, TopicStats};

use crate::support::{Site, on_postgres, on_sqlite};

const N: u64 = 60_000;

/// `n` ready rows, of which each tenth has the topic `rare`, created two hours ago.
async fn fill(site: &Site, n: u64) {
    let outbox = site.sql_name("outbox");
    let topic = "CASE WHEN i % 10 = 0 THEN 'rare' ELSE 'usual' END";
    let sql = match site.is_postgres() {
        true => format!(
            "INSERT INTO {outbox} (id, topic, payload, created_at)
             SELECT gen_random_uuid(), {topic}, convert_to(repeat('x', 100), 'UTF8'), now() - interval '2 hours'
               FROM generate_series(1, {n}) AS i"
        ),
        false => format!(
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
    site.execute(&format!(
        "UPDATE {outbox} SET state = 2 WHERE id IN (SELECT id FROM {outbox} WHERE topic = 'rare' ORDER BY seq DESC LIMIT 7)"
    ))
    .await;
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

on_postgres! { stats_of_a_large_table_are_an_estimate }
on_sqlite! { stats_of_a_large_table_are_an_estimate }
