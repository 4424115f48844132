use std::fmt;

use crate::{Error, ErrorKind, Result};

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
}

/// What happens behind a dead letter of an ordered table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnDead {
    /// The next message of the key is delivered. A redriven message comes last of its key.
    Continue,
    /// Nothing of the key is delivered until the dead letter is discarded, or redriven, which keeps its place.
    Block,
}

/// Between whom a table takes turns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Fairness {
    /// Between keys. Messages without a key take turns as one of them.
    Key,
    /// Between the values of this header, for example `tenant`. Messages without it take turns as one of them.
    Header(String),
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

    /// Claims take turns, so that a long backlog of one key or tenant does not keep the others waiting.
    #[must_use]
    pub fn fair(mut self, fairness: Fairness) -> Self {
        self.fair = Some(fairness);
        self
    }

    /// Whether nothing is declared.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
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
        f.write_str(match self.ordered {
            None => "",
            Some(OnDead::Continue) => "ordered, a dead letter lets its key go on",
            Some(OnDead::Block) => "ordered, a dead letter blocks its key",
        })?;
        match (&self.ordered, &self.fair) {
            // an ordered table takes turns between keys anyway
            (Some(_), _) | (None, None) => Ok(()),
            (None, Some(Fairness::Key)) => f.write_str("fair between keys"),
            (None, Some(Fairness::Header(name))) => write!(f, "fair between headers {name}"),
        }
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
        assert_eq!(text(tenant), "fair between headers tenant");
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
