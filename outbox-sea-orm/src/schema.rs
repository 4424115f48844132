//! Creating, upgrading and checking the tables.

use outbox_core::{Declaration, Error, ErrorKind, Finding, Result, Severity, Symptom, TableName};
use sea_orm::sea_query::Values;
use sea_orm::{ConnectionTrait, Statement};

use crate::context::{SeaOrmContext, transactor};
use crate::dialect::Dialect;
use crate::error::from_db;
use crate::row::column;
use crate::shield::Db;
use crate::sql::{DEDUP, Kind, bare, create, quote};

/// The version of the tables that this crate works with. It stands in the comment of the table.
pub(crate) const VERSION: i64 = 1;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
const OUTBOX_INDEXES: &[&str] = &["ready", "parked", "dead", "done"];
/// What an ordered table has beside them.
const ORDERED_INDEXES: &[&str] = &["keys", "held"];
/// What a fair table has beside them, and a column `lane`.
const FAIR_INDEXES: &[&str] = &["lanes"];
#[cfg(feature = "mysql")]
const MYSQL_OUTBOX_INDEXES: &[&str] = &["id", "agenda"];
#[cfg(feature = "mysql")]
const MYSQL_ORDERED_INDEXES: &[&str] = &["keys"];
/// Of the table of deduplication keys.
const DEDUP_INDEXES: &[&str] = &["dedup_expiry"];
const INBOX_INDEXES: &[&str] = &["processed_at"];

#[cfg(feature = "postgres")]
const LOG_INDEXES: &[&str] = &["seq"];
/// Without it producers would fail where maintenance came too late.
#[cfg(feature = "postgres")]
const LOG_PARTITIONS: &[&str] = &["default"];

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

/// Says whether it made the table.
pub(crate) async fn migrate(
    db: &Db,
    dialect: Dialect,
    kind: Kind,
    table: &TableName,
    declared: &Declaration,
) -> Result<bool> {
    let found = find(db, dialect, kind, table).await?;
    if found.version == Some(VERSION) {
        return found.check_declared(table, declared).map(|()| false);
    }
    let missing_schema = missing_schema(db, dialect, table).await?;
    transactor(db)
        .run(async |cx| {
            let connection = cx.connection()?;
            run(connection, table, lock(dialect)).await?;
            let found = find(connection, dialect, kind, table).await?;
            match found.version {
                Some(VERSION) => return found.check_declared(table, declared).map(|()| false),
                Some(version) if version > VERSION => return Err(newer(table, version)),
                _ if found.exists => {
                    first(table, wrong_parts(connection, dialect, kind, table, declared).await?)?;
                    return Ok(false);
                }
                _ => {
                    run(connection, table, &missing_schema).await?;
                    let created = run(connection, table, &create(kind, dialect, table, declared)).await;
                    // on MySQL another process may have been faster
                    if created.is_err() {
                        let found = find(connection, dialect, kind, table).await;
                        return match found {
                            Ok(found) if found.version == Some(VERSION) => {
                                found.check_declared(table, declared).map(|()| false)
                            }
                            _ => created.map(|()| false),
                        };
                    }
                }
            }
            Ok(true)
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
        // CREATE TABLE is the lock: the last statement makes the whole table, and each commits whatever is open
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
            query(connection, table, sql, mysql_names(table, table.table())).await?
        }
    };
    let text = rows.first().map(|row| column::<Option<String>>(row, 0)).transpose()?.flatten();
    Ok(Found::read(kind, !rows.is_empty(), text))
}

/// The database, `NULL` for the connection's own, and the table `bare` in it.
#[cfg(feature = "mysql")]
fn mysql_names(table: &TableName, bare: &str) -> Values {
    Values(vec![table.schema().into(), bare.into()])
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
            None => wrong_parts(db, dialect, kind, table, declared).await,
        },
    }
}

/// Whether every column is there and of its type, and every index is there and valid.
async fn wrong_parts(
    connection: &impl ConnectionTrait,
    dialect: Dialect,
    kind: Kind,
    table: &TableName,
    declared: &Declaration,
) -> Result<Vec<Finding>> {
    let bare = bare(dialect, table);
    let ddl = create(kind, dialect, table, declared);
    let there = names(connection, dialect, table, &bare, Part::Column).await?;
    let mut found: Vec<_> =
        columns(dialect, &ddl, &bare).filter_map(|column| wrong_column(kind, column, &there)).collect();
    let there = names(connection, dialect, table, &bare, Part::Index).await?;
    let ordered = declared.ordered.filter(|_| kind == Kind::Outbox);
    let ordered = ordered.map_or(&[][..], |_| ordered_indexes(dialect));
    let fair = declared.lanes().map_or(&[][..], |_| FAIR_INDEXES);
    let expected = indexes(dialect, kind).iter().chain(ordered).chain(fair);
    found.extend(missing_indexes(&bare, expected, &there));
    #[cfg(feature = "postgres")]
    if dialect.has_partitions() && (kind == Kind::Log || declared.partitioned.is_some()) {
        let there = names(connection, dialect, table, &bare, Part::Partition).await?;
        let expected = if kind == Kind::Log { LOG_PARTITIONS } else { crate::sql::PARTITIONS };
        let expected = expected.iter().map(|part| format!("{}_{part}", table.table()));
        found.extend(expected.filter(|part| !there.contains(part)).map(|part| missing_partition(&part)));
    }
    if kind == Kind::Outbox {
        found.extend(missing_dedup(connection, dialect, table, &bare, &ddl).await?);
    }
    Ok(found)
}

#[cfg(feature = "postgres")]
fn missing_partition(partition: &str) -> Finding {
    let what = format!("partition {partition} is missing");
    Finding::new(Severity::Critical, Symptom::Schema, what, "attach it again, or make it as ddl() does")
}

/// What is missing of the table of deduplication keys.
async fn missing_dedup(
    connection: &impl ConnectionTrait,
    dialect: Dialect,
    table: &TableName,
    bare: &str,
    ddl: &str,
) -> Result<Vec<Finding>> {
    let name = format!("{bare}{DEDUP}");
    let there = names(connection, dialect, table, &name, Part::Column).await?;
    if columns(dialect, ddl, &name).any(|column| wrong_column(Kind::Outbox, column, &there).is_some()) {
        let what = format!("table {name} is missing or has other columns");
        return Ok(vec![Finding::new(Severity::Critical, Symptom::Schema, what, "apply schema.sql")]);
    }
    let there = names(connection, dialect, table, &name, Part::Index).await?;
    Ok(missing_indexes(bare, DEDUP_INDEXES, &there))
}

fn missing_indexes<'a>(
    bare: &str,
    expected: impl IntoIterator<Item = &'a &'a str>,
    there: &[String],
) -> Vec<Finding> {
    let expected = expected.into_iter().map(|index| format!("{bare}_{index}"));
    expected.filter(|index| !there.contains(index)).map(|index| missing_index(&index)).collect()
}

/// Name and type of each column of a table that the DDL makes: its lines start with both, or add a column of both.
fn columns<'d>(dialect: Dialect, ddl: &'d str, bare: &str) -> impl Iterator<Item = (&'d str, String)> {
    let q = quote(dialect);
    let (name, added) = (format!("{q}{bare}{q} ("), format!("{q}{bare}{q} ADD COLUMN "));
    let is_head = move |line: &str| line.starts_with("CREATE TABLE") && line.contains(&name);
    let lines = ddl.lines().skip_while(move |line| !is_head(line)).skip(1);
    let lines = lines.take_while(|line| !line.starts_with(')')).filter_map(|line| line.strip_prefix("  "));
    let added = ddl.lines().filter_map(move |line| Some(line.split_once(&added)?.1));
    lines
        .filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase() || first == '`'))
        .chain(added)
        .filter_map(move |line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.trim_matches('`'), type_name(dialect, words.next()?.trim_end_matches(','))))
        })
}

/// A type of the DDL as the catalog calls it.
fn type_name(dialect: Dialect, name: &str) -> String {
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres if name == "timestamptz" => "timestamp with time zone".to_owned(),
        #[cfg(feature = "mysql")]
        Dialect::MySql => name.split('(').next().unwrap_or_default().to_ascii_lowercase(),
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => name.to_owned(),
    }
}

/// `there` has each column's name and type, with a blank between.
fn wrong_column(kind: Kind, (column, expected): (&str, String), there: &[String]) -> Option<Finding> {
    let of_column =
        |line: &String| line.split_once(' ').filter(|(name, _)| *name == column).map(|(_, t)| t.to_owned());
    match there.iter().find_map(of_column) {
        Some(found) if found == expected => None,
        Some(found) => {
            let what = format!("column {column} is {found} and not {expected}");
            let advice = "give it the type that schema.sql says";
            Some(Finding::new(Severity::Critical, Symptom::Schema, what, advice))
        }
        None => Some(missing_column(kind, column)),
    }
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

fn indexes(dialect: Dialect, kind: Kind) -> &'static [&'static str] {
    match (kind, dialect) {
        #[cfg(feature = "mysql")]
        (Kind::Outbox, Dialect::MySql) => MYSQL_OUTBOX_INDEXES,
        #[cfg(any(feature = "postgres", feature = "sqlite"))]
        (Kind::Outbox, _) => OUTBOX_INDEXES,
        (Kind::Inbox, _) => INBOX_INDEXES,
        #[cfg(feature = "postgres")]
        (Kind::Log, Dialect::Postgres) => LOG_INDEXES,
        // it is read by its primary key
        #[cfg(any(feature = "postgres", feature = "sqlite"))]
        #[allow(unreachable_patterns, reason = "there may be no other")]
        (Kind::Log, _) => &[],
    }
}

fn ordered_indexes(dialect: Dialect) -> &'static [&'static str] {
    match dialect {
        #[cfg(feature = "mysql")]
        Dialect::MySql => MYSQL_ORDERED_INDEXES,
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => ORDERED_INDEXES,
    }
}

enum Part {
    /// With its type.
    Column,
    Index,
    /// At any depth.
    #[cfg(feature = "postgres")]
    Partition,
}

/// The parts of the table `bare` in the schema of `table`.
async fn names(
    connection: &impl ConnectionTrait,
    dialect: Dialect,
    table: &TableName,
    bare: &str,
    part: Part,
) -> Result<Vec<String>> {
    let (sql, values) = match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            let values = vec![crate::sql::schema(table).into(), bare.into()];
            let sql = match part {
                Part::Column => {
                    "SELECT a.attname || ' ' || format_type(a.atttypid, a.atttypmod) FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n \
                     ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped"
                }
                Part::Index => {
                    "SELECT i.relname::text FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid JOIN pg_class AS c \
                     ON c.oid = x.indrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                     WHERE n.nspname = $1 AND c.relname = $2 AND x.indisvalid"
                }
                Part::Partition => {
                    "SELECT p.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                     CROSS JOIN pg_partition_tree(c.oid) AS t JOIN pg_class AS p ON p.oid = t.relid \
                     WHERE n.nspname = $1 AND c.relname = $2"
                }
            };
            (sql, values)
        }
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => {
            let sql = match part {
                Part::Column => "SELECT name || ' ' || type FROM pragma_table_xinfo(?1)",
                Part::Index => "SELECT name FROM pragma_index_list(?1)",
                #[cfg(feature = "postgres")]
                Part::Partition => return Ok(Vec::new()),
            };
            (sql, vec![bare.into()])
        }
        #[cfg(feature = "mysql")]
        Dialect::MySql => {
            let sql = match part {
                Part::Column => {
                    "SELECT CAST(CONCAT(COLUMN_NAME, ' ', DATA_TYPE) AS CHAR) FROM information_schema.COLUMNS \
                     WHERE TABLE_SCHEMA = COALESCE(?, DATABASE()) AND TABLE_NAME = ?"
                }
                Part::Index => {
                    "SELECT DISTINCT CAST(INDEX_NAME AS CHAR) FROM information_schema.STATISTICS \
                     WHERE TABLE_SCHEMA = COALESCE(?, DATABASE()) AND TABLE_NAME = ?"
                }
                #[cfg(feature = "postgres")]
                Part::Partition => return Ok(Vec::new()),
            };
            let Values(values) = mysql_names(table, bare);
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
