//! The partitions of a log: made ahead, dropped when no group needs them any more.

use std::collections::HashSet;
use std::time::Duration;

use outbox_core::{Error, ErrorKind, HeldPartition, Maintained, Maintenance, Partition, Result};
use sea_orm::ConnectionTrait;
use sea_orm::sea_query::Values;

use super::OutboxLog;
use crate::context::{SeaOrmContext, transactor};
use crate::dialect::Dialect;
use crate::partitions::{MAX_DROPPED, Partitioned, begin, create, look_for_old, run};
use crate::row::{column, duration};
use crate::sql::{Missing, drop_partition, lock_to_drop, partition_holders};

/// The most messages that one call removes from the default partition.
const MAX_REMOVED: i64 = 10_000;

impl OutboxLog {
    pub(super) fn partitions(&self) -> Option<Partitioned> {
        self.declared.partitioned.map(|interval| Partitioned::of_log(self.name(), interval))
    }
}

/// What became of a partition that is old enough.
enum Old {
    /// Or could be, in a dry run.
    Dropped(Partition),
    Held(HeldPartition),
}

pub(super) async fn maintain(log: &OutboxLog, maintenance: &Maintenance) -> Result<Maintained> {
    maintenance.validate()?;
    let of = log.partitions().ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, "maintain")
            .with_table(log.name())
            .with_detail("the log is not declared partitioned")
    })?;
    let mut maintained = Maintained::default();
    // first what hardly waits for anybody
    let ahead = create(&log.table, &of, maintenance, Missing::Ahead).await?;
    maintained.created = create(&log.table, &of, maintenance, Missing::Current).await?;
    maintained.created.extend(ahead);
    let Some(age) = maintenance.drop_after else { return Ok(maintained) };
    let mut seen = HashSet::new();
    while let Some(old) = next_old(log, &of, age, &seen, maintenance.dry_run).await? {
        match old {
            Old::Dropped(partition) => {
                seen.insert(partition.name.clone());
                maintained.dropped.push(partition);
            }
            Old::Held(held) => {
                seen.insert(held.partition.name.clone());
                maintained.held.push(held);
            }
        }
    }
    if !maintenance.dry_run {
        maintained.n_removed = remove(log, age).await?;
    }
    Ok(maintained)
}

/// Looks at the oldest partition that is old enough and was not looked at yet, and drops it where it may.
async fn next_old(
    log: &OutboxLog,
    of: &Partitioned,
    age: Duration,
    seen: &HashSet<String>,
    dry_run: bool,
) -> Result<Option<Old>> {
    let table = &log.table;
    transactor(&table.db)
        .run(async |cx| {
            let connection = cx.connection()?;
            begin(table, connection, !dry_run).await?;
            let rows = look_for_old(table, connection, of, age, MAX_DROPPED).await?;
            let all = rows.iter().map(|row| of.read(table, row)).collect::<Result<Vec<_>>>()?;
            let next = all.into_iter().find(|partition| !seen.contains(&partition.name));
            let Some(partition) = next else { return Ok(None) };
            let mut groups = holders(log, connection, &partition).await?;
            if groups.is_empty() && !dry_run {
                groups = try_drop(log, connection, &partition).await?;
            }
            Ok(Some(match groups.is_empty() {
                true => Old::Dropped(partition),
                false => Old::Held(HeldPartition { partition, groups }),
            }))
        })
        .await
}

/// Locks first and looks then: what a transaction that was open has enqueued is seen. Who needs the partition, so that it stays.
async fn try_drop(
    log: &OutboxLog,
    connection: &impl ConnectionTrait,
    partition: &Partition,
) -> Result<Vec<String>> {
    run(&log.table, connection, &lock_to_drop(log.name(), partition)).await?;
    let groups = holders(log, connection, partition).await?;
    if groups.is_empty() {
        run(&log.table, connection, &drop_partition(log.name(), partition)).await?;
    }
    Ok(groups)
}

async fn holders(
    log: &OutboxLog,
    connection: &impl ConnectionTrait,
    partition: &Partition,
) -> Result<Vec<String>> {
    let sql = partition_holders(log.name(), partition);
    let rows = log.table.query("maintain", connection, &sql, Values(Vec::new())).await?;
    rows.iter().map(|row| column(row, 0)).collect()
}

/// Removes from the default partition what no group needs.
async fn remove(log: &OutboxLog, age: Duration) -> Result<u64> {
    let sql = &log.group("any")?.sql.log_forget;
    let values = Values(vec![duration(Dialect::Postgres, age).into(), MAX_REMOVED.into()]);
    log.table.execute("maintain", &log.table.db, sql, values).await
}
