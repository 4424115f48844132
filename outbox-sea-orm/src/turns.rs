//! What the databases share of walking over the keys of an ordered table.

use uuid::Uuid;

use crate::row::ClaimedRow;

/// How many messages without a key may come before those with one: half of the limit. The odd one goes to either by
/// chance, so that a claim of one message starves neither.
pub(crate) fn keyless_share(limit: usize, token: Uuid) -> i64 {
    let chance = token.as_u128() >> 1 & 1;
    (limit as i64 + chance as i64) / 2
}

/// The key where a walk ended that began behind `last` and went around; `None` when it took no key. Keys compare by
/// their bytes here and in the database.
pub(crate) fn next_key(last: &str, rows: &[ClaimedRow]) -> Option<String> {
    let keys = || rows.iter().filter_map(ClaimedRow::key);
    let around = keys().filter(|key| *key <= last).max();
    around.or_else(|| keys().max()).map(str::to_owned)
}
