//! Looks for what makes an outbox slow or unsafe and does not show up as an error.

#[cfg(feature = "mysql")]
mod mysql;

use std::time::Duration;
#[cfg(any(feature = "postgres", feature = "mysql"))]
use std::time::SystemTime;

#[cfg(any(feature = "postgres", feature = "mysql"))]
use chrono::{DateTime, Utc};
use outbox_core::{Finding, Result, Severity, Symptom};
use sea_orm::sea_query::Values;

use crate::dialect::Dialect;
use crate::repository::OutboxTable;
use crate::row::column;
use crate::sql::Kind;

pub(crate) async fn doctor(table: &OutboxTable, patience: Duration) -> Result<Vec<Finding>> {
    let dialect = table.table()?.dialect;
    let found =
        crate::schema::findings(&table.db, dialect, Kind::Outbox, &table.name, &table.table()?.declared)
            .await?;
    if found.iter().any(|finding| finding.severity == Severity::Critical) {
        // the other looks need the table
        return Ok(found);
    }
    let looked = match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => postgres::look(table, patience).await?,
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => {
            let _ = patience;
            sqlite::look(table).await?
        }
        #[cfg(feature = "mysql")]
        Dialect::MySql => mysql::look(table, patience).await?,
    };
    Ok([found, looked].concat())
}

#[cfg(any(feature = "postgres", feature = "mysql"))]
const MAX_SKEW: Duration = Duration::from_secs(1);

#[cfg(any(feature = "postgres", feature = "mysql"))]
#[allow(clippy::disallowed_methods, reason = "compared with the database's clock, decides nothing")]
fn here() -> DateTime<Utc> {
    SystemTime::now().into()
}

/// The database looked at its clock at some time in between.
#[cfg(any(feature = "postgres", feature = "mysql"))]
fn clock(before: DateTime<Utc>, theirs: DateTime<Utc>, after: DateTime<Utc>) -> Option<Finding> {
    let ahead = (theirs - after).to_std().unwrap_or_default();
    let behind = (before - theirs).to_std().unwrap_or_default();
    let skew = ahead.max(behind);
    (skew > MAX_SKEW).then(|| {
        let side = if ahead > behind { "ahead of" } else { "behind" };
        Finding::new(
            Severity::Warning,
            Symptom::Clock,
            format!("the database's clock is {skew:.1?} {side} this process's"),
            "synchronise both hosts; deliveries go by the database's clock, but times in message ids and logs \
             are this process's",
        )
    })
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use super::*;

    pub(super) async fn look(table: &OutboxTable) -> Result<Vec<Finding>> {
        let sql = &table.table()?.sql.session;
        let rows = table.query("doctor", &table.db, sql, Values(Vec::new())).await?;
        let Some(row) = rows.first() else { return Ok(Vec::new()) };
        let (journal, busy_timeout): (String, i64) = (column(row, 0)?, column(row, 1)?);
        let (synchronous, has_file): (i64, bool) = (column(row, 2)?, column(row, 3)?);
        let mut found = Vec::new();
        if has_file && journal != "wal" {
            found.push(Finding::new(
                Severity::Warning,
                Symptom::Journal,
                format!(
                    "the journal mode is {journal}: who reads waits for who writes, and the other way round"
                ),
                "set PRAGMA journal_mode = WAL; it is stored in the file",
            ));
        }
        if has_file && busy_timeout == 0 {
            found.push(Finding::new(
                Severity::Warning,
                Symptom::BusyTimeout,
                "there is no busy time-out: a statement fails at once while another connection writes",
                "set PRAGMA busy_timeout = 5000 on every connection",
            ));
        }
        if has_file && synchronous == 0 {
            found.push(Finding::new(
                Severity::Warning,
                Symptom::Durability,
                "synchronous is OFF: a power failure can lose commits or damage the file",
                "set PRAGMA synchronous = NORMAL, or FULL, on every connection",
            ));
        }
        Ok(found)
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use outbox_core::{Listener, Wakeup};
    use sea_orm::QueryResult;

    use super::*;

    /// Ten times as many dead rows as autovacuum should let there be.
    const MANY_DEAD: i64 = 50_000;

    pub(super) async fn look(table: &OutboxTable, patience: Duration) -> Result<Vec<Finding>> {
        let connections = connections(table).await?;
        let wakeup = if connections.is_empty() { wakeup(table).await? } else { Vec::new() };
        Ok([
            session(table).await?,
            table_health(table).await?,
            transactions(table, patience).await?,
            crate::partitions::findings(table, table.table()?.partitioned.as_ref()).await?,
            connections,
            wakeup,
        ]
        .concat())
    }

    /// Whether claims get the connections that they open for themselves.
    async fn connections(table: &OutboxTable) -> Result<Vec<Finding>> {
        let Some(own) = table.table()?.postgres.connection(table)? else { return Ok(Vec::new()) };
        let answer = table.query("doctor", own, &table.table()?.sql.ping, Values(Vec::new())).await;
        let Err(error) = answer else { return Ok(Vec::new()) };
        let reason = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        Ok(vec![Finding::new(
            Severity::Critical,
            Symptom::Connections,
            format!(
                "the connections that dispatchers open for themselves are refused, so nothing is claimed: {reason}"
            ),
            "where dispatchers must go through a transaction pooler, use with_shared_pool; else leave room on the \
             server for five connections of each table in each process",
        )])
    }

    async fn rows(table: &OutboxTable, sql: &str, values: Vec<sea_orm::Value>) -> Result<Vec<QueryResult>> {
        table.query("doctor", &table.db, sql, Values(values)).await
    }

    async fn session(table: &OutboxTable) -> Result<Vec<Finding>> {
        let before = here();
        let rows = rows(table, &table.table()?.sql.session, Vec::new()).await?;
        let after = here();
        let Some(row) = rows.first() else { return Ok(Vec::new()) };
        let isolation = isolation(&column::<String>(row, 0)?);
        let read_only = column::<bool>(row, 1)?.then(read_only);
        let clock = clock(before, column(row, 2)?, after);
        let blind = (!column::<bool>(row, 3)?).then(blind);
        Ok([isolation, read_only, clock, blind].into_iter().flatten().collect())
    }

    fn isolation(level: &str) -> Option<Finding> {
        (level != "read committed").then(|| {
            Finding::new(
                Severity::Warning,
                Symptom::Isolation,
                format!("transactions are {level} by default: claims of concurrent dispatchers fail and are repeated"),
                "leave default_transaction_isolation at read committed for the connections of the outbox",
            )
        })
    }

    fn read_only() -> Finding {
        Finding::new(
            Severity::Critical,
            Symptom::ReadOnly,
            "the server is a standby, or transactions are read-only by default: nothing can be claimed or enqueued",
            "connect to the primary, and leave default_transaction_read_only off",
        )
    }

    fn blind() -> Finding {
        Finding::new(
            Severity::Notice,
            Symptom::Privilege,
            "this role does not see the transactions of other roles' sessions",
            "grant it pg_read_all_stats, or run the doctor as a role that has it",
        )
    }

    async fn table_health(table: &OutboxTable) -> Result<Vec<Finding>> {
        let rows = rows(table, &table.table()?.postgres.sql.vacuum, Vec::new()).await?;
        let Some(row) = rows.first() else { return Ok(Vec::new()) };
        let is_vacuumed: bool = column(row, 0)?;
        let off = (!is_vacuumed).then(|| {
            Finding::new(
                Severity::Warning,
                Symptom::Autovacuum,
                "autovacuum is off for this table: it grows with every message, and claims become slower",
                "reset autovacuum_enabled of the table and leave autovacuum of the server on",
            )
        });
        let dead = many_dead(column(row, 1)?, column(row, 2)?);
        let trigger = (!column::<bool>(row, 3)?).then(|| {
            Finding::new(
                Severity::Notice,
                Symptom::Trigger,
                "the trigger of the wake-up is missing or disabled: an idle dispatcher finds messages by polling only",
                "create it as in schema.sql, or ALTER TABLE … ENABLE TRIGGER",
            )
        });
        Ok([off, dead, trigger].into_iter().flatten().collect())
    }

    fn many_dead(n_dead: i64, vacuumed_ago: Option<i64>) -> Option<Finding> {
        (n_dead > MANY_DEAD).then(|| {
            let last = match vacuumed_ago {
                Some(seconds) => format!("{:?} ago", Duration::from_secs(seconds.unsigned_abs())),
                None => "never".to_owned(),
            };
            Finding::new(
                Severity::Warning,
                Symptom::Autovacuum,
                format!("{n_dead} dead rows wait to be vacuumed, the last vacuum was {last}"),
                "look for old transactions, give autovacuum more workers or a higher cost limit, and keep the storage \
                 parameters of schema.sql",
            )
        })
    }

    async fn transactions(table: &OutboxTable, patience: Duration) -> Result<Vec<Finding>> {
        let age = crate::row::duration(Dialect::Postgres, patience.min(outbox_core::MAX_DELAY));
        let rows = rows(table, &table.table()?.postgres.sql.old_transactions, vec![age.into()]).await?;
        rows.iter().map(old_transaction).collect()
    }

    fn old_transaction(row: &QueryResult) -> Result<Finding> {
        let (who, seconds, is_writer): (String, Option<i64>, bool) =
            (column(row, 0)?, column(row, 1)?, column(row, 2)?);
        let age = seconds.map(|seconds| format!(" for {:?}", Duration::from_secs(seconds.unsigned_abs())));
        let age = age.unwrap_or_default();
        let advice = "end it (pg_terminate_backend, ROLLBACK PREPARED, pg_drop_replication_slot), and set \
                      idle_in_transaction_session_timeout for what leaves transactions open";
        Ok(match is_writer {
            true => Finding::new(
                Severity::Warning,
                Symptom::OpenTransaction,
                format!(
                    "{who} has written to the outbox and kept its transaction open{age}: claims start before its rows"
                ),
                advice,
            ),
            false => Finding::new(
                Severity::Warning,
                Symptom::Snapshot,
                format!("{who} has kept delivered rows from being vacuumed{age}"),
                advice,
            ),
        })
    }

    async fn wakeup(table: &OutboxTable) -> Result<Vec<Finding>> {
        let Some(mut listener) = table.listen().await? else { return Ok(Vec::new()) };
        Ok(match listener.probe().await? {
            true => Vec::new(),
            false => vec![Finding::new(
                Severity::Warning,
                Symptom::Wakeup,
                "a notification did not arrive within 2 s: an idle dispatcher finds messages by polling only",
                "connect dispatchers to the server and not through a transaction pooler; where they must go through \
                 one, use with_shared_pool",
            )],
        })
    }
}
