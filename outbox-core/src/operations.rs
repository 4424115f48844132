use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::{Message, MessageId, Result};

/// What an operator needs to see and to do.
pub trait Operations: Send + Sync {
    /// Counts the messages by what they wait for. Reads the whole table.
    ///
    /// # Errors
    /// Those of the storage.
    fn stats(&self) -> impl Future<Output = Result<Stats>> + Send;

    /// One page of dead letters, in the order in which their messages were enqueued or last redriven.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a limit outside 1 to [`MAX_BATCH`](crate::MAX_BATCH).
    fn dead_letters(&self, query: DeadLetterQuery) -> impl Future<Output = Result<DeadLetterPage>> + Send;

    /// Makes dead letters pending again, as new arrivals with all their attempts; answers in the order of `ids`.
    ///
    /// # Errors
    /// Those of the storage.
    fn redrive(&self, ids: Vec<MessageId>) -> impl Future<Output = Result<Vec<Moved>>> + Send;

    /// Removes dead letters for good; answers in the order of `ids`.
    ///
    /// # Errors
    /// Those of the storage.
    fn discard(&self, ids: Vec<MessageId>) -> impl Future<Output = Result<Vec<Moved>>> + Send;

    /// Whether the storage answers.
    ///
    /// # Errors
    /// Those of the storage.
    fn ping(&self) -> impl Future<Output = Result<()>> + Send;

    /// Whether the table is there, complete and of the right version.
    ///
    /// # Errors
    /// [`Schema`](crate::ErrorKind::Schema), whose text names what is missing and what to do.
    fn check(&self) -> impl Future<Output = Result<()>> + Send;
}

/// Messages counted by what they wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The counts of every topic that has a message.
    pub topics: BTreeMap<String, TopicStats>,
}

impl Stats {
    /// The counts of these topics.
    pub fn new(topics: BTreeMap<String, TopicStats>) -> Self {
        Self { topics }
    }

    /// The counts over all topics.
    pub fn total(&self) -> TopicStats {
        self.topics.values().fold(TopicStats::default(), |sum, topic| TopicStats {
            n_pending: sum.n_pending + topic.n_pending,
            n_due: sum.n_due + topic.n_due,
            n_claimed: sum.n_claimed + topic.n_claimed,
            n_dead: sum.n_dead + topic.n_dead,
            oldest_due: sum.oldest_due.max(topic.oldest_due),
            highest_attempt: sum.highest_attempt.max(topic.highest_attempt),
        })
    }
}

/// The counts of one topic, or of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicStats {
    /// Neither claimed nor dead: due, delayed, waiting for a retry, or with an expired lease.
    pub n_pending: u64,
    /// The part of `n_pending` that a claim could take now.
    pub n_due: u64,
    /// Under a lease that has not expired.
    pub n_claimed: u64,
    /// Dead letters.
    pub n_dead: u64,
    /// How long the oldest due message has existed.
    pub oldest_due: Option<Duration>,
    /// The highest attempt among the messages that are not dead.
    pub highest_attempt: u32,
}

/// Which dead letters to list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetterQuery {
    /// Only this topic.
    pub topic: Option<String>,
    /// Continue behind this place, from [`DeadLetterPage::next`].
    pub after: Option<i64>,
    /// The most letters, 1 to [`MAX_BATCH`](crate::MAX_BATCH).
    pub limit: usize,
}

impl DeadLetterQuery {
    /// The first `limit` dead letters of every topic.
    pub fn new(limit: usize) -> Self {
        Self { topic: None, after: None, limit }
    }

    /// Only this topic.
    #[must_use]
    pub fn with_topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// Continues behind a page.
    #[must_use]
    pub fn with_after(mut self, after: i64) -> Self {
        self.after = Some(after);
        self
    }

    /// Checks the limit. Backends call it before any statement.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput).
    pub fn validate(&self) -> Result<()> {
        crate::inspect::validate_limit(self.limit)
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
