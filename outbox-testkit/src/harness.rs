//! What a backend gives the suite to be tested.

use std::env::var_os;
use std::fmt;
use std::fs::OpenOptions;
use std::future::{Future, ready};
use std::io::{self, Write, stderr};
use std::time::Duration;

use outbox_core::{
    Declaration, Inspect, MessageId, Operations, ProcessedStore, Repository, Transactions, Wakeup,
};

use crate::server;

/// A backend with an empty table of its own: one for each case.
///
/// Cases run side by side, so [`start`](Self::start) makes a new schema, table or file each time, on a server
/// that all of them may share. What goes wrong in any of these methods is a failure of the test: panic.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use outbox_core::MemoryRepository;
/// use outbox_testkit::{Capabilities, Harness, Skip};
///
/// struct Memory(MemoryRepository);
///
/// impl Harness for Memory {
///     const NAME: &'static str = "memory";
///     type Repository = MemoryRepository;
///
///     async fn start() -> Result<Self, Skip> {
///         Ok(Self(MemoryRepository::new()))
///     }
///
///     fn repository(&self) -> &MemoryRepository {
///         &self.0
///     }
///
///     async fn advance(&self, by: Duration) {
///         self.0.advance(by);
///     }
///
///     fn capabilities(&self) -> Capabilities {
///         Capabilities::all().with_corrupt_rows(false)
///     }
/// }
/// ```
pub trait Harness: Sized + Send + Sync + 'static {
    /// What `OUTBOX_TEST_REQUIRE` calls this backend, for example `postgres`.
    const NAME: &'static str;

    /// The backend; clones share the table.
    type Repository: Repository + Transactions + Wakeup + Clone + 'static;

    /// Makes an empty table.
    ///
    /// # Errors
    /// [`Skip`] when what the backend needs is not there, for example a server. The case is then skipped
    /// loudly, or fails where `OUTBOX_TEST_REQUIRE` names [`NAME`](Self::NAME).
    fn start() -> impl Future<Output = Result<Self, Skip>> + Send;

    /// The backend under test.
    fn repository(&self) -> &Self::Repository;

    /// Lets `by` pass on the storage's clock: subtracts it from every stored time (created, due, leased
    /// until, dead since, processed), or moves the clock where it can be moved.
    ///
    /// A claim loop that continues with a [`Claimer`](outbox_core::Claimer) may have planned by its own clock
    /// when to look for expired leases; the cases heed that.
    fn advance(&self, by: Duration) -> impl Future<Output = ()> + Send;

    /// What the backend can do beyond the rules that none may bend.
    fn capabilities(&self) -> Capabilities;

    /// Breaks the stored row of a message in a way that the backend cannot decode, and says whether it
    /// could: a storage that refuses to hold such a row answers `false`.
    fn corrupt(&self, id: MessageId, corruption: Corruption) -> impl Future<Output = bool> + Send {
        let _ = (id, corruption);
        ready(false)
    }

    /// Removes what [`start`](Self::start) made. Not called after a failed case, so that its table can be
    /// looked at.
    fn finish(self) -> impl Future<Output = ()> + Send {
        ready(())
    }
}

/// A harness whose backend also has [`Operations`] on the same table.
pub trait OperationsHarness: Harness {
    /// Often the same type as the repository.
    type Operations: Operations;

    /// The operations on the table of [`Harness::repository`].
    fn operations(&self) -> &Self::Operations;

    /// A handle of the same table that keeps what it settles as done
    /// ([`Retention::Keep`](outbox_core::Retention::Keep)); `None` where the backend cannot.
    fn keeping(&self) -> Option<Self::Repository> {
        None
    }
}

/// A harness whose repository also shows what is enqueued; every one that can is.
pub trait InspectHarness: Harness<Repository: Inspect> {}

impl<H: Harness<Repository: Inspect>> InspectHarness for H {}

/// A harness whose tables can be declared ordered or fair.
pub trait DeclaredHarness: OperationsHarness {
    /// Another empty table, of this declaration.
    fn declared(&self, declaration: Declaration) -> impl Future<Output = Self> + Send;
}

/// A harness whose backend also has a [`ProcessedStore`] that works in the repository's transactions.
pub trait ProcessedHarness: Harness {
    /// The record of processed messages; clones share it.
    type Processed: ProcessedStore + Clone + 'static;

    /// An empty record, in transactions of [`Harness::repository`].
    fn processed(&self) -> &Self::Processed;
}

/// Why a backend cannot be tested here.
#[derive(Clone, Debug)]
pub struct Skip(String);

impl Skip {
    /// For this reason, in one line.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// Says on standard error that `case` is skipped.
    ///
    /// # Panics
    /// When `OUTBOX_TEST_REQUIRE` names the backend.
    pub fn report(&self, backend: &str, case: &str) {
        assert!(!server::required(backend), "{backend} is required and cannot be tested: {self}");
        say_skipped(&format!("{case} on {backend}: {self}"));
    }
}

impl From<server::Skipped> for Skip {
    fn from(skipped: server::Skipped) -> Self {
        Self::new(skipped.reason())
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// One line past the capturing of the test runner, which would hide it for a case that passes, and one in the file
/// that `OUTBOX_TEST_SKIPPED` names, for a summary of several runs.
pub(crate) fn say_skipped(what: &str) {
    // a closed standard error or a full disk is no reason to fail
    let _ = writeln!(stderr(), "skipped: {what}");
    let _ = note_skipped(what);
}

fn note_skipped(what: &str) -> io::Result<()> {
    let Some(path) = var_os("OUTBOX_TEST_SKIPPED") else { return Ok(()) };
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("{what}\n").as_bytes())
}

/// What a backend can do beyond the rules that none may bend.
///
/// A case that lacks one says so on standard error and asserts what still holds without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// [`Wakeup::listen`] gives a listener, and every commit gives a hint to one that sleeps.
    pub hints: bool,
    /// Several transactions that have written can be open at once, and claims go on meanwhile. False for a
    /// storage with one writer, such as SQLite.
    pub concurrent_writers: bool,
    /// Messages come back in exactly the reference's order, also those that were promoted, released or
    /// redriven. False for a storage that cannot draw a new number for a stored row. The order of enqueueing
    /// is kept by every backend.
    pub exact_order: bool,
    /// [`Claim::next_due_in`](outbox_core::Claim::next_due_in) is filled.
    pub timers: bool,
    /// [`Harness::corrupt`] can break a row in at least one way.
    pub corrupt_rows: bool,
    /// The id of a dead letter, and of a message that is kept, is taken. False for a storage that remembers the ids
    /// of messages to be delivered only.
    pub ended_ids: bool,
    /// [`Draft::dedup_key`](outbox_core::Draft::dedup_key) is honoured. A storage that cannot refuses such a draft
    /// ([`refuse_dedup_keys`](outbox_core::refuse_dedup_keys)).
    pub dedup_keys: bool,
    /// An id that is stored already is noticed. False for a storage that is read by several consumer groups and
    /// partitioned by time, such as a log: there a repeated id is another message.
    pub unique_ids: bool,
    /// What has committed is delivered while a transaction that enqueued before it is still open. False for a storage
    /// that is read in the order of its numbers, such as a log: there it waits for that transaction.
    pub overtaking: bool,
    /// [`advance`](Harness::advance) also moves when a message was enqueued that is not claimed yet. False where that has left the storage
    /// already, as with a replication stream.
    pub moved_enqueues: bool,
}

impl Capabilities {
    /// Everything.
    pub const fn all() -> Self {
        Self {
            hints: true,
            concurrent_writers: true,
            exact_order: true,
            timers: true,
            corrupt_rows: true,
            ended_ids: true,
            dedup_keys: true,
            unique_ids: true,
            overtaking: true,
            moved_enqueues: true,
        }
    }

    /// Nothing beyond the rules.
    pub const fn none() -> Self {
        Self {
            hints: false,
            concurrent_writers: false,
            exact_order: false,
            timers: false,
            corrupt_rows: false,
            ended_ids: false,
            dedup_keys: false,
            unique_ids: false,
            overtaking: false,
            moved_enqueues: false,
        }
    }

    /// Sets [`hints`](Self::hints).
    #[must_use]
    pub const fn with_hints(mut self, can: bool) -> Self {
        self.hints = can;
        self
    }

    /// Sets [`concurrent_writers`](Self::concurrent_writers).
    #[must_use]
    pub const fn with_concurrent_writers(mut self, can: bool) -> Self {
        self.concurrent_writers = can;
        self
    }

    /// Sets [`exact_order`](Self::exact_order).
    #[must_use]
    pub const fn with_exact_order(mut self, can: bool) -> Self {
        self.exact_order = can;
        self
    }

    /// Sets [`timers`](Self::timers).
    #[must_use]
    pub const fn with_timers(mut self, can: bool) -> Self {
        self.timers = can;
        self
    }

    /// Sets [`unique_ids`](Self::unique_ids).
    #[must_use]
    pub const fn with_unique_ids(mut self, can: bool) -> Self {
        self.unique_ids = can;
        self
    }

    /// Sets [`overtaking`](Self::overtaking).
    #[must_use]
    pub const fn with_overtaking(mut self, can: bool) -> Self {
        self.overtaking = can;
        self
    }

    /// Sets [`moved_enqueues`](Self::moved_enqueues).
    #[must_use]
    pub const fn with_moved_enqueues(mut self, can: bool) -> Self {
        self.moved_enqueues = can;
        self
    }

    /// Sets [`corrupt_rows`](Self::corrupt_rows).
    #[must_use]
    pub const fn with_corrupt_rows(mut self, can: bool) -> Self {
        self.corrupt_rows = can;
        self
    }

    /// Sets [`ended_ids`](Self::ended_ids).
    #[must_use]
    pub const fn with_ended_ids(mut self, can: bool) -> Self {
        self.ended_ids = can;
        self
    }

    /// Sets [`dedup_keys`](Self::dedup_keys).
    #[must_use]
    pub const fn with_dedup_keys(mut self, can: bool) -> Self {
        self.dedup_keys = can;
        self
    }
}

/// A way to break a stored row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Corruption {
    /// The headers are no JSON object of strings, for example `[1]` or `{"a": 1}`.
    Headers,
    /// The number of attempts is negative.
    Attempts,
    /// The creation time is none: `infinity`, or a text that is no time.
    CreatedAt,
}

impl Corruption {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Headers, Self::Attempts, Self::CreatedAt];
}
