use std::fmt;

/// How bad a [`Finding`] is. Ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// It works, and something could not be looked at or is slower than it need be.
    Notice,
    /// It works, and will get into trouble or gives up a guarantee.
    Warning,
    /// It does not work.
    Critical,
}

/// What [`Operations::doctor`](crate::Operations::doctor) looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Symptom {
    /// The table, a column, its type, or its version.
    Schema,
    /// An index that is missing or invalid.
    Index,
    /// The trigger behind the wake-up is missing or disabled.
    Trigger,
    /// Hints do not arrive: a round trip was tried.
    Wakeup,
    /// Connections that dispatchers open for themselves are refused, for example by a pooler.
    Connections,
    /// Dead rows are not vacuumed in time.
    Autovacuum,
    /// A snapshot or a transaction elsewhere keeps dead rows from being vacuumed.
    Snapshot,
    /// A transaction that has enqueued and stays open keeps the marks of the claimers from moving on.
    OpenTransaction,
    /// The clocks of the database and of this process differ.
    Clock,
    /// Transactions are not READ COMMITTED by default.
    Isolation,
    /// The server or the session cannot write.
    ReadOnly,
    /// SQLite without a write-ahead log.
    Journal,
    /// SQLite gives up at once when another connection writes.
    BusyTimeout,
    /// A commit may be lost when the power fails.
    Durability,
    /// A partition of the time to come is missing, or messages are in the one for what fits nowhere else.
    Partition,
    /// A replication slot that cannot be read, that nobody reads, or that keeps much of the server's WAL.
    Slot,
    /// MySQL would not commit what is written outside of a transaction.
    Autocommit,
    /// MySQL takes no statement as large as a message may be.
    Packet,
    /// MySQL's binary log is of statements, which READ COMMITTED does not allow.
    BinaryLog,
    /// The role may not see enough to tell.
    Privilege,
}

/// Something that should be otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub symptom: Symptom,
    /// What was found, with names and numbers.
    pub what: String,
    /// What to do.
    pub advice: String,
}

impl Finding {
    /// A finding in words that name no payload and no header.
    pub fn new(
        severity: Severity,
        symptom: Symptom,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { severity, symptom, what: what.into(), advice: advice.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Notice => "notice",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        };
        write!(f, "{severity}: {}; {}", self.what, self.advice)
    }
}
