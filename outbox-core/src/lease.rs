use std::any::Any;
use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use crate::message::{validate_delay, validate_name};
use crate::{Error, Message, MessageId, Result};

/// The most messages one claim can hand out: 1,000.
pub const MAX_BATCH: usize = 1_000;
/// The longest lease: one day.
pub const MAX_LEASE: Duration = Duration::from_secs(24 * 60 * 60);
/// The most bytes of an error text that are stored: 2 KiB.
pub const MAX_ERROR_BYTES: usize = 2 * 1024;

/// The exclusive, expiring right to process one message.
///
/// The token is random and fresh for every claim: whoever names an old one changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The leased message.
    pub id: MessageId,
    /// Fresh for every claim.
    pub token: Uuid,
    /// Where the backend finds the message; its meaning is the backend's own.
    pub locator: i64,
}

/// What a claim may take.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClaimRequest {
    /// The most messages, 1 to [`MAX_BATCH`].
    pub limit: usize,
    /// The most payload bytes in all; a first message is handed out whatever its size. `None`: no bound.
    pub max_bytes: Option<u64>,
    /// How long the claim is exclusive, by the database's clock; above zero, at most [`MAX_LEASE`].
    pub lease: Duration,
    /// The topics to claim; `None` claims every topic.
    pub topics: Option<Vec<String>>,
    /// A message that has been claimed this often is made dead instead of being handed out again. At least 1.
    pub max_attempts: u32,
    /// Whether messages whose lease has expired may be handed out, see [`Claim::recovered`].
    pub recover: bool,
    /// Where this claim loop left off. Without it the claim looks at the whole table.
    pub claimer: Option<Claimer>,
}

impl ClaimRequest {
    /// Up to `limit` messages of every topic for `lease`, five attempts, expired leases included.
    pub fn new(limit: usize, lease: Duration) -> Self {
        Self { limit, max_bytes: None, lease, topics: None, max_attempts: 5, recover: true, claimer: None }
    }

    /// Bounds the payload bytes of the claim.
    #[must_use]
    pub fn with_max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Claims these topics only.
    #[must_use]
    pub fn with_topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.topics = Some(topics.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the attempt limit.
    #[must_use]
    pub fn with_max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Says whether messages whose lease has expired may be handed out.
    #[must_use]
    pub fn with_recover(mut self, recover: bool) -> Self {
        self.recover = recover;
        self
    }

    /// Continues where this loop left off.
    #[must_use]
    pub fn with_claimer(mut self, claimer: Claimer) -> Self {
        self.claimer = Some(claimer);
        self
    }

    /// Checks every bound. Backends call it before any statement.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field.
    pub fn validate(&self) -> Result<()> {
        if !(1..=MAX_BATCH).contains(&self.limit) {
            return Err(Error::invalid("limit", format_args!("{}, must be 1 to {MAX_BATCH}", self.limit)));
        }
        if self.max_attempts == 0 {
            return Err(Error::invalid("max_attempts", "must be at least 1"));
        }
        validate_lease("lease", self.lease)?;
        match &self.topics {
            Some(topics) if topics.is_empty() => Err(Error::invalid("topics", "must not be empty")),
            Some(topics) => topics.iter().try_for_each(|topic| validate_name("topics", topic)),
            None => Ok(()),
        }
    }
}

/// Checks the length of a lease. Backends call it before any statement.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names `field`.
pub fn validate_lease(field: &str, lease: Duration) -> Result<()> {
    if lease < Duration::from_millis(1) || lease > MAX_LEASE {
        return Err(Error::invalid(field, format_args!("{lease:?}, must be 1ms to 24h")));
    }
    Ok(())
}

/// Where one claim loop left off, filled by the backend and opaque to everybody else.
///
/// A backend may use it to look at newly arrived messages only; what it passed over it finds within a
/// tenth of a second. Give each loop one of its own and never share it: two claims at once with the same
/// one are correct, but the second looks at the whole table.
#[derive(Clone, Default)]
pub struct Claimer(Arc<Mutex<Option<Box<dyn Any + Send>>>>);

impl Claimer {
    /// A loop that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the backend's state out, for the time of one claim.
    pub fn take<T: Any>(&self) -> Option<T> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        state.and_then(|state| state.downcast().ok()).map(|state| *state)
    }

    /// Puts the backend's state back.
    pub fn put<T: Any + Send>(&self, state: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(state));
    }
}

impl fmt::Debug for Claimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Claimer")
    }
}

/// What a claim took.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Claim {
    /// The claimed messages, in the order in which they became claimable.
    pub messages: Vec<Claimed>,
    /// How many messages this claim made dead instead of handing them out: out of attempts, or undecodable.
    pub n_dead: usize,
    /// Whether these messages come from expired leases. One of them may have killed the process that had
    /// it: a claim takes such messages apart from others, in groups that [`recovery_group`] bounds, and a
    /// dispatcher works on one group at a time.
    pub recovered: bool,
    /// Whether the table is declared [ordered](crate::Declaration::ordered), also when nothing was claimed. Messages
    /// of one key in this claim must be handled one after another, in this order; when one is not done, the
    /// rest of its key is to be released. Settling a message may make the next of its key claimable without a hint:
    /// whoever has settled claims again before it sleeps.
    pub ordered: bool,
    /// Whether two claims at once, each with a [`Claimer`] of its own, do not look at the same messages, as where a claim first moves
    /// a position and then reads what it has passed: while there is a backlog, a dispatcher sends the next claim before the last one
    /// is answered.
    pub overlaps: bool,
    /// How long until a claim could find something that is not claimable now, because a delay or a lease ends;
    /// a sleeping dispatcher wakes then. May be too early, because of other topics' messages, and never too
    /// late for what was stored when the claim ran. `None` when there is no such message, or the backend
    /// cannot tell.
    pub next_due_in: Option<Duration>,
}

impl Claim {
    /// Whether the claim found nothing: no message handed out and none made dead.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.n_dead == 0
    }
}

/// One claimed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The message.
    pub message: Message,
    /// The right to settle it.
    pub lease: Lease,
}

/// How many messages of expired leases one claim may take: 8 to the power of the attempts that would be
/// left after this one, within `limit`. A message in its last attempt is handed out alone, so one that
/// kills the process cannot use up its neighbours' attempts. At the limit (they are made dead): `limit`.
pub fn recovery_group(limit: usize, attempts: u32, max_attempts: u32) -> usize {
    match max_attempts.saturating_sub(attempts) {
        0 => limit,
        left => 8usize.saturating_pow(left - 1).min(limit),
    }
}

/// What became of a claimed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Delivered: the message leaves the table.
    Done,
    /// Not delivered: due again after the delay.
    Retry {
        /// From now by the database's clock, at most [`MAX_DELAY`](crate::MAX_DELAY).
        after: Duration,
        /// Stored with the message, cut to [`MAX_ERROR_BYTES`].
        error: String,
    },
    /// Out of attempts or beyond help: kept as a dead letter.
    Dead {
        /// Stored with the message, cut to [`MAX_ERROR_BYTES`].
        error: String,
    },
    /// Not tried: claimable again at once, and the attempt is given back. As a new arrival, except for a message with
    /// a key of an ordered table, which keeps its place.
    Release,
}

/// One claimed message and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The right to settle.
    pub lease: Lease,
    /// What became of the message.
    pub outcome: Outcome,
}

impl Settlement {
    /// `outcome` for `lease`.
    pub fn new(lease: Lease, outcome: Outcome) -> Self {
        Self { lease, outcome }
    }

    /// Checks every bound of a call and marks which settlements count: the second one of a lease does not.
    /// Backends call it before any statement.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field.
    pub fn validate(settlements: &[Self]) -> Result<Vec<bool>> {
        let mut seen = HashSet::with_capacity(settlements.len());
        settlements
            .iter()
            .map(|settlement| {
                if let Outcome::Retry { after, .. } = &settlement.outcome {
                    validate_delay("after", *after)?;
                }
                Ok(seen.insert(settlement.lease))
            })
            .collect()
    }
}

/// Whether a settlement or an extension took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a lost lease means that somebody else may deliver the message as well"]
pub enum Settled {
    /// It did.
    Applied,
    /// It did not: the lease had expired and the message was claimed again, settled before, or removed.
    LeaseLost,
}

/// An error text fit for storage: NUL removed, cut to [`MAX_ERROR_BYTES`] at a character boundary.
pub fn error_text(text: &str) -> String {
    let mut text = text.replace('\0', "");
    text.truncate(text.floor_char_boundary(MAX_ERROR_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_attempt_is_made_alone() {
        let groups = [1, 2, 3, 4, 5].map(|attempts| recovery_group(1_000, attempts, 5));
        assert_eq!(groups, [512, 64, 8, 1, 1_000]);
        assert_eq!(recovery_group(100, 1, u32::MAX), 100);
    }

    #[test]
    fn error_texts_are_cut_at_a_character() {
        let text = error_text(&"é\0".repeat(3_000));
        assert_eq!(text.len(), MAX_ERROR_BYTES);
        assert!(!text.contains('\0'));
        assert_eq!(error_text(&format!("a{}", "é".repeat(3_000))).len(), MAX_ERROR_BYTES - 1);
    }

    #[test]
    fn a_request_out_of_bounds_names_the_field() {
        let request = || ClaimRequest::new(1, Duration::from_secs(1));
        let text = |request: ClaimRequest| request.validate().expect_err("refused").to_string();
        assert_eq!(text(ClaimRequest::new(0, Duration::from_secs(1))), "invalid limit: 0, must be 1 to 1000");
        assert_eq!(
            text(ClaimRequest::new(1_000_000, Duration::from_secs(1))),
            "invalid limit: 1000000, must be 1 to 1000"
        );
        assert_eq!(text(ClaimRequest::new(1, Duration::ZERO)), "invalid lease: 0ns, must be 1ms to 24h");
        assert_eq!(text(request().with_max_attempts(0)), "invalid max_attempts: must be at least 1");
        assert_eq!(text(request().with_topics([""])), "invalid topics: must not be empty");
        assert_eq!(text(request().with_topics::<String>([])), "invalid topics: must not be empty");
    }
}
