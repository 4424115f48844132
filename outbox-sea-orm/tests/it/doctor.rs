//! Each finding of the doctor, brought about for real.

use std::time::Duration;

use outbox_core::{Finding, Operations, Severity, Symptom};
use outbox_sea_orm::OutboxTable;
use sea_orm::sqlx::sqlite::SqliteJournalMode;
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, TransactionTrait};

use crate::support::{Pool, Site, eventually, on_postgres, on_sqlite};

/// Longer than any test; the shared server has other tests' transactions.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3_600);

pub(crate) async fn doctor(site: &Site, db: &DatabaseConnection, patience: Duration) -> Vec<Finding> {
    OutboxTable::new(db, site.name("outbox")).doctor(patience).await.expect("doctor")
}

/// The one finding about this, found by a session with these settings; no other severity is wrong.
async fn found_with(site: &Site, settings: &[(&str, &str)], symptom: Symptom) -> Finding {
    let db = site.connect(Pool { settings, ..Pool::of(3) }).await;
    let found = doctor(site, &db, PATIENCE).await;
    only(found, symptom)
}

async fn found(site: &Site, symptom: Symptom) -> Finding {
    only(doctor(site, &site.db, PATIENCE).await, symptom)
}

pub(crate) fn only(found: Vec<Finding>, symptom: Symptom) -> Finding {
    let mut about = found.iter().filter(|finding| finding.symptom == symptom);
    let finding = about.next().unwrap_or_else(|| panic!("nothing about {symptom:?} in {found:?}"));
    assert_eq!(about.next(), None);
    assert!(!finding.advice.is_empty());
    finding.clone()
}

async fn a_healthy_table_has_no_findings(site: &Site) {
    site.enqueue("t", 10).await;
    assert_eq!(site.drain().await.len(), 10);
    assert_eq!(doctor(site, &site.db, PATIENCE).await, []);
}

async fn missing_parts_are_found(site: &Site) {
    let outbox = site.sql_name("outbox");
    site.execute(&format!("DROP INDEX {}", site.sql_name("outbox_dead"))).await;
    let finding = found(site, Symptom::Index).await;
    assert!(
        finding.to_string().starts_with("warning: index ") && finding.what.contains("outbox_dead"),
        "{finding}"
    );
    site.execute(&format!("ALTER TABLE {outbox} DROP COLUMN fence")).await;
    let finding = found(site, Symptom::Schema).await;
    assert_eq!((finding.severity, &*finding.what), (Severity::Critical, "column fence is missing"));
    site.execute(&format!("DROP TABLE {outbox}")).await;
    let finding = found(site, Symptom::Schema).await;
    assert_eq!(finding.what, "the table is not there");
}

async fn an_invalid_index_is_found(site: &Site) {
    let index = site.sql_name("outbox_ready");
    site.execute(&format!("UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{index}'::regclass"))
        .await;
    assert!(found(site, Symptom::Index).await.what.contains("outbox_ready is missing or invalid"));
}

async fn a_trigger_that_does_not_fire_is_found(site: &Site) {
    let outbox = site.sql_name("outbox");
    site.execute(&format!("ALTER TABLE {outbox} DISABLE TRIGGER outbox_notify")).await;
    assert_eq!(found(site, Symptom::Trigger).await.severity, Severity::Notice);
    site.execute(&format!("DROP TRIGGER outbox_notify ON {outbox}")).await;
    found(site, Symptom::Trigger).await;
}

/// A transaction pooler gives the listener's session to others between its statements. Here the notification goes
/// nowhere because a function of the same name stands before the server's own.
async fn a_notification_that_goes_nowhere_is_found(site: &Site) {
    let schema = site.schema();
    site.execute(&format!(
        "CREATE FUNCTION {schema}.pg_notify(text, text) RETURNS void LANGUAGE sql AS 'SELECT NULL::void'"
    ))
    .await;
    let path = format!("{schema},pg_catalog");
    let finding = found_with(site, &[("search_path", &path)], Symptom::Wakeup).await;
    assert!(finding.advice.contains("with_shared_pool"), "{finding}");
}

async fn autovacuum_that_is_off_is_found(site: &Site) {
    site.execute(&format!("ALTER TABLE {} SET (autovacuum_enabled = off)", site.sql_name("outbox"))).await;
    assert!(found(site, Symptom::Autovacuum).await.what.starts_with("autovacuum is off for this table"));
}

async fn dead_rows_that_pile_up_are_found(site: &Site) {
    let outbox = site.sql_name("outbox");
    // no vacuum takes them away meanwhile
    let snapshot = snapshot(&site.db).await;
    site.execute(&format!(
        "INSERT INTO {outbox} (id, topic, payload) SELECT gen_random_uuid(), 't', '' FROM generate_series(1, 50001)"
    ))
    .await;
    let victim = site.victim().await;
    victim.db.execute_unprepared(&format!("DELETE FROM {outbox}")).await.expect("delete");
    // a session reports what it did when it ends
    victim.end(site).await;
    eventually("the dead rows are found", async || {
        let found = doctor(site, &site.db, PATIENCE).await;
        let about =
            |finding: &Finding| finding.symptom == Symptom::Autovacuum && finding.what.contains("dead rows");
        found.iter().any(about)
    })
    .await;
    drop(snapshot);
}

/// A transaction that sees the table as it is now.
async fn snapshot(db: &DatabaseConnection) -> sea_orm::DatabaseTransaction {
    let transaction = db.begin().await.expect("begin");
    let hold = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1";
    transaction.execute_unprepared(hold).await.expect("a snapshot");
    transaction
}

async fn an_old_snapshot_is_found_with_its_holder(site: &Site) {
    let db = site.connect(Pool { suffix: "_holder", ..Pool::of(1) }).await;
    let holder = format!("{}_holder", site.schema());
    let held_by = async || {
        let found = doctor(site, &site.db, Duration::ZERO).await;
        found.into_iter().find(|finding| finding.what.contains(&holder)).map(|finding| finding.symptom)
    };
    assert_eq!(held_by().await, None);
    let transaction = snapshot(&db).await;
    assert_eq!(held_by().await, Some(Symptom::Snapshot));
    let found = doctor(site, &site.db, PATIENCE).await;
    assert!(!found.iter().any(|finding| finding.what.contains(&holder)), "it is not old enough");
    transaction.rollback().await.expect("rollback");
    assert_eq!(held_by().await, None);
    let transaction = db.begin().await.expect("begin");
    let outbox = OutboxTable::new(&db, site.name("outbox"));
    outbox.enqueue_in(&transaction, [outbox_core::Draft::new("t", "S3CR3T")]).await.expect("enqueue");
    assert_eq!(held_by().await, Some(Symptom::OpenTransaction));
    transaction.rollback().await.expect("rollback");
    assert_eq!(held_by().await, None);
}

async fn a_prepared_transaction_is_found_with_its_owner(site: &Site) {
    let name = format!("left by {}", site.schema());
    let outbox = site.sql_name("outbox");
    let victim = site.victim().await;
    let prepare = format!(
        "BEGIN; INSERT INTO {outbox} (id, topic, payload) VALUES (gen_random_uuid(), 't', ''); PREPARE TRANSACTION '{name}'"
    );
    victim.db.execute_unprepared(&prepare).await.expect("prepare");
    victim.end(site).await;
    let found = doctor(site, &site.db, Duration::ZERO).await;
    let finding = found.into_iter().find(|finding| finding.what.contains(&name)).expect("it is found");
    site.execute(&format!("ROLLBACK PREPARED '{name}'")).await;
    assert_eq!(finding.symptom, Symptom::OpenTransaction);
    assert!(finding.what.starts_with(&format!("prepared transaction {name} of ")), "{finding}");
    assert!(finding.advice.contains("ROLLBACK PREPARED"), "{finding}");
}

/// A standby that is away and fed back what it reads. A view of the same name stands before the server's own: a real
/// slot would hold back the vacuum of all other tests.
async fn an_abandoned_replication_slot_is_found_by_name(site: &Site) {
    let schema = site.schema();
    site.execute(&format!(
        "CREATE VIEW {schema}.pg_replication_slots (slot_name, xmin, active) AS
         VALUES ('old_standby', '3'::xid, false), ('standby', '4'::xid, true), ('feed', NULL::xid, false)"
    ))
    .await;
    let path = format!("{schema},pg_catalog");
    let finding = found_with(site, &[("search_path", &path)], Symptom::Snapshot).await;
    assert_eq!(finding.what, "replication slot old_standby has kept delivered rows from being vacuumed");
    assert!(finding.advice.contains("pg_drop_replication_slot"), "{finding}");
}

async fn a_clock_that_is_wrong_is_found(site: &Site) {
    let schema = site.schema();
    for (offset, side) in [("+ interval '1 hour'", "ahead of"), ("- interval '1 hour'", "behind")] {
        site.execute(&format!(
            "CREATE OR REPLACE FUNCTION {schema}.clock_timestamp() RETURNS timestamptz LANGUAGE sql
             AS $$ SELECT pg_catalog.clock_timestamp() {offset} $$"
        ))
        .await;
        let path = format!("{schema},pg_catalog");
        let finding = found_with(site, &[("search_path", &path)], Symptom::Clock).await;
        assert!(finding.what.contains(side), "{finding}");
    }
}

async fn an_isolation_level_that_breaks_claims_is_found(site: &Site) {
    for level in ["repeatable read", "serializable"] {
        let finding = found_with(site, &[("default_transaction_isolation", level)], Symptom::Isolation).await;
        assert!(finding.what.contains(level), "{finding}");
    }
}

async fn a_session_that_cannot_write_is_found(site: &Site) {
    let finding = found_with(site, &[("default_transaction_read_only", "on")], Symptom::ReadOnly).await;
    assert_eq!(finding.severity, Severity::Critical);
}

async fn a_role_that_does_not_see_others_is_told(site: &Site) {
    let role = site.schema();
    site.execute(&format!("CREATE ROLE {role}; GRANT USAGE ON SCHEMA {role} TO {role}")).await;
    let finding = found_with(site, &[("role", role)], Symptom::Privilege).await;
    assert_eq!(finding.severity, Severity::Notice);
    site.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

on_postgres! {
    a_healthy_table_has_no_findings,
    missing_parts_are_found,
    an_invalid_index_is_found,
    a_trigger_that_does_not_fire_is_found,
    a_notification_that_goes_nowhere_is_found,
    autovacuum_that_is_off_is_found,
    dead_rows_that_pile_up_are_found,
    an_old_snapshot_is_found_with_its_holder,
    a_prepared_transaction_is_found_with_its_owner,
    an_abandoned_replication_slot_is_found_by_name,
    a_clock_that_is_wrong_is_found,
    an_isolation_level_that_breaks_claims_is_found,
    a_session_that_cannot_write_is_found,
    a_role_that_does_not_see_others_is_told,
}

/// The same file with other settings.
async fn reopened(site: &Site, journal: SqliteJournalMode, pragma: &'static str) -> Vec<Finding> {
    let mut options = ConnectOptions::new(site.url());
    options.max_connections(1).sqlx_logging(false);
    options.map_sqlx_sqlite_opts(move |options| options.journal_mode(journal));
    let db = Database::connect(options).await.expect("connect");
    db.execute_unprepared(pragma).await.expect("pragma");
    let found = doctor(site, &db, PATIENCE).await;
    db.close().await.expect("close");
    found
}

async fn a_file_with_unfit_settings_is_found(site: &Site) {
    site.db.clone().close().await.expect("close");
    let wal = SqliteJournalMode::Wal;
    assert_eq!(reopened(site, wal, "PRAGMA synchronous = NORMAL").await, []);
    only(reopened(site, wal, "PRAGMA busy_timeout = 0").await, Symptom::BusyTimeout);
    only(reopened(site, wal, "PRAGMA synchronous = OFF").await, Symptom::Durability);
    let finding = only(reopened(site, SqliteJournalMode::Delete, "SELECT 1").await, Symptom::Journal);
    assert!(finding.what.contains("delete") && finding.advice.contains("journal_mode = WAL"), "{finding}");
}

async fn a_database_in_memory_needs_no_journal(site: &Site) {
    let db = Database::connect("sqlite::memory:").await.expect("connect");
    let outbox = OutboxTable::new(&db, site.name("outbox"));
    outbox.migrate().await.expect("migrate");
    assert_eq!(outbox.doctor(PATIENCE).await.expect("doctor"), []);
}

on_sqlite! { missing_parts_are_found, a_file_with_unfit_settings_is_found, a_database_in_memory_needs_no_journal }
