use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use outbox_core::{Lease, Repository, Result, Settled, Settlement, validate_lease};
#[cfg(feature = "postgres")]
use sea_orm::Value;
#[cfg(feature = "postgres")]
use sea_orm::sea_query::Values;
use uuid::Uuid;

use super::LogGroup;
use super::range::Place;
use crate::dialect::Dialect;
use crate::row::{column, duration};
use crate::settle::{Item, MAX_LEASES, settled};

/// The outcome of a message that goes on being leased, apart from its range.
const STILL_LEASED: i16 = 4;
/// The outcome of one that the claim was not for.
#[cfg(feature = "postgres")]
const ASIDE: i16 = 6;

/// See [`Repository::settle`]. A settlement of a message of the log whose range has been given up meanwhile, without that
/// anybody has claimed the message again, finds it in the group's own table.
pub(super) async fn settle(group: &LogGroup, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
    let counts = Settlement::validate(&settlements)?;
    let is_counted = settlements.iter().map(|settlement| settlement.lease).zip(counts.iter().copied());
    let answers: Vec<(Lease, bool)> = is_counted.collect();
    let counted = settlements.into_iter().zip(counts).filter(|(_, counts)| *counts);
    let (in_log, mut in_own): (Vec<_>, Vec<_>) =
        counted.map(|(settlement, _)| settlement).partition(|settlement| settlement.lease.locator < 0);
    let items = in_log.iter().cloned().map(|settlement| Item::new(group.dialect, settlement)).collect();
    let mut lost = settle_ranges(group, items).await?;
    group.last_claim.settled(in_log.iter().map(|settlement| &settlement.lease));
    let moved = moved(group, &lost).await?;
    for settlement in in_log {
        if let Some(lease) = moved.get(&settlement.lease) {
            in_own.push(Settlement::new(*lease, settlement.outcome));
        }
    }
    let origin: HashMap<Lease, Lease> = moved.iter().map(|(from, to)| (*to, *from)).collect();
    lost.retain(|lease| !moved.contains_key(lease));
    let leases: Vec<Lease> = in_own.iter().map(|settlement| settlement.lease).collect();
    lost.extend(lost_of(&leases, &own_settle(group, in_own).await?, &origin));
    Ok(answers.iter().map(|(lease, counts)| settled(*counts && !lost.contains(lease))).collect())
}

/// Moves what a claim was not for from its range to the group's own table, as it was enqueued. What is not in the range any more
/// has been given up with it.
#[cfg(feature = "postgres")]
pub(super) async fn put_aside(group: &LogGroup, leases: Vec<Lease>) -> Result<()> {
    let item = |lease| Item { lease, outcome: ASIDE, delay: 0, error: String::new() };
    settle_ranges(group, leases.into_iter().map(item).collect()).await.map(drop)
}

async fn own_settle(group: &LogGroup, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
    if settlements.is_empty() {
        return Ok(Vec::new());
    }
    group.own.settle(settlements).await
}

/// The leases that the group's own table does not know, by the names under which the caller has them.
fn lost_of(leases: &[Lease], answers: &[Settled], origin: &HashMap<Lease, Lease>) -> Vec<Lease> {
    let lost = leases.iter().zip(answers).filter(|(_, answer)| **answer == Settled::LeaseLost);
    lost.map(|(lease, _)| *origin.get(lease).unwrap_or(lease)).collect()
}

/// See [`Repository::extend`]. Where not all that is left of a range is named, what is named becomes messages of the group's
/// own table, with leases of their own.
pub(super) async fn extend(group: &LogGroup, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
    validate_lease("by", by)?;
    let unique: HashSet<Lease> = leases.iter().copied().collect();
    let (in_log, mut in_own): (Vec<Lease>, Vec<Lease>) =
        unique.into_iter().partition(|lease| lease.locator < 0);
    let mut lost = extend_ranges(group, in_log, by).await?;
    let moved = moved(group, &lost).await?;
    lost.retain(|lease| !moved.contains_key(lease));
    let origin: HashMap<Lease, Lease> = moved.iter().map(|(from, to)| (*to, *from)).collect();
    in_own.extend(moved.into_values());
    let answers = if in_own.is_empty() { Vec::new() } else { group.own.extend(in_own.clone(), by).await? };
    lost.extend(lost_of(&in_own, &answers, &origin));
    Ok(leases.iter().map(|lease| settled(!lost.contains(lease))).collect())
}

/// The places that a call names, by range.
#[derive(Default)]
pub(super) struct Places(BTreeMap<Uuid, Vec<bool>>);

impl Places {
    pub(super) fn of<'a>(leases: impl IntoIterator<Item = &'a Lease>) -> Self {
        let mut places = Self::default();
        for place in leases.into_iter().filter_map(Place::of) {
            let named = places.0.entry(place.token).or_default();
            named.resize(named.len().max(place.place + 1), false);
            named[place.place] = true;
        }
        places
    }

    #[cfg(feature = "sqlite")]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Uuid, &Vec<bool>)> {
        self.0.iter()
    }

    #[cfg(feature = "sqlite")]
    pub(super) fn of_range(&self, token: Uuid) -> &[bool] {
        self.0.get(&token).map_or(&[], Vec::as_slice)
    }

    /// The tokens, and a text of digits each.
    #[cfg(feature = "postgres")]
    fn values(&self) -> Vec<Value> {
        let digits = |named: &Vec<bool>| named.iter().map(|named| if *named { '1' } else { '0' }).collect();
        let texts: Vec<String> = self.0.values().map(digits).collect();
        vec![self.0.keys().copied().collect::<Vec<_>>().into(), texts.into()]
    }
}

/// What the database answers of the ranges that a call names.
#[derive(Default)]
pub(super) struct Held(HashMap<Uuid, (usize, Option<String>, bool)>);

impl Held {
    #[cfg(feature = "postgres")]
    async fn ask(group: &LogGroup, operation: &'static str, sql: &str, values: Vec<Value>) -> Result<Self> {
        let rows = group.log.table.query(operation, group.log.table.hot()?, sql, Values(values)).await?;
        let range = |row: &sea_orm::QueryResult| {
            let n = usize::try_from(column::<i32>(row, 1)?).unwrap_or_default();
            Ok((column(row, 0)?, (n, column(row, 2)?, column(row, 3).unwrap_or(true))))
        };
        rows.iter().map(range).collect::<Result<_>>().map(Self)
    }

    /// Enters a range: how many places it has, which were done, and whether all others are named.
    #[cfg(feature = "sqlite")]
    pub(super) fn insert(&mut self, token: Uuid, n: usize, done: Option<String>, is_whole: bool) {
        self.0.insert(token, (n, done, is_whole));
    }

    /// Whether the lease was good when its range was looked at.
    fn is_good(&self, lease: &Lease) -> bool {
        let Some(place) = Place::of(lease) else { return false };
        let Some((n, done, _)) = self.0.get(&place.token) else { return false };
        let is_done = done.as_ref().is_some_and(|done| done.as_bytes().get(place.place) == Some(&b'1'));
        place.place < *n && !is_done
    }

    fn is_whole(&self, lease: &Lease) -> bool {
        Place::of(lease).and_then(|place| self.0.get(&place.token)).is_some_and(|(_, _, is_whole)| *is_whole)
    }
}

/// Settles messages of ranges and returns the lost leases.
async fn settle_ranges(group: &LogGroup, mut items: Vec<Item>) -> Result<HashSet<Lease>> {
    // of what is released, the first in the log is the first to come again
    items.sort_unstable_by_key(|item| std::cmp::Reverse(item.lease.locator));
    let mut lost = HashSet::new();
    for chunk in items.chunks(MAX_LEASES) {
        lost.extend(settle_chunk(group, chunk).await?);
    }
    Ok(lost)
}

async fn settle_chunk(group: &LogGroup, items: &[Item]) -> Result<Vec<Lease>> {
    match group.dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => settle_postgres(group, items).await,
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => super::sqlite::settle(group, items).await,
        #[cfg(feature = "mysql")]
        Dialect::MySql => Ok(items.iter().map(|item| item.lease).collect()),
    }
}

#[cfg(feature = "postgres")]
async fn settle_postgres(group: &LogGroup, items: &[Item]) -> Result<Vec<Lease>> {
    let mut values = Places::of(items.iter().map(|item| &item.lease)).values();
    let kept: Vec<(&Item, Place)> = items
        .iter()
        .filter(|item| item.outcome != Item::DONE)
        .filter_map(|item| Place::of(&item.lease).map(|place| (item, place)))
        .collect();
    let sql = if kept.is_empty() {
        &group.sql.log_done
    } else {
        values.extend(kept_values(&kept));
        values.push(group.order().is_some().into());
        &group.sql.log_settle
    };
    let held = Held::ask(group, "settle", sql, values).await?;
    Ok(items.iter().map(|item| item.lease).filter(|lease| !held.is_good(lease)).collect())
}

#[cfg(feature = "postgres")]
fn kept_values(kept: &[(&Item, Place)]) -> [Value; 6] {
    [
        kept.iter().map(|(_, place)| place.token).collect::<Vec<_>>().into(),
        kept.iter().map(|(_, place)| place.seq).collect::<Vec<_>>().into(),
        kept.iter().map(|(_, place)| place.place as i32).collect::<Vec<_>>().into(),
        kept.iter().map(|(item, _)| item.outcome).collect::<Vec<_>>().into(),
        kept.iter().map(|(item, _)| item.delay).collect::<Vec<_>>().into(),
        kept.iter().map(|(item, _)| item.error.clone()).collect::<Vec<_>>().into(),
    ]
}

/// Extends ranges, or takes what is named out of them, and returns the lost leases.
async fn extend_ranges(group: &LogGroup, leases: Vec<Lease>, by: Duration) -> Result<HashSet<Lease>> {
    if leases.is_empty() {
        return Ok(HashSet::new());
    }
    let held = extend_whole(group, &Places::of(&leases), by).await?;
    let (good, lost): (Vec<Lease>, Vec<Lease>) = leases.into_iter().partition(|lease| held.is_good(lease));
    let apart = good.into_iter().filter(|lease| !held.is_whole(lease));
    let item = |lease| Item {
        lease,
        outcome: STILL_LEASED,
        delay: duration(group.dialect, by),
        error: String::new(),
    };
    let mut all = settle_ranges(group, apart.map(item).collect()).await?;
    all.extend(lost);
    Ok(all)
}

/// Extends the ranges of which everything that is not settled is named.
async fn extend_whole(group: &LogGroup, places: &Places, by: Duration) -> Result<Held> {
    match group.dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            let mut values = places.values();
            values.push(duration(group.dialect, by).into());
            Held::ask(group, "extend", &group.sql.log_extend, values).await
        }
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => super::sqlite::extend(group, places, by).await,
        #[cfg(feature = "mysql")]
        Dialect::MySql => Ok(Held::default()),
    }
}

/// Where the messages of these leases are in the group's own table, as far as they are there under these leases.
async fn moved(group: &LogGroup, lost: &HashSet<Lease>) -> Result<HashMap<Lease, Lease>> {
    let by_range: HashMap<_, Lease> =
        lost.iter().filter_map(|lease| Some(((lease.id, Place::of(lease)?.token), *lease))).collect();
    if by_range.is_empty() {
        return Ok(HashMap::new());
    }
    let mut moved = HashMap::new();
    for row in moved_rows(group, by_range.keys().copied().collect()).await? {
        let (id, token, locator) = (column(&row, 0)?, column(&row, 1)?, column(&row, 2)?);
        if let Some(lease) = by_range.get(&(id, token)) {
            moved.insert(*lease, Lease { id, token, locator });
        }
    }
    Ok(moved)
}

/// Id, token and number of what is in the group's own table of these.
async fn moved_rows(group: &LogGroup, leases: Vec<(Uuid, Uuid)>) -> Result<Vec<sea_orm::QueryResult>> {
    match group.dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            let (ids, tokens): (Vec<Uuid>, Vec<Uuid>) = leases.into_iter().unzip();
            let values = Values(vec![ids.into(), tokens.into()]);
            group.log.table.query("settle", group.log.table.hot()?, &group.sql.log_moved, values).await
        }
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => super::sqlite::moved(group, &leases).await,
        #[cfg(feature = "mysql")]
        Dialect::MySql => Ok(Vec::new()),
    }
}
