//! What every group has read and nobody needs leaves the log.

use std::time::Duration;

use outbox_core::{Maintained, Maintenance, Result};
use sea_orm::QueryResult;
use sea_orm::sea_query::Values;

use crate::log::{LogGroup, OutboxLog};
use crate::row::{ToDatabase, column};

/// The most messages that one statement removes: producers wait for it.
const STEP: i64 = 1_000;
/// The most statements of one call.
const MAX_STEPS: i64 = 100;

pub(in crate::log) async fn maintain(log: &OutboxLog, maintenance: &Maintenance) -> Result<Maintained> {
    maintenance.validate()?;
    let mut maintained = Maintained::default();
    let Some(age) = maintenance.drop_after else { return Ok(maintained) };
    // any name, of one letter as the log's own may be long: what is asked is the same for all
    let group = log.group("g")?;
    maintained.n_removed = match maintenance.dry_run {
        true => count(&group, age).await?,
        false => remove(&group, age).await?,
    };
    let values = Values(vec![age.millis().into()]);
    let rows = query(&group, &group.sqlite.log_holders, values).await?;
    maintained.held_by = rows.iter().map(|row| column(row, 0)).collect::<Result<_>>()?;
    Ok(maintained)
}

async fn remove(group: &LogGroup, age: Duration) -> Result<u64> {
    let mut n_removed = 0;
    for _ in 0..MAX_STEPS {
        let (table, values) = (&group.log.table, bounds(age, STEP));
        let n = table.execute("maintain", &table.db, &group.sql.log_forget, values).await?;
        n_removed += n;
        if n < STEP as u64 {
            break;
        }
    }
    Ok(n_removed)
}

async fn count(group: &LogGroup, age: Duration) -> Result<u64> {
    let rows = query(group, &group.sqlite.log_count_old, bounds(age, STEP * MAX_STEPS)).await?;
    let n = rows.first().map_or(Ok(0), |row| column::<i64>(row, 0))?;
    Ok(u64::try_from(n).unwrap_or_default())
}

fn bounds(age: Duration, n: i64) -> Values {
    Values(vec![age.millis().into(), n.into()])
}

async fn query(group: &LogGroup, sql: &str, values: Values) -> Result<Vec<QueryResult>> {
    group.log.table.query("maintain", &group.log.table.db, sql, values).await
}
