//! A log on SQLite. Claims and settlements are short transactions that take the write lock when they begin: whatever they see is
//! committed, and nobody changes it meanwhile. docs/decisions/074.

mod claim;
mod maintain;
mod settle;

use outbox_core::Result;
use sea_orm::sea_query::Values;
use sea_orm::{QueryResult, Value};
use uuid::Uuid;

use super::LogGroup;
use super::range::Place;
use crate::context::{SeaOrmContext, Transaction, transactor};
use crate::row::column;

pub(super) use claim::{give_up, take};
pub(super) use maintain::maintain;
pub(super) use settle::{extend, moved, settle};

/// One transaction on a group.
struct Steps<'a> {
    group: &'a LogGroup,
    operation: &'static str,
    connection: &'a Transaction,
}

/// Runs `steps` in a transaction. Dropped on the way, it is rolled back.
async fn transaction<T>(
    group: &LogGroup,
    operation: &'static str,
    steps: impl AsyncFnOnce(Steps<'_>) -> Result<T>,
) -> Result<T> {
    transactor(&group.log.table.db)
        .run(async |cx| steps(Steps { group, operation, connection: cx.connection()? }).await)
        .await
}

/// A message that is leased with a range and not settled.
struct Leased {
    token: Uuid,
    seq: i64,
    key: Option<String>,
    place: usize,
}

impl Leased {
    fn decode(row: &QueryResult) -> Result<Self> {
        let place = column::<i64>(row, 3)?;
        Ok(Self { token: column(row, 0)?, seq: column(row, 1)?, key: column(row, 2)?, place: place as usize })
    }
}

/// A range, and which of its messages are settled or elsewhere.
struct Range {
    token: Uuid,
    from_seq: i64,
    to_seq: i64,
    done: Vec<bool>,
}

impl Range {
    fn decode(row: &QueryResult) -> Result<Self> {
        let n = usize::try_from(column::<i64>(row, 3)?).unwrap_or_default();
        let digits: Option<String> = column(row, 4)?;
        let mut done: Vec<bool> = digits.unwrap_or_default().bytes().map(|digit| digit == b'1').collect();
        done.resize(n, false);
        Ok(Self { token: column(row, 0)?, from_seq: column(row, 1)?, to_seq: column(row, 2)?, done })
    }

    fn settle(&mut self, place: usize) {
        if let Some(done) = self.done.get_mut(place) {
            *done = true;
        }
    }

    fn holds(&self, place: &Place) -> bool {
        self.from_seq < place.seq && place.seq <= self.to_seq && self.done.get(place.place) == Some(&false)
    }
}

/// As the database keeps it.
fn digits(done: &[bool]) -> String {
    done.iter().map(|done| if *done { '1' } else { '0' }).collect()
}

fn json(values: impl Into<serde_json::Value>) -> Value {
    values.into().to_string().into()
}

impl Steps<'_> {
    async fn query(&self, sql: &str, values: Vec<Value>) -> Result<Vec<QueryResult>> {
        self.group.log.table.query(self.operation, self.connection, sql, Values(values)).await
    }

    async fn execute(&self, sql: &str, values: Vec<Value>) -> Result<u64> {
        self.group.log.table.execute(self.operation, self.connection, sql, Values(values)).await
    }

    fn is_ordered(&self) -> bool {
        self.group.order().is_some()
    }

    /// What is leased with a range, or with any; messages with a key only, or all.
    async fn leased(&self, token: Option<Uuid>, with_key: bool) -> Result<Vec<Leased>> {
        let values = vec![self.group.name().into(), token.into(), with_key.into()];
        let rows = self.query(&self.group.sqlite.log_leased, values).await?;
        rows.iter().map(Leased::decode).collect()
    }

    /// The ranges of these tokens that are there.
    async fn ranges(&self, tokens: &[Uuid]) -> Result<Vec<Range>> {
        let sql = crate::sql::repeat_values(&self.group.sqlite.log_named, tokens.len());
        let values = tokens.iter().map(|token| (*token).into()).collect();
        let rows = self.query(&sql, values).await?;
        rows.iter().map(Range::decode).collect()
    }

    /// Makes messages of a range messages of the group's own table, under its lease.
    async fn pull(&self, token: Uuid, messages: &[i64]) -> Result<()> {
        let values = vec![json(messages.to_vec()), token.into(), self.is_ordered().into()];
        self.execute(&self.group.sql.log_recover, values).await.map(drop)
    }

    /// The same, where they are told one by one.
    async fn pull_from(&self, range: &mut Range, leased: &[Leased]) -> Result<()> {
        let messages: Vec<i64> = leased.iter().map(|leased| leased.seq).collect();
        for leased in leased {
            range.settle(leased.place);
        }
        self.pull(range.token, &messages).await
    }

    /// Remembers what is settled of a range, which is gone when everything is.
    async fn keep(&self, token: Uuid, done: &[bool]) -> Result<()> {
        let sql = &self.group.sqlite;
        if done.iter().all(|done| *done) {
            return self.execute(&sql.log_end, vec![token.into()]).await.map(drop);
        }
        self.execute(&sql.log_change, vec![token.into(), digits(done).into()]).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use outbox_core::TableName;
    use sea_orm::{ConnectionTrait, Database, DbBackend, Statement};

    use crate::dialect::Dialect;
    use crate::log::{OutboxLog, Subscription};
    use crate::sql::{LogSql, SqliteLogSql};

    /// However long the log is, each statement finds its rows by their numbers, and those of the group's own table by an index.
    #[tokio::test]
    async fn no_statement_scans_the_log() {
        let db = Database::connect("sqlite::memory:").await.expect("connect");
        let log =
            OutboxLog::new(&db, TableName::parse("log").expect("name")).ordered(outbox_core::OnDead::Block);
        log.migrate().await.expect("migrate");
        let group = log.register(Subscription::new("a")).await.expect("register");
        let [log, own] = [log.name(), group.table()];
        let texts = LogSql::of(Dialect::Sqlite, log, own).all().into_iter();
        for sql in texts.chain(SqliteLogSql::of(Dialect::Sqlite, log, own).all()) {
            let plan = db.query_all_raw(Statement::from_string(
                DbBackend::Sqlite,
                format!("EXPLAIN QUERY PLAN {sql}"),
            ));
            for row in plan.await.expect("a plan") {
                let step: String = row.try_get_by_index(3).expect("a step");
                let scanned =
                    step.strip_prefix("SCAN ").unwrap_or_default().split(' ').next().unwrap_or_default();
                // the log by its name or as m and l, the own table as o
                assert!(!["log", "m", "l", "o", "log_group_a"].contains(&scanned), "{step} in {sql}");
            }
        }
    }
}
