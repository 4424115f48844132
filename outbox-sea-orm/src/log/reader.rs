//! How far the log may be read: docs/decisions/071.

use std::time::{Duration, Instant};

use super::sessions::Sessions;
use crate::horizon::Horizon;

/// How soon and how late a reader looks again while an open transaction holds it back.
const SOON: Duration = Duration::from_millis(2);
const LATE: Duration = Duration::from_millis(500);

/// What this process knows of the log for one group.
#[derive(Default)]
pub(super) struct Reader {
    horizon: Horizon,
    sessions: Sessions,
    /// Everything up to here has been examined by some dispatcher of the group.
    read_to: i64,
    held_since: Option<Instant>,
    /// When the group's own table was looked at last.
    pub(super) own_at: Option<Instant>,
}

/// What log_horizon answers.
pub(super) struct Poll {
    pub(super) last: i64,
    pub(super) holders: Vec<String>,
    pub(super) position: i64,
    pub(super) session: Met,
}

/// A session that has answered.
pub(super) struct Met {
    pub(super) name: String,
    /// It is one of those that were known, or one of them is on the same server now.
    pub(super) is_known: bool,
}

impl Reader {
    /// The horizon, where something may be unread below it.
    pub(super) fn unread(&self) -> Option<i64> {
        (self.horizon.at > self.read_to).then_some(self.horizon.at)
    }

    /// How many numbers are below the horizon that nobody has examined.
    pub(super) fn n_unread(&self) -> u64 {
        u64::try_from(self.horizon.at - self.read_to).unwrap_or_default()
    }

    /// Nothing can appear up to here any more.
    #[cfg(feature = "wal")]
    pub(super) fn horizon(&self) -> i64 {
        self.horizon.at
    }

    pub(super) fn learn(&mut self, poll: Poll, now: Instant) {
        let is_held = !poll.holders.is_empty();
        self.meet(poll.session, now);
        let at = self.horizon.at;
        if !self.horizon.learn(poll.last, poll.holders.clone(), at) {
            self.forget();
            let _ = self.horizon.learn(poll.last, poll.holders, 0);
        }
        self.read_to = self.read_to.max(poll.position);
        let was_held = self.held_since.filter(|_| is_held && self.horizon.at < self.horizon.last);
        self.held_since = (is_held && self.horizon.at < self.horizon.last).then(|| was_held.unwrap_or(now));
    }

    /// The sessions for which the horizon holds.
    pub(super) fn sessions(&self) -> Vec<String> {
        self.sessions.names()
    }

    /// Where none of the sessions is there that were known, nothing is known any more.
    pub(super) fn meet(&mut self, session: Met, now: Instant) {
        if !session.is_known {
            self.forget();
            self.sessions = Sessions::default();
        }
        self.sessions.meet(session.name, now);
    }

    /// Knows nothing any more.
    pub(super) fn forget(&mut self) {
        self.horizon = Horizon::default();
        self.read_to = 0;
    }

    /// A feed has begun or ended: what was examined ended where it began. How far the log may be read stands.
    pub(super) fn read_again(&mut self) {
        self.read_to = 0;
    }

    /// How many numbers were handed out that may not be read yet, as of the last poll.
    #[cfg(any(test, feature = "postgres"))]
    pub(super) fn n_held(&self) -> u64 {
        let n = self.horizon.last - self.horizon.at.max(self.read_to);
        u64::try_from(n).unwrap_or_default()
    }

    /// Everything up to `horizon` was examined.
    pub(super) fn examined(&mut self, horizon: i64) {
        self.read_to = self.read_to.max(horizon.min(self.horizon.at));
    }

    /// When to look again although nobody says so, because an open transaction holds the reader back and may roll back.
    pub(super) fn look_in(&self, now: Instant) -> Option<Duration> {
        let held = now.duration_since(self.held_since?);
        Some((held / 4).clamp(SOON, LATE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(name: &str, is_known: bool) -> Met {
        Met { name: name.to_owned(), is_known }
    }

    fn poll(last: i64, holders: &[&str], session: Met) -> Poll {
        let holders = holders.iter().map(|&holder| holder.to_owned()).collect();
        Poll { last, holders, position: 0, session }
    }

    #[test]
    fn a_session_without_the_others_voids_what_was_remembered() {
        let (mut reader, now) = (Reader::default(), Instant::now());
        reader.learn(poll(10, &[], met("a", false)), now);
        assert_eq!(reader.unread(), Some(10));
        reader.learn(poll(20, &["1/1"], met("b", true)), now);
        assert_eq!(reader.unread(), Some(10), "it drew its numbers after the poll before");
        reader.learn(poll(30, &["1/2"], met("c", false)), now);
        assert_eq!(reader.unread(), None, "nobody knows since when it holds the lock");
        assert_eq!(reader.sessions(), ["c"], "the others were of another server");
        reader.learn(poll(40, &["1/3"], met("c", true)), now);
        assert_eq!(reader.unread(), Some(30));
    }

    #[test]
    fn reader_reads_on_whatever_the_number_of_connections() {
        let (mut reader, now, n_connections) = (Reader::default(), Instant::now(), 500);
        // a poll and a claim, each over the connection that has not been used for the longest time
        let mut in_turn = (0..n_connections).cycle().map(|n| format!("session {n}"));
        let is_read = (0..2 * n_connections).any(|_| {
            let (polling, claiming) = (in_turn.next().expect("one"), in_turn.next().expect("one"));
            reader.learn(poll(10, &[], met(&polling, true)), now);
            let is_known = reader.sessions().contains(&claiming);
            if !is_known {
                reader.meet(met(&claiming, true), now);
            }
            is_known && reader.unread() == Some(10)
        });
        assert!(is_read);
    }

    #[test]
    fn numbers_that_went_back_void_what_was_remembered() {
        let (mut reader, now) = (Reader::default(), Instant::now());
        reader.learn(poll(10, &[], met("a", true)), now);
        reader.learn(poll(9, &["1/1"], met("a", true)), now);
        assert_eq!(reader.unread(), None);
        reader.learn(poll(12, &[], met("a", true)), now);
        assert_eq!(reader.unread(), Some(12));
    }

    #[test]
    fn nothing_is_unread_that_was_examined() {
        let (mut reader, now) = (Reader::default(), Instant::now());
        reader.learn(poll(10, &[], met("a", true)), now);
        reader.examined(10);
        assert_eq!(reader.unread(), None);
        assert_eq!(reader.look_in(now), None, "nobody holds it back");
        reader.learn(Poll { position: 12, ..poll(12, &[], met("a", true)) }, now);
        assert_eq!(reader.unread(), None, "another dispatcher has it");
    }

    #[test]
    fn a_reader_that_is_held_back_looks_again() {
        let (mut reader, now) = (Reader::default(), Instant::now());
        reader.learn(poll(10, &[], met("a", true)), now);
        reader.learn(poll(11, &["1/1"], met("a", true)), now);
        assert_eq!(reader.look_in(now), Some(SOON));
        assert_eq!(reader.n_held(), 1);
        assert_eq!(reader.look_in(now + Duration::from_secs(60)), Some(LATE));
        reader.learn(poll(11, &[], met("a", true)), now);
        assert_eq!((reader.look_in(now), reader.n_held()), (None, 0));
    }
}
