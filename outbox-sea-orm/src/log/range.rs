//! Leases of a range of the log: one token and one row for all its messages, told apart by their place.

use outbox_core::Lease;
use uuid::Uuid;

/// Places in a range; more than [`MAX_BATCH`](outbox_core::MAX_BATCH).
const PLACES: u64 = 1_024;
/// The most messages of a range.
#[cfg(feature = "sqlite")]
pub(super) const MAX_MESSAGES: usize = outbox_core::MAX_BATCH;

/// One message of a leased range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The token of the range.
    pub(super) token: Uuid,
    /// The message's number in the log.
    pub(super) seq: i64,
    /// Its place among the messages of the range, from 0.
    pub(super) place: usize,
}

impl Place {
    /// Makes `lease`, which holds the number and the range's token, that of the message at `place`.
    ///
    /// The locator is negative, which no number of the group's own table is. The token is mixed with it, so that one
    /// message's token beside another's locator is no lease.
    pub(super) fn enter(place: usize, lease: &mut Lease) {
        let packed = lease.locator.unsigned_abs() * PLACES + place as u64;
        lease.locator = (packed as i64).wrapping_neg();
        lease.token = mix(lease.token, lease.locator);
    }

    /// `None` for a message of the group's own table.
    pub(super) fn of(lease: &Lease) -> Option<Self> {
        let packed = (lease.locator < 0).then(|| lease.locator.unsigned_abs())?;
        Some(Self {
            token: mix(lease.token, lease.locator),
            seq: (packed / PLACES) as i64,
            place: (packed % PLACES) as usize,
        })
    }
}

fn mix(token: Uuid, locator: i64) -> Uuid {
    Uuid::from_u128(token.as_u128() ^ u128::from(locator as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_found_again_by_its_own_lease_only() {
        let token = Uuid::new_v4();
        let enter = |seq, place| {
            let mut lease = Lease { id: Uuid::nil(), token, locator: seq };
            Place::enter(place, &mut lease);
            lease
        };
        for (seq, place) in [(1, 0), (1, 999), (1 << 52, 7)] {
            assert_eq!(Place::of(&enter(seq, place)), Some(Place { token, seq, place }));
        }
        let mixed = Lease { locator: enter(2, 1).locator, ..enter(1, 0) };
        assert_ne!(Place::of(&mixed).expect("a place").token, token);
        for locator in [0, 1, i64::MAX] {
            assert_eq!(Place::of(&Lease { locator, ..mixed }), None);
        }
        assert!(Place::of(&Lease { locator: i64::MIN, ..mixed }).is_some());
    }
}
