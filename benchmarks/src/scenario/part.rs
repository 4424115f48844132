//! What a statement of the crates is for, told by the words that only such a statement has.

use serde_json::{Value, json};

use crate::error::Result;
use crate::report::rounded;
use crate::site::{BENCH, Executed, Site};

/// A step in the life of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The caller's transaction and the enqueue in it.
    Producer,
    Claim,
    /// What a claim must know about the whole table; ten times a second at the most.
    Look,
    Settle,
    /// Standing guard, listening, probing.
    Sleep,
}

impl Part {
    pub(super) const ALL: [Self; 5] = [Self::Producer, Self::Claim, Self::Look, Self::Settle, Self::Sleep];

    pub(super) fn of(text: &str) -> Self {
        let has = |word: &str| text.contains(word);
        if has("BEGIN") || has("COMMIT") || has("INSERT INTO") {
            Self::Producer
        } else if has("DELETE FROM") {
            Self::Settle
        } else if has("UPDATE") && has("SKIP LOCKED") {
            Self::Claim
        } else if has("pg_sequence_last_value") || has("leased_until") {
            Self::Look
        } else {
            Self::Sleep
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Claim => "claim",
            Self::Look => "look",
            Self::Settle => "settle",
            Self::Sleep => "sleep",
        }
    }
}

/// What was executed in the benchmark's database since it was last forgotten.
#[derive(Debug, Default)]
pub(super) struct Profile(Vec<Executed>);

impl Profile {
    /// Forgets what was executed before. Does nothing where the database keeps no statistics.
    pub(super) async fn begin(site: &Site) -> Result<()> {
        match site {
            Site::Postgres(site) => site.forget_statements(BENCH).await,
            Site::Sqlite(_) | Site::MySql(_) => Ok(()),
        }
    }

    pub(super) async fn end(site: &Site) -> Result<Self> {
        match site {
            Site::Postgres(site) => Ok(Self(site.executed(BENCH).await?)),
            Site::Sqlite(_) | Site::MySql(_) => Ok(Self::default()),
        }
    }

    pub(super) fn calls(&self, part: Part) -> u64 {
        self.0.iter().filter(|one| Part::of(&one.text) == part).map(|one| one.calls).sum()
    }

    /// The statements of a claim loop with their times, the costliest first.
    pub(super) fn json(&self) -> Value {
        let is_hot = |one: &&Executed| matches!(Part::of(&one.text), Part::Claim | Part::Look | Part::Settle);
        self.0.iter().filter(is_hot).map(Executed::json).collect()
    }

    /// Every statement: its part, how often per message, its first words.
    pub(super) fn per_message(&self, n_messages: u64) -> Value {
        let line = |one: &Executed| {
            json!([Part::of(&one.text).name(), rounded(one.calls as f64 / n_messages as f64), one.head()])
        };
        self.0.iter().map(line).collect()
    }
}
