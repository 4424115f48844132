use std::time::Duration;

use crate::message::validate_delay;
use crate::{MAX_BATCH, Result, validate_limit};

/// What becomes of a message that was delivered. Declared on the handle that settles; every dispatcher of a
/// table should declare the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Retention {
    /// It leaves the table, and its id is free again.
    #[default]
    Delete,
    /// It stays, done, until [`Operations::prune`](crate::Operations::prune) removes it. As long as it is there
    /// its id is taken, so enqueueing it again is reported. Costs a second write of the row and two index
    /// entries for each message, and somebody must prune. On a [partitioned](crate::Declaration::partitioned) table
    /// the id is free.
    Keep,
}

/// What can be pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prunable {
    /// Messages that were delivered, and kept by [`Retention::Keep`].
    Done,
    /// Dead letters.
    Dead,
    /// Deduplication keys that are no longer honoured.
    DedupKeys,
}

/// One bounded step of pruning. Done and dead messages and keys have separate policies; a message that has not ended and a
/// key that is honoured are never removed.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use outbox_core::{Operations, Prune, Result};
/// const DAY: Duration = Duration::from_secs(86_400);
/// async fn nightly(outbox: &impl Operations) -> Result<()> {
///     let done = Prune::done(7 * DAY);
///     while outbox.prune(done.clone()).await? >= done.limit as u64 {}
///     let dead = Prune::dead(90 * DAY);
///     while outbox.prune(dead.clone()).await? >= dead.limit as u64 {}
///     let keys = Prune::dedup_keys();
///     while outbox.prune(keys.clone()).await? >= keys.limit as u64 {}
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Prune {
    /// Which messages, or keys.
    pub what: Prunable,
    /// Only those that ended or expired longer ago than this by the database's clock, at most
    /// [`MAX_DELAY`](crate::MAX_DELAY).
    pub older_than: Duration,
    /// The most of this step, 1 to [`MAX_BATCH`]; the default is [`MAX_BATCH`]. A
    /// [partition](crate::Declaration::partitioned) that leaves as a whole may have more.
    pub limit: usize,
    /// Counts instead of removing.
    pub dry_run: bool,
}

impl Prune {
    /// Messages that were delivered longer ago than `older_than`.
    pub fn done(older_than: Duration) -> Self {
        Self { what: Prunable::Done, older_than, limit: MAX_BATCH, dry_run: false }
    }

    /// Dead letters that died longer ago than `older_than`.
    pub fn dead(older_than: Duration) -> Self {
        Self { what: Prunable::Dead, ..Self::done(older_than) }
    }

    /// Deduplication keys that have expired; see [`Draft::dedup_key`](crate::Draft::dedup_key).
    pub fn dedup_keys() -> Self {
        Self { what: Prunable::DedupKeys, ..Self::done(Duration::ZERO) }
    }

    /// Sets the most of this step.
    #[must_use]
    pub fn with_limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Counts instead of removing.
    #[must_use]
    pub fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }

    /// Checks the bounds. Backends call it before any statement.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field.
    pub fn validate(&self) -> Result<()> {
        validate_limit(self.limit)?;
        validate_delay("older_than", self.older_than)
    }
}
