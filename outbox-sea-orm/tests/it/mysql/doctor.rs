//! Each finding of the doctor, brought about for real.

use std::time::Duration;

use outbox_core::{
    ClaimRequest, Draft, ErrorKind, Finding, Limits, Operations, Repository, Severity, Symptom,
};
use outbox_sea_orm::OutboxTable;
use outbox_testkit::server::{Settings, private};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement, TransactionTrait};

use crate::doctor::{PATIENCE, doctor, only};
use crate::support::{LEASE, Pool, Site, eventually, on_mysql};

/// What is found through a pool of one connection, on which `sql` was run before.
async fn found_after(site: &Site, sql: &str, symptom: Symptom) -> Finding {
    let db = site.connect(Pool::of(1)).await;
    db.execute_unprepared(sql).await.expect("set");
    let found = doctor(site, &db, PATIENCE).await;
    db.close().await.expect("close");
    only(found, symptom)
}

async fn missing_parts_are_found(site: &Site) {
    let outbox = site.sql_name("outbox");
    let found = async |symptom| only(doctor(site, &site.db, PATIENCE).await, symptom);
    site.execute(&format!("ALTER TABLE {outbox} DROP INDEX outbox_agenda")).await;
    assert!(found(Symptom::Index).await.what.contains("outbox_agenda is missing"));
    site.execute(&format!("ALTER TABLE {outbox} DROP COLUMN fence")).await;
    let finding = found(Symptom::Schema).await;
    assert_eq!((finding.severity, &*finding.what), (Severity::Critical, "column fence is missing"));
}

async fn a_clock_that_is_wrong_is_found(site: &Site) {
    for (offset, side) in [("+ 3600", "ahead of"), ("- 3600", "behind")] {
        let set = format!("SET SESSION timestamp = UNIX_TIMESTAMP() {offset}");
        let finding = found_after(site, &set, Symptom::Clock).await;
        assert!(finding.what.contains(side), "{finding}");
    }
}

async fn autocommit_that_is_off_is_found(site: &Site) {
    let finding = found_after(site, "SET SESSION autocommit = 0", Symptom::Autocommit).await;
    assert_eq!(finding.severity, Severity::Critical);
}

async fn the_isolation_level_of_a_shared_pool_is_looked_at(site: &Site) {
    let shared = site.outbox.clone().with_shared_pool();
    let finding = only(shared.doctor(PATIENCE).await.expect("doctor"), Symptom::Isolation);
    assert!(finding.what.contains("REPEATABLE-READ"), "{finding}");
    let own = site.outbox.doctor(PATIENCE).await.expect("doctor");
    assert!(!own.iter().any(|finding| finding.symptom == Symptom::Isolation), "{own:?}");
}

async fn a_packet_smaller_than_a_message_is_found(site: &Site) {
    let large = site.outbox.clone().with_limits(Limits::default().with_max_payload(1 << 30));
    let finding = only(large.doctor(PATIENCE).await.expect("doctor"), Symptom::Packet);
    assert!(finding.what.ends_with("a payload of 1073741824"), "{finding}");
}

/// A transaction that sees the table as it is now.
async fn snapshot(site: &Site, db: &DatabaseConnection) -> sea_orm::DatabaseTransaction {
    let transaction = db.begin().await.expect("begin");
    let look = format!("SELECT COUNT(*) FROM {}", site.sql_name("outbox"));
    let _: i64 = crate::support::value(&transaction, &look).await;
    transaction
}

async fn an_old_transaction_is_found_with_its_holder(site: &Site) {
    let db = site.connect(Pool { suffix: "_holder", ..Pool::of(1) }).await;
    let holder = format!("{}_holder", site.schema());
    let held_by = async || {
        // the server renews its list of transactions when nobody has read it for a tenth of a second
        tokio::time::sleep(Duration::from_millis(150)).await;
        let found = doctor(site, &site.db, Duration::ZERO).await;
        found.into_iter().find(|finding| finding.what.contains(&holder)).map(|finding| finding.symptom)
    };
    assert_eq!(held_by().await, None);
    let transaction = snapshot(site, &db).await;
    eventually("the snapshot is found", async || held_by().await == Some(Symptom::Snapshot)).await;
    let found = doctor(site, &site.db, PATIENCE).await;
    assert!(!found.iter().any(|finding| finding.what.contains(&holder)), "it is not old enough");
    let outbox = OutboxTable::new(&db, site.name("outbox"));
    outbox.enqueue_in(&transaction, [Draft::new("t", "S3CR3T")]).await.expect("enqueue");
    eventually("the writer is found", async || held_by().await == Some(Symptom::OpenTransaction)).await;
    transaction.rollback().await.expect("rollback");
    eventually("nothing is held", async || held_by().await.is_none()).await;
}

/// MySQL 9 shows no transaction at all meanwhile.
async fn a_statement_with_bytes_of_another_session_is_waited_for(site: &Site) {
    let transaction = site.db.begin().await.expect("begin");
    let sleep = "SELECT SLEEP(0.5), payload = ? FROM (SELECT 1 AS payload) AS one";
    let bytes = Statement::from_sql_and_values(DbBackend::MySql, sleep, [vec![0xFF_u8, 0xFE].into()]);
    let statement = async {
        transaction
            .execute_unprepared(&format!("SELECT * FROM {} FOR UPDATE", site.sql_name("outbox")))
            .await?;
        transaction.query_one_raw(bytes).await
    };
    let (statement, found) = tokio::join!(statement, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        site.outbox.doctor(PATIENCE).await
    });
    statement.expect("statement");
    let found = found.expect("doctor");
    assert!(!found.iter().any(|finding| finding.what.contains("could not show")), "{found:?}");
    transaction.rollback().await.expect("rollback");
}

async fn a_user_that_does_not_see_others_is_told(site: &Site) {
    let db = super::as_user(site, "ALL").await;
    let finding = only(doctor(site, &db, PATIENCE).await, Symptom::Privilege);
    assert_eq!(finding.severity, Severity::Notice);
}

on_mysql! {
    missing_parts_are_found,
    a_clock_that_is_wrong_is_found,
    autocommit_that_is_off_is_found,
    the_isolation_level_of_a_shared_pool_is_looked_at,
    a_packet_smaller_than_a_message_is_found,
    an_old_transaction_is_found_with_its_holder,
    a_statement_with_bytes_of_another_session_is_waited_for,
    a_user_that_does_not_see_others_is_told,
}

/// On a server of its own, for these settings are everybody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_unfit_settings_is_found_on_mysql() {
    let durable = Settings::for_mysql_tests().with("innodb_flush_log_at_trx_commit", "1");
    let Ok(server) = private(durable.with("log_bin", "binlog").with("sync_binlog", "1")).await else {
        return;
    };
    let site = Site::mysql_at(server.url()).await;
    let found = async || doctor(&site, &site.db, PATIENCE).await;
    site.enqueue("t", 10).await;
    assert_eq!(site.drain().await.len(), 10);
    assert_eq!(found().await, [], "a healthy table has no findings");
    for (name, unfit, fit, symptom) in [
        ("innodb_flush_log_at_trx_commit", 2, 1, Symptom::Durability),
        ("sync_binlog", 0, 1, Symptom::Durability),
        ("read_only", 1, 0, Symptom::ReadOnly),
    ] {
        site.execute(&format!("SET GLOBAL {name} = {unfit}")).await;
        assert!(only(found().await, symptom).what.contains(&name.replace("read_only", "read-only")));
        site.execute(&format!("SET GLOBAL {name} = {fit}")).await;
    }
    assert_eq!(found().await, []);
}

/// On a server of its own, for these settings are everybody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binary_log_of_statements_is_found_on_mysql() {
    let Ok(server) = private(Settings::for_mysql_tests().with("log_bin", "binlog")).await else { return };
    let site = Site::mysql_at(server.url()).await;
    site.enqueue("t", 1).await;
    let found_with = async |format: &str| {
        site.execute(&format!("SET GLOBAL binlog_format = {format}")).await;
        // sessions that are there keep what they have
        let db = site.connect(Pool::of(2)).await;
        let found = doctor(&site, &db, PATIENCE).await;
        let claim = OutboxTable::new(&db, site.name("outbox")).claim(ClaimRequest::new(1, LEASE)).await;
        site.expire_leases().await;
        (found, claim)
    };
    for format in ["MIXED", "ROW"] {
        let (found, claim) = found_with(format).await;
        assert_eq!(claim.expect("claim").messages.len(), 1, "{format}");
        assert!(!found.iter().any(|finding| finding.symptom == Symptom::BinaryLog), "{format}: {found:?}");
    }
    let (found, claim) = found_with("STATEMENT").await;
    let error = claim.expect_err("refused");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unsupported, false), "{error}");
    let finding = only(found, Symptom::BinaryLog);
    assert_eq!(finding.severity, Severity::Critical);
    assert!(finding.what.starts_with("binlog_format is STATEMENT"), "{finding}");
}
