//! All ways to the tables lead to the same tables, and what is not theirs is named.

mod check;
mod hijack;

use outbox_core::{Declaration, Fairness, OnDead, Operations, TableName};
use outbox_sea_orm::{OutboxTable, ProcessedTable, inbox_migrations, outbox_migrations};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use sea_orm_migration::{MigrationTrait, MigratorTraitSelf};

use crate::support::run_in_own_database;

const SCHEMA_SQL: &str = include_str!("../../../schema.sql");
const CREATE_OUTBOX: &str = include_str!("../../src/sql/postgres/create_outbox.sql");
const CREATE_INBOX: &str = include_str!("../../src/sql/postgres/create_inbox.sql");

/// Names for an outbox and an inbox.
const NAMES: [(&str, &str); 4] = [
    ("outbox", "inbox"),
    ("app.outbox", "app.inbox"),
    ("user.order", "user.select"),
    (
        "s23456789_123456789_123456789_123456789_12345678.o23456789_123456789_123456789_123456789_12345678",
        "s23456789_123456789_123456789_123456789_12345678.i23456789_123456789_123456789_123456789_12345678",
    ),
];

/// The tables of one pair of names.
struct Pair {
    db: DatabaseConnection,
    outbox: OutboxTable,
    inbox: ProcessedTable,
    names: [TableName; 2],
    declared: Declaration,
}

impl Pair {
    fn new(db: &DatabaseConnection, names: (&str, &str)) -> Self {
        Self::declared(db, names, Declaration::new())
    }

    fn declared(db: &DatabaseConnection, (outbox, inbox): (&str, &str), declared: Declaration) -> Self {
        let names = [outbox, inbox].map(|name| TableName::parse(name).expect("name"));
        let [outbox, inbox] = names.clone();
        Self {
            db: db.clone(),
            outbox: OutboxTable::new(db, outbox).declared(declared.clone()),
            inbox: ProcessedTable::new(db, inbox),
            names,
            declared,
        }
    }

    async fn migrate(&self) -> outbox_core::Result<()> {
        self.outbox.migrate().await?;
        self.inbox.migrate().await
    }

    fn migrator(&self) -> Migrator {
        Migrator { names: self.names.clone(), declared: self.declared.clone() }
    }

    async fn create_by(&self, way: Way) {
        match way {
            Way::Ddl => {
                for ddl in [self.outbox.ddl(), self.inbox.ddl()] {
                    self.db.execute_unprepared(&ddl.expect("ddl")).await.expect("create");
                }
            }
            Way::Migrate => self.migrate().await.expect("migrate"),
            Way::Migrations => {
                self.migrator().up(&self.db, None).await.expect("up");
            }
        }
        self.outbox.check().await.expect("check");
        self.inbox.check().await.expect("check");
    }

    async fn catalog(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for name in &self.names {
            lines.extend(catalog(&self.db, name, "").await);
        }
        let keys = catalog(&self.db, &self.names[0], "_dedup").await;
        assert!(keys.len() > 1, "{keys:?}");
        lines.extend(keys);
        lines
    }

    /// An empty schema, or none for `migrate`, which makes it.
    async fn clear(&self, way: Way) {
        if self.db.get_database_backend() != DbBackend::Postgres {
            return self.clear_sqlite().await;
        }
        let schema = self.names[0].schema().unwrap_or("public");
        let create = if way == Way::Migrate { String::new() } else { format!("CREATE SCHEMA \"{schema}\"") };
        let sql = format!(
            "DROP SCHEMA IF EXISTS \"{schema}\" CASCADE; {create}; DROP TABLE IF EXISTS seaql_migrations; \
             CREATE SCHEMA IF NOT EXISTS public"
        );
        self.db.execute_unprepared(&sql).await.expect("clear");
    }

    async fn clear_sqlite(&self) {
        let tables: Vec<String> = column(
            &self.db,
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'",
        )
        .await;
        for table in tables {
            self.db.execute_unprepared(&format!("DROP TABLE \"{table}\"")).await.expect("drop");
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Ddl,
    Migrate,
    Migrations,
}

struct Migrator {
    names: [TableName; 2],
    declared: Declaration,
}

impl MigratorTraitSelf for Migrator {
    fn migrations(&self) -> Vec<Box<dyn MigrationTrait>> {
        let [outbox, inbox] = &self.names;
        let mut steps = outbox_migrations(outbox, &self.declared);
        steps.extend(inbox_migrations(inbox));
        steps
    }
}

/// What a table can be declared to be.
pub(crate) fn declarations() -> [Declaration; 5] {
    let new = Declaration::new;
    let by_tenant = Fairness::Header("x-tenant.id_2".into());
    [
        new(),
        new().ordered(OnDead::Continue),
        new().ordered(OnDead::Block),
        new().fair(Fairness::Key),
        new().fair(by_tenant),
    ]
}

fn every_kind_of_pair(db: &DatabaseConnection) -> impl Iterator<Item = Pair> {
    let kinds = move |names| declarations().map(|declared| Pair::declared(db, names, declared));
    NAMES.into_iter().flat_map(kinds)
}

async fn column(db: &DatabaseConnection, sql: &str) -> Vec<String> {
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let rows = db.query_all_raw(statement).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    rows.iter().map(|row| row.try_get_by_index(0).expect("column")).collect()
}

/// One line for each thing that belongs to a table, or to the one with `suffix` behind its name.
async fn catalog(db: &DatabaseConnection, name: &TableName, suffix: &str) -> Vec<String> {
    match db.get_database_backend() {
        DbBackend::Postgres => column(db, &catalog_sql(name, suffix)).await,
        _ => {
            let table = name.to_string().replace('.', "_") + suffix;
            let sql = format!(
                "SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_schema \
                 WHERE tbl_name = '{table}' ORDER BY type, name"
            );
            column(db, &sql).await
        }
    }
}

fn catalog_sql(name: &TableName, suffix: &str) -> String {
    let (schema, table) = (name.schema().unwrap_or("public"), name.table());
    let regclass = format!("'\"{schema}\".\"{table}{suffix}\"'::regclass");
    format!(
        "SELECT format('column %s %s %s %s %s %s', a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
                       a.attnotnull, a.attidentity, pg_get_expr(d.adbin, d.adrelid))
           FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
          WHERE a.attrelid = {regclass} AND a.attnum > 0
         UNION ALL
         SELECT format('index %s %s', indisvalid, pg_get_indexdef(indexrelid))
           FROM pg_index WHERE indrelid = {regclass}
         UNION ALL
         SELECT format('constraint %s %s', conname, pg_get_constraintdef(oid))
           FROM pg_constraint WHERE conrelid = {regclass} AND contype <> 'n' -- from 18 on; the column says it
         UNION ALL
         SELECT format('trigger %s %s', tgenabled, pg_get_triggerdef(oid))
           FROM pg_trigger WHERE tgrelid = {regclass}
         UNION ALL
         SELECT format('function %s %s %s %s %s', pronamespace::regnamespace, proname, prosecdef, provolatile, prosrc)
           FROM pg_proc WHERE oid IN (SELECT tgfoid FROM pg_trigger WHERE tgrelid = {regclass})
         UNION ALL
         SELECT format('sequence %s %s %s %s %s', seqrelid::regclass, seqstart, seqincrement, seqcache, seqcycle)
           FROM pg_sequence WHERE seqrelid IN (SELECT objid FROM pg_depend WHERE refobjid = {regclass})
         UNION ALL
         SELECT format('table %s %s %s', relpersistence, reloptions, obj_description(oid, 'pg_class'))
           FROM pg_class WHERE oid = {regclass}
         ORDER BY 1"
    )
}

/// The lines without the schema and with the table called T wherever they stand as a name.
fn normalised(lines: &[String], name: &TableName) -> Vec<String> {
    let schema = format!("{}.", name.schema().unwrap_or("public"));
    let normalise = |line: &String| {
        if line.starts_with("table ") || line.starts_with("function ") {
            return line.split_once("BEGIN").map_or(line.clone(), |(_, body)| body.to_owned());
        }
        line.replace('"', "").replace(&schema, "").replace(name.table(), "T")
    };
    let mut lines: Vec<String> = lines.iter().map(normalise).collect();
    lines.sort();
    lines
}

async fn every_way_makes_the_same_tables(db: &DatabaseConnection) {
    for pair in every_kind_of_pair(db) {
        let of = format!("{:?}, {:?}", pair.names, pair.declared);
        let mut catalogs = Vec::new();
        for way in [Way::Ddl, Way::Migrate, Way::Migrations] {
            pair.clear(way).await;
            pair.create_by(way).await;
            catalogs.push(pair.catalog().await);
        }
        assert!(catalogs[0].len() > 5, "{catalogs:?}");
        assert_eq!(catalogs[0], catalogs[1], "ddl() and migrate() of {of}");
        assert_eq!(catalogs[0], catalogs[2], "ddl() and migrations() of {of}");
        pair.clear(Way::Ddl).await;
    }
}

async fn names_change_nothing_but_names(db: &DatabaseConnection) {
    let mut seen: Option<Vec<String>> = None;
    for names in NAMES {
        let pair = Pair::new(db, names);
        pair.migrate().await.expect("migrate");
        let name = &pair.names[0];
        let lines = normalised(&catalog(db, name, "").await, name);
        assert!(lines.iter().any(|line| line.contains("EXECUTE FUNCTION T_notify()")), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("outbox schema version 1")), "{lines:#?}");
        assert_eq!(*seen.get_or_insert(lines.clone()), lines, "{name}");
    }
}

async fn schema_sql_makes_the_same_tables(db: &DatabaseConnection) {
    let pair = Pair::new(db, NAMES[0]);
    db.execute_unprepared(SCHEMA_SQL).await.expect("schema.sql");
    let by_file = pair.catalog().await;
    pair.clear(Way::Ddl).await;
    pair.create_by(Way::Migrate).await;
    assert_eq!(by_file, pair.catalog().await);
}

/// With `OUTBOX_BLESS` set it writes the file instead.
#[test]
fn schema_sql_is_a_header_and_the_ddl() {
    let ddl = format!("{CREATE_OUTBOX}\n{CREATE_INBOX}");
    if std::env::var_os("OUTBOX_BLESS").is_some() {
        let (header, _) = SCHEMA_SQL.split_once("-- The outbox table.").expect("a header");
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../schema.sql");
        return std::fs::write(path, format!("{header}{ddl}")).expect("write schema.sql");
    }
    let header = SCHEMA_SQL.strip_suffix(&ddl).expect("not the DDL: run this test with OUTBOX_BLESS=1");
    assert!(header.lines().all(|line| line.is_empty() || line.starts_with("--")), "{header}");
}

async fn ddl_is_the_text_of_schema_sql(db: &DatabaseConnection) {
    let pair = Pair::new(db, NAMES[0]);
    let ddl = [pair.outbox.ddl(), pair.inbox.ddl()].map(|ddl| ddl.expect("ddl").replace("\"public\".", ""));
    assert!(SCHEMA_SQL.ends_with(&ddl.join("\n")));
}

async fn migrations_go_down_and_up_again(db: &DatabaseConnection) {
    for pair in every_kind_of_pair(db) {
        pair.clear(Way::Migrations).await;
        let migrator = pair.migrator();
        migrator.up(db, None).await.expect("up");
        let first = pair.catalog().await;
        migrator.down(db, None).await.expect("down");
        assert_eq!(pair.outbox.check().await.expect_err("gone").kind(), outbox_core::ErrorKind::Schema);
        migrator.up(db, None).await.expect("up again");
        assert_eq!(pair.catalog().await, first, "{:?}, {:?}", pair.names, pair.declared);
        pair.clear(Way::Ddl).await;
    }
}

/// The trigger's function outlives its table.
async fn a_table_dropped_by_hand_can_be_created_again(db: &DatabaseConnection) {
    for names in NAMES {
        let pair = Pair::new(db, names);
        pair.migrate().await.expect("migrate");
        let first = pair.catalog().await;
        for name in &pair.names {
            let (schema, table) = (name.schema().unwrap_or("public"), name.table());
            db.execute_unprepared(&format!("DROP TABLE \"{schema}\".\"{table}\"")).await.expect("drop");
        }
        pair.migrate().await.expect("migrate again");
        assert_eq!(pair.catalog().await, first);
    }
}

/// Without the schema they say which one is missing.
async fn only_migrate_creates_the_schema(db: &DatabaseConnection) {
    let pair = Pair::new(db, ("absent.outbox", "absent.inbox"));
    let error = db.execute_unprepared(&pair.outbox.ddl().expect("ddl")).await.expect_err("no schema");
    assert!(error.to_string().contains("schema \"absent\" does not exist"), "{error}");
    let error = pair.migrator().up(db, None).await.expect_err("no schema");
    assert!(error.to_string().contains("schema \"absent\" does not exist"), "{error}");
    pair.migrate().await.expect("migrate");
    pair.outbox.check().await.expect("check");
}

async fn migrate_twice_changes_nothing(db: &DatabaseConnection) {
    for names in NAMES {
        let pair = Pair::new(db, names);
        pair.migrate().await.expect("migrate");
        let first = pair.catalog().await;
        pair.migrate().await.expect("again");
        assert_eq!(pair.catalog().await, first);
    }
}

async fn eight_can_migrate_at_once(db: &DatabaseConnection) {
    for names in NAMES {
        let migrations = (0..8).map(|_| async { Pair::new(db, names).migrate().await });
        for migrated in futures_util::future::join_all(migrations).await {
            migrated.expect("migrate");
        }
        Pair::new(db, names).outbox.check().await.expect("check");
    }
}

mod postgres {
    use super::run_in_own_database;

    #[tokio::test]
    async fn every_way_makes_the_same_tables() {
        run_in_own_database(super::every_way_makes_the_same_tables).await;
    }

    #[tokio::test]
    async fn names_change_nothing_but_names() {
        run_in_own_database(super::names_change_nothing_but_names).await;
    }

    #[tokio::test]
    async fn schema_sql_makes_the_same_tables() {
        run_in_own_database(super::schema_sql_makes_the_same_tables).await;
    }

    #[tokio::test]
    async fn ddl_is_the_text_of_schema_sql() {
        run_in_own_database(super::ddl_is_the_text_of_schema_sql).await;
    }

    #[tokio::test]
    async fn migrations_go_down_and_up_again() {
        run_in_own_database(super::migrations_go_down_and_up_again).await;
    }

    #[tokio::test]
    async fn a_table_dropped_by_hand_can_be_created_again() {
        run_in_own_database(super::a_table_dropped_by_hand_can_be_created_again).await;
    }

    #[tokio::test]
    async fn only_migrate_creates_the_schema() {
        run_in_own_database(super::only_migrate_creates_the_schema).await;
    }

    #[tokio::test]
    async fn migrate_twice_changes_nothing() {
        run_in_own_database(super::migrate_twice_changes_nothing).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn eight_can_migrate_at_once() {
        run_in_own_database(super::eight_can_migrate_at_once).await;
    }
}

mod sqlite {
    use crate::support::run_on_sqlite;

    #[tokio::test]
    async fn every_way_makes_the_same_tables() {
        run_on_sqlite(async |site| super::every_way_makes_the_same_tables(&site.db).await).await;
    }

    #[tokio::test]
    async fn migrations_go_down_and_up_again() {
        run_on_sqlite(async |site| super::migrations_go_down_and_up_again(&site.db).await).await;
    }

    #[tokio::test]
    async fn migrate_twice_changes_nothing() {
        run_on_sqlite(async |site| super::migrate_twice_changes_nothing(&site.db).await).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn eight_can_migrate_at_once() {
        run_on_sqlite(async |site| super::eight_can_migrate_at_once(&site.db).await).await;
    }
}
