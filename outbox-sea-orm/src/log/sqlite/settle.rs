//! Settlements and extensions of what is leased with ranges.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use outbox_core::{Lease, MessageId, Result};
use sea_orm::sea_query::Values;
use sea_orm::{QueryResult, Value};
use uuid::Uuid;

use super::{Range, Steps, digits, transaction};
use crate::log::LogGroup;
use crate::log::range::Place;
use crate::log::settle::{Held, Places};
use crate::row::{ToDatabase, ids};
use crate::settle::{Item, MAX_LEASES};

/// Settles, and returns the lost leases. Ranges that succeed as a whole are over with one statement.
pub(in crate::log) async fn settle(group: &LogGroup, items: &[Item]) -> Result<Vec<Lease>> {
    let ended = match items.iter().all(|item| item.outcome == Item::DONE) {
        true => end_whole(group, &Places::of(items.iter().map(|item| &item.lease))).await?,
        false => HashSet::new(),
    };
    let is_ended = |item: &&Item| Place::of(&item.lease).is_some_and(|place| ended.contains(&place.token));
    let rest: Vec<&Item> = items.iter().filter(|item| !is_ended(item)).collect();
    if rest.is_empty() {
        return Ok(Vec::new());
    }
    transaction(group, "settle", async |steps| steps.settle(&rest).await).await
}

/// The tokens of the ranges that are gone.
async fn end_whole(group: &LogGroup, places: &Places) -> Result<HashSet<Uuid>> {
    let whole: Vec<_> = places.iter().filter(|(_, named)| named.iter().all(|named| *named)).collect();
    if whole.is_empty() {
        return Ok(HashSet::new());
    }
    let sql = crate::sql::repeat_values(&group.sql.log_done, whole.len());
    let row = |(token, named): &(&Uuid, &Vec<bool>)| [Value::from(**token), (named.len() as i64).into()];
    let values = Values(whole.iter().flat_map(row).collect());
    let rows = group.log.table.query("settle", group.log.table.hot()?, &sql, values).await?;
    Ok(ids(&rows)?.into_iter().collect())
}

/// Extends the ranges of which everything that is not settled is named.
pub(in crate::log) async fn extend(group: &LogGroup, places: &Places, by: Duration) -> Result<Held> {
    transaction(group, "extend", async |steps| {
        let mut held = Held::default();
        for range in steps.all_ranges(places.iter().map(|(token, _)| *token)).await? {
            let named = places.of_range(range.token);
            let is_whole =
                range.done.iter().enumerate().all(|(n, done)| *done || named.get(n) == Some(&true));
            if is_whole {
                let values = vec![range.token.into(), by.millis().into()];
                steps.execute(&group.sql.log_extend, values).await?;
            }
            held.insert(range.token, range.done.len(), Some(digits(&range.done)), is_whole);
        }
        Ok(held)
    })
    .await
}

/// Where these messages are in the group's own table, as far as they are there under these tokens.
pub(in crate::log) async fn moved(
    group: &LogGroup,
    leases: &[(MessageId, Uuid)],
) -> Result<Vec<QueryResult>> {
    let mut rows = Vec::new();
    for chunk in leases.chunks(MAX_LEASES) {
        let sql = crate::sql::repeat_values(&group.sql.log_moved, chunk.len());
        let values = Values(chunk.iter().flat_map(|(id, token)| [(*id).into(), (*token).into()]).collect());
        rows.extend(group.log.table.query("settle", group.log.table.hot()?, &sql, values).await?);
    }
    Ok(rows)
}

impl Steps<'_> {
    async fn settle(&self, items: &[&Item]) -> Result<Vec<Lease>> {
        let tokens = items.iter().filter_map(|item| Place::of(&item.lease)).map(|place| place.token);
        let ranges = self.all_ranges(tokens).await?;
        let mut ranges: HashMap<Uuid, Range> = ranges.into_iter().map(|range| (range.token, range)).collect();
        let (mut lost, mut kept, mut changed) = (Vec::new(), Vec::new(), BTreeMap::<Uuid, Vec<i64>>::new());
        for item in items {
            let place = Place::of(&item.lease);
            let found = place.and_then(|place| Some((place, ranges.get_mut(&place.token)?)));
            let Some((place, range)) = found.filter(|(place, range)| range.holds(place)) else {
                lost.push(item.lease);
                continue;
            };
            range.settle(place.place);
            let failed = changed.entry(place.token).or_default();
            if item.outcome != Item::DONE {
                failed.push(place.seq);
                kept.push((*item, place));
            }
        }
        for (token, failed) in &changed {
            let Some(range) = ranges.get_mut(token) else { continue };
            self.pull_followers(range, failed).await?;
            self.keep(*token, &range.done).await?;
        }
        self.keep_messages(&kept).await?;
        Ok(lost)
    }

    async fn all_ranges(&self, tokens: impl Iterator<Item = Uuid>) -> Result<Vec<Range>> {
        let tokens: Vec<Uuid> = tokens.collect::<HashSet<_>>().into_iter().collect();
        if tokens.is_empty() { Ok(Vec::new()) } else { self.ranges(&tokens).await }
    }

    /// On an ordered log, whatever else of the keys of what has failed is leased with the range goes with it.
    async fn pull_followers(&self, range: &mut Range, failed: &[i64]) -> Result<()> {
        if !self.is_ordered() || failed.is_empty() {
            return Ok(());
        }
        let failed: HashSet<i64> = failed.iter().copied().collect();
        let (failed, mut rest): (Vec<_>, Vec<_>) = self
            .leased(Some(range.token), true)
            .await?
            .into_iter()
            .partition(|leased| failed.contains(&leased.seq));
        let keys: HashSet<_> = failed.into_iter().map(|leased| leased.key).collect();
        rest.retain(|leased| keys.contains(&leased.key) && range.done.get(leased.place) == Some(&false));
        if rest.is_empty() { Ok(()) } else { self.pull_from(range, &rest).await }
    }

    /// Makes what did not simply succeed messages of the group's own table.
    async fn keep_messages(&self, kept: &[(&Item, Place)]) -> Result<()> {
        if kept.is_empty() {
            return Ok(());
        }
        let row = |(item, place): &(&Item, Place)| -> [Value; 5] {
            let (outcome, error) = (item.outcome.into(), item.error.clone().into());
            [place.seq.into(), place.token.into(), outcome, item.delay.into(), error]
        };
        let values = kept.iter().flat_map(row).chain([self.is_ordered().into()]).collect();
        let sql = crate::sql::repeat_values(&self.group.sql.log_settle, kept.len());
        self.execute(&sql, values).await.map(drop)
    }
}
