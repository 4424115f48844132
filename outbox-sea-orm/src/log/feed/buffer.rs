//! What has arrived from the slot and is not claimed yet, in the order of the commits.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outbox_core::Error;
use pgwire_replication::Lsn;
use tokio::sync::{Notify, watch};

use super::rows::Row;

/// The most rows, and payload bytes, that are kept. One row is kept whatever its size.
const MAX_ROWS: usize = 8_192;
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// How far a group has got: everything committed before `lsn` is behind it, and of the transaction that committed there `n` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) lsn: Lsn,
    pub(super) n: i64,
}

impl Position {
    /// Behind whole transactions.
    pub(super) fn at(lsn: Lsn) -> Self {
        Self { lsn, n: 0 }
    }
}

/// A row that has arrived.
pub(super) struct Arrived {
    pub(super) row: Row,
    pub(super) xid: i64,
    /// How far a group has got that has this row behind it.
    pub(super) behind: Position,
}

/// Between the task that reads the slot and the claims.
pub(super) struct Buffer {
    inner: Mutex<Inner>,
    room: Notify,
    progress: Notify,
    arrivals: watch::Sender<bool>,
}

struct Inner {
    rows: VecDeque<Arrived>,
    n_bytes: usize,
    /// How far a group has got that has all rows behind it.
    behind: Position,
    confirmed: Lsn,
    /// A claim is wanted although nothing arrives.
    is_due: bool,
    ended: Option<Error>,
}

impl Inner {
    fn is_full(&self) -> bool {
        self.rows.len() >= MAX_ROWS || (self.n_bytes >= MAX_BYTES && !self.rows.is_empty())
    }
}

impl Buffer {
    pub(super) fn new(at: Position, arrivals: watch::Sender<bool>) -> Self {
        let inner = Inner {
            rows: VecDeque::new(),
            n_bytes: 0,
            behind: at,
            confirmed: at.lsn,
            is_due: false,
            ended: None,
        };
        Self { inner: Mutex::new(inner), room: Notify::new(), progress: Notify::new(), arrivals }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is room for more.
    pub(super) fn push(&self, arrived: Arrived) -> bool {
        let mut inner = self.inner();
        let was_empty = inner.rows.is_empty();
        inner.n_bytes += arrived.row.payload.len();
        inner.behind = arrived.behind;
        inner.rows.push_back(arrived);
        let has_room = !inner.is_full();
        if was_empty {
            self.wake();
        }
        drop(inner);
        self.progress.notify_one();
        has_room
    }

    /// Everything up to here has arrived.
    pub(super) fn reach(&self, position: Position) {
        let mut inner = self.inner();
        inner.behind = inner.behind.max(position);
        drop(inner);
        self.progress.notify_one();
    }

    /// Waits a while until all that was committed before `lsn` has arrived, or so many rows are there.
    pub(super) async fn wait_for(&self, lsn: Lsn, n: usize, patience: Duration) {
        let waiting = async {
            while !self.has_reached(lsn) && self.len() < n && !self.has_ended() {
                self.progress.notified().await;
            }
        };
        let _ = tokio::time::timeout(patience, waiting).await;
    }

    /// Whether all that was committed before `lsn` has arrived.
    pub(super) fn has_reached(&self, lsn: Lsn) -> bool {
        self.inner().behind.lsn >= lsn
    }

    pub(super) fn len(&self) -> usize {
        self.inner().rows.len()
    }

    /// The lowest number that is not claimed.
    pub(super) fn lowest(&self) -> Option<i64> {
        self.inner().rows.iter().map(|arrived| arrived.row.seq).min()
    }

    /// Says whether a claim is wanted although nothing arrives.
    pub(super) fn set_due(&self, is_due: bool) {
        self.inner().is_due = is_due;
    }

    /// Wakes a claim that is wanted.
    pub(super) fn wake_if_due(&self) {
        if self.inner().is_due {
            self.wake();
        }
    }

    /// Waits a while for room, and says whether there is.
    pub(super) async fn wait_for_room(&self, patience: Duration) -> bool {
        let room = self.room.notified();
        if self.inner().is_full() {
            let _ = tokio::time::timeout(patience, room).await;
        }
        !self.inner().is_full()
    }

    pub(super) fn end(&self, error: Error) {
        let mut inner = self.inner();
        inner.ended.get_or_insert(error);
        self.wake();
        drop(inner);
        self.progress.notify_one();
    }

    /// Whether nothing more arrives. What is left comes again: nothing is claimed that was read from a slot which nobody reads.
    pub(super) fn has_ended(&self) -> bool {
        self.inner().ended.is_some()
    }

    /// Why nothing more arrives.
    pub(super) fn take_end(&self) -> Option<Error> {
        self.inner().ended.take()
    }

    /// Up to where the server may forget.
    pub(super) fn confirm(&self, lsn: Lsn) {
        self.inner().confirmed = lsn;
    }

    pub(super) fn confirmed(&self) -> Lsn {
        self.inner().confirmed
    }

    /// Takes rows from the front for as long as `takes` wants them.
    pub(super) fn take_while(&self, mut takes: impl FnMut(&Arrived) -> bool) -> Vec<Arrived> {
        let mut inner = self.inner();
        let mut taken = Vec::new();
        while let Some(arrived) = inner.rows.pop_front_if(|arrived| takes(arrived)) {
            inner.n_bytes -= arrived.row.payload.len();
            taken.push(arrived);
        }
        if inner.rows.is_empty() && inner.ended.is_none() {
            // who has not seen it yet need not
            self.arrivals.send_if_modified(|is_waiting| {
                *is_waiting = false;
                false
            });
        }
        drop(inner);
        self.room.notify_one();
        taken
    }

    /// Puts back what was taken last.
    pub(super) fn put_back(&self, taken: Vec<Arrived>) {
        let mut inner = self.inner();
        for arrived in taken.into_iter().rev() {
            inner.n_bytes += arrived.row.payload.len();
            inner.rows.push_front(arrived);
        }
    }

    /// How far a group has got that has everything behind it, where nothing is left.
    pub(super) fn behind_all(&self) -> Option<Position> {
        let inner = self.inner();
        inner.rows.is_empty().then_some(inner.behind)
    }

    fn wake(&self) {
        self.arrivals.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::feed::rows::Row;

    #[test]
    fn what_a_claim_has_taken_gives_no_hint() {
        let arrivals = watch::Sender::new(false);
        let (mut seen, unseen) = (arrivals.subscribe(), arrivals.subscribe());
        let at = Position::at(Lsn::from(1));
        let buffer = Buffer::new(at, arrivals);
        buffer.push(Arrived { row: Row::any(), xid: 1, behind: at });
        assert!(*seen.borrow_and_update(), "it waits");
        assert_eq!(buffer.take_while(|_| true).len(), 1);
        assert!(!*unseen.borrow(), "who has not seen it yet need not");
        assert!(!seen.has_changed().expect("open"), "and nobody is woken by a claim");
        buffer.push(Arrived { row: Row::any(), xid: 1, behind: at });
        assert!(seen.has_changed().expect("open") && *seen.borrow());
    }
}
