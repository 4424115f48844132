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
    /// entries for each message, and somebody must prune.
    Keep,
}

/// How a message has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// Delivered, and kept by [`Retention::Keep`].
    Done,
    /// A dead letter.
    Dead,
}

/// One bounded step of pruning. Done and dead messages have separate policies; what has not ended is never
/// removed.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use outbox_core::{Operations, Prune, Result};
/// const DAY: Duration = Duration::from_secs(86_400);
/// async fn nightly(outbox: &impl Operations) -> Result<()> {
///     let done = Prune::done(7 * DAY);
///     while outbox.prune(done.clone()).await? == done.limit as u64 {}
///     let dead = Prune::dead(90 * DAY);
///     while outbox.prune(dead.clone()).await? == dead.limit as u64 {}
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Prune {
    /// Which messages.
    pub ended: Ended,
    /// Only those that ended longer ago than this by the database's clock, at most
    /// [`MAX_DELAY`](crate::MAX_DELAY).
    pub older_than: Duration,
    /// The most messages of this step, 1 to [`MAX_BATCH`]; the default is [`MAX_BATCH`].
    pub limit: usize,
    /// Counts instead of removing.
    pub dry_run: bool,
}

impl Prune {
    /// Messages that were delivered longer ago than `older_than`.
    pub fn done(older_than: Duration) -> Self {
        Self { ended: Ended::Done, older_than, limit: MAX_BATCH, dry_run: false }
    }

    /// Dead letters that died longer ago than `older_than`.
    pub fn dead(older_than: Duration) -> Self {
        Self { ended: Ended::Dead, ..Self::done(older_than) }
    }

    /// Sets the most messages of this step.
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
