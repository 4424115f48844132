use std::time::Duration;

use crate::message::validate_nul;
use crate::{MessageId, Result, validate_limit};

/// So many messages behind a head are counted.
pub const MAX_BEHIND: usize = 1_000;

/// Which page of the blocked keys of an [ordered](crate::Declaration::ordered) table to list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockedQuery {
    /// Begin with this key, from [`BlockedPage::next`].
    pub from: Option<String>,
    /// So many keys are looked at, 1 to [`MAX_BATCH`](crate::MAX_BATCH): of those with messages, or of those among them that may be
    /// blocked.
    pub limit: usize,
}

impl BlockedQuery {
    /// What is blocked of the first `limit` keys.
    pub fn new(limit: usize) -> Self {
        Self { from: None, limit }
    }

    /// Begins with this key.
    #[must_use]
    pub fn with_from(mut self, key: impl Into<String>) -> Self {
        self.from = Some(key.into());
        self
    }

    /// Checks the bounds. Backends call it before any statement.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field.
    pub fn validate(&self) -> Result<()> {
        validate_limit(self.limit)?;
        self.from.as_ref().map_or(Ok(()), |key| validate_nul("from", key))
    }
}

/// One page of blocked keys, in the order of their bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockedPage {
    /// Those of the keys looked at that are blocked; may be none although others follow.
    pub keys: Vec<BlockedKey>,
    /// Where the next page begins; `None`: there are no more keys.
    pub next: Option<String>,
}

/// A key of which no message can be claimed now: its first one waits, is being processed with others behind it, or is a
/// dead letter that [blocks](crate::OnDead::Block).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockedKey {
    /// The key.
    pub key: String,
    /// Its first message, which the others wait for.
    pub head: MessageId,
    /// The topic of the head.
    pub topic: String,
    /// What becomes of the head.
    pub blocker: Blocker,
    /// How many messages wait behind the head, counted up to [`MAX_BEHIND`].
    pub n_behind: u64,
    /// Whether there may be more.
    pub is_estimate: bool,
}

impl BlockedKey {
    /// `n_behind` may have been counted further than [`MAX_BEHIND`].
    pub fn new(key: String, head: MessageId, topic: String, blocker: Blocker, n_behind: u64) -> Self {
        let most = MAX_BEHIND as u64;
        Self { key, head, topic, blocker, n_behind: n_behind.min(most), is_estimate: n_behind > most }
    }
}

/// Why the first message of a key holds the others.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Blocker {
    /// It is a dead letter: skip or release it.
    Dead {
        /// Why it is dead.
        error: String,
    },
    /// It waits for a retry, or was enqueued with a delay.
    Waiting {
        /// Until it is due; zero when the next claim may have it.
        due_in: Duration,
    },
    /// It is being processed.
    Claimed {
        /// Until its lease ends; zero when another claim may have it.
        expires_in: Duration,
    },
}

/// Checks the key that an operation names. Backends call it before any statement.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput).
pub fn validate_key(key: &str) -> Result<()> {
    validate_nul("key", key)
}

/// Whether the head of a key was skipped or released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub enum Unblocked {
    /// It was.
    Applied,
    /// The message is not the first of this key any more, or neither waits nor is a dead letter that blocks. Nor is a dead
    /// letter released, on a [partitioned](crate::Declaration::partitioned) table, while another message has its id.
    NotBlocking,
}
