//! What the server does for each statement of the hot path, told by the server itself.

use std::time::Duration;

use outbox_core::{Claim, ClaimRequest, Claimer, Outcome, Repository};
use outbox_sea_orm::OutboxTable;

use crate::support::{LEASE, Log, Pool, Site, run_logged, settle_all};

/// Each statement is reported with its plan and what it did, as a notice to the client.
const EXPLAIN: &[(&str, &str)] = &[
    ("session_preload_libraries", "auto_explain"),
    ("auto_explain.log_min_duration", "0"),
    ("auto_explain.log_analyze", "on"),
    ("auto_explain.log_timing", "off"),
    ("auto_explain.log_level", "notice"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explore_postgres() {
    run_logged("plans::explore_postgres", async |site, log| {
        let db = site.connect(Pool { settings: EXPLAIN, ..Pool::of(2) }).await;
        let outbox = OutboxTable::new(&db, site.name("outbox"));
        let o = site.sql_name("outbox");
        site.execute(&format!("ALTER TABLE {o} SET (autovacuum_enabled = off)")).await;
        site.execute(&format!("INSERT INTO {o} (id, topic, payload) SELECT gen_random_uuid(), 't', '\\x00' FROM generate_series(1, 20000)")).await;
        log.take();
        let claimer = Claimer::new();
        for _ in 0..2 {
        let claim = outbox.claim(ClaimRequest::new(100, LEASE).with_claimer(claimer.clone())).await.unwrap();
        eprintln!("{}", log.take());
        let _ = outbox.extend(claim.messages.iter().map(|c| c.lease).collect(), LEASE).await.unwrap();
        settle_all(&outbox, &claim, Outcome::Done).await;
        eprintln!("{}", log.take());
        }
        panic!("see");
    })
    .await;
}
