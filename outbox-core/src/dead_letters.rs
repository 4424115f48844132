use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::message::{validate_delay, validate_nul};
use crate::{Message, Result, validate_limit};

/// Which dead letters: those that meet every condition.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use outbox_core::{DeadLetterFilter, Operations, Result};
/// /// What died in the last hour because the mail server was away.
/// async fn redrive_outage(outbox: &impl Operations) -> Result<()> {
///     let filter = DeadLetterFilter::default()
///         .with_topic("mail.wanted")
///         .with_error("connection refused")
///         .with_max_age(Duration::from_secs(3600));
///     while outbox.redrive_matching(filter.clone(), 100).await? == 100 {}
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetterFilter {
    /// Only this topic.
    pub topic: Option<String>,
    /// Only this key.
    pub key: Option<String>,
    /// Only those whose error contains this text, upper and lower case told apart.
    pub error: Option<String>,
    /// Only those that have been dead for at least this long, at most [`MAX_DELAY`](crate::MAX_DELAY).
    pub min_age: Option<Duration>,
    /// Only those that have been dead for at most this long, at most [`MAX_DELAY`](crate::MAX_DELAY).
    pub max_age: Option<Duration>,
}

impl DeadLetterFilter {
    /// Only this topic.
    #[must_use]
    pub fn with_topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// Only this key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Only those whose error contains this text.
    #[must_use]
    pub fn with_error(mut self, text: impl Into<String>) -> Self {
        self.error = Some(text.into());
        self
    }

    /// Only those that have been dead for at least this long.
    #[must_use]
    pub fn with_min_age(mut self, age: Duration) -> Self {
        self.min_age = Some(age);
        self
    }

    /// Only those that have been dead for at most this long.
    #[must_use]
    pub fn with_max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// Checks the bounds. Backends call it before any statement.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field.
    pub fn validate(&self) -> Result<()> {
        for (field, text) in [("topic", &self.topic), ("key", &self.key), ("error", &self.error)] {
            text.as_ref().map_or(Ok(()), |text| validate_nul(field, text))?;
        }
        for (field, age) in [("min_age", self.min_age), ("max_age", self.max_age)] {
            age.map_or(Ok(()), |age| validate_delay(field, age))?;
        }
        Ok(())
    }

    /// Checks the bounds of a bulk operation: also its limit, 1 to [`MAX_BATCH`](crate::MAX_BATCH).
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field.
    pub fn validate_with_limit(&self, limit: usize) -> Result<()> {
        validate_limit(limit)?;
        self.validate()
    }
}

/// Which page of which dead letters to list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetterQuery {
    /// Only these.
    pub filter: DeadLetterFilter,
    /// Continue behind this place, from [`DeadLetterPage::next`].
    pub after: Option<i64>,
    /// The most letters, 1 to [`MAX_BATCH`](crate::MAX_BATCH).
    pub limit: usize,
}

impl DeadLetterQuery {
    /// The first `limit` dead letters.
    pub fn new(limit: usize) -> Self {
        Self { filter: DeadLetterFilter::default(), after: None, limit }
    }

    /// Only these.
    #[must_use]
    pub fn with_filter(mut self, filter: DeadLetterFilter) -> Self {
        self.filter = filter;
        self
    }

    /// Only this topic.
    #[must_use]
    pub fn with_topic(mut self, topic: impl Into<String>) -> Self {
        self.filter = self.filter.with_topic(topic);
        self
    }

    /// Continues behind a page.
    #[must_use]
    pub fn with_after(mut self, after: i64) -> Self {
        self.after = Some(after);
        self
    }

    /// Checks the bounds. Backends call it before any statement.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field.
    pub fn validate(&self) -> Result<()> {
        self.filter.validate_with_limit(self.limit)
    }
}

/// One page of dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterPage {
    /// The letters.
    pub letters: Vec<DeadLetter>,
    /// Where the next page starts; `None` when this page was not full.
    pub next: Option<i64>,
}

/// A message that will not be delivered unless it is redriven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The message with the attempt in which it died. An undecodable one is shown without what could not
    /// be decoded.
    pub message: Message,
    /// Why it is dead.
    pub error: String,
    /// Since when, by the database's clock.
    pub dead_at: DateTime<Utc>,
}

/// Whether a redrive or discard took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub enum Moved {
    /// It did.
    Applied,
    /// There is no dead letter with this id.
    NotDead,
}

/// How many failed attempts of a message are remembered: the last ones.
pub const MAX_HISTORY: usize = 10;

/// How much of each error the history keeps, in characters; the last error is stored whole
/// ([`MAX_ERROR_BYTES`](crate::MAX_ERROR_BYTES)).
pub const MAX_HISTORY_ERROR: usize = 200;

/// An attempt that did not deliver a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedAttempt {
    /// Which attempt, counted from 1 again after a redrive.
    pub attempt: u32,
    /// When it was settled, or its lease expired, by the database's clock.
    pub failed_at: DateTime<Utc>,
    /// The handler's error, cut to [`MAX_HISTORY_ERROR`]; `lease expired` where the attempt was never settled, for
    /// example because its process died.
    pub error: String,
}
