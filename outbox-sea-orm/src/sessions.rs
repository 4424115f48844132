//! Sessions of the server, by name. Where none is there of those that were known, it may be one that has crashed and started again,
//! or another one that has taken over, and then numbers that were handed out before are handed out again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Where more sessions than these are known, those that were met long ago are forgotten: most of them are gone.
const MANY: usize = 64;
const LONG_AGO: Duration = Duration::from_secs(30 * 60);
/// The most sessions whose names are remembered. A pool uses its connections in turn, so where it has more of them, each is always
/// a new one.
pub(crate) const MAX: usize = 1_024;

/// Those that were met, and when last.
#[derive(Default)]
pub(crate) struct Sessions(HashMap<String, Instant>);

impl Sessions {
    /// This one has answered.
    pub(crate) fn meet(&mut self, session: String, now: Instant) {
        if let Some(met_at) = self.0.get_mut(&session) {
            *met_at = now;
            return;
        }
        if self.0.len() >= MANY {
            self.0.retain(|_, met_at| now.duration_since(*met_at) < LONG_AGO);
        }
        if self.0.len() >= MAX {
            self.0.clear();
        }
        self.0.insert(session, now);
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_that_are_gone_are_forgotten() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        for n in 0..2 * MANY {
            sessions.meet(format!("session {n}"), now);
        }
        sessions.meet("session 0".to_owned(), now);
        assert_eq!(sessions.names().len(), 2 * MANY);
        sessions.meet("new".to_owned(), now + LONG_AGO);
        assert_eq!(sessions.names(), ["new"]);
        for n in 0..2 * MAX {
            sessions.meet(format!("session {n}"), now + LONG_AGO);
        }
        assert!(sessions.names().len() <= MAX);
    }
}
