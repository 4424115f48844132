//! Creating, upgrading and checking the tables.

use outbox_core::{Declaration, Error, ErrorKind, Finding, Result, Severity, Symptom, TableName};
use sea_orm::sea_query::Values;
use sea_orm::{ConnectionTrait, Statement};

use crate::context::{SeaOrmContext, transactor};
use crate::dialect::Dialect;
use crate::error::from_db;
use crate::row::column;
use crate::shield::Db;
use crate::sql::{Kind, bare, create};

/// The version of the tables that this crate works with. It stands in the comment of the table.
pub(crate) const VERSION: i64 = 1;

const OUTBOX_COLUMNS: &[&str] = &[
    "seq",
    "id",
    "topic",
    "key",
    "payload",
    "headers",
    "created_at",
    "state",
    "available_at",
    "lease",
    "leased_until",
    "attempts",
    "fence",
    "last_error",
    "dead_at",
    "done_at",
    "history",
];
const OUTBOX_INDEXES: &[&str] = &["ready", "parked", "dead", "done"];
/// What an ordered table has beside them.
const ORDERED_INDEXES: &[&str] = &["keys", "held"];
#[cfg(feature = "mysql")]
const MYSQL_OUTBOX_COLUMNS: &[&str] = &[
    "seq",
    "id",
    "topic",
    "key",
    "payload",
    "headers",
    "created_at",
    "state",
    "place",
    "due",
    "due_since",
    "lease",
    "attempts",
    "fence",
    "last_error",
    "dead_at",
    "history",
];
#[cfg(feature = "mysql")]
const MYSQL_OUTBOX_INDEXES: &[&str] = &["id", "agenda"];
const INBOX_COLUMNS: &[&str] =
    &["group_name", "message_id", "fingerprint", "metadata", "result", "processed_at"];
const INBOX_INDEXES: &[&str] = &["processed_at"];

/// What the catalog says about a table.
struct Found {
    exists: bool,
    version: Option<i64>,
    /// What stands behind the version.
    declared: String,
}

impl Found {
    fn read(kind: Kind, exists: bool, text: Option<String>) -> Self {
        let (version, declared) = text.as_deref().map(|text| version(kind, text)).unwrap_or_default();
        Self { exists, version, declared }
    }

    /// How the table was made otherwise than it is declared here.
    fn difference(&self, declared: &Declaration) -> Option<String> {
        let declared = declared.to_string();
        if self.declared == declared || self.version.is_none() && self.declared.is_empty() {
            return None;
        }
        let name = |text: &str| if text.is_empty() { "plain".to_owned() } else { format!("\"{text}\"") };
        Some(format!("declared {} here, but the table was made {}", name(&declared), name(&self.declared)))
    }

    fn check_declared(&self, table: &TableName, declared: &Declaration) -> Result<()> {
        self.difference(declared).map_or(Ok(()), |what| Err(schema_error(table, what)))
    }
}

pub(crate) async fn migrate(
    db: &Db,
    dialect: Dialect,
    kind: Kind,
    table: &TableName,
    declared: &Declaration,
) -> Result<()> {
    let found = find(db, dialect, kind, table).await?;
    if found.version == Some(VERSION) {
        return found.check_declared(table, declared);
    }
    let missing_schema = missing_schema(db, dialect, table).await?;
    transactor(db)
        .run(async |cx| {
            let connection = cx.connection()?;
            run(connection, table, lock(dialect)).await?;
            let found = find(connection, dialect, kind, table).await?;
            match found.version {
                Some(VERSION) => return found.check_declared(table, declared),
                Some(version) if version > VERSION => return Err(newer(table, version)),
                _ if found.exists => {
                    first(table, missing_parts(connection, dialect, kind, table, declared).await?)?
                }
                _ => {
                    run(connection, table, &missing_schema).await?;
                    let created = run(connection, table, &create(kind, dialect, table, declared)).await;
                    // on MySQL another process may have been faster
                    if created.is_err() {
                        let found = find(connection, dialect, kind, table).await;
                        return match found {
                            Ok(found) if found.version == Some(VERSION) => {
                                found.check_declared(table, declared)
                            }
                            _ => created,
                        };
                    }
                }
            }
            Ok(())
        })
        .await
}

/// Only one at a time creates tables; on SQLite the transaction itself sees to that.
fn lock(dialect: Dialect) -> &'static str {
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => "SELECT pg_advisory_xact_lock(hashtextextended('outbox migrate', 0))",
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => "",
        // CREATE TABLE is the lock: one statement makes the whole table, and commits whatever is open
        #[cfg(feature = "mysql")]
        Dialect::MySql => "",
    }
}

async fn run(connection: &impl ConnectionTrait, table: &TableName, sql: &str) -> Result<()> {
    if sql.is_empty() {
        return Ok(());
    }
    let result = connection.execute_unprepared(sql).await;
    result.map(drop).map_err(|error| from_db("migrate", table, error))
}

/// The statement that creates the schema, empty where it is there: creating one needs a privilege that a service
/// often lacks, even with IF NOT EXISTS.
async fn missing_schema(db: &Db, dialect: Dialect, table: &TableName) -> Result<String> {
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            let schema = crate::sql::schema(table);
            let sql = "SELECT 1 FROM pg_namespace WHERE nspname = $1";
            let rows = query(db, table, sql, Values(vec![schema.into()])).await?;
            Ok(if rows.is_empty() {
                format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\"")
            } else {
                String::new()
            })
        }
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => {
            let _ = (db, table);
            Ok(String::new())
        }
        #[cfg(feature = "mysql")]
        Dialect::MySql => {
            let Some(schema) = table.schema() else { return Ok(String::new()) };
            let sql = "SELECT 1 FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = ?";
            let rows = query(db, table, sql, Values(vec![schema.into()])).await?;
            Ok(if rows.is_empty() {
                format!("CREATE DATABASE IF NOT EXISTS `{schema}`")
            } else {
                String::new()
            })
        }
    }
}

/// One read of the catalog.
async fn find(
    connection: &impl ConnectionTrait,
    dialect: Dialect,
    kind: Kind,
    table: &TableName,
) -> Result<Found> {
    let rows = match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            let sql = "SELECT obj_description(c.oid, 'pg_class') FROM pg_class AS c JOIN pg_namespace AS n \
                       ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2";
            let values = Values(vec![crate::sql::schema(table).into(), table.table().into()]);
            query(connection, table, sql, values).await?
        }
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => {
            let sql = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1";
            query(connection, table, sql, Values(vec![bare(dialect, table).into()])).await?
        }
        #[cfg(feature = "mysql")]
        Dialect::MySql => {
            let sql = "SELECT CAST(TABLE_COMMENT AS CHAR) FROM information_schema.TABLES \
                       WHERE TABLE_SCHEMA = COALESCE(?, DATABASE()) AND TABLE_NAME = ?";
            query(connection, table, sql, mysql_names(table)).await?
        }
    };
    let text = rows.first().map(|row| column::<Option<String>>(row, 0)).transpose()?.flatten();
    Ok(Found::read(kind, !rows.is_empty(), text))
}

/// The database, `NULL` for the connection's own, and the table.
#[cfg(feature = "mysql")]
fn mysql_names(table: &TableName) -> Values {
    Values(vec![table.schema().into(), table.table().into()])
}

/// The number behind `outbox schema version`, and what is declared behind it.
fn version(kind: Kind, text: &str) -> (Option<i64>, String) {
    let Some((_, rest)) = text.split_once(&format!("{} schema version ", kind.template())) else {
        return Default::default();
    };
    let line = rest.lines().next().unwrap_or_default().trim_end();
    let n_digits = line.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, declared) = line.split_at(n_digits);
    (digits.parse().ok(), declared.strip_prefix(", ").unwrap_or_default().to_owned())
}

async fn query(
    connection: &impl ConnectionTrait,
    table: &TableName,
    sql: &str,
    values: Values,
) -> Result<Vec<sea_orm::QueryResult>> {
    let statement = Statement {
        sql: sql.to_owned(),
        values: Some(values),
        db_backend: connection.get_database_backend(),
    };
    connection.query_all_raw(statement).await.map_err(|error| from_db("read the catalog", table, error))
}

pub(crate) async fn check(
    db: &Db,
    dialect: Dialect,
    kind: Kind,
    table: &TableName,
    declared: &Declaration,
) -> Result<()> {
    first(table, findings(db, dialect, kind, table, declared).await?)
}

/// The first of what is wrong, as an error.
fn first(table: &TableName, found: Vec<Finding>) -> Result<()> {
    match found.first() {
        Some(Finding { what, advice, .. }) => Err(schema_error(table, format!("{what}: {advice}"))),
        None => Ok(()),
    }
}

/// What is wrong with a table.
pub(crate) async fn findings(
    db: &Db,
    dialect: Dialect,
    kind: Kind,
    table: &TableName,
    declared: &Declaration,
) -> Result<Vec<Finding>> {
    let found = find(db, dialect, kind, table).await?;
    let wrong = |what: String, advice| vec![Finding::new(Severity::Critical, Symptom::Schema, what, advice)];
    match found.version {
        _ if !found.exists => {
            Ok(wrong("the table is not there".to_owned(), "apply schema.sql or call migrate()"))
        }
        Some(version) if version > VERSION => {
            Ok(wrong(format!("schema version {version} > {VERSION}"), "upgrade outbox-sea-orm"))
        }
        Some(version) if version < VERSION => Ok(wrong(
            format!("schema version {version} < {VERSION} required"),
            "apply the newer schema.sql or call migrate()",
        )),
        _ => match found.difference(declared) {
            Some(what) => Ok(wrong(what, "declare the same in every service")),
            None => missing_parts(db, dialect, kind, table, declared).await,
        },
    }
}

/// Whether every column and every index is there, and every index is valid.
async fn missing_parts(
    connection: &impl ConnectionTrait,
    dialect: Dialect,
    kind: Kind,
    table: &TableName,
    declared: &Declaration,
) -> Result<Vec<Finding>> {
    let (columns, indexes) = parts(dialect, kind);
    let there = names(connection, dialect, table, Part::Column).await?;
    let missing = columns.iter().filter(|column| !there.iter().any(|name| name == *column));
    let mut found: Vec<_> = missing.map(|column| missing_column(kind, column)).collect();
    let there = names(connection, dialect, table, Part::Index).await?;
    let ordered = declared.ordered.map_or(&[][..], |_| ORDERED_INDEXES);
    let expected = indexes.iter().chain(ordered).map(|index| format!("{}_{index}", bare(dialect, table)));
    found.extend(expected.filter(|index| !there.contains(index)).map(|index| missing_index(&index)));
    Ok(found)
}

fn missing_column(kind: Kind, column: &str) -> Finding {
    let (what, advice) =
        (format!("column {column} is missing"), format!("this is no {} table", kind.template()));
    Finding::new(Severity::Critical, Symptom::Schema, what, advice)
}

fn missing_index(index: &str) -> Finding {
    let what = format!("index {index} is missing or invalid");
    Finding::new(Severity::Warning, Symptom::Index, what, "apply schema.sql")
}

/// The columns and the indexes of a table.
fn parts(dialect: Dialect, kind: Kind) -> (&'static [&'static str], &'static [&'static str]) {
    match (kind, dialect) {
        #[cfg(feature = "mysql")]
        (Kind::Outbox, Dialect::MySql) => (MYSQL_OUTBOX_COLUMNS, MYSQL_OUTBOX_INDEXES),
        (Kind::Outbox, _) => (OUTBOX_COLUMNS, OUTBOX_INDEXES),
        (Kind::Inbox, _) => (INBOX_COLUMNS, INBOX_INDEXES),
    }
}

enum Part {
    Column,
    Index,
}

async fn names(
    connection: &impl ConnectionTrait,
    dialect: Dialect,
    table: &TableName,
    part: Part,
) -> Result<Vec<String>> {
    let (sql, values) = match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            let values = vec![crate::sql::schema(table).into(), table.table().into()];
            let sql = match part {
                Part::Column => {
                    "SELECT a.attname::text FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n \
                     ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped"
                }
                Part::Index => {
                    "SELECT i.relname::text FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid JOIN pg_class AS c \
                     ON c.oid = x.indrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                     WHERE n.nspname = $1 AND c.relname = $2 AND x.indisvalid"
                }
            };
            (sql, values)
        }
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => {
            let sql = match part {
                Part::Column => "SELECT name FROM pragma_table_info(?1)",
                Part::Index => "SELECT name FROM pragma_index_list(?1)",
            };
            (sql, vec![bare(dialect, table).into()])
        }
        #[cfg(feature = "mysql")]
        Dialect::MySql => {
            let sql = match part {
                Part::Column => {
                    "SELECT CAST(COLUMN_NAME AS CHAR) FROM information_schema.COLUMNS \
                     WHERE TABLE_SCHEMA = COALESCE(?, DATABASE()) AND TABLE_NAME = ?"
                }
                Part::Index => {
                    "SELECT DISTINCT CAST(INDEX_NAME AS CHAR) FROM information_schema.STATISTICS \
                     WHERE TABLE_SCHEMA = COALESCE(?, DATABASE()) AND TABLE_NAME = ?"
                }
            };
            let Values(values) = mysql_names(table);
            (sql, values)
        }
    };
    let rows = query(connection, table, sql, Values(values)).await?;
    rows.iter().map(|row| column(row, 0)).collect()
}

fn newer(table: &TableName, version: i64) -> Error {
    schema_error(table, format!("schema version {version} > {VERSION}: upgrade outbox-sea-orm"))
}

fn schema_error(table: &TableName, detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Schema, "check").with_table(table).with_detail(detail)
}
