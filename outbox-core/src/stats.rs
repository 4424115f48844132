use std::collections::BTreeMap;
use std::time::Duration;

/// How many messages of each state [`Operations::stats`](crate::Operations::stats) counts one by one. With more
/// in any state the counts are an estimate.
pub const MAX_COUNTED: usize = 5_000;

/// Messages counted by what they wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The counts of every topic that has a message. In an estimate a rare topic may be missing.
    pub topics: BTreeMap<String, TopicStats>,
    /// Whether some state has more than [`MAX_COUNTED`] messages: the counts of such a state are then projected
    /// from a sample of the table, and never below what was counted. Those of other states are exact.
    pub is_estimate: bool,
    /// Of a consumer group of a log: what keeps it from reading on, where something does.
    pub held_back: Option<HeldBack>,
    /// Of a consumer group that is fed from the WAL: how far its replication slot is behind the server. `None` where no slot keeps WAL for the
    /// group: it is read by number, or its slot is missing or lost.
    pub slot_lag: Option<SlotLag>,
}

/// A transaction that has enqueued and is open: what was enqueued after it is read when it has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// How many numbers have been handed out that may not be read yet; at most as many messages wait. A handle that has not
    /// read before the transaction began counts everything that the group has not read.
    pub n_numbers: u64,
    /// Who is to be asked: the session or prepared transaction that has been open for the longest.
    pub by: String,
    /// For how long its transaction has been open.
    pub open_for: Duration,
}

/// How far the replication slot of a group is behind the server's WAL, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotLag {
    /// The name of the slot.
    pub slot: String,
    /// What the server keeps on its disk and cannot remove before the slot has moved on (from `restart_lsn`). Transactions that stay open hold
    /// this back however fast messages are delivered.
    pub n_retained: u64,
    /// What was written since the place that the group has confirmed (`confirmed_flush_lsn`), whoever wrote it.
    pub n_unconfirmed: u64,
    /// Whether a process reads the slot.
    pub is_active: bool,
}

impl SlotLag {
    /// Of a slot that nobody reads and that keeps nothing.
    pub fn new(slot: impl Into<String>) -> Self {
        Self { slot: slot.into(), n_retained: 0, n_unconfirmed: 0, is_active: false }
    }

    /// With so many bytes that the server keeps, and so many that are not confirmed.
    #[must_use]
    pub fn with_bytes(mut self, n_retained: u64, n_unconfirmed: u64) -> Self {
        (self.n_retained, self.n_unconfirmed) = (n_retained, n_unconfirmed);
        self
    }

    /// Says whether a process reads it.
    #[must_use]
    pub fn with_active(mut self, is_active: bool) -> Self {
        self.is_active = is_active;
        self
    }
}

impl Stats {
    /// The counts of these topics.
    pub fn new(topics: BTreeMap<String, TopicStats>) -> Self {
        Self { topics, is_estimate: false, held_back: None, slot_lag: None }
    }

    /// Says whether the counts are an estimate.
    #[must_use]
    pub fn with_estimate(mut self, is_estimate: bool) -> Self {
        self.is_estimate = is_estimate;
        self
    }

    /// The counts over all topics.
    pub fn total(&self) -> TopicStats {
        self.topics.values().fold(TopicStats::default(), TopicStats::plus)
    }
}

/// The counts of one topic, or of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicStats {
    /// Neither claimed nor ended: due, delayed, waiting for a retry, or with an expired lease.
    pub n_pending: u64,
    /// The part of `n_pending` that a claim could take now.
    pub n_due: u64,
    /// The part of `n_pending` that was tried, failed, and waits for its next attempt.
    pub n_retrying: u64,
    /// Under a lease that has not expired.
    pub n_claimed: u64,
    /// Dead letters.
    pub n_dead: u64,
    /// Delivered and kept; see [`Retention`](crate::Retention).
    pub n_done: u64,
    /// For how long the longest-due message has been due: since it was enqueued, its delay was over, its lease
    /// expired, or it was redriven. Of an estimate it is that of the messages looked at, among them the first
    /// in line.
    pub oldest_due: Option<Duration>,
    /// The highest attempt among the messages that have not ended.
    pub highest_attempt: u32,
}

impl TopicStats {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        Self {
            n_pending: self.n_pending + other.n_pending,
            n_due: self.n_due + other.n_due,
            n_retrying: self.n_retrying + other.n_retrying,
            n_claimed: self.n_claimed + other.n_claimed,
            n_dead: self.n_dead + other.n_dead,
            n_done: self.n_done + other.n_done,
            oldest_due: self.oldest_due.max(other.oldest_due),
            highest_attempt: self.highest_attempt.max(other.highest_attempt),
        }
    }
}
