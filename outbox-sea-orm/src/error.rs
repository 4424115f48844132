use outbox_core::{Error, ErrorKind};
use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr, SqlxError};

const MISSING: &str = "apply schema.sql or call migrate()";
const UNPREPARED: &str =
    "a pooler forgets prepared statements: PgBouncer needs max_prepared_statements, from 1.21 on";

/// Says what a SeaORM error means; the error itself is kept as the source.
pub(crate) fn from_db(operation: &'static str, table: &impl ToString, error: DbErr) -> Error {
    let cause = Cause::of(&error);
    let mut mapped = Error::new(cause.kind(), operation).with_table(table.to_string());
    if let Some(advice) = cause.advice() {
        mapped = mapped.with_detail(advice);
    }
    #[cfg(feature = "mysql")]
    if let Cause::MySql(number @ (1062 | 1292 | 1366 | 1411 | 1525 | 1586 | 1690)) = cause {
        // the server's text repeats the value
        return mapped.with_detail(format!("error {number} of the server"));
    }
    mapped.with_source(error)
}

/// The same for an error of a statement that went past SeaORM.
#[cfg(feature = "postgres")]
pub(crate) fn from_sqlx(operation: &'static str, table: &impl ToString, error: SqlxError) -> Error {
    from_db(operation, table, DbErr::Query(RuntimeErr::SqlxError(error.into())))
}

/// What an error of COMMIT means: a server that was shut down answers with an error of its own although the
/// commit may have happened; without any answer nothing is known either.
pub(crate) fn from_commit(error: DbErr) -> Error {
    let kind = match Cause::of(&error) {
        Cause::Code(code) if code.starts_with("57P") || code.starts_with("08") => ErrorKind::CommitUnknown,
        Cause::Code(code) => Cause::Code(code).kind(),
        #[cfg(feature = "mysql")]
        cause @ Cause::MySql(_) if matches!(cause.kind(), ErrorKind::Contention | ErrorKind::ReadOnly) => {
            cause.kind()
        }
        _ => ErrorKind::CommitUnknown,
    };
    Error::new(kind, "commit").with_source(error)
}

/// Whether the server has rolled the whole transaction back, so that what comes next would be committed by itself.
/// After a lock wait timed out MySQL does so only if it is told to at its start: not to be relied on.
pub(crate) fn ends_transaction(error: &DbErr) -> bool {
    match Cause::of(error) {
        #[cfg(feature = "mysql")]
        Cause::MySql(number) => matches!(number, 1020 | 1205 | 1206 | 1213 | 1467 | 1613 | 1614),
        _ => false,
    }
}

/// Whether a row with the id of a draft is there. Another unique key of the table is somebody else's.
#[cfg(feature = "mysql")]
pub(crate) fn is_duplicate_id(error: &DbErr, table: &outbox_core::TableName) -> bool {
    let key = format!("{}_id'", table.table());
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) = error
    else {
        return false;
    };
    match mysql_error(error) {
        Some(error) => error.number() == 1062 && error.message().ends_with(&key),
        None => false,
    }
}

#[cfg(feature = "mysql")]
fn mysql_error(error: &SqlxError) -> Option<&sea_orm::sqlx::mysql::MySqlDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

enum Cause {
    /// SQLSTATE on PostgreSQL, the extended result code on SQLite.
    Code(String),
    /// MySQL's own number, which says more than its SQLSTATE.
    #[cfg(feature = "mysql")]
    MySql(u16),
    /// A table or a column, where the code does not say so.
    Missing,
    Connection,
    Timeout,
    Other,
}

impl Cause {
    fn of(error: &DbErr) -> Self {
        match error {
            DbErr::Conn(RuntimeErr::SqlxError(error))
            | DbErr::Exec(RuntimeErr::SqlxError(error))
            | DbErr::Query(RuntimeErr::SqlxError(error)) => Self::of_sqlx(error),
            DbErr::ConnectionAcquire(ConnAcquireErr::Timeout) => Self::Timeout,
            DbErr::Conn(_) | DbErr::ConnectionAcquire(_) => Self::Connection,
            _ => Self::Other,
        }
    }

    fn of_sqlx(error: &SqlxError) -> Self {
        #[cfg(feature = "mysql")]
        if let Some(error) = mysql_error(error) {
            return Self::MySql(error.number());
        }
        match error {
            SqlxError::Database(error) if is_missing_on_sqlite(error.message()) => Self::Missing,
            SqlxError::Database(error) => {
                error.code().map_or(Self::Other, |code| Self::Code(code.into_owned()))
            }
            SqlxError::PoolTimedOut => Self::Timeout,
            SqlxError::Io(_)
            | SqlxError::Tls(_)
            | SqlxError::Protocol(_)
            | SqlxError::PoolClosed
            | SqlxError::WorkerCrashed => Self::Connection,
            _ => Self::Other,
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Code(code) => kind_of_code(code),
            #[cfg(feature = "mysql")]
            Self::MySql(number) => kind_of_mysql_number(*number),
            Self::Missing => ErrorKind::Schema,
            Self::Connection => ErrorKind::Unavailable,
            Self::Timeout => ErrorKind::Timeout,
            Self::Other => ErrorKind::Other,
        }
    }

    fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Code(code) if code == "25P02" => Some("the transaction had already failed"),
            Self::Code(code) if matches!(code.as_str(), "3F000" | "42P01" | "42703") => Some(MISSING),
            Self::Code(code) if matches!(code.as_str(), "26000" | "42P05") => Some(UNPREPARED),
            Self::Missing => Some(MISSING),
            #[cfg(feature = "mysql")]
            Self::MySql(1049 | 1054 | 1146 | 1176) => Some(MISSING),
            #[cfg(feature = "mysql")]
            Self::MySql(1665) => Some("READ COMMITTED needs binlog_format ROW or MIXED"),
            Self::Timeout => Some("no connection was free in time"),
            _ => None,
        }
    }
}

/// SQLite has one code for every mistake in a statement; only the text tells this one.
fn is_missing_on_sqlite(message: &str) -> bool {
    let texts = ["no such table: ", "no such column: ", " has no column named "];
    texts.iter().any(|text| message.contains(text))
}

/// SQLSTATEs have five characters, SQLite's codes at most four digits.
fn kind_of_code(code: &str) -> ErrorKind {
    match code {
        "40001" | "40P01" => ErrorKind::Contention,
        "57014" | "55P03" | "25P03" | "25P04" => ErrorKind::Timeout,
        "25006" => ErrorKind::ReadOnly,
        "25P02" => ErrorKind::TransactionDoomed,
        "42501" | "28000" | "28P01" => ErrorKind::PermissionDenied,
        "3F000" | "42P01" | "42703" => ErrorKind::Schema,
        "53100" => ErrorKind::StorageFull,
        "53300" => ErrorKind::Unavailable,
        _ if code.len() == 5 && (code.starts_with("08") || code.starts_with("57P")) => ErrorKind::Unavailable,
        _ => {
            code.parse::<u32>().ok().filter(|_| code.len() < 5).map_or(ErrorKind::Other, kind_of_sqlite_code)
        }
    }
}

/// The low byte is the primary result code. A file that may not be written (8, 1544) stays so.
fn kind_of_sqlite_code(code: u32) -> ErrorKind {
    match code & 0xff {
        8 if matches!(code, 8 | 1544) => ErrorKind::PermissionDenied,
        5 | 6 => ErrorKind::Contention,
        8 => ErrorKind::ReadOnly,
        13 => ErrorKind::StorageFull,
        3 | 23 => ErrorKind::PermissionDenied,
        14 => ErrorKind::Unavailable,
        _ => ErrorKind::Other,
    }
}

/// The numbers of MySQL and MariaDB. Those of the client (2006, 2013, …) are errors of the connection here.
#[cfg(feature = "mysql")]
fn kind_of_mysql_number(number: u16) -> ErrorKind {
    match number {
        // record has changed, lock table full, deadlock (also of XA, and of a cluster's commit), the table was altered
        // meanwhile, a deadlock about the next number, the statement is to be prepared again, too many transactions, a lock that
        // was taken away, a statement of another session that cannot be shown
        1020 | 1206 | 1213 | 1412 | 1467 | 1613 | 1614 | 1615 | 1637 | 1689 | 3101 | 3854 => {
            ErrorKind::Contention
        }
        // lock wait, KILL QUERY, statement time-outs, NOWAIT
        1205 | 1317 | 1969 | 3024 | 3572 => ErrorKind::Timeout,
        // read lock, --read-only, read-only transaction, mode, or schema
        1223 | 1290 | 1792 | 1836 | 3989 => ErrorKind::ReadOnly,
        // too many connections, cluster not ready, shutdown, aborted or killed connections, network, no thread, too many
        // prepared statements, a group that refuses the commit
        1040
        | 1047
        | 1053
        | 1077..=1080
        | 1129
        | 1135
        | 1152
        | 1158..=1161
        | 1184
        | 1203
        | 1226
        | 1461
        | 1927
        | 3100
        | 3169
        | 4031 => ErrorKind::Unavailable,
        // of databases, tables, columns, routines; passwords, expired too; accounts that are locked; TLS that is required
        1044 | 1045 | 1130 | 1142 | 1143 | 1227 | 1370 | 1698 | 1820 | 1862 | 3118 | 3159 | 4151 => {
            ErrorKind::PermissionDenied
        }
        1049 | 1054 | 1146 | 1176 => ErrorKind::Schema,
        1021 | 1114 => ErrorKind::StorageFull,
        1665 => ErrorKind::Unsupported,
        _ => ErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_map_to_kinds() {
        for (code, kind) in [
            ("40P01", ErrorKind::Contention),
            ("57014", ErrorKind::Timeout),
            ("57P01", ErrorKind::Unavailable),
            ("08006", ErrorKind::Unavailable),
            ("25006", ErrorKind::ReadOnly),
            ("42P01", ErrorKind::Schema),
            ("42501", ErrorKind::PermissionDenied),
            ("22012", ErrorKind::Other),
            ("5", ErrorKind::Contention),
            ("517", ErrorKind::Contention),
            ("8", ErrorKind::PermissionDenied),
            ("1032", ErrorKind::ReadOnly),
            ("2067", ErrorKind::Other),
        ] {
            assert_eq!(kind_of_code(code), kind, "{code}");
        }
    }

    #[cfg(feature = "mysql")]
    #[test]
    fn mysql_numbers_map_to_kinds() {
        for (number, kind) in [
            (1020, ErrorKind::Contention),
            (1213, ErrorKind::Contention),
            (1412, ErrorKind::Contention),
            (1467, ErrorKind::Contention),
            (1615, ErrorKind::Contention),
            (3854, ErrorKind::Contention),
            (1205, ErrorKind::Timeout),
            (1317, ErrorKind::Timeout),
            (1969, ErrorKind::Timeout),
            (3024, ErrorKind::Timeout),
            (3572, ErrorKind::Timeout),
            (1290, ErrorKind::ReadOnly),
            (1792, ErrorKind::ReadOnly),
            (1836, ErrorKind::ReadOnly),
            (1040, ErrorKind::Unavailable),
            (1047, ErrorKind::Unavailable),
            (1053, ErrorKind::Unavailable),
            (1203, ErrorKind::Unavailable),
            (1461, ErrorKind::Unavailable),
            (1927, ErrorKind::Unavailable),
            (1045, ErrorKind::PermissionDenied),
            (1142, ErrorKind::PermissionDenied),
            (4151, ErrorKind::PermissionDenied),
            (1146, ErrorKind::Schema),
            (1176, ErrorKind::Schema),
            (1114, ErrorKind::StorageFull),
            (1665, ErrorKind::Unsupported),
            (1062, ErrorKind::Other),
        ] {
            assert_eq!(kind_of_mysql_number(number), kind, "{number}");
        }
    }
}
