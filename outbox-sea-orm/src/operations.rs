use std::collections::HashSet;

use outbox_core::{
    Context, DeadLetter, DeadLetterPage, DeadLetterQuery, Enqueued, Inspect, MessageId, Moved, Operations,
    Result, Stats, TopicStats, validate_limit,
};
use sea_orm::QueryResult;
use sea_orm::sea_query::Values;

use crate::context::SeaOrmContext;
use crate::dialect::Dialect;
use crate::repository::OutboxTable;
use crate::row::{column, from_duration, ids, readable, time};
use crate::sql::Kind;

/// SQLite takes 32,766 parameters.
const MAX_IDS: usize = 10_000;

impl Operations for OutboxTable {
    async fn stats(&self) -> Result<Stats> {
        let table = self.table()?;
        let rows = self.query("stats", &self.db, &table.sql.stats, Values(Vec::new())).await?;
        let topics = rows.iter().map(|row| topic_stats(table.dialect, row)).collect::<Result<_>>()?;
        Ok(Stats::new(topics))
    }

    async fn dead_letters(&self, query: DeadLetterQuery) -> Result<DeadLetterPage> {
        query.validate()?;
        let table = self.table()?;
        let values = vec![query.topic.into(), query.after.unwrap_or(0).into(), (query.limit as i64).into()];
        let rows = self.query("list dead letters", &self.db, &table.sql.dead_letters, Values(values)).await?;
        let letters = rows.iter().map(|row| dead_letter(table.dialect, row)).collect::<Result<Vec<_>>>()?;
        let last = rows.last().filter(|_| letters.len() == query.limit);
        Ok(DeadLetterPage { letters, next: last.map(|row| column(row, 0)).transpose()? })
    }

    async fn redrive(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        self.move_dead("redrive", &self.table()?.sql.redrive, ids).await
    }

    async fn discard(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        self.move_dead("discard", &self.table()?.sql.discard, ids).await
    }

    async fn ping(&self) -> Result<()> {
        self.query("ping", &self.db, &self.table()?.sql.ping, Values(Vec::new())).await.map(drop)
    }

    async fn check(&self) -> Result<()> {
        crate::schema::check(&self.db, self.table()?.dialect, Kind::Outbox, &self.name).await
    }
}

impl Inspect for OutboxTable {
    async fn enqueued(&self, cx: &Context, limit: usize) -> Result<Vec<Enqueued>> {
        validate_limit(limit)?;
        let sql = &self.table()?.sql.enqueued;
        let values = Values(vec![(limit as i64).into()]);
        let rows = if cx.has_transaction() {
            let connection = cx.connection()?;
            self.require_same_backend(connection)?;
            self.query("list enqueued", connection, sql, values).await?
        } else {
            self.query("list enqueued", &self.db, sql, values).await?
        };
        let dialect = self.table()?.dialect;
        rows.iter().rev().map(|row| enqueued(dialect, row)).collect()
    }
}

impl OutboxTable {
    /// Runs a statement that takes ids of dead letters and returns those that it moved. An id that is named
    /// twice is moved once.
    async fn move_dead(&self, operation: &'static str, sql: &str, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        let mut seen = HashSet::new();
        let unique: Vec<MessageId> = ids.iter().copied().filter(|id| seen.insert(*id)).collect();
        let mut moved = HashSet::new();
        for chunk in unique.chunks(MAX_IDS) {
            let (sql, values) = self.id_values(sql, chunk)?;
            let rows = self.query(operation, &self.db, &sql, values).await?;
            moved.extend(self::ids(&rows)?);
        }
        Ok(ids.iter().map(|id| if moved.remove(id) { Moved::Applied } else { Moved::NotDead }).collect())
    }

    fn id_values(&self, sql: &str, ids: &[MessageId]) -> Result<(String, Values)> {
        Ok(match self.table()?.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => (sql.to_owned(), Values(vec![ids.to_vec().into()])),
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => {
                let values = ids.iter().map(|id| (*id).into()).collect();
                (crate::sql::repeat_values(sql, ids.len()), Values(values))
            }
        })
    }
}

fn topic_stats(dialect: Dialect, row: &QueryResult) -> Result<(String, TopicStats)> {
    let count = |index| column::<i64>(row, index).map(|count| u64::try_from(count).unwrap_or_default());
    let stats = TopicStats {
        n_pending: count(1)?,
        n_due: count(2)?,
        n_claimed: count(3)?,
        n_dead: count(4)?,
        oldest_due: column::<Option<i64>>(row, 5)?.map(|age| from_duration(dialect, age)),
        highest_attempt: u32::try_from(column::<i32>(row, 6)?).unwrap_or_default(),
    };
    Ok((column(row, 0)?, stats))
}

fn enqueued(dialect: Dialect, row: &QueryResult) -> Result<Enqueued> {
    Ok(Enqueued { message: readable(dialect, row), delay: from_duration(dialect, column(row, 9)?) })
}

fn dead_letter(dialect: Dialect, row: &QueryResult) -> Result<DeadLetter> {
    Ok(DeadLetter {
        message: readable(dialect, row),
        error: column(row, 9)?,
        dead_at: time(dialect, row, 10).unwrap_or_default(),
    })
}
