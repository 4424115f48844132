//! Least privilege on a log.

use outbox_core::{
    BlockedQuery, ClaimRequest, DeadLetterFilter, Declaration, Draft, ErrorKind, Maintenance, OnDead,
    Operations, Outcome, PartitionInterval, Repository, Result, Wakeup,
};
use outbox_sea_orm::{LogGroup, OutboxLog};
use outbox_testkit::Harness;

use super::Log;
use crate::roles::{GRANTS, connect, rename_roles};
use crate::support::{LEASE, settle_all};

const ROLES: [&str; 4] = ["producer", "dispatcher", "consumer", "admin"];

fn declared() -> Declaration {
    Declaration::new().ordered(OnDead::Continue).partitioned(PartitionInterval::Day)
}

/// The part of `grants.sql` that is about a log.
fn grants(schema: &str) -> String {
    let (_, of_log) = GRANTS.split_once("-- A log, where there is one").expect("a section");
    let lines =
        of_log.lines().filter_map(|line| line.strip_prefix("-- ").filter(|line| line.starts_with("GRANT")));
    let roles: String = ROLES.map(|role| format!("CREATE ROLE outbox_{role} NOLOGIN; ")).concat();
    let usage: String =
        ROLES.map(|role| format!("GRANT USAGE ON SCHEMA {schema} TO outbox_{role}; ")).concat();
    let sql = format!("{roles}{usage}{}", lines.collect::<Vec<_>>().join("\n"));
    rename_roles(&sql.replace("\"log", &format!("{schema}.\"log")), schema)
}

/// The log and its group as a role.
async fn handles(log: &Log, role: &str) -> (OutboxLog, LogGroup) {
    let db = connect(&format!("{}_{role}", log.schema)).await;
    let outbox = OutboxLog::new(&db, log.log.name().clone()).declared(declared());
    let group = outbox.group("billing").expect("a name");
    (outbox, group)
}

fn denied<T: std::fmt::Debug>(result: Result<T>) {
    assert_eq!(result.expect_err("denied").kind(), ErrorKind::PermissionDenied);
}

async fn deliver(group: &LogGroup, outcome: Outcome) -> usize {
    let claim = group.claim(ClaimRequest::new(10, LEASE)).await.expect("claim");
    settle_all(group, &claim, outcome).await;
    claim.messages.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_of_a_log_may_do_their_part() {
    let Ok(log) = Log::with(declared()).await else { return };
    log.execute(&grants(&log.schema)).await;
    let (outbox, group) = handles(&log, "producer").await;
    outbox
        .enqueue_autocommit(["a", "b", "a"].map(|key| Draft::new("t", "x").key(key)))
        .await
        .expect("enqueue");
    denied(group.claim(ClaimRequest::new(1, LEASE)).await);
    denied(group.stats().await);
    let (outbox, group) = handles(&log, "dispatcher").await;
    denied(outbox.enqueue_autocommit([Draft::new("t", "x")]).await);
    denied(outbox.maintain(Maintenance::new().with_ahead(9)).await);
    assert!(group.listen().await.expect("listen").is_some());
    let claim = group.claim(ClaimRequest::new(1, LEASE)).await.expect("claim");
    group.extend(claim.messages.iter().map(|claimed| claimed.lease).collect(), LEASE).await.expect("extend");
    assert_eq!(deliver(&group, Outcome::Dead { error: "no".into() }).await, 1, "a is claimed");
    settle_all(&group, &claim, Outcome::Release).await;
    assert_eq!(deliver(&group, Outcome::Done).await, 2);
    let (outbox, group) = handles(&log, "admin").await;
    denied(outbox.enqueue_autocommit([Draft::new("t", "x")]).await);
    assert_eq!(group.stats().await.expect("stats").total().n_dead, 1);
    group.blocked_keys(BlockedQuery::new(10)).await.expect("blocked keys");
    assert_eq!(group.redrive_matching(DeadLetterFilter::default(), 10).await.expect("redrive"), 1);
    group.check().await.expect("check");
    for role in ROLES {
        log.execute(&format!("DROP OWNED BY {0}_{role}; DROP ROLE {0}_{role}", log.schema)).await;
    }
    log.finish().await;
}
