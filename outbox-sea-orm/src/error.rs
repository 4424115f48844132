use outbox_core::{Error, ErrorKind};
use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr, SqlxError};

const MISSING: &str = "apply schema.sql or call migrate()";

/// Says what a SeaORM error means; the error itself is kept as the source.
pub(crate) fn from_db(operation: &'static str, table: &impl ToString, error: DbErr) -> Error {
    let cause = Cause::of(&error);
    let mut mapped = Error::new(cause.kind(), operation).with_table(table.to_string());
    if let Some(advice) = cause.advice() {
        mapped = mapped.with_detail(advice);
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
        _ => ErrorKind::CommitUnknown,
    };
    Error::new(kind, "commit").with_source(error)
}

enum Cause {
    /// SQLSTATE on PostgreSQL, the extended result code on SQLite.
    Code(String),
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
            Self::Missing => Some(MISSING),
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
}
