use std::fmt;

use crate::{Error, ErrorKind, Headers, Result};

/// What a table promises beyond the plain queue. It belongs to the table, is recorded in it when it is made, and is
/// the same for everybody who uses it.
///
/// # Examples
/// ```
/// use outbox_core::{Declaration, OnDead};
/// let declaration = Declaration::new().ordered(OnDead::Block);
/// assert_eq!(declaration.to_string(), "ordered, a dead letter blocks its key");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Declaration {
    /// Order per key, and what a dead letter means to it.
    pub ordered: Option<OnDead>,
    /// Whose turn it is.
    pub fair: Option<Fairness>,
    /// Delivered messages are kept, in partitions of this length.
    pub partitioned: Option<PartitionInterval>,
}

/// What happens behind a dead letter of an ordered table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnDead {
    /// The next message of the key is delivered. A redriven message comes last of its key.
    Continue,
    /// Nothing of the key is delivered until the dead letter is discarded, or redriven, which keeps its place.
    Block,
}

/// Between whom a table takes turns. Of each, every topic has a turn of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Fairness {
    /// Between keys. Messages without a key take turns as one of them.
    Key,
    /// Between the values of this header, for example `tenant`. Messages without it take turns as one of them.
    Header(String),
}

impl Fairness {
    /// The name of the lane that a message waits in, for backends: its key or header, empty where there is none, and its
    /// topic, with U+0001 between them. Lanes take turns in the order of the bytes of their names.
    pub fn lane(&self, topic: &str, key: Option<&str>, headers: &Headers) -> String {
        let whose = match self {
            Self::Key => key,
            Self::Header(name) => headers.get(name).map(String::as_str),
        };
        format!("{}\u{1}{topic}", whose.unwrap_or_default())
    }
}

/// How long the partitions of a table are. They begin at full minutes, hours, days, weeks (Monday) or months in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartitionInterval {
    /// A minute. Only a log may have so many partitions.
    Minute,
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A week.
    Week,
    /// A month.
    Month,
}

impl PartitionInterval {
    /// Its name: `minute`, `hour`, `day`, `week` or `month`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }
}

/// The longest name of a header that turns can be taken by: 63 bytes.
const MAX_LANE_BYTES: usize = 63;

impl Declaration {
    /// A plain queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Messages of one key are claimed strictly in the order in which they were enqueued; message n+1 is not
    /// claimed while n is pending, claimed or waiting for a retry. Messages without a key have no order.
    ///
    /// The order is that of the number which the database gives each message when it is enqueued. Between
    /// transactions that write messages of one key at the same time there is none: lock what the key stands
    /// for, as one does to change it.
    #[must_use]
    pub fn ordered(mut self, on_dead: OnDead) -> Self {
        self.ordered = Some(on_dead);
        self
    }

    /// Claims take turns, so that a long backlog of one key or tenant does not keep the others waiting: a message that is
    /// the first of its key and topic is claimed within two batches, whatever backlog another one has.
    ///
    /// Each claim divides its limit evenly between all that have messages ready, as many as the limit lets through,
    /// and goes on behind the last of them with the next claim of the same [`Claimer`](crate::Claimer); without one it
    /// begins with the first again. What some leave of their share goes to the others, so a claim is full
    /// while there is enough (on MySQL and MariaDB: while no other claim holds what it found). What it took comes in the order in which it became claimable, as everywhere.
    ///
    /// Turns are between messages that are ready. Delayed and retried ones become ready by the time they are due, and
    /// expired leases are recovered in the order of their messages. docs/storage.md has the price.
    #[must_use]
    pub fn fair(mut self, fairness: Fairness) -> Self {
        self.fair = Some(fairness);
        self
    }

    /// Messages are stored apart by what became of them: those to be delivered, dead letters, and delivered ones,
    /// these by the time of their delivery in partitions of `interval`, which leave as a whole. For tables that keep what
    /// they deliver. An id is taken only as long as its message is to be delivered.
    #[must_use]
    pub fn partitioned(mut self, interval: PartitionInterval) -> Self {
        self.partitioned = Some(interval);
        self
    }

    /// Whether nothing is declared.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Between whom claims divide their limit, for backends: nobody on an ordered table, which takes turns between keys by
    /// itself.
    pub fn lanes(&self) -> Option<&Fairness> {
        self.fair.as_ref().filter(|_| self.ordered.is_none())
    }

    /// Checks that the parts go together. Backends call it before any statement.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a header that does not match `[a-z0-9_.-]{1,63}`,
    /// [`Unsupported`](ErrorKind::Unsupported) for an ordered table that takes turns by a header: it takes them
    /// by key already, and a turn by header would have to look behind heads that are not claimable.
    pub fn validate(&self) -> Result<()> {
        let Some(Fairness::Header(name)) = &self.fair else { return Ok(()) };
        let is_legal =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.-".contains(&byte);
        if name.is_empty() || name.len() > MAX_LANE_BYTES || !name.bytes().all(is_legal) {
            return Err(Error::invalid("fair header", "must match [a-z0-9_.-]{1,63}"));
        }
        match self.ordered {
            None => Ok(()),
            Some(_) => Err(Error::new(ErrorKind::Unsupported, "declare")
                .with_detail("an ordered table is fair between keys and cannot be fair between headers")),
        }
    }
}

impl fmt::Display for Declaration {
    /// The text that a table is marked with; empty for a plain queue.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = match (&self.ordered, self.lanes()) {
            (None, None) => None,
            (Some(OnDead::Continue), _) => Some("ordered, a dead letter lets its key go on".to_owned()),
            (Some(OnDead::Block), _) => Some("ordered, a dead letter blocks its key".to_owned()),
            (None, Some(Fairness::Key)) => Some("fair between keys".to_owned()),
            (None, Some(Fairness::Header(name))) => Some(format!("fair between headers {name}")),
        };
        let parts = self.partitioned.map(|interval| format!("partitioned by the {}", interval.as_str()));
        f.write_str(&[order, parts].into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_say_what_they_are() {
        let text = |declaration: Declaration| declaration.to_string();
        assert_eq!(text(Declaration::new()), "");
        assert_eq!(
            text(Declaration::new().ordered(OnDead::Continue)),
            "ordered, a dead letter lets its key go on"
        );
        assert_eq!(text(Declaration::new().fair(Fairness::Key)), "fair between keys");
        let ordered = Declaration::new().ordered(OnDead::Block);
        assert_eq!(text(ordered.clone().fair(Fairness::Key)), text(ordered), "order takes turns by itself");
        let tenant = Declaration::new().fair(Fairness::Header("tenant".into()));
        assert_eq!(text(tenant.clone()), "fair between headers tenant");
        let parted = tenant.partitioned(PartitionInterval::Hour);
        assert_eq!(text(parted), "fair between headers tenant, partitioned by the hour");
        let parted = Declaration::new().partitioned(PartitionInterval::Month);
        assert_eq!(text(parted), "partitioned by the month");
    }

    #[test]
    fn lanes_tell_keys_and_topics_apart() {
        let headers = Headers::from([("tenant".to_owned(), "acme".to_owned())]);
        let by_tenant = Fairness::Header("tenant".into());
        assert_eq!(Fairness::Key.lane("t", Some("k"), &headers), "k\u{1}t");
        assert_eq!(Fairness::Key.lane("t", None, &headers), "\u{1}t");
        assert_eq!(by_tenant.lane("t", Some("k"), &headers), "acme\u{1}t");
        assert_eq!(by_tenant.lane("t", Some("k"), &Headers::new()), "\u{1}t");
    }

    #[test]
    fn impossible_declarations_are_refused() {
        let by = |name: &str| Declaration::new().fair(Fairness::Header(name.into()));
        for name in ["", "Tenant", "a b", "a'b", "a\"b", "ä", &"x".repeat(64)] {
            let error = by(name).validate().expect_err(name);
            assert_eq!(error.to_string(), "invalid fair header: must match [a-z0-9_.-]{1,63}");
        }
        assert!(by("x-tenant.id_2").validate().is_ok());
        let both = by("tenant").ordered(OnDead::Block).validate().expect_err("refused");
        assert_eq!(both.kind(), ErrorKind::Unsupported);
        assert!(Declaration::new().ordered(OnDead::Block).fair(Fairness::Key).validate().is_ok());
    }
}
