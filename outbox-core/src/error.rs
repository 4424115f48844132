use std::error::Error as StdError;
use std::fmt;

type BoxError = Box<dyn StdError + Send + Sync>;

/// The result of every fallible operation of the contract.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, fit to branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The context carries no transaction. Nothing is ever committed on its own instead.
    NoTransaction,
    /// The context carries a transaction of another backend or another database.
    ForeignTransaction,
    /// A clone of the context outlived the closure, so the transaction could not be ended; it is rolled back.
    TransactionEscaped,
    /// A statement of this transaction failed or was cancelled before; it can only be rolled back.
    TransactionDoomed,
    /// The commit was sent and its answer was lost: the transaction may or may not have committed.
    CommitUnknown,
    /// A message with this id is in the table already, or one with this deduplication key was, and its id may not be read.
    AlreadyEnqueued,
    /// The same message id was processed before with another fingerprint.
    Conflict,
    /// A deadlock or a serialization failure: the same call may succeed when repeated.
    Contention,
    /// A statement, lock or connection time-out.
    Timeout,
    /// The database cannot be reached at the moment.
    Unavailable,
    /// The server is read-only, for example a standby after a failover. Retryable: the same call may reach the new
    /// primary.
    ReadOnly,
    /// An argument is out of its bounds; the text names the field. No statement was sent.
    InvalidInput,
    /// The database role lacks a privilege, a row-level policy refuses the row, the login failed, or the file may not
    /// be written. Not retryable. Which role needs what: `grants.sql`.
    PermissionDenied,
    /// A table, column or version is missing; the text says what to do.
    Schema,
    /// The disk or a quota of the server is full.
    StorageFull,
    /// The payload or a stored row cannot be decoded.
    Undecodable,
    /// This backend cannot do what was asked.
    Unsupported,
    /// Anything else; see the text of the source (not its `Debug`, see [`Error`]).
    Other,
}

impl ErrorKind {
    /// A short name for a label of a metric, for example `commit_unknown`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoTransaction => "no_transaction",
            Self::ForeignTransaction => "foreign_transaction",
            Self::TransactionEscaped => "transaction_escaped",
            Self::TransactionDoomed => "transaction_doomed",
            Self::CommitUnknown => "commit_unknown",
            Self::AlreadyEnqueued => "already_enqueued",
            Self::Conflict => "conflict",
            Self::Contention => "contention",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::ReadOnly => "read_only",
            Self::InvalidInput => "invalid_input",
            Self::PermissionDenied => "permission_denied",
            Self::Schema => "schema",
            Self::StorageFull => "storage_full",
            Self::Undecodable => "undecodable",
            Self::Unsupported => "unsupported",
            Self::Other => "other",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NoTransaction => "the context carries no transaction",
            Self::ForeignTransaction => "the transaction on the context belongs to another backend",
            Self::TransactionEscaped => {
                "a clone of the context outlived its transaction, which is rolled back"
            }
            Self::TransactionDoomed => {
                "an earlier statement failed or was cancelled, the transaction can only roll back"
            }
            Self::CommitUnknown => "the answer to COMMIT was lost, the transaction may have committed",
            Self::AlreadyEnqueued => "a message with this id or dedup key is enqueued already",
            Self::Conflict => "the message was processed before with another fingerprint",
            Self::Contention => "deadlock or serialization failure",
            Self::Timeout => "timed out",
            Self::Unavailable => "the database is unavailable",
            Self::ReadOnly => "the database is read-only",
            Self::InvalidInput => "invalid input",
            Self::PermissionDenied => "permission denied",
            Self::Schema => "schema mismatch",
            Self::StorageFull => "the storage is full",
            Self::Undecodable => "cannot be decoded",
            Self::Unsupported => "not supported by this backend",
            Self::Other => "failed",
        }
    }
}

/// The error of every operation of the contract: branch on [`kind`](Self::kind) and
/// [`is_retryable`](Self::is_retryable). Its text and its `Debug` never hold a payload, a header or a password.
///
/// [`source`](StdError::source) is the driver's own error. Log it by its text (`{}`), never by its `Debug`
/// (`{:?}`): that of a database driver may hold the server's DETAIL, which can repeat the row that failed. A
/// reporter that walks the sources and prints each with `{}` is safe.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    table: Option<String>,
    detail: Option<String>,
    source: Option<BoxError>,
}

const _: () = {
    const fn assert_error<T: StdError + Send + Sync + 'static>() {}
    assert_error::<Error>();
};

impl Error {
    /// An error of `kind` in `operation`, for example `Error::new(ErrorKind::Timeout, "claim")`.
    pub fn new(kind: ErrorKind, operation: &'static str) -> Self {
        Self(Box::new(Inner { kind, operation, table: None, detail: None, source: None }))
    }

    /// An argument out of bounds: `invalid {field}: {reason}`. The reason must not repeat the value of a
    /// payload or a header.
    pub fn invalid(field: &str, reason: impl fmt::Display) -> Self {
        Self::new(ErrorKind::InvalidInput, "validate").with_detail(format!("invalid {field}: {reason}"))
    }

    /// Adds what a reader needs to act.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// Adds the table.
    #[must_use]
    pub fn with_table(mut self, table: impl fmt::Display) -> Self {
        self.0.table = Some(table.to_string());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The operation that failed, for example `claim`.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The table, where one was involved.
    pub fn table(&self) -> Option<&str> {
        self.0.table.as_deref()
    }

    /// Whether the same call may succeed when repeated without a change. False for
    /// [`ErrorKind::CommitUnknown`]: repeating could do the work twice.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Contention
                | ErrorKind::Timeout
                | ErrorKind::Unavailable
                | ErrorKind::ReadOnly
                | ErrorKind::StorageFull
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, operation, table, detail, .. } = &*self.0;
        if *kind != ErrorKind::InvalidInput {
            write!(f, "{operation}")?;
            if let Some(table) = table {
                write!(f, " on {table}")?;
            }
            f.write_str(": ")?;
        }
        match detail {
            Some(detail) if *kind == ErrorKind::InvalidInput => f.write_str(detail),
            Some(detail) => write!(f, "{}: {detail}", kind.text()),
            None => f.write_str(kind.text()),
        }
    }
}

/// Shows the cause by its text only: a driver's `Debug` may hold the row that failed.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.0.kind).field("text", &format_args!("{self}"));
        if let Some(source) = &self.0.source {
            out.field("source", &format_args!("{source}"));
        }
        out.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
