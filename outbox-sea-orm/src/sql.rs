//! The only place that builds SQL text. A file of `sql/` names its table as a quoted identifier, `"outbox"` or
//! `"inbox"` (in backticks for MySQL); here it becomes the validated name of the real one. Every value is bound.

use outbox_core::{Declaration, TableName};

use crate::dialect::Dialect;
use crate::schema::VERSION;

macro_rules! statements {
    ($(#[$doc:meta])* $set:ident of $template:literal in $dialects:tt { $($name:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $set { $(pub(crate) $name: String,)* }

        impl $set {
            #[cfg(test)]
            pub(crate) const NAMES: &[&str] = &[$(stringify!($name),)*];

            pub(crate) fn new(dialect: Dialect, table: &TableName) -> Self {
                Self { $($name: render(dialect, table, $template, statements!(@text $dialects dialect $name)),)* }
            }
        }
    };
    (@text (postgres) $dialect:ident $name:ident) => {
        match $dialect {
            Dialect::Postgres => include_str!(concat!("sql/postgres/", stringify!($name), ".sql")),
            #[allow(unreachable_patterns, reason = "there may be no other")]
            _ => "",
        }
    };
    (@text (mysql) $dialect:ident $name:ident) => {
        match $dialect {
            Dialect::MySql => include_str!(concat!("sql/mysql/", stringify!($name), ".sql")),
            #[allow(unreachable_patterns, reason = "there may be no other")]
            _ => "",
        }
    };
    (@text (postgres, sqlite) $dialect:ident $name:ident) => {
        match $dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => include_str!(concat!("sql/postgres/", stringify!($name), ".sql")),
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => include_str!(concat!("sql/sqlite/", stringify!($name), ".sql")),
            #[allow(unreachable_patterns, reason = "there may be no other")]
            _ => "",
        }
    };
    (@text (postgres, sqlite, mysql) $dialect:ident $name:ident) => {
        match $dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => include_str!(concat!("sql/postgres/", stringify!($name), ".sql")),
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => include_str!(concat!("sql/sqlite/", stringify!($name), ".sql")),
            #[cfg(feature = "mysql")]
            Dialect::MySql => include_str!(concat!("sql/mysql/", stringify!($name), ".sql")),
        }
    };
}

statements! {
    /// The statements of an outbox table.
    OutboxSql of "outbox" in (postgres, sqlite, mysql) {
        bury, claim, count_prunable, dead_letters, discard, discard_matching, enqueue, enqueued, extend, history, keep_done, look, ping,
        promote, prune_dead, prune_done, recover, redrive, redrive_matching, session, settle, settle_done, stats, stats_sample,
    }
}

statements! {
    /// The statements of an ordered outbox table, beside the others.
    OrderedSql of "outbox" in (postgres, sqlite) { claim_ordered, recover_ordered }
}

#[cfg(feature = "postgres")]
statements! {
    /// The statements that only PostgreSQL needs: kinds of enqueue, the walk over leases, the wake-up, and what the doctor looks at.
    PostgresSql of "outbox" in (postgres) {
        enqueue_one, enqueue_repeated, guard, horizon, is_guarded, leases, leave_guard, old_transactions, parked, stand_guard, vacuum,
        writers,
    }
}

#[cfg(feature = "mysql")]
statements! {
    /// The statements that only MySQL needs: the second half of a claim, and what RETURNING says elsewhere.
    MySqlSql of "outbox" in (mysql) { claimed, dead, held, max_packet }
}

statements! {
    /// The statements of an inbox table.
    InboxSql of "inbox" in (postgres, sqlite, mysql) { find_processed, is_processed, mark_processed, purge, store_result }
}

/// Which of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Outbox,
    Inbox,
}

impl Kind {
    pub(crate) fn template(self) -> &'static str {
        match self {
            Self::Outbox => "outbox",
            Self::Inbox => "inbox",
        }
    }

    /// The DDL as it stands in its file, comments included.
    pub(crate) fn create(self, dialect: Dialect) -> &'static str {
        match (self, dialect) {
            #[cfg(feature = "postgres")]
            (Self::Outbox, Dialect::Postgres) => include_str!("sql/postgres/create_outbox.sql"),
            #[cfg(feature = "postgres")]
            (Self::Inbox, Dialect::Postgres) => include_str!("sql/postgres/create_inbox.sql"),
            #[cfg(feature = "sqlite")]
            (Self::Outbox, Dialect::Sqlite) => include_str!("sql/sqlite/create_outbox.sql"),
            #[cfg(feature = "sqlite")]
            (Self::Inbox, Dialect::Sqlite) => include_str!("sql/sqlite/create_inbox.sql"),
            #[cfg(feature = "mysql")]
            (Self::Outbox, Dialect::MySql) => include_str!("sql/mysql/create_outbox.sql"),
            #[cfg(feature = "mysql")]
            (Self::Inbox, Dialect::MySql) => include_str!("sql/mysql/create_inbox.sql"),
        }
    }
}

/// What an ordered table has beside the plain one.
fn create_ordered(dialect: Dialect) -> &'static str {
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => include_str!("sql/postgres/create_ordered.sql"),
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => include_str!("sql/sqlite/create_ordered.sql"),
        // refused when the table is declared
        #[cfg(feature = "mysql")]
        Dialect::MySql => "",
    }
}

/// The DDL for `table`. What is declared of it stands behind its version.
pub(crate) fn create(kind: Kind, dialect: Dialect, table: &TableName, declared: &Declaration) -> String {
    let mut text = kind.create(dialect).to_owned();
    if !declared.is_plain() {
        let version = format!("{} schema version {VERSION}", kind.template());
        text = text.replace(&version, &format!("{version}, {declared}"));
    }
    if declared.ordered.is_some() {
        text.push_str(create_ordered(dialect));
    }
    name(dialect, table, kind.template(), &text)
}

/// Undoes [`create`]: also the wake-up's function, which would be in the way of creating the table again.
#[cfg(feature = "migration")]
pub(crate) fn drop(kind: Kind, dialect: Dialect, table: &TableName) -> String {
    let quoted = quoted(dialect, table);
    match (kind, dialect) {
        #[cfg(feature = "postgres")]
        (Kind::Outbox, Dialect::Postgres) => {
            let function = quoted.strip_suffix('"').unwrap_or(&quoted);
            format!("DROP TABLE {quoted}; DROP FUNCTION IF EXISTS {function}_notify\"()")
        }
        _ => format!("DROP TABLE {quoted}"),
    }
}

/// The table as a quoted identifier.
pub(crate) fn quoted(dialect: Dialect, table: &TableName) -> String {
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => format!("\"{}\".\"{}\"", schema(table), table.table()),
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => format!("\"{}\"", bare(dialect, table)),
        #[cfg(feature = "mysql")]
        Dialect::MySql => match table.schema() {
            Some(schema) => format!("`{schema}`.`{}`", table.table()),
            None => format!("`{}`", table.table()),
        },
    }
}

/// The schema on PostgreSQL: `public` where none is named, whatever the search path says.
#[cfg(feature = "postgres")]
pub(crate) fn schema(table: &TableName) -> &str {
    table.schema().unwrap_or("public")
}

/// The table's name within its schema; SQLite has no schemas, there `orders.outbox` is `orders_outbox`.
pub(crate) fn bare(dialect: Dialect, table: &TableName) -> String {
    match (dialect, table.schema()) {
        #[cfg(feature = "sqlite")]
        (Dialect::Sqlite, Some(schema)) => format!("{schema}_{}", table.table()),
        _ => table.table().to_owned(),
    }
}

/// A statement without comments, with the table's name in place.
fn render(dialect: Dialect, table: &TableName, template: &str, text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    name(dialect, table, template, &lines.join("\n"))
}

/// What identifiers are quoted with.
fn quote(dialect: Dialect) -> char {
    match dialect {
        #[cfg(feature = "mysql")]
        Dialect::MySql => '`',
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => '"',
    }
}

/// Replaces `"outbox"` by the quoted name of the table and `"outbox_…"` by that of one of its parts.
fn name(dialect: Dialect, table: &TableName, template: &str, text: &str) -> String {
    let quoted = quoted(dialect, table);
    let bare = bare(dialect, table);
    let q = quote(dialect);
    // a function lives in a schema of its own naming, unlike an index, a constraint or a trigger
    let function = quoted.strip_suffix('"').unwrap_or(&quoted);
    text.replace(&format!("FUNCTION \"{template}_"), &format!("FUNCTION {function}_"))
        .replace(&format!("{q}{template}_"), &format!("{q}{bare}_"))
        .replace(&format!("{q}{template}{q}"), &quoted)
}

/// Repeats the row of placeholders in `(VALUES (?, …))` once for each of `n` rows.
#[cfg(feature = "sqlite")]
pub(crate) fn repeat_values(sql: &str, n: usize) -> String {
    let Some((head, rest)) = sql.split_once("(VALUES (") else { return sql.to_owned() };
    let Some((row, tail)) = rest.split_once(')') else { return sql.to_owned() };
    let rows = vec![format!("({row})"); n].join(", ");
    format!("{head}(VALUES {rows}{tail}")
}

/// Repeats the last line, a row of placeholders, once for each of `n` rows.
#[cfg(feature = "mysql")]
pub(crate) fn repeat_rows(sql: &str, n: usize) -> String {
    let Some((head, row)) = sql.rsplit_once('\n') else { return sql.to_owned() };
    format!("{head}\n{}", vec![row; n].join(",\n"))
}

/// Repeats the placeholder of every `IN (?)` so that it takes `n` values.
#[cfg(feature = "mysql")]
pub(crate) fn repeat_list(sql: &str, n: usize) -> String {
    sql.replace("IN (?)", &format!("IN ({})", vec!["?"; n].join(", ")))
}

#[cfg(all(test, feature = "postgres", feature = "sqlite", feature = "mysql"))]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn files(folder: &str) -> BTreeSet<String> {
        let folder = format!("{}/src/sql/{folder}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_dir(folder)
            .expect("folder")
            .map(|file| file.expect("file").file_name().into_string().expect("name").replace(".sql", ""))
            .collect()
    }

    #[test]
    fn every_file_is_a_statement_and_every_statement_a_file() {
        let common = [
            OutboxSql::NAMES,
            InboxSql::NAMES,
            OrderedSql::NAMES,
            &["create_inbox", "create_outbox", "create_ordered"],
        ]
        .concat();
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(files("sqlite"), set(&common));
        assert_eq!(files("postgres"), set(&[&common[..], PostgresSql::NAMES].concat()));
        let common = [OutboxSql::NAMES, InboxSql::NAMES, &["create_inbox", "create_outbox"]].concat();
        assert_eq!(files("mysql"), set(&[&common[..], MySqlSql::NAMES].concat()));
    }

    #[test]
    fn the_name_is_replaced_everywhere() {
        let table = TableName::parse("orders.box").expect("name");
        let sql = OutboxSql::new(Dialect::Postgres, &table);
        assert!(sql.claim.starts_with("UPDATE \"orders\".\"box\" AS m"), "{}", sql.claim);
        let ddl = create(Kind::Outbox, Dialect::Postgres, &table, &Declaration::new());
        assert!(ddl.contains("CREATE INDEX \"box_ready\" ON \"orders\".\"box\""));
        assert!(ddl.contains("EXECUTE FUNCTION \"orders\".\"box_notify\"()"));
        assert!(
            ddl.contains("CREATE TRIGGER \"box_notify\" AFTER INSERT OR UPDATE OF seq ON \"orders\".\"box\"")
        );
        assert!(!ddl.contains("\"outbox"));
        let ddl = create(Kind::Outbox, Dialect::Sqlite, &table, &Declaration::new());
        assert!(ddl.contains("CREATE TABLE \"orders_box\""));
        let ddl = create(Kind::Outbox, Dialect::MySql, &table, &Declaration::new());
        assert!(ddl.contains("CREATE TABLE `orders`.`box` ("));
        assert!(ddl.contains("KEY `box_agenda` (state, due, topic)"));
    }

    #[test]
    fn the_declaration_stands_behind_the_version() {
        let table = TableName::parse("orders.box").expect("name");
        let declared = Declaration::new().ordered(outbox_core::OnDead::Block);
        for (dialect, index) in [
            (Dialect::Postgres, "CREATE INDEX \"box_keys\" ON \"orders\".\"box\""),
            (Dialect::Sqlite, "CREATE INDEX \"orders_box_keys\" ON \"orders_box\""),
        ] {
            let ddl = create(Kind::Outbox, dialect, &table, &declared);
            assert!(ddl.contains("outbox schema version 1, ordered, a dead letter blocks its key"), "{ddl}");
            assert!(ddl.contains(index), "{ddl}");
            assert!(!ddl.contains("\"outbox"), "{ddl}");
        }
    }

    #[test]
    fn rows_of_placeholders_are_repeated() {
        assert_eq!(
            repeat_values("WITH i AS (VALUES (?, ?)) SELECT ?", 2),
            "WITH i AS (VALUES (?, ?), (?, ?)) SELECT ?"
        );
        assert_eq!(repeat_rows("INSERT\n(f(), ?)", 2), "INSERT\n(f(), ?),\n(f(), ?)");
        assert_eq!(repeat_list("a IN (?) AND b IN (?) OR ?", 2), "a IN (?, ?) AND b IN (?, ?) OR ?");
    }
}
