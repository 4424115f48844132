//! The partitions of delivered messages: made ahead, dropped when their time is over.

use std::time::Duration;

use chrono::{DateTime, Utc};
use outbox_core::{
    Error, ErrorKind, Finding, Maintained, Maintenance, Partition, PartitionInterval, Result, Severity,
    Symptom, TableName,
};
use sea_orm::sea_query::Values;
use sea_orm::{ConnectionTrait, QueryResult};

use crate::context::{SeaOrmContext, transactor};
use crate::dialect::Dialect;
use crate::repository::OutboxTable;
use crate::row::{column, duration};
use crate::sql::{
    Missing, PartitionedSql, Parts, count_partition, create_partition, drop_partition, lock_partitions,
    partition_name, wait_for_turn,
};

/// The most partitions that one call drops.
pub(crate) const MAX_DROPPED: usize = 100;
/// What each transaction begins with. A partition's bounds are read from their text, in this session's style. What is
/// read after a lock must be as new as the lock.
const SETTINGS: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL TimeZone = 'UTC'; \
                        SET LOCAL DateStyle = 'ISO'";
/// Nobody waits long for us: what we wait for keeps others waiting behind us.
const PATIENCE: &str = "SET LOCAL lock_timeout = '2s'";

/// What a partitioned table needs.
pub(crate) struct Partitioned {
    sql: PartitionedSql,
    interval: PartitionInterval,
    parts: Parts,
}

impl Partitioned {
    /// The delivered messages of an outbox table.
    pub(crate) fn new(name: &TableName, interval: PartitionInterval) -> Self {
        Self { sql: PartitionedSql::new(Dialect::Postgres, name), interval, parts: Parts::Delivered }
    }

    pub(crate) fn of_log(name: &TableName, interval: PartitionInterval) -> Self {
        Self { sql: PartitionedSql::of_log(name), interval, parts: Parts::Log }
    }

    /// What is in the partitions.
    fn what(&self) -> &'static str {
        match self.parts {
            Parts::Delivered => "delivered",
            Parts::Log => "enqueued",
        }
    }

    pub(crate) fn read(&self, table: &OutboxTable, row: &QueryResult) -> Result<Partition> {
        let starts_at = column(row, 0)?;
        let name = partition_name(self.parts, &table.name, starts_at);
        Ok(Partition { name, starts_at, ends_at: column(row, 1)? })
    }
}

pub(crate) async fn maintain(table: &OutboxTable, maintenance: &Maintenance) -> Result<Maintained> {
    maintenance.validate()?;
    let of = partitioned(table)?;
    let mut maintained = Maintained::default();
    maintained.created = create(table, of, maintenance, Missing::All).await?;
    let Some(age) = maintenance.drop_after else { return Ok(maintained) };
    if maintenance.dry_run {
        maintained.dropped = old(table, of, age).await?;
        return Ok(maintained);
    }
    while maintained.dropped.len() < MAX_DROPPED {
        let Some((dropped, _)) = drop_oldest(table, of, age, Drops::All).await? else { break };
        maintained.dropped.push(dropped);
    }
    Ok(maintained)
}

fn partitioned(table: &OutboxTable) -> Result<&Partitioned> {
    let unsupported = || {
        Error::new(ErrorKind::Unsupported, "maintain")
            .with_table(&table.name)
            .with_detail("the table has no partitions")
    };
    table.table()?.partitioned.as_ref().ok_or_else(unsupported)
}

/// All that are asked for or none. Looks again with the lock that making takes: what comes in between may go to the rest.
pub(crate) async fn create(
    table: &OutboxTable,
    of: &Partitioned,
    maintenance: &Maintenance,
    which: Missing,
) -> Result<Vec<Partition>> {
    transactor(&table.db)
        .run(async |cx| {
            let connection = cx.connection()?;
            begin(table, connection, !maintenance.dry_run).await?;
            let missing = look_for_missing(table, connection, of, maintenance.n_ahead, which).await?;
            if maintenance.dry_run || missing.is_empty() {
                return Ok(missing);
            }
            run(table, connection, &lock_partitions(which, &table.name)).await?;
            let missing = look_for_missing(table, connection, of, maintenance.n_ahead, which).await?;
            for partition in &missing {
                run(table, connection, &create_partition(of.parts, &table.name, partition)).await?;
            }
            Ok(missing)
        })
        .await
}

async fn look_for_missing(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    of: &Partitioned,
    n_ahead: u32,
    which: Missing,
) -> Result<Vec<Partition>> {
    // as wide as the parameter
    let n_ahead = i32::try_from(n_ahead).unwrap_or(i32::MAX);
    let values = Values(vec![of.interval.as_str().into(), n_ahead.into()]);
    let rows = table.query("maintain", connection, &of.sql.missing_partitions, values).await?;
    let mut missing = Vec::new();
    for row in &rows {
        let is_current: bool = column(row, 2)?;
        if which == Missing::All || is_current == (which == Missing::Current) {
            missing.push(of.read(table, row)?);
        }
    }
    Ok(missing)
}

/// What could be dropped.
async fn old(table: &OutboxTable, of: &Partitioned, age: Duration) -> Result<Vec<Partition>> {
    transactor(&table.db)
        .run(async |cx| {
            let connection = cx.connection()?;
            begin(table, connection, false).await?;
            let rows = look_for_old(table, connection, of, age, MAX_DROPPED).await?;
            rows.iter().map(|row| of.read(table, row)).collect()
        })
        .await
}

/// Which partitions are dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drops {
    /// Whatever is old enough; it is an error when the role may not.
    All,
    /// Those that the role may drop, and their rows are counted.
    OwnAndCounts,
}

/// Drops the oldest partition that is old enough: each in a transaction of its own, which waits for whoever is writing
/// to delivered messages and keeps others from it only while the catalog changes.
async fn drop_oldest(
    table: &OutboxTable,
    of: &Partitioned,
    age: Duration,
    drops: Drops,
) -> Result<Option<(Partition, u64)>> {
    transactor(&table.db)
        .run(async |cx| {
            let connection = cx.connection()?;
            begin(table, connection, true).await?;
            let rows = look_for_old(table, connection, of, age, 1).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            let (partition, is_own) = (of.read(table, row)?, column::<bool>(row, 2)?);
            if drops == Drops::OwnAndCounts && !is_own {
                return Ok(None);
            }
            let n_rows =
                if drops == Drops::OwnAndCounts { count(table, connection, &partition).await? } else { 0 };
            run(table, connection, &drop_partition(&table.name, &partition)).await?;
            Ok(Some((partition, n_rows)))
        })
        .await
}

/// Drops the partitions that `prune` may drop as a whole, until as many messages are gone as it may remove.
pub(crate) async fn prune(table: &OutboxTable, age: Duration, limit: usize) -> Result<u64> {
    let Some(of) = &table.table()?.partitioned else { return Ok(0) };
    let mut n_pruned = 0;
    for _ in 0..MAX_DROPPED {
        if n_pruned >= limit as u64 {
            break;
        }
        let Some((_, n_rows)) = drop_oldest(table, of, age, Drops::OwnAndCounts).await? else { break };
        n_pruned += n_rows;
    }
    Ok(n_pruned)
}

/// How many messages [`prune`] would remove.
pub(crate) async fn count_prunable(table: &OutboxTable, age: Duration, limit: usize) -> Result<u64> {
    let Some(of) = &table.table()?.partitioned else { return Ok(0) };
    transactor(&table.db)
        .run(async |cx| {
            let connection = cx.connection()?;
            begin(table, connection, false).await?;
            let mut n_prunable = 0;
            for row in look_for_old(table, connection, of, age, MAX_DROPPED).await? {
                if n_prunable >= limit as u64 || !column::<bool>(&row, 2)? {
                    break;
                }
                n_prunable += count(table, connection, &of.read(table, &row)?).await?;
            }
            Ok(n_prunable)
        })
        .await
}

/// What is wrong with the partitions.
pub(crate) async fn findings(table: &OutboxTable, of: Option<&Partitioned>) -> Result<Vec<Finding>> {
    let Some(of) = of else { return Ok(Vec::new()) };
    let looked = transactor(&table.db)
        .run(async |cx| {
            let connection = cx.connection()?;
            begin(table, connection, false).await?;
            let values = Values(vec![of.interval.as_str().into()]);
            table.query("doctor", connection, &of.sql.partitions, values).await
        })
        .await;
    let rows = match looked {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(vec![blind(of.what())]),
        looked => looked?,
    };
    let Some(row) = rows.first() else { return Ok(Vec::new()) };
    let (last, current): (Option<DateTime<Utc>>, DateTime<Utc>) = (column(row, 0)?, column(row, 1)?);
    let missing = (last.is_none_or(|last| last <= current)).then(|| missing(of.what(), last));
    let rest = column::<bool>(row, 2)?.then(|| rest(of.what()));
    Ok([missing, rest].into_iter().flatten().collect())
}

fn missing(what: &str, last: Option<DateTime<Utc>>) -> Finding {
    let what = match last {
        Some(last) => format!(
            "no partition is made for what is {what} after the current interval, the last one ends {last}"
        ),
        None => format!("no partition is made for what is {what}"),
    };
    Finding::new(Severity::Warning, Symptom::Partition, what, "call maintain() at least once in an interval")
}

fn rest(what: &str) -> Finding {
    Finding::new(
        Severity::Warning,
        Symptom::Partition,
        format!("{what} messages are in the partition for what fits nowhere else: maintenance came too late"),
        "call maintain() at least once in an interval; prune() a table, or maintain() a log with an age, to remove what is there",
    )
}

fn blind(what: &str) -> Finding {
    Finding::new(
        Severity::Notice,
        Symptom::Privilege,
        format!("this role does not see the partitions of {what} messages"),
        "run the doctor as the owner of the table",
    )
}

pub(crate) async fn begin(table: &OutboxTable, connection: &impl ConnectionTrait, alone: bool) -> Result<()> {
    run(table, connection, SETTINGS).await?;
    if alone {
        run(table, connection, &wait_for_turn(&table.name)).await?;
    }
    run(table, connection, PATIENCE).await
}

pub(crate) async fn run(table: &OutboxTable, connection: &impl ConnectionTrait, sql: &str) -> Result<()> {
    let result = connection.execute_unprepared(sql).await;
    result.map(drop).map_err(|error| crate::error::from_db("maintain", &table.name, error))
}

/// `starts_at, ends_at, whether it is this role's`.
pub(crate) async fn look_for_old(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    of: &Partitioned,
    age: Duration,
    limit: usize,
) -> Result<Vec<QueryResult>> {
    let values = Values(vec![duration(Dialect::Postgres, age).into(), (limit as i64).into()]);
    table.query("maintain", connection, &of.sql.old_partitions, values).await
}

async fn count(table: &OutboxTable, connection: &impl ConnectionTrait, partition: &Partition) -> Result<u64> {
    let sql = count_partition(&table.name, partition);
    let rows = table.query("prune", connection, &sql, Values(Vec::new())).await?;
    let n_rows = rows.first().map_or(Ok(0), |row| column::<i64>(row, 0))?;
    Ok(u64::try_from(n_rows).unwrap_or_default())
}
