//! What the doctor looks at on MySQL and MariaDB.

use std::collections::HashMap;

use outbox_core::ErrorKind;
use sea_orm::QueryResult;

use super::*;
use crate::shield::Db;

/// How often it is looked at the transactions while another session runs a statement with bytes, which MySQL 9 cannot show.
const MAX_LOOKS: u32 = 20;
/// The server renews its list of transactions when nobody has read it for a tenth of a second.
const PAUSE: Duration = Duration::from_millis(150);

pub(super) async fn look(table: &OutboxTable, patience: Duration) -> Result<Vec<Finding>> {
    Ok([session(table).await?, settings(table).await?, transactions(table, patience).await?].concat())
}

async fn rows(
    table: &OutboxTable,
    db: &Db,
    sql: &str,
    values: Vec<sea_orm::Value>,
) -> Result<Vec<QueryResult>> {
    table.query("doctor", db, sql, Values(values)).await
}

async fn session(table: &OutboxTable) -> Result<Vec<Finding>> {
    let before = here();
    let rows = rows(table, &table.db, &table.table()?.sql.session, Vec::new()).await?;
    let after = here();
    let Some(row) = rows.first() else { return Ok(Vec::new()) };
    let read_only = column::<bool>(row, 0)?.then(read_only);
    let clock = clock(before, column(row, 1)?, after);
    Ok([read_only, clock].into_iter().flatten().collect())
}

fn read_only() -> Finding {
    Finding::new(
        Severity::Critical,
        Symptom::ReadOnly,
        "the server is read-only: nothing can be claimed or enqueued",
        "connect to the primary",
    )
}

/// The variables of a session, by name in small letters.
struct Variables(HashMap<String, String>);

impl Variables {
    async fn read(table: &OutboxTable, db: &Db) -> Result<Self> {
        let rows = rows(table, db, &table.table()?.mysql.sql.variables, Vec::new()).await?;
        let pair = |row: &QueryResult| Ok((column::<String>(row, 0)?.to_lowercase(), column(row, 1)?));
        Ok(Self(rows.iter().map(pair).collect::<Result<_>>()?))
    }

    /// Empty where the server has no such variable.
    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

async fn settings(table: &OutboxTable) -> Result<Vec<Finding>> {
    let (own, given) =
        (Variables::read(table, table.hot()?).await?, Variables::read(table, &table.db).await?);
    let found = [
        isolation(&own),
        autocommit(&given),
        log(&given),
        binlog(&given),
        binlog_format(&own),
        packet(table, &given),
    ];
    Ok(found.into_iter().flatten().collect())
}

/// Connections of our own are told what they need; those of a shared pool are not.
fn isolation(own: &Variables) -> Option<Finding> {
    let level = [own.text("transaction_isolation"), own.text("tx_isolation")].concat();
    (!level.starts_with("READ-COMMITTED")).then(|| {
        Finding::new(
            Severity::Warning,
            Symptom::Isolation,
            format!("claims run under {level}: they lock gaps, for which producers and other claims wait"),
            "set transaction_isolation = READ-COMMITTED for the connections of the shared pool, or do without it",
        )
    })
}

fn autocommit(given: &Variables) -> Option<Finding> {
    (given.text("autocommit") == "OFF").then(|| {
        Finding::new(
            Severity::Critical,
            Symptom::Autocommit,
            "autocommit is off for the given pool: what is enqueued or redriven without a transaction is not stored",
            "set autocommit = 1 at the server or on every connection",
        )
    })
}

fn log(given: &Variables) -> Option<Finding> {
    let value = given.text("innodb_flush_log_at_trx_commit");
    (value != "1").then(|| {
        Finding::new(
            Severity::Warning,
            Symptom::Durability,
            format!(
                "innodb_flush_log_at_trx_commit is {value}: a crash can lose the commits of about a second"
            ),
            "set it to 1",
        )
    })
}

fn binlog(given: &Variables) -> Option<Finding> {
    let value = given.text("sync_binlog");
    (given.text("log_bin") == "ON" && value != "1").then(|| {
        Finding::new(
            Severity::Warning,
            Symptom::Durability,
            format!(
                "sync_binlog is {value}: after a crash replicas may lack what was committed, or have more"
            ),
            "set it to 1",
        )
    })
}

/// An error of every statement that writes under READ COMMITTED.
fn binlog_format(own: &Variables) -> Option<Finding> {
    (own.text("log_bin") == "ON" && own.text("binlog_format") == "STATEMENT").then(|| {
        Finding::new(
            Severity::Critical,
            Symptom::BinaryLog,
            "binlog_format is STATEMENT: the server refuses claims, settlements and the transactor's transactions",
            "set it to ROW, or to MIXED, and reconnect",
        )
    })
}

fn packet(table: &OutboxTable, given: &Variables) -> Option<Finding> {
    let packet: usize = given.text("max_allowed_packet").parse().ok()?;
    let payload = table.limits.max_payload;
    (packet < payload + crate::mysql::SMALL_PACKET).then(|| {
        Finding::new(
            Severity::Warning,
            Symptom::Packet,
            format!("max_allowed_packet is {packet} bytes, a message may have a payload of {payload}"),
            format!(
                "set it to {} or more, or lower the limit of the table",
                payload + crate::mysql::SMALL_PACKET
            ),
        )
    })
}

async fn transactions(table: &OutboxTable, patience: Duration) -> Result<Vec<Finding>> {
    let age = crate::row::duration(Dialect::MySql, patience.min(outbox_core::MAX_DELAY));
    let sql = &table.table()?.mysql.sql;
    let sees_all = rows(table, &table.db, &sql.sees_all, Vec::new()).await?;
    if !sees_all.first().map_or(Ok(false), |row| column::<bool>(row, 0))? {
        return Ok(vec![blind()]);
    }
    let look = async || rows(table, &table.db, &sql.old_transactions, vec![age.into()]).await;
    let mut looked = look().await;
    for _ in 1..MAX_LOOKS {
        match &looked {
            Err(error) if error.kind() == ErrorKind::Contention => tokio::time::sleep(PAUSE).await,
            _ => break,
        }
        looked = look().await;
    }
    match looked {
        Ok(rows) => rows.iter().map(old_transaction).collect(),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(vec![blind()]),
        Err(error) if error.kind() == ErrorKind::Contention => Ok(vec![unshown()]),
        Err(error) => Err(error),
    }
}

fn unshown() -> Finding {
    Finding::new(
        Severity::Notice,
        Symptom::OpenTransaction,
        "the server could not show its transactions: it cannot while a statement with bytes among its parameters runs",
        "run the doctor again while less is written",
    )
}

fn blind() -> Finding {
    Finding::new(
        Severity::Notice,
        Symptom::Privilege,
        "this user does not see the transactions of other users' sessions",
        "grant it PROCESS, or run the doctor as a user that has it",
    )
}

fn old_transaction(row: &QueryResult) -> Result<Finding> {
    let (who, seconds, has_written): (String, i64, bool) =
        (column(row, 0)?, column(row, 1)?, column(row, 2)?);
    let age = Duration::from_secs(seconds.unsigned_abs());
    let history: i64 = column(row, 3)?;
    let advice =
        "end it, and let clients that leave transactions open time out (MariaDB: idle_transaction_timeout)";
    Ok(match has_written {
        true => Finding::new(
            Severity::Warning,
            Symptom::OpenTransaction,
            format!(
                "{who} has written and kept its transaction open for {age:?}: what it has enqueued waits for it"
            ),
            advice,
        ),
        false => Finding::new(
            Severity::Warning,
            Symptom::Snapshot,
            format!(
                "{who} may have kept delivered rows from being purged for {age:?}; the history list has {history} entries"
            ),
            advice,
        ),
    })
}
