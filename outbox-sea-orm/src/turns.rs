//! What the databases share of walking over the keys of an ordered table, or over the lanes of a fair one.

use outbox_core::Fairness;
use uuid::Uuid;

use crate::row::ClaimedRow;

/// How many messages without a key may come before those with one: half of the limit. The odd one goes to either by
/// chance, so that a claim of one message starves neither.
pub(crate) fn keyless_share(limit: usize, token: Uuid) -> i64 {
    let chance = token.as_u128() >> 1 & 1;
    (limit as i64 + chance as i64) / 2
}

/// The key or lane where a walk ended that began behind `last` and went around; `None` when it took nothing. They compare
/// by their bytes here and in the database.
pub(crate) fn reached(last: &str, taken: impl Iterator<Item = String>) -> Option<String> {
    taken.max_by_key(|name| (name.as_str() <= last, name.clone()))
}

/// See [`reached`].
pub(crate) fn reached_key(last: &str, rows: &[ClaimedRow]) -> Option<String> {
    reached(last, rows.iter().filter_map(ClaimedRow::key).map(str::to_owned))
}

/// See [`reached`].
pub(crate) fn reached_lane(fairness: &Fairness, last: &str, rows: &[ClaimedRow]) -> Option<String> {
    reached(last, rows.iter().filter_map(|row| row.lane(fairness)))
}
