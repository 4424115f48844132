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
    window: Option<Duration>,
}

impl Options {
    /// Reads `--database`, `--rounds`, `--messages` and `--window`.
    pub(crate) fn read(flags: &mut Flags) -> Result<Self> {
        let kinds = flags.get("database", Kinds(vec![Kind::Postgres, Kind::Sqlite]))?;
        Ok(Self {
            kinds: kinds.0,
            n_rounds: flags.get("rounds", 5)?,
            n_messages: flags.take("messages")?,
            window: flags.duration("window")?,
        })
    }

    /// Messages of one round, unless the command line says otherwise.
    pub(crate) fn n_messages(&self, default: u64) -> u64 {
        self.n_messages.unwrap_or(default)
    }

    /// How long one round lasts where the time decides and not the messages.
    pub(crate) fn window(&self, default: Duration) -> Duration {
        self.window.unwrap_or(default)
    }
}
