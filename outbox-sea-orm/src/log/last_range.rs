//! The last range that this process has claimed of an ordered log.

use std::time::Duration;

use outbox_core::{Claimed, Lease};
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use super::range::Place;

/// The longest that a claim waits for it. Where handlers are slower than this, a dispatcher has work meanwhile.
const PATIENCE: Duration = Duration::from_millis(50);

/// A message whose key is leased with a range goes to the group's own table, and what follows of the key goes there as long as
/// something of it is there. So a claim waits a little for the range before it: where handlers are quick, all that succeeds
/// stays in the log.
pub(super) struct LastRange(watch::Sender<Open>);

/// How many of its messages are not settled.
#[derive(Default)]
struct Open {
    token: Uuid,
    n: usize,
}

impl Default for LastRange {
    fn default() -> Self {
        Self(watch::Sender::new(Open::default()))
    }
}

impl LastRange {
    pub(super) fn claimed(&self, messages: &[Claimed]) {
        let places = messages.iter().filter_map(|claimed| Place::of(&claimed.lease));
        if let Some((token, n)) = places.fold(None, |open, place| match open {
            Some((token, n)) if token == place.token => Some((token, n + 1)),
            _ => Some((place.token, 1)),
        }) {
            self.0.send_replace(Open { token, n });
        }
    }

    pub(super) fn settled<'a>(&self, leases: impl Iterator<Item = &'a Lease>) {
        self.0.send_if_modified(|open| {
            if open.n == 0 {
                return false;
            }
            let n = leases.filter_map(Place::of).filter(|place| place.token == open.token).count();
            open.n = open.n.saturating_sub(n);
            n > 0
        });
    }

    /// Returns when all of it is settled, or when that takes long.
    pub(super) async fn wait(&self) {
        let _ = timeout(PATIENCE, self.0.subscribe().wait_for(|open| open.n == 0)).await;
    }
}
