use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::message::validate_delay;
use crate::{Error, Result};

/// The most partitions that maintenance makes ahead.
pub const MAX_AHEAD: u32 = 100;

/// What is to be done to a partitioned table from time to time: make the partitions of the time to come, and drop those
/// whose time is over. A log without partitions has its old messages removed one by one.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use outbox_core::Maintenance;
/// let nightly = Maintenance::new().drop_after(Duration::from_secs(7 * 86_400));
/// assert_eq!(nightly.n_ahead, 3);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Maintenance {
    /// How many partitions there are to be behind the current one, at most [`MAX_AHEAD`]; the default is 3. As many
    /// intervals may go by without a run. Too few, and messages end up in the default partition, from which they
    /// leave row by row; too many cost time in every statement that reads all of them.
    pub n_ahead: u32,
    /// Partitions that ended longer ago than this by the database's clock are dropped, with all that is in them; at most
    /// [`MAX_DELAY`](crate::MAX_DELAY). None is dropped by default. Of a log without partitions: messages that were enqueued longer
    /// ago.
    pub drop_after: Option<Duration>,
    /// Tells what it would do, and does nothing.
    pub dry_run: bool,
}

impl Default for Maintenance {
    fn default() -> Self {
        Self { n_ahead: 3, drop_after: None, dry_run: false }
    }
}

impl Maintenance {
    /// Makes partitions ahead and drops none.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many partitions there are to be behind the current one.
    #[must_use]
    pub fn with_ahead(mut self, n_ahead: u32) -> Self {
        self.n_ahead = n_ahead;
        self
    }

    /// Drops partitions that ended longer ago than `age`.
    #[must_use]
    pub fn drop_after(mut self, age: Duration) -> Self {
        self.drop_after = Some(age);
        self
    }

    /// Tells what it would do, and does nothing.
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
        if self.n_ahead > MAX_AHEAD {
            return Err(Error::invalid("n_ahead", format_args!("{}, max {MAX_AHEAD}", self.n_ahead)));
        }
        self.drop_after.map_or(Ok(()), |age| validate_delay("drop_after", age))
    }
}

/// A part of a table, for some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its name in the database.
    pub name: String,
    /// When it begins, inclusive.
    pub starts_at: DateTime<Utc>,
    /// When it ends, exclusive.
    pub ends_at: DateTime<Utc>,
}

/// A partition that is old enough to be dropped and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldPartition {
    /// The partition.
    pub partition: Partition,
    /// The consumer groups of the log that have not read all of it, or have claimed something in it that they have not
    /// settled; in the order of their names.
    pub groups: Vec<String>,
}

/// What maintenance has done, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Maintained {
    /// The partitions that were made, in the order of time.
    pub created: Vec<Partition>,
    /// The partitions that were dropped, in the order of time.
    pub dropped: Vec<Partition>,
    /// Of a log: the partitions that are old enough and stay because a group needs them, in the order of time.
    pub held: Vec<HeldPartition>,
    /// Of a log: how many messages were removed from the default partition, or from a log that has no partitions.
    pub n_removed: u64,
    /// Of a log without partitions: the consumer groups that need messages which are old enough, because they have not read
    /// them, or have claimed and not settled them; in the order of their names.
    pub held_by: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_DELAY;

    #[test]
    fn bounds_are_named() {
        let refused = |maintenance: Maintenance| maintenance.validate().expect_err("refused").to_string();
        assert_eq!(refused(Maintenance::new().with_ahead(101)), "invalid n_ahead: 101, max 100");
        let endless = Maintenance::new().drop_after(MAX_DELAY + Duration::from_micros(1));
        assert_eq!(refused(endless), "invalid drop_after: exceeds 10 years");
        assert!(Maintenance::new().with_ahead(100).drop_after(MAX_DELAY).validate().is_ok());
    }
}
