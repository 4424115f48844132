//! What `migrate` and `check` say about tables that are not as they should be.

use outbox_core::{ErrorKind, Operations, Result, TableName};
use outbox_sea_orm::{OutboxTable, ProcessedTable};

use crate::support::{Pool, Site, on_postgres, on_sqlite, run_logged};

/// The text of a schema error.
fn refused(result: Result<()>) -> String {
    let error = result.expect_err("must be refused");
    assert_eq!(error.kind(), ErrorKind::Schema, "{error}");
    assert!(!error.is_retryable());
    error.to_string()
}

async fn a_missing_table_is_named(site: &Site) {
    let absent = OutboxTable::new(&site.db, site.name("absent"));
    let text = refused(absent.check().await);
    assert!(text.contains(&format!("check on {}", site.name("absent"))), "{text}");
    assert!(text.contains("the table is not there: apply schema.sql or call migrate()"), "{text}");
    refused(ProcessedTable::new(&site.db, site.name("absent")).check().await);
}

async fn a_missing_schema_is_a_missing_table(site: &Site) {
    let absent = OutboxTable::new(&site.db, TableName::parse("no_such_schema.outbox").expect("name"));
    assert!(refused(absent.check().await).contains("on no_such_schema.outbox"));
}

async fn a_missing_column_is_named(site: &Site) {
    for (table, column) in [("outbox", "fence"), ("inbox", "result")] {
        site.execute(&format!("ALTER TABLE {} DROP COLUMN {column}", site.sql_name(table))).await;
    }
    let text = refused(site.outbox.check().await);
    assert!(text.contains("column fence is missing: this is no outbox table"), "{text}");
    let text = refused(site.inbox.check().await);
    assert!(text.contains("column result is missing: this is no inbox table"), "{text}");
}

async fn a_column_of_another_type_is_named(site: &Site) {
    let [outbox, inbox] = ["outbox", "inbox"].map(|table| site.sql_name(table));
    site.execute(&format!(
        "ALTER TABLE {outbox} ALTER COLUMN last_error TYPE varchar(80), ALTER COLUMN attempts TYPE bigint;
         ALTER TABLE {inbox} DROP CONSTRAINT inbox_times,
         ALTER COLUMN processed_at DROP DEFAULT, ALTER COLUMN processed_at TYPE timestamp"
    ))
    .await;
    let text = refused(site.outbox.check().await);
    assert!(
        text.contains("column attempts is bigint and not integer: give it the type that schema.sql says"),
        "{text}"
    );
    let text = refused(site.inbox.check().await);
    assert!(
        text.contains("processed_at is timestamp without time zone and not timestamp with time zone"),
        "{text}"
    );
}

async fn a_table_with_a_column_of_another_type_is_named(site: &Site) {
    let other = OutboxTable::new(&site.db, site.name("other"));
    let ddl = other.ddl().expect("ddl").replace("payload      BLOB", "payload      TEXT");
    site.execute(&ddl).await;
    let text = refused(other.check().await);
    assert!(text.contains("column payload is TEXT and not BLOB"), "{text}");
}

async fn a_missing_index_is_named(site: &Site) {
    let [ready, processed_at] = ["outbox_ready", "inbox_processed_at"].map(|index| site.sql_name(index));
    site.execute(&format!("DROP INDEX {ready}")).await;
    site.execute(&format!("DROP INDEX {processed_at}")).await;
    let text = refused(site.outbox.check().await);
    assert!(text.contains("outbox_ready is missing or invalid"), "{text}");
    let text = refused(site.inbox.check().await);
    assert!(text.contains("inbox_processed_at is missing or invalid"), "{text}");
}

async fn a_missing_table_of_keys_is_named(site: &Site) {
    site.execute(&format!("DROP INDEX {}", site.sql_name("outbox_dedup_expiry"))).await;
    let text = refused(site.outbox.check().await);
    assert!(text.contains("outbox_dedup_expiry is missing or invalid"), "{text}");
    site.execute(&format!("DROP TABLE {}", site.sql_name("outbox_dedup"))).await;
    let text = refused(site.outbox.check().await);
    assert!(text.contains("outbox_dedup is missing or has other columns: apply schema.sql"), "{text}");
}

async fn an_invalid_index_is_named(site: &Site) {
    let index = site.sql_name("outbox_ready");
    site.execute(&format!("UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{index}'::regclass"))
        .await;
    let text = refused(site.outbox.check().await);
    assert!(text.contains("outbox_ready is missing or invalid"), "{text}");
}

async fn set_version(site: &Site, table: &str, version: i64) {
    let name = site.sql_name(table);
    site.execute(&format!("COMMENT ON TABLE {name} IS '{table} schema version {version}'")).await;
}

async fn a_newer_version_is_refused(site: &Site) {
    for table in ["outbox", "inbox"] {
        set_version(site, table, 2).await;
    }
    for result in [
        site.outbox.check().await,
        site.outbox.migrate().await,
        site.inbox.check().await,
        site.inbox.migrate().await,
    ] {
        let text = refused(result);
        assert!(text.contains("schema version 2 > 1: upgrade outbox-sea-orm"), "{text}");
    }
}

async fn a_newer_version_in_the_ddl_is_refused(site: &Site) {
    let newer = OutboxTable::new(&site.db, site.name("newer"));
    site.execute(&newer.ddl().expect("ddl").replace("schema version 1", "schema version 2")).await;
    for result in [newer.check().await, newer.migrate().await] {
        let text = refused(result);
        assert!(text.contains("schema version 2 > 1: upgrade outbox-sea-orm"), "{text}");
    }
}

async fn an_older_version_is_refused_by_check(site: &Site) {
    set_version(site, "outbox", 0).await;
    let text = refused(site.outbox.check().await);
    assert!(text.contains("schema version 0 < 1 required"), "{text}");
}

async fn migrate_over_a_table_of_somebody_else_says_what_is_missing(site: &Site) {
    for table in ["other_outbox", "other_inbox"] {
        site.execute(&format!("CREATE TABLE {} (id INTEGER, topic TEXT)", site.sql_name(table))).await;
    }
    let text = refused(OutboxTable::new(&site.db, site.name("other_outbox")).migrate().await);
    assert!(text.contains("column seq is missing: this is no outbox table"), "{text}");
    let text = refused(ProcessedTable::new(&site.db, site.name("other_inbox")).migrate().await);
    assert!(text.contains("column group_name is missing: this is no inbox table"), "{text}");
    assert_eq!(site.count("other_outbox").await, 0, "it is left as it was");
}

async fn migrate_over_an_outbox_that_lacks_an_index_says_so(site: &Site) {
    let name = site.sql_name("outbox");
    site.execute(&format!("COMMENT ON TABLE {name} IS NULL; DROP INDEX {}", site.sql_name("outbox_dead")))
        .await;
    let text = refused(site.outbox.migrate().await);
    assert!(text.contains("outbox_dead is missing or invalid"), "{text}");
}

async fn tables_restored_without_comments_are_ours(site: &Site) {
    site.enqueue("t", 1).await;
    for table in ["outbox", "inbox"] {
        site.execute(&format!("COMMENT ON TABLE {} IS NULL", site.sql_name(table))).await;
    }
    site.outbox.check().await.expect("check");
    site.outbox.migrate().await.expect("migrate");
    site.inbox.check().await.expect("check");
    site.inbox.migrate().await.expect("migrate");
    assert_eq!(site.drain().await.len(), 1);
}

#[tokio::test]
async fn migrate_costs_one_statement_when_there_is_nothing_to_do_on_postgres() {
    let name = "schema::check::migrate_costs_one_statement_when_there_is_nothing_to_do_on_postgres";
    run_logged(name, async |site, log| {
        let db = site.connect(Pool { logs: true, ..Pool::of(2) }).await;
        let n_statements = || log.take().matches(" sqlx::query: ").count();
        let outbox = OutboxTable::new(&db, site.name("outbox"));
        n_statements();
        outbox.migrate().await.expect("migrate");
        assert_eq!(n_statements(), 1);
        ProcessedTable::new(&db, site.name("inbox")).migrate().await.expect("migrate");
        assert_eq!(n_statements(), 1);
        OutboxTable::new(&db, site.name("another")).migrate().await.expect("migrate");
        assert!(n_statements() > 3, "the counting counts nothing");
    })
    .await;
}

async fn a_role_that_may_not_create_migrates_what_is_there(site: &Site) {
    let role = site.schema();
    site.execute(&format!("CREATE ROLE {role}")).await;
    let db = site.connect(Pool { settings: &[("role", role)], ..Pool::of(2) }).await;
    OutboxTable::new(&db, site.name("outbox")).migrate().await.expect("nothing to do");
    let absent = OutboxTable::new(&db, site.name("absent"));
    assert_eq!(absent.migrate().await.expect_err("refused").kind(), ErrorKind::PermissionDenied);
    site.execute(&format!("DROP ROLE {role}")).await;
}

on_postgres! {
    a_missing_table_is_named,
    a_missing_schema_is_a_missing_table,
    a_missing_column_is_named,
    a_column_of_another_type_is_named,
    a_missing_index_is_named,
    a_missing_table_of_keys_is_named,
    an_invalid_index_is_named,
    a_newer_version_is_refused,
    a_newer_version_in_the_ddl_is_refused,
    an_older_version_is_refused_by_check,
    migrate_over_a_table_of_somebody_else_says_what_is_missing,
    migrate_over_an_outbox_that_lacks_an_index_says_so,
    tables_restored_without_comments_are_ours,
    a_role_that_may_not_create_migrates_what_is_there,
}

on_sqlite! {
    a_missing_table_is_named,
    a_missing_column_is_named,
    a_table_with_a_column_of_another_type_is_named,
    a_missing_index_is_named,
    a_missing_table_of_keys_is_named,
    a_newer_version_in_the_ddl_is_refused,
    migrate_over_a_table_of_somebody_else_says_what_is_missing,
}
