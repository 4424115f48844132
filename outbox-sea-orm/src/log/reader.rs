//! How far the log may be read: docs/decisions/071.

use std::time::{Duration, Instant};

use crate::horizon::Horizon;
use crate::sessions::Sessions;

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
    /// The group's position as of the last poll.
    position: i64,
    /// How many times something was forgotten.
    n_forgotten: u64,
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
        if poll.position < self.position {
            // the group was removed and registered again
            self.read_again();
        }
        self.position = poll.position;
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
        }
        self.sessions.meet(session.name, now);
    }

    /// Knows nothing any more.
    pub(super) fn forget(&mut self) {
        self.horizon = Horizon::default();
        self.read_again();
    }

    /// Nobody may have examined what was. How far the log may be read stands.
    pub(super) fn read_again(&mut self) {
        self.read_to = 0;
        self.n_forgotten += 1;
    }

    /// Changes when something is forgotten.
    pub(super) fn epoch(&self) -> u64 {
        self.n_forgotten
    }

    /// How many numbers were handed out that may not be read yet, as of the last poll.
    #[cfg(any(test, feature = "postgres"))]
    pub(super) fn n_held(&self) -> u64 {
        let n = self.horizon.last - self.horizon.at.max(self.read_to);
        u64::try_from(n).unwrap_or_default()
    }

    /// Everything up to `horizon` was examined, as it was known in an epoch.
    pub(super) fn examined(&mut self, epoch: u64, horizon: i64) {
        if epoch == self.n_forgotten {
            self.read_to = self.read_to.max(horizon.min(self.horizon.at));
        }
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
            // nobody but itself knows a session
            let is_known = |reader: &Reader, name: &String| reader.sessions().contains(name);
            let polled = met(&polling, is_known(&reader, &polling));
            reader.learn(poll(10, &[], polled), now);
            let is_known = is_known(&reader, &claiming);
            if !is_known {
                reader.meet(met(&claiming, false), now);
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
    fn a_group_that_was_registered_again_is_read_again() {
        let (mut reader, now) = (Reader::default(), Instant::now());
        reader.learn(Poll { position: 8, ..poll(10, &[], met("a", false)) }, now);
        let epoch = reader.epoch();
        reader.learn(Poll { position: 2, ..poll(10, &[], met("a", true)) }, now);
        reader.examined(epoch, 10);
        assert_eq!(reader.unread(), Some(10), "who has examined it did so for the group before");
        assert_eq!(reader.n_unread(), 8);
    }

    #[test]
    fn nothing_is_unread_that_was_examined() {
        let (mut reader, now) = (Reader::default(), Instant::now());
        reader.learn(poll(10, &[], met("a", true)), now);
        reader.examined(reader.epoch(), 10);
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
