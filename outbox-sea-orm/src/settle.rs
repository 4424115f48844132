use std::collections::HashSet;
use std::time::Duration;

use outbox_core::{Lease, Outcome, Result, Retention, Settled, Settlement, error_text, validate_lease};
use sea_orm::Value;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use sea_orm::sea_query::Values;

use crate::dialect::Dialect;
use crate::repository::OutboxTable;
use crate::row::duration;

/// The most leases in one statement; SQLite takes 32,766 parameters.
pub(crate) const MAX_LEASES: usize = 4_000;

/// One settlement on its way into a statement.
pub(crate) struct Item {
    pub(crate) lease: Lease,
    pub(crate) outcome: i16,
    pub(crate) delay: i64,
    pub(crate) error: String,
}

impl Item {
    pub(crate) const DONE: i16 = 0;
    #[cfg(feature = "postgres")]
    const KEPT: i16 = 4;

    pub(crate) fn new(dialect: Dialect, Settlement { lease, outcome }: Settlement) -> Self {
        let (outcome, delay, error) = match outcome {
            Outcome::Done => (Self::DONE, 0, String::new()),
            Outcome::Retry { after, error } => (1, duration(dialect, after), error_text(&error)),
            Outcome::Dead { error } => (2, 0, error_text(&error)),
            Outcome::Release => (3, 0, String::new()),
        };
        Self { lease, outcome, delay, error }
    }
}

pub(crate) async fn settle(table: &OutboxTable, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
    let counts = Settlement::validate(&settlements)?;
    let leases: Vec<Lease> = settlements.iter().map(|settlement| settlement.lease).collect();
    let dialect = table.table()?.dialect;
    let counted = settlements.into_iter().zip(&counts).filter(|(_, counts)| **counts);
    let mut items: Vec<Item> = counted.map(|(settlement, _)| Item::new(dialect, settlement)).collect();
    // one order of locking everywhere
    items.sort_unstable_by_key(|item| item.lease.locator);
    let mut lost = HashSet::new();
    for chunk in items.chunks(MAX_LEASES) {
        lost.extend(settle_chunk(table, dialect, chunk).await?);
    }
    Ok(leases.iter().zip(counts).map(|(lease, counts)| settled(counts && !lost.contains(lease))).collect())
}

pub(crate) fn settled(applied: bool) -> Settled {
    if applied { Settled::Applied } else { Settled::LeaseLost }
}

/// The statement for messages that were delivered.
fn settle_done(table: &OutboxTable) -> Result<&str> {
    let sql = &table.table()?.sql;
    Ok(match table.retention {
        Retention::Delete => &sql.settle_done,
        Retention::Keep => &sql.keep_done,
    })
}

/// Settles and returns the lost leases.
async fn settle_chunk(table: &OutboxTable, dialect: Dialect, items: &[Item]) -> Result<Vec<Lease>> {
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => settle_postgres(table, items).await,
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => settle_sqlite(table, items).await,
        #[cfg(feature = "mysql")]
        Dialect::MySql => settle_mysql(table, items).await,
    }
}

/// A statement for those that are done and one for the others.
#[cfg(feature = "mysql")]
async fn settle_mysql(table: &OutboxTable, items: &[Item]) -> Result<Vec<Lease>> {
    let sql = &table.table()?.sql;
    let (done, kept): (Vec<&Item>, Vec<&Item>) = items.iter().partition(|item| item.outcome == Item::DONE);
    let row = |item: &Item| {
        let Item { lease, outcome, delay, error } = item;
        serde_json::json!([lease.locator, crate::mysql::hex(lease.token), outcome, delay, error])
    };
    let mut lost = Vec::new();
    for (items, sql) in [(done, settle_done(table)?), (kept, &*sql.settle)] {
        for chunk in items.chunks(crate::mysql::MAX_ROWS) {
            let rows: Vec<_> = chunk.iter().map(|item| row(item)).collect();
            let leases: Vec<Lease> = chunk.iter().map(|item| item.lease).collect();
            lost.extend(change_all("settle", table, sql, None, &leases, &rows).await?);
        }
    }
    Ok(lost)
}

/// Runs a statement for leases and returns those that are lost.
#[cfg(feature = "mysql")]
async fn change_all(
    operation: &'static str,
    table: &OutboxTable,
    sql: &str,
    first: Option<Value>,
    leases: &[Lease],
    rows: &[serde_json::Value],
) -> Result<Vec<Lease>> {
    let good = &table.table()?.mysql.sql.held;
    let changed =
        crate::mysql::AllOrNone { operation, sql, good, first, look_first: false }.run(table, rows).await?;
    Ok(leases.iter().zip(changed).filter(|(_, changed)| !*changed).map(|(lease, _)| *lease).collect())
}

#[cfg(feature = "postgres")]
async fn settle_postgres(table: &OutboxTable, items: &[Item]) -> Result<Vec<Lease>> {
    let sql = &table.table()?.sql;
    let leases: Vec<Lease> = items.iter().map(|item| item.lease).collect();
    if items.iter().all(|item| item.outcome == Item::DONE) {
        return change(table, "settle", settle_done(table)?, &leases, lease_arrays(&leases)).await;
    }
    let outcome = |item: &Item| match (item.outcome, table.retention) {
        (Item::DONE, Retention::Keep) => Item::KEPT,
        (outcome, _) => outcome,
    };
    let mut values = lease_arrays(&leases);
    values.push(items.iter().map(outcome).collect::<Vec<_>>().into());
    values.push(items.iter().map(|item| item.delay).collect::<Vec<_>>().into());
    values.push(items.iter().map(|item| item.error.clone()).collect::<Vec<_>>().into());
    values.push(table.table()?.keeps_numbers().into());
    change(table, "settle", &sql.settle, &leases, values).await
}

/// Runs a statement that answers with the number of good leases and, unless all were, with their numbers and tokens;
/// returns the others.
#[cfg(feature = "postgres")]
async fn change(
    table: &OutboxTable,
    operation: &'static str,
    sql: &str,
    leases: &[Lease],
    values: Vec<Value>,
) -> Result<Vec<Lease>> {
    let rows = table.query_alone(operation, table.hot()?, sql, Values(values)).await?;
    let row =
        rows.first().ok_or_else(|| outbox_core::Error::new(outbox_core::ErrorKind::Other, operation))?;
    let good: i64 = crate::row::column(row, 0)?;
    if good == leases.len() as i64 {
        return Ok(Vec::new());
    }
    let numbers: Option<Vec<i64>> = crate::row::column(row, 1)?;
    let tokens: Option<Vec<uuid::Uuid>> = crate::row::column(row, 2)?;
    let good: HashSet<_> = numbers.into_iter().flatten().zip(tokens.into_iter().flatten()).collect();
    Ok(leases.iter().filter(|lease| !good.contains(&(lease.locator, lease.token))).copied().collect())
}

#[cfg(feature = "postgres")]
fn lease_arrays(leases: &[Lease]) -> Vec<Value> {
    let (locators, tokens): (Vec<i64>, Vec<uuid::Uuid>) =
        leases.iter().map(|lease| (lease.locator, lease.token)).unzip();
    vec![locators.into(), tokens.into()]
}

/// A statement for those that are done and one for the others.
#[cfg(feature = "sqlite")]
async fn settle_sqlite(table: &OutboxTable, items: &[Item]) -> Result<Vec<Lease>> {
    let sql = &table.table()?.sql;
    let mut lost = Vec::new();
    for round in rounds(items, |item| item.lease.id) {
        let (done, kept): (Vec<&Item>, Vec<&Item>) =
            round.iter().partition(|item| item.outcome == Item::DONE);
        let done: Vec<Lease> = done.iter().map(|item| item.lease).collect();
        let values = done.iter().flat_map(lease_values).collect();
        lost.extend(change_rows(table, "settle", settle_done(table)?, &done, values).await?);
        let values = kept.iter().flat_map(|item| settlement_values(item));
        let values = values.chain([table.table()?.keeps_numbers().into()]).collect();
        let kept: Vec<Lease> = kept.iter().map(|item| item.lease).collect();
        lost.extend(change_rows(table, "settle", &sql.settle, &kept, values).await?);
    }
    Ok(lost)
}

/// Splits items so that none of the parts names a message twice: the statements answer with ids, which do not tell
/// two leases of one message apart. One part, unless somebody names a stale lease beside the current one.
#[cfg(feature = "sqlite")]
fn rounds<T>(items: &[T], id: impl Fn(&T) -> outbox_core::MessageId) -> Vec<Vec<&T>> {
    let mut seen = std::collections::HashMap::new();
    let mut rounds: Vec<Vec<&T>> = Vec::new();
    for item in items {
        let round: &mut usize = seen.entry(id(item)).or_default();
        if *round == rounds.len() {
            rounds.push(Vec::new());
        }
        rounds[*round].push(item);
        *round += 1;
    }
    rounds
}

#[cfg(feature = "sqlite")]
fn settlement_values(item: &Item) -> Vec<Value> {
    let mut values = lease_values(&item.lease).to_vec();
    values.extend([item.outcome.into(), item.delay.into(), item.error.clone().into()]);
    values
}

#[cfg(feature = "sqlite")]
fn lease_values(lease: &Lease) -> [Value; 2] {
    [lease.locator.into(), lease.token.into()]
}

/// Runs a statement that returns the ids that it changed, and returns the other leases.
#[cfg(feature = "sqlite")]
async fn change_rows(
    table: &OutboxTable,
    operation: &'static str,
    sql: &str,
    leases: &[Lease],
    values: Vec<Value>,
) -> Result<Vec<Lease>> {
    if leases.is_empty() {
        return Ok(Vec::new());
    }
    let sql = crate::sql::repeat_values(sql, leases.len());
    let rows = table.query(operation, table.hot()?, &sql, Values(values)).await?;
    let changed: HashSet<uuid::Uuid> = crate::row::ids(&rows)?.into_iter().collect();
    Ok(leases.iter().filter(|lease| !changed.contains(&lease.id)).copied().collect())
}

pub(crate) async fn extend(table: &OutboxTable, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
    validate_lease("by", by)?;
    let dialect = table.table()?.dialect;
    let mut items = leases.clone();
    items.sort_unstable_by_key(|lease| (lease.locator, lease.token));
    items.dedup();
    let mut lost = HashSet::new();
    for chunk in items.chunks(MAX_LEASES) {
        lost.extend(extend_chunk(table, dialect, chunk, duration(dialect, by)).await?);
    }
    Ok(leases.iter().map(|lease| settled(!lost.contains(lease))).collect())
}

async fn extend_chunk(
    table: &OutboxTable,
    dialect: Dialect,
    leases: &[Lease],
    by: i64,
) -> Result<Vec<Lease>> {
    let sql = &table.table()?.sql.extend;
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            let mut values = lease_arrays(leases);
            values.push(by.into());
            change(table, "extend", sql, leases, values).await
        }
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => {
            let mut lost = Vec::new();
            for round in rounds(leases, |lease| lease.id) {
                let leases: Vec<Lease> = round.into_iter().copied().collect();
                let mut values: Vec<Value> = leases.iter().flat_map(lease_values).collect();
                values.push(by.into());
                lost.extend(change_rows(table, "extend", sql, &leases, values).await?);
            }
            Ok(lost)
        }
        #[cfg(feature = "mysql")]
        Dialect::MySql => {
            let mut lost = Vec::new();
            for chunk in leases.chunks(crate::mysql::MAX_ROWS) {
                let rows: Vec<_> = chunk.iter().map(crate::mysql::lease_row).collect();
                lost.extend(change_all("extend", table, sql, Some(by.into()), chunk, &rows).await?);
            }
            Ok(lost)
        }
    }
}
