//! All ways to the tables lead to the same tables, and what is not theirs is named.

use outbox_core::{Declaration, ErrorKind, Operations, Result, TableName};
use outbox_sea_orm::{OutboxTable, ProcessedTable, migrations, outbox_migrations};
use sea_orm::ConnectionTrait;
use sea_orm_migration::{MigrationTrait, MigratorTraitSelf};

use crate::schema::declarations;
use crate::support::{Site, on_mysql};

struct Migrator([TableName; 2]);

impl MigratorTraitSelf for Migrator {
    fn migrations(&self) -> Vec<Box<dyn MigrationTrait>> {
        let [outbox, inbox] = &self.0;
        migrations(outbox, inbox)
    }
}

struct DeclaredMigrator(TableName, Declaration);

impl MigratorTraitSelf for DeclaredMigrator {
    fn migrations(&self) -> Vec<Box<dyn MigrationTrait>> {
        outbox_migrations(&self.0, &self.1)
    }
}

/// What the server says of a table, its name aside.
async fn definition(site: &Site, table: &str) -> String {
    let statement = sea_orm::Statement::from_string(
        sea_orm::DbBackend::MySql,
        format!("SHOW CREATE TABLE {}", site.sql_name(table)),
    );
    let row = site.db.query_one_raw(statement).await.expect("shown").expect("a row");
    let text: String = row.try_get_by_index(1).expect("text");
    text.replace(&format!("`{}", table.trim_end_matches("_dedup")), "`T")
}

async fn every_way_makes_the_same_tables(site: &Site) {
    let [outbox, inbox] = ["by_ddl", "inbox_by_ddl"].map(|name| site.name(name));
    for ddl in [OutboxTable::new(&site.db, outbox).ddl(), ProcessedTable::new(&site.db, inbox).ddl()] {
        site.execute(&ddl.expect("ddl")).await;
    }
    let names = ["by_migrations", "inbox_by_migrations"].map(|name| site.name(name));
    let migrator = Migrator(names);
    migrator.up(&site.db, None).await.expect("up");
    for [by_migrate, by_ddl, by_migrations] in [
        ["outbox", "by_ddl", "by_migrations"],
        ["outbox_dedup", "by_ddl_dedup", "by_migrations_dedup"],
        ["inbox", "inbox_by_ddl", "inbox_by_migrations"],
    ] {
        let expected = definition(site, by_migrate).await;
        assert_eq!(definition(site, by_ddl).await, expected);
        assert_eq!(definition(site, by_migrations).await, expected);
    }
    migrator.down(&site.db, None).await.expect("down");
    let gone = OutboxTable::new(&site.db, site.name("by_migrations"));
    assert_eq!(gone.check().await.expect_err("gone").kind(), ErrorKind::Schema);
    migrator.up(&site.db, None).await.expect("up again");
    gone.check().await.expect("check");
}

async fn every_way_makes_the_same_declared_table(site: &Site) {
    for (number, declared) in declarations().into_iter().enumerate() {
        let names = ["ddl", "migrate", "migrations"].map(|way| format!("by_{way}_{number}"));
        let [by_ddl, by_migrate, by_migrations] = names
            .each_ref()
            .map(|name| OutboxTable::new(&site.db, site.name(name)).declared(declared.clone()));
        site.execute(&by_ddl.ddl().expect("ddl")).await;
        by_migrate.migrate().await.expect("migrate");
        let migrator = DeclaredMigrator(by_migrations.name().clone(), declared.clone());
        migrator.up(&site.db, None).await.expect("up");
        let expected = definition(site, &names[0]).await;
        for (table, name) in [by_ddl, by_migrate, by_migrations].iter().zip(&names) {
            table.check().await.expect("check");
            assert_eq!(definition(site, name).await, expected, "{name}, {declared}");
        }
        migrator.down(&site.db, None).await.expect("down");
    }
}

async fn migrate_makes_the_database_and_can_be_repeated(site: &Site) {
    let other = format!("{}_other", site.schema());
    let name = |table: &str| TableName::parse(&format!("{other}.{table}")).expect("name");
    let migrations = (0..8).map(|_| async {
        OutboxTable::new(&site.db, name("outbox")).migrate().await?;
        ProcessedTable::new(&site.db, name("inbox")).migrate().await
    });
    for migrated in futures_util::future::join_all(migrations).await {
        migrated.expect("migrate");
    }
    OutboxTable::new(&site.db, name("outbox")).check().await.expect("check");
}

/// The text of a schema error.
fn refused(result: Result<()>) -> String {
    let error = result.expect_err("must be refused");
    assert_eq!(error.kind(), ErrorKind::Schema, "{error}");
    error.to_string()
}

async fn what_is_missing_is_named(site: &Site) {
    let absent = OutboxTable::new(&site.db, site.name("absent"));
    assert!(
        refused(absent.check().await).contains("the table is not there: apply schema.sql or call migrate()")
    );
    site.execute(&format!("RENAME TABLE {0}_dedup TO {0}_keys", site.sql_name("outbox"))).await;
    assert!(refused(site.outbox.check().await).contains("outbox_dedup is missing or has other columns"));
    site.execute(&format!("RENAME TABLE {0}_keys TO {0}_dedup", site.sql_name("outbox"))).await;
    site.execute(&format!("ALTER TABLE {} DROP KEY outbox_agenda", site.sql_name("outbox"))).await;
    assert!(refused(site.outbox.check().await).contains("index outbox_agenda is missing or invalid"));
    site.execute(&format!("ALTER TABLE {} MODIFY payload MEDIUMTEXT", site.sql_name("outbox"))).await;
    assert!(refused(site.outbox.check().await).contains("column payload is mediumtext and not longblob"));
    site.execute(&format!("ALTER TABLE {} DROP COLUMN fence", site.sql_name("outbox"))).await;
    site.execute(&format!("ALTER TABLE {} MODIFY payload LONGBLOB NOT NULL", site.sql_name("outbox"))).await;
    assert!(refused(site.outbox.check().await).contains("column fence is missing: this is no outbox table"));
    site.execute(&format!("CREATE TABLE {} (id INTEGER)", site.sql_name("other"))).await;
    let other = OutboxTable::new(&site.db, site.name("other"));
    assert!(refused(other.migrate().await).contains("column seq is missing: this is no outbox table"));
}

async fn a_newer_version_is_refused(site: &Site) {
    for table in ["outbox", "inbox"] {
        let name = site.sql_name(table);
        site.execute(&format!("ALTER TABLE {name} COMMENT = '{table} schema version 2'")).await;
    }
    for result in [
        site.outbox.check().await,
        site.outbox.migrate().await,
        site.inbox.check().await,
        site.inbox.migrate().await,
    ] {
        assert!(refused(result).contains("schema version 2 > 1: upgrade outbox-sea-orm"));
    }
}

on_mysql! {
    every_way_makes_the_same_tables,
    every_way_makes_the_same_declared_table,
    migrate_makes_the_database_and_can_be_repeated,
    what_is_missing_is_named,
    a_newer_version_is_refused,
}
