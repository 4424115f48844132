//! The only place that builds SQL text. A file of `sql/` names its table as a quoted identifier, `"outbox"` or
//! `"inbox"` (in backticks for MySQL); here it becomes the validated name of the real one. Every value is bound; only DDL
//! has another text of the user's in it, the validated name of a fair table's header.

#[cfg(feature = "postgres")]
use chrono::{DateTime, Utc};
#[cfg(feature = "postgres")]
use outbox_core::Partition;
use outbox_core::{Declaration, Fairness, TableName};

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

            #[cfg(test)]
            #[allow(dead_code, reason = "only some are looked at one by one")]
            pub(crate) fn all(self) -> Vec<String> {
                vec![$(self.$name,)*]
            }

            #[allow(dead_code, reason = "only some have parts that are tables")]
            fn map(self, change: impl Fn(&str) -> String) -> Self {
                Self { $($name: change(&self.$name),)* }
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
    (@text (sqlite) $dialect:ident $name:ident) => {
        match $dialect {
            Dialect::Sqlite => include_str!(concat!("sql/sqlite/", stringify!($name), ".sql")),
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
        bury, claim, count_expired_keys, count_prunable, dead_letters, discard, discard_matching, enqueue, enqueued, extend, find_keys, history,
        keep_done, look, ping, promote, prune_dead, prune_done, prune_keys, recover, redrive, redrive_matching, session, settle,
        settle_done, stats, stats_sample, take_keys,
    }
}

statements! {
    /// The statements of an ordered outbox table, beside the others.
    OrderedSql of "outbox" in (postgres, sqlite, mysql) { claim_ordered, recover_ordered }
}

statements! {
    /// What an operator does with the keys of an ordered table.
    KeysSql of "outbox" in (postgres, sqlite, mysql) { blocked_keys, release_head, skip_head }
}

statements! {
    /// The statement of a fair outbox table, beside the others.
    FairSql of "outbox" in (postgres, sqlite, mysql) { claim_fair }
}

#[cfg(feature = "postgres")]
statements! {
    /// The statements that only PostgreSQL needs: kinds of enqueue, what a producer may know of keys, the walk over leases, the wake-up, and what the doctor looks at.
    PostgresSql of "outbox" in (postgres) {
        claim_front, enqueue_one, enqueue_repeated, guard, horizon, is_guarded, leases, leave_guard, old_transactions, parked, reads_keys,
        stand_guard, take_key, vacuum, writers,
    }
}

#[cfg(feature = "postgres")]
statements! {
    /// The statements that only a partitioned table needs.
    PartitionedSql of "outbox" in (postgres) { missing_partitions, old_partitions, partitions }
}

#[cfg(feature = "postgres")]
impl PartitionedSql {
    /// The same statements for the partitions of a log: of another table, by another time, with minutes in their names.
    pub(crate) fn of_log(log: &TableName) -> Self {
        let part = |name: &str| quoted_partition(log, &format!("{}_{name}", log.table()));
        let replace = |text: &str| {
            text.replace(&part("done_all"), &quoted(Dialect::Postgres, log))
                .replace(&part("done_rest"), &part("default"))
                .replace(&format!("\"{}_done\"", log.table()), &format!("\"{}_p\"", log.table()))
                .replace(
                    "state = 3 AND done_at >= p.starts AND done_at <",
                    "created_at >= p.starts AND created_at <",
                )
                .replace("YYYYMMDDHH24", "YYYYMMDDHH24MI")
        };
        Self::new(Dialect::Postgres, log).map(replace)
    }
}

#[cfg(feature = "mysql")]
statements! {
    /// The statements that only MySQL needs: the second half of a claim, the first half of an ordered or fair one, what RETURNING
    /// says elsewhere, redrives that draw new numbers, and what the doctor looks at.
    MySqlSql of "outbox" in (mysql) {
        are_dead, claimed, claimed_by_token, dead, expired, held, lanes, max_packet, old_transactions, redrive_behind, redrive_matching_behind, sees_all, turns,
        variables,
    }
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
statements! {
    /// The statements of a log and one of its groups.
    LogSql of "log" in (postgres, sqlite) {
        log_claim, log_done, log_extend, log_forget, log_group_delete, log_group_insert, log_group_names, log_group_position,
        log_group_update, log_horizon, log_leases, log_moved, log_ranges_delete, log_recover, log_settle, log_stats,
    }
}

#[cfg(feature = "postgres")]
statements! {
    /// The statements of a log that only PostgreSQL needs: kinds of claims, and who else writes.
    PostgresLogSql of "log" in (postgres) { log_blockers, log_claim_mixed, log_claim_ordered, log_read, log_session, log_writers, log_group_slot, log_slot_drop }
}

#[cfg(feature = "wal")]
statements! {
    /// The statements of a group that is fed from the WAL.
    FeedSql of "log" in (postgres) {
        log_feed_advance, log_feed_begin, log_feed_claim, log_feed_claim_aside, log_feed_end, log_feed_flush_lsn, log_feed_lag, log_feed_mark, log_feed_name, log_feed_publish, log_feed_slot, log_feed_start,
        log_feed_state, log_feed_stop,
    }
}

#[cfg(feature = "sqlite")]
statements! {
    /// The statements of a log that only SQLite needs: the steps of its transactions, and who needs what is old.
    SqliteLogSql of "log" in (sqlite) {
        log_change, log_count_old, log_end, log_expired, log_held, log_holders, log_leased, log_move, log_named, log_put_aside, log_range, log_take,
    }
}

statements! {
    /// The statements of an inbox table.
    InboxSql of "inbox" in (postgres, sqlite, mysql) { find_processed, is_processed, mark_processed, purge, store_result }
}

/// What stands behind an outbox table's name in that of its keys.
pub(crate) const DEDUP: &str = "_dedup";

/// Which of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Outbox,
    Inbox,
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    Log,
}

impl Kind {
    pub(crate) fn template(self) -> &'static str {
        match self {
            Self::Outbox => "outbox",
            Self::Inbox => "inbox",
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            Self::Log => "log",
        }
    }

    /// The DDL as it stands in its file, comments included.
    pub(crate) fn create(self, dialect: Dialect) -> &'static str {
        match (self, dialect) {
            #[cfg(feature = "postgres")]
            (Self::Outbox, Dialect::Postgres) => include_str!("sql/postgres/create_outbox.sql"),
            #[cfg(feature = "postgres")]
            (Self::Inbox, Dialect::Postgres) => include_str!("sql/postgres/create_inbox.sql"),
            #[cfg(feature = "postgres")]
            (Self::Log, Dialect::Postgres) => include_str!("sql/postgres/create_log.sql"),
            #[cfg(feature = "sqlite")]
            (Self::Log, Dialect::Sqlite) => include_str!("sql/sqlite/create_log.sql"),
            // refused before
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            #[allow(unreachable_patterns, reason = "there may be no other")]
            (Self::Log, _) => "",
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

/// Adds what an ordered table has beside the plain one.
fn add_order(dialect: Dialect, text: &str) -> String {
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => format!("{text}{}", include_str!("sql/postgres/create_ordered.sql")),
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => format!("{text}{}", include_str!("sql/sqlite/create_ordered.sql")),
        #[cfg(feature = "mysql")]
        Dialect::MySql => add_parts(text, include_str!("sql/mysql/create_ordered.sql")),
    }
}

/// Adds columns and indexes to the one statement that makes the whole table.
#[cfg(feature = "mysql")]
fn add_parts(text: &str, parts: &str) -> String {
    text.replacen("  CONSTRAINT", &format!("{parts}  CONSTRAINT"), 1)
}

/// The partitions that there always are, without the name of their table.
#[cfg(feature = "postgres")]
pub(crate) const PARTITIONS: &[&str] = &["pending", "dead_all", "done_all", "done_rest"];

/// The DDL of a table whose rows are in partitions: they have what the table itself cannot have, a unique id and
/// parameters of storage.
#[cfg(feature = "postgres")]
fn partition(plain: &str) -> String {
    let key = "  CONSTRAINT \"outbox_pkey\" PRIMARY KEY (id),\n";
    let (columns, rest) = plain.split_once(") WITH (").unwrap_or_default();
    let (_, rest) = rest.split_once("\n);\n").unwrap_or_default();
    let create = include_str!("sql/postgres/create_partitioned.sql");
    format!("{}) PARTITION BY LIST (state);\n{create}{rest}", columns.replace(key, ""))
}

/// What is in partitions by time.
#[cfg(feature = "postgres")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parts {
    /// The delivered messages of an outbox table.
    Delivered,
    /// A log.
    Log,
}

/// The name of the partition that begins at this time, without its schema. At most 15 bytes are added to the table's.
#[cfg(feature = "postgres")]
pub(crate) fn partition_name(parts: Parts, table: &TableName, starts_at: DateTime<Utc>) -> String {
    match parts {
        Parts::Delivered => format!("{}_done{}", table.table(), starts_at.format("%Y%m%d%H")),
        Parts::Log => format!("{}_p{}", table.table(), starts_at.format("%Y%m%d%H%M")),
    }
}

#[cfg(feature = "postgres")]
fn quoted_partition(table: &TableName, name: &str) -> String {
    format!("\"{}\".\"{name}\"", schema(table))
}

/// The table that is partitioned by time.
#[cfg(feature = "postgres")]
fn whole(parts: Parts, table: &TableName) -> String {
    match parts {
        Parts::Delivered => quoted_partition(table, &format!("{}_done_all", table.table())),
        Parts::Log => quoted(Dialect::Postgres, table),
    }
}

/// A partition of a log is attached: that keeps out nobody who writes to another one.
#[cfg(feature = "postgres")]
pub(crate) fn create_partition(parts: Parts, table: &TableName, partition: &Partition) -> String {
    let bound = |at: DateTime<Utc>| at.format("%Y-%m-%d %H:%M:%S+00").to_string();
    let (name, whole) = (quoted_partition(table, &partition.name), whole(parts, table));
    let values =
        format!("FOR VALUES FROM ('{}') TO ('{}')", bound(partition.starts_at), bound(partition.ends_at));
    match parts {
        Parts::Delivered => format!("CREATE TABLE {name} PARTITION OF {whole} {values}"),
        Parts::Log => format!(
            "CREATE TABLE {name} (LIKE {whole} INCLUDING ALL EXCLUDING IDENTITY EXCLUDING INDEXES); \
             ALTER TABLE {whole} ATTACH PARTITION {name} {values}"
        ),
    }
}

/// Which of the missing partitions are made in one transaction.
#[cfg(feature = "postgres")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Of delivered messages: all.
    All,
    /// Of a log: those of which nobody writes rows yet.
    Ahead,
    /// Of a log: the others.
    Current,
}

/// Keeps out who adds to what no partition takes, and waits for nobody who reads a partition. Where producers of a log may write rows that
/// the new partition is to take, it keeps them all out: one that has chosen the default partition already would fail.
#[cfg(feature = "postgres")]
pub(crate) fn lock_partitions(missing: Missing, table: &TableName) -> String {
    let log = || (whole(Parts::Log, table), quoted_partition(table, &format!("{}_default", table.table())));
    match missing {
        Missing::All => {
            format!("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE", whole(Parts::Delivered, table))
        }
        Missing::Ahead => {
            let (log, rest) = log();
            format!(
                "LOCK TABLE ONLY {log} IN SHARE UPDATE EXCLUSIVE MODE; LOCK TABLE {rest} IN ACCESS EXCLUSIVE MODE"
            )
        }
        Missing::Current => {
            let (log, rest) = log();
            format!(
                "{BRIEFLY}; LOCK TABLE ONLY {log} IN ACCESS EXCLUSIVE MODE; LOCK TABLE {rest} IN ACCESS EXCLUSIVE MODE"
            )
        }
    }
}

/// One at a time changes the partitions of a table. Only others who do so wait behind us, and each of them for not much
/// longer than its locks may take.
#[cfg(feature = "postgres")]
pub(crate) fn wait_for_turn(table: &TableName) -> String {
    format!(
        "SET LOCAL lock_timeout = '30s'; SELECT pg_advisory_xact_lock(hashtextextended('outbox maintain {}', 0))",
        quoted(Dialect::Postgres, table)
    )
}

/// While we wait for one producer, all others wait behind us.
#[cfg(feature = "postgres")]
const BRIEFLY: &str = "SET LOCAL lock_timeout = '500ms'";

/// Keeps out who writes to a log or to one of its partitions, in the order in which a producer locks them.
#[cfg(feature = "postgres")]
pub(crate) fn lock_to_drop(log: &TableName, partition: &Partition) -> String {
    format!(
        "{BRIEFLY}; LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
        quoted(Dialect::Postgres, log),
        quoted_partition(log, &partition.name)
    )
}

/// The statement that says who needs a partition of a log.
#[cfg(feature = "postgres")]
pub(crate) fn partition_holders(log: &TableName, partition: &Partition) -> String {
    let text = render(Dialect::Postgres, log, "log", include_str!("sql/postgres/log_partition_holders.sql"));
    let text = name_parts(Dialect::Postgres, log, None, &text);
    text.replace(&format!("\"{}_partition\"", log.table()), &quoted_partition(log, &partition.name))
}

#[cfg(feature = "postgres")]
pub(crate) fn count_partition(table: &TableName, partition: &Partition) -> String {
    format!("SELECT count(*) FROM {}", quoted_partition(table, &partition.name))
}

#[cfg(feature = "postgres")]
pub(crate) fn drop_partition(table: &TableName, partition: &Partition) -> String {
    format!("DROP TABLE {}", quoted_partition(table, &partition.name))
}

/// Adds what a fair table has beside the plain one.
fn add_lanes(dialect: Dialect, text: &str, fairness: &Fairness) -> String {
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            let file = include_str!("sql/postgres/create_fair.sql");
            format!("{text}{}", lanes(file, fairness, ["key", "headers ->> 'NAME'"]))
        }
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => {
            let file = include_str!("sql/sqlite/create_fair.sql");
            format!("{text}{}", lanes(file, fairness, ["key", "json_extract(headers, '$.\"NAME\"')"]))
        }
        #[cfg(feature = "mysql")]
        Dialect::MySql => {
            let header = "LEFT(JSON_UNQUOTE(JSON_EXTRACT(headers, '$.\"NAME\"')), 255)";
            add_parts(text, &lanes(include_str!("sql/mysql/create_fair.sql"), fairness, ["`key`", header]))
        }
    }
}

/// `file` makes lanes of keys; where they are made of the header NAME, its value stands in the key's place.
fn lanes(file: &str, fairness: &Fairness, [key, header]: [&str; 2]) -> String {
    match fairness {
        Fairness::Key => file.to_owned(),
        // it is validated: letters, digits and `_.-` only
        Fairness::Header(name) => {
            file.replace(&format!("({key}, '')"), &format!("({}, '')", header.replace("NAME", name)))
        }
    }
}

/// The DDL for `table`. What is declared of it stands behind its version.
pub(crate) fn create(kind: Kind, dialect: Dialect, table: &TableName, declared: &Declaration) -> String {
    let mut text = kind.create(dialect).to_owned();
    if !declared.is_plain() {
        let version = format!("{} schema version {VERSION}", kind.template());
        text = text.replace(&version, &format!("{version}, {declared}"));
    }
    #[cfg(feature = "postgres")]
    if declared.partitioned.is_some() && kind == Kind::Outbox && dialect == Dialect::Postgres {
        text = partition(&text);
    }
    if declared.ordered.is_some() && kind == Kind::Outbox {
        text = add_order(dialect, &text);
    }
    if let Some(fairness) = declared.lanes() {
        text = add_lanes(dialect, &text, fairness);
    }
    let text = name(dialect, table, kind.template(), &text);
    match kind {
        #[cfg(any(feature = "postgres", feature = "sqlite"))]
        Kind::Log => name_parts(dialect, table, None, &text),
        _ => text,
    }
}

/// The DDL that makes an outbox table that of a group of a log; none on SQLite.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) fn create_log_group(
    dialect: Dialect,
    log: &TableName,
    group: &TableName,
    is_ordered: bool,
) -> String {
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            let order =
                if is_ordered { include_str!("sql/postgres/create_log_group_ordered.sql") } else { "" };
            let text = format!("{}{order}", include_str!("sql/postgres/create_log_group.sql"));
            let text = name(dialect, group, "outbox", &text);
            name_parts(dialect, log, Some(group), &name(dialect, log, "log", &text))
        }
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => {
            let _ = (log, group, is_ordered);
            String::new()
        }
    }
}

/// Undoes what made a group's table.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) fn drop_log_group(dialect: Dialect, group: &TableName) -> String {
    let quoted = quoted(dialect, group);
    let open = quoted.strip_suffix('"').unwrap_or(&quoted);
    let tables = format!("DROP TABLE IF EXISTS {quoted}; DROP TABLE IF EXISTS {open}{DEDUP}\"");
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => format!("{tables}; DROP FUNCTION IF EXISTS {open}_notify\"()"),
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => tables,
    }
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl LogSql {
    /// The statements of `group`'s table with those of its log.
    pub(crate) fn of(dialect: Dialect, log: &TableName, group: &TableName) -> Self {
        Self::new(dialect, log).map(|text| name_parts(dialect, log, Some(group), text))
    }
}

/// Behind all numbers of a log.
#[cfg(feature = "sqlite")]
const BEHIND_LOG: i64 = 1 << 61;

#[cfg(feature = "sqlite")]
impl OutboxSql {
    /// The statements of a table in which messages of an ordered log keep their numbers: one that is drawn here comes after all of
    /// those, as in create_log_group_ordered.sql.
    pub(crate) fn behind_log(self, dialect: Dialect, table: &TableName) -> Self {
        let last = format!("(SELECT max(seq) FROM {})", quoted(dialect, table));
        let drawn = format!("max({last}, {BEHIND_LOG})");
        self.map(|text| text.replace(&format!("{last} + "), &format!("{drawn} + ")))
    }
}

#[cfg(feature = "postgres")]
impl PostgresLogSql {
    /// As [`LogSql::of`].
    pub(crate) fn of(dialect: Dialect, log: &TableName, group: &TableName) -> Self {
        Self::new(dialect, log).map(|text| name_parts(dialect, log, Some(group), text))
    }
}

#[cfg(feature = "sqlite")]
impl SqliteLogSql {
    /// As [`LogSql::of`].
    pub(crate) fn of(dialect: Dialect, log: &TableName, group: &TableName) -> Self {
        Self::new(dialect, log).map(|text| name_parts(dialect, log, Some(group), text))
    }
}

#[cfg(feature = "wal")]
impl FeedSql {
    /// The statements of `group`'s feed with the names of its log.
    pub(crate) fn of(log: &TableName, group: &TableName) -> Self {
        Self::new(Dialect::Postgres, log).map(|text| name_parts(Dialect::Postgres, log, Some(group), text))
    }
}

/// The parts of a log that are tables stand in its schema; one of them is the table of a group.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
fn name_parts(dialect: Dialect, log: &TableName, group: Option<&TableName>, text: &str) -> String {
    let text = match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            ["default", "groups", "ranges"].into_iter().fold(text.to_owned(), |text, part| {
                let part = format!("{}_{part}", log.table());
                text.replace(&format!("\"{part}\""), &quoted_partition(log, &part))
            })
        }
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => text.to_owned(),
    };
    let own = format!("\"{}_group\"", bare(dialect, log));
    group.map_or(text.clone(), |group| text.replace(&own, &quoted(dialect, group)))
}

/// Undoes [`create`]: also the wake-up's function, which would be in the way of creating the table again.
#[cfg(feature = "migration")]
pub(crate) fn drop(kind: Kind, dialect: Dialect, table: &TableName) -> String {
    let quoted = quoted(dialect, table);
    if kind == Kind::Inbox {
        return format!("DROP TABLE {quoted}");
    }
    let q = quote(dialect);
    let open = quoted.strip_suffix(q).unwrap_or(&quoted);
    let tables = format!("DROP TABLE {quoted}; DROP TABLE {open}{DEDUP}{q}");
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres if kind == Kind::Log => {
            format!(
                "DROP TABLE {quoted}, {open}_groups\", {open}_ranges\"; DROP FUNCTION IF EXISTS {open}_notify\"()"
            )
        }
        #[cfg(feature = "postgres")]
        Dialect::Postgres => format!("{tables}; DROP FUNCTION IF EXISTS {open}_notify\"()"),
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => tables,
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
    let text = lines.join("\n");
    #[cfg(feature = "postgres")]
    let text = name_sessions(&text);
    name(dialect, table, template, &text)
}

/// Replaces what statements say of sessions by what the server understands. A session is its process and when that began; one
/// whose role may not see that of its own, as after SET ROLE, gets a random name.
#[cfg(feature = "postgres")]
fn name_sessions(text: &str) -> String {
    const SET: &str = "nullif(current_setting('outbox.reader', true), '')";
    const PROCESS: &str = "(SELECT pid || ' ' || extract(epoch FROM backend_start) FROM pg_stat_get_activity(pg_backend_pid()))";
    text.replace("\"this_session\"", &format!("coalesce({SET}, {PROCESS})"))
        .replace("\"named_session\"", &format!("set_config('outbox.reader', coalesce({SET}, {PROCESS}, gen_random_uuid()::text), false)"))
        .replace("\"is_there\"", "EXISTS (SELECT FROM pg_stat_get_activity(NULL) AS a WHERE a.pid || ' ' || extract(epoch FROM a.backend_start) = ANY (me.known))")
}

/// What identifiers are quoted with.
pub(crate) fn quote(dialect: Dialect) -> char {
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
    // a function, the table of keys and a partition are named with their schema, unlike an index, a constraint or a trigger
    let open = quoted.strip_suffix(q).unwrap_or(&quoted);
    let text = text
        .replace(&format!("FUNCTION \"{template}_"), &format!("FUNCTION {open}_"))
        .replace(&format!("{q}{template}{DEDUP}{q}"), &format!("{open}{DEDUP}{q}"));
    #[cfg(feature = "postgres")]
    let text = PARTITIONS.iter().fold(text, |text, part| {
        text.replace(&format!("\"{template}_{part}\""), &format!("{open}_{part}\""))
    });
    text.replace(&format!("{q}{template}_"), &format!("{q}{bare}_"))
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

#[cfg(all(test, feature = "wal", feature = "sqlite", feature = "mysql"))]
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
            KeysSql::NAMES,
            FairSql::NAMES,
            &["create_inbox", "create_outbox", "create_ordered", "create_fair"],
        ]
        .concat();
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let own = [
            PostgresSql::NAMES,
            PartitionedSql::NAMES,
            PostgresLogSql::NAMES,
            FeedSql::NAMES,
            &["create_partitioned", "create_log_group", "create_log_group_ordered", "log_partition_holders"],
        ]
        .concat();
        let with_logs = [&common[..], LogSql::NAMES, &["create_log"]].concat();
        assert_eq!(files("postgres"), set(&[&with_logs[..], &own].concat()));
        assert_eq!(files("sqlite"), set(&[&with_logs[..], SqliteLogSql::NAMES].concat()));
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
        assert!(ddl.contains("CREATE INDEX IF NOT EXISTS \"box_dedup_expiry\" ON \"orders\".\"box_dedup\""));
        let ddl = create(Kind::Outbox, Dialect::Sqlite, &table, &Declaration::new());
        assert!(ddl.contains("CREATE TABLE \"orders_box\""));
        assert!(ddl.contains("CREATE TABLE IF NOT EXISTS \"orders_box_dedup\" ("));
        let ddl = create(Kind::Outbox, Dialect::MySql, &table, &Declaration::new());
        assert!(ddl.contains("CREATE TABLE `orders`.`box` ("));
        assert!(ddl.contains("CREATE TABLE IF NOT EXISTS `orders`.`box_dedup` ("));
        assert!(ddl.contains("KEY `box_agenda` (state, due, topic)"));
    }

    #[test]
    fn numbers_drawn_beside_a_log_are_behind_it() {
        let table = TableName::parse("orders.log_group_a").expect("name");
        let sql = OutboxSql::new(Dialect::Sqlite, &table).behind_log(Dialect::Sqlite, &table);
        let drawn = "max((SELECT max(seq) FROM \"orders_log_group_a\"), 2305843009213693952) + ";
        for text in [&sql.settle, &sql.promote, &sql.redrive, &sql.redrive_matching] {
            assert!(text.contains(drawn), "{text}");
        }
        assert!(!sql.stats_sample.contains(drawn), "{}", sql.stats_sample);
    }

    #[test]
    fn the_parts_of_a_log_follow_it() {
        let [log, group] =
            ["orders.log", "orders.log_group_a"].map(|name| TableName::parse(name).expect("name"));
        let sql = LogSql::of(Dialect::Sqlite, &log, &group);
        for part in ["\"orders_log_groups\"", "\"orders_log\""] {
            assert!(sql.log_claim.contains(part), "{}", sql.log_claim);
        }
        assert!(sql.log_recover.contains("\"orders_log_group_a\""), "{}", sql.log_recover);
        let ddl =
            create(Kind::Log, Dialect::Sqlite, &log, &Declaration::new().ordered(outbox_core::OnDead::Block));
        assert!(ddl.contains("CREATE TABLE \"orders_log\" ( -- log schema version 1, ordered"), "{ddl}");
        assert!(ddl.contains("CREATE TABLE \"orders_log_ranges\"") && !ddl.contains("\"log"), "{ddl}");
    }

    #[test]
    fn the_declaration_stands_behind_the_version() {
        let table = TableName::parse("orders.box").expect("name");
        let declared = Declaration::new().ordered(outbox_core::OnDead::Block);
        for (dialect, index) in [
            (Dialect::Postgres, "CREATE INDEX \"box_keys\" ON \"orders\".\"box\""),
            (Dialect::Sqlite, "CREATE INDEX \"orders_box_keys\" ON \"orders_box\""),
            (Dialect::MySql, "KEY `box_keys` (state, `key`, place, seq),\n  CONSTRAINT `box_state`"),
        ] {
            let ddl = create(Kind::Outbox, dialect, &table, &declared);
            assert!(ddl.contains("outbox schema version 1, ordered, a dead letter blocks its key"), "{ddl}");
            assert!(ddl.contains(index), "{ddl}");
            assert!(!ddl.contains("\"outbox") && !ddl.contains("`outbox"), "{ddl}");
        }
    }

    #[test]
    fn partitions_have_what_their_table_cannot_have() {
        let table = TableName::parse("orders.box").expect("name");
        let declared = Declaration::new().partitioned(outbox_core::PartitionInterval::Day);
        let ddl = create(Kind::Outbox, Dialect::Postgres, &table, &declared);
        let (whole, rest) = ddl.split_once(") PARTITION BY LIST (state);\n").expect("partitioned");
        assert!(!whole.contains("PRIMARY KEY") && !whole.contains("fillfactor"), "{whole}");
        let pending = "CREATE TABLE \"orders\".\"box_pending\" PARTITION OF \"orders\".\"box\" (CONSTRAINT \"box_pkey\" PRIMARY KEY (id))";
        assert!(rest.contains(pending) && rest.contains("fillfactor = 45"), "{rest}");
        assert!(rest.contains("CREATE INDEX \"box_ready\" ON \"orders\".\"box\""), "{rest}");
        assert!(rest.contains("'outbox schema version 1, partitioned by the day'"), "{rest}");
        assert!(!ddl.contains("\"outbox"), "{ddl}");
    }

    #[test]
    fn partitions_of_a_log_are_its_own() {
        let sql = PartitionedSql::of_log(&TableName::parse("orders.done_at").expect("name"));
        let all = [&*sql.missing_partitions, &*sql.old_partitions, &*sql.partitions].join("\n");
        assert_eq!(all.matches("'\"orders\".\"done_at\"'::regclass").count(), 3, "{all}");
        assert_eq!(all.matches("FROM \"orders\".\"done_at_default\"").count(), 2, "{all}");
        assert!(
            all.contains("FROM '\"done_at_p\"') || to_char(p.starts AT TIME ZONE 'UTC', 'YYYYMMDDHH24MI')"),
            "{all}"
        );
        assert!(!all.contains("done_at >=") && !all.contains("_done"), "{all}");
    }

    #[test]
    fn names_of_partitions_are_not_cut() {
        let table = TableName::parse(&"x".repeat(outbox_core::MAX_IDENTIFIER_BYTES)).expect("name");
        let at = DateTime::from_timestamp(1_795_269_600, 0).expect("time");
        for (parts, end) in [(Parts::Delivered, "_done2026112114"), (Parts::Log, "_p202611211400")] {
            let name = partition_name(parts, &table, at);
            assert!(name.ends_with(end) && name.len() <= 63, "{name}");
        }
        assert!(PARTITIONS.iter().all(|part| part.len() < 15));
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
