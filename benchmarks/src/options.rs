//! How long and how often, for every scenario alike.

use std::time::Duration;

use crate::args::Flags;
use crate::error::Result;
use crate::site::{Kind, Kinds};

/// What the command line says about every scenario.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) kinds: Vec<Kind>,
    /// Interleaved rounds of every comparison.
    pub(crate) n_rounds: usize,
    n_messages: Option<u64>,
    n_neighbours: Option<u64>,
    window: Option<Duration>,
}

impl Options {
    /// Reads `--database`, `--rounds`, `--messages`, `--neighbours` and `--window`.
    pub(crate) fn read(flags: &mut Flags) -> Result<Self> {
        let kinds = flags.get("database", Kinds(vec![Kind::Postgres, Kind::Sqlite]))?;
        Ok(Self {
            kinds: kinds.0,
            n_rounds: flags.get("rounds", 5)?,
            n_messages: flags.take("messages")?,
            n_neighbours: flags.take("neighbours")?,
            window: flags.duration("window")?,
        })
    }

    pub(crate) fn with_rounds(mut self, n_rounds: usize) -> Self {
        self.n_rounds = n_rounds;
        self
    }

    pub(crate) fn with_messages(mut self, n_messages: u64) -> Self {
        self.n_messages = Some(n_messages);
        self
    }

    /// Messages of one round, unless the command line says otherwise.
    pub(crate) fn n_messages(&self, default: u64) -> u64 {
        self.n_messages.unwrap_or(default)
    }

    /// Messages that are in the table and not measured.
    pub(crate) fn n_neighbours(&self, default: u64) -> u64 {
        self.n_neighbours.unwrap_or(default)
    }

    /// How long one round lasts where the time decides and not the messages.
    pub(crate) fn window(&self, default: Duration) -> Duration {
        self.window.unwrap_or(default)
    }
}
