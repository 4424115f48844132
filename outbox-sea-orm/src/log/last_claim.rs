//! What was claimed last of an ordered log.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outbox_core::{Claimed, Lease};
use tokio::sync::watch;
use tokio::time::timeout;

/// The longest that a claim waits for the one before.
const PATIENCE: Duration = Duration::from_millis(50);
/// Where it has waited that long, none does for this time.
const PAUSE: Duration = Duration::from_secs(1);

/// A message whose key is leased with a range goes to the group's own table, and what follows of the key goes there as long as
/// something of it is there. So a claim waits a little for what was claimed before it: where handlers are quick, all that
/// succeeds stays in the log.
#[derive(Default)]
pub(super) struct LastClaim {
    open: watch::Sender<HashSet<Lease>>,
    /// When a claim has waited in vain.
    slow_at: Mutex<Option<Instant>>,
}

impl LastClaim {
    /// From now on these are the last claim; of them, those with a key that are leased with a range.
    pub(super) fn claimed(&self, messages: &[Claimed]) {
        let keyed = messages.iter().filter(|claimed| claimed.message.key.is_some());
        self.open
            .send_replace(keyed.map(|claimed| claimed.lease).filter(|lease| lease.locator < 0).collect());
    }

    /// However a message is settled, it is not leased with the range any more.
    pub(super) fn settled<'a>(&self, leases: impl Iterator<Item = &'a Lease>) {
        self.open.send_if_modified(|open| {
            let n_before = open.len();
            if n_before > 0 {
                leases.for_each(|lease| {
                    open.remove(lease);
                });
            }
            open.len() < n_before
        });
    }

    /// Returns when all of it is settled, or when that takes long; at once where it did so a short time ago.
    pub(super) async fn wait(&self) {
        if self.slow_at().is_some_and(|at| at.elapsed() < PAUSE) {
            return;
        }
        let is_slow = timeout(PATIENCE, self.open.subscribe().wait_for(HashSet::is_empty)).await.is_err();
        *self.slow_at() = is_slow.then(Instant::now);
    }

    fn slow_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.slow_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chrono::DateTime;
    use futures_util::FutureExt;
    use outbox_core::{Headers, Message};
    use uuid::Uuid;

    use super::*;

    /// The message at a place in a range, or with a positive number one of the group's own table.
    fn claimed(locator: i64, key: Option<&str>) -> Claimed {
        let id = Uuid::new_v4();
        let message = Message {
            id,
            topic: "t".to_owned(),
            key: key.map(str::to_owned),
            payload: Bytes::new(),
            headers: Headers::default(),
            created_at: DateTime::UNIX_EPOCH,
            attempt: 1,
            fence: 1,
        };
        Claimed { message, lease: Lease { id, token: Uuid::new_v4(), locator } }
    }

    fn is_open(last: &LastClaim) -> bool {
        last.wait().now_or_never().is_none()
    }

    #[tokio::test]
    async fn only_keys_of_a_range_are_waited_for_and_only_until_they_are_settled() {
        let last = LastClaim::default();
        assert!(!is_open(&last));
        let messages =
            [claimed(-1, Some("a")), claimed(-2, Some("b")), claimed(-3, None), claimed(4, Some("c"))];
        let lease = |index: usize| [messages[index].lease];
        last.claimed(&messages);
        last.settled(lease(0).iter().chain(&lease(0)));
        assert!(is_open(&last), "b is not settled");
        last.settled(lease(1).iter());
        assert!(!is_open(&last));
        last.claimed(&messages[..1]);
        last.claimed(&messages[2..]);
        assert!(!is_open(&last), "the last claim holds no key");
    }

    #[tokio::test]
    async fn slow_handlers_are_waited_for_only_now_and_then() {
        let last = LastClaim::default();
        last.claimed(&[claimed(-1, Some("a"))]);
        timeout(100 * PATIENCE, last.wait()).await.expect("it gives up");
        assert!(!is_open(&last), "it has just been waited for");
        *last.slow_at() = Instant::now().checked_sub(PAUSE);
        assert!(is_open(&last));
    }
}
