//! Claims from the log on PostgreSQL.

use std::time::Instant;

use futures_util::StreamExt;
use outbox_core::Result;
use sea_orm::QueryResult;
use sea_orm::sqlx::pool::PoolConnection;
use sea_orm::sqlx::{self, AssertSqlSafe, Postgres};
use uuid::Uuid;

use super::LogGroup;
use super::claim::{Claiming, Taken, Unread};
use super::range::Place;
use super::read::{self, Range, Read};
use super::reader::Met;
use crate::dialect::Dialect;
use crate::error::from_sqlx;
use crate::row::{ClaimedRow, ToDatabase, column};

/// Leases the next range, of so many rows and messages at the most. `None` where it came to a session of which nobody knew
/// whether the horizon holds for it: now it is known, or the horizon is void. Or where the group is gone.
pub(super) async fn take(
    claiming: &Claiming<'_>,
    unread: &Unread,
    n_examined: i64,
    limit: usize,
) -> Result<Option<Taken>> {
    let take = Take { claiming, group: claiming.group, unread, n_examined, limit: limit as i64 };
    if take.group.order().is_some() {
        return take.ordered().await;
    }
    if claiming.is_within(limit)
        && let Some(plain) = take.plain().await?
    {
        return Ok(plain);
    }
    let mixed = take.run(&take.group.postgres.log_claim_mixed).await?;
    Ok(mixed.map(|answer| answer.taken))
}

struct Take<'a> {
    claiming: &'a Claiming<'a>,
    group: &'a LogGroup,
    unread: &'a Unread,
    n_examined: i64,
    limit: i64,
}

impl Take<'_> {
    async fn session(&self) -> Result<PoolConnection<Postgres>> {
        let pool = self.group.log.table.hot()?.get_postgres_connection_pool();
        pool.acquire().await.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: sqlx::Error) -> outbox_core::Error {
        from_sqlx("claim", self.group.log.name(), error)
    }

    /// Learns whose this session is: nothing is known any more where none of the others is there.
    async fn meet(&self, mut session: PoolConnection<Postgres>) -> Result<()> {
        let query = sqlx::query(AssertSqlSafe(self.group.postgres.log_session.clone()));
        let row = query.bind(&self.unread.sessions).fetch_one(&mut *session).await;
        let row = QueryResult::from(row.map_err(|error| self.failed(error))?);
        drop(session);
        let met = Met { name: column(&row, 0)?, is_known: column(&row, 1)? };
        self.group.reader.lock().await.meet(met, Instant::now());
        Ok(())
    }

    /// Leases a range, then reads it while others lease the next ones, and puts aside what is not for this claim. `None` where too
    /// many of the rows are wanted.
    async fn plain(&self) -> Result<Option<Option<Taken>>> {
        let (group, token) = (self.group, Uuid::new_v4());
        let mut session = self.session().await?;
        let query = sqlx::query(AssertSqlSafe(group.sql.log_claim.clone()))
            .bind(group.name())
            .bind(token)
            .bind(self.claiming.request.lease.micros())
            .bind(self.n_examined)
            .bind(self.unread.horizon)
            .bind(self.limit)
            .bind(&self.unread.sessions);
        let row = query.fetch_optional(&mut *session).await.map_err(|error| self.failed(error))?;
        let Some(row) = row.map(QueryResult::from) else {
            self.meet(session).await?;
            return Ok(Some(None));
        };
        drop(session);
        if !column::<bool>(&row, 4)? {
            return Ok(None);
        }
        let mut taken = Taken { is_all: column(&row, 5)?, ..Taken::default() };
        let n = usize::try_from(column::<i64>(&row, 3)?).unwrap_or_default();
        if n > 0 {
            let range =
                Range { from: column(&row, 0)?, to: column(&row, 1)?, topics: column(&row, 2)?, token, n };
            let Read { rows, aside } = read::range(group, range, self.claiming.request).await?;
            super::settle::put_aside(group, aside).await?;
            taken.rows = rows;
        }
        Ok(Some(Some(taken)))
    }

    /// It is refused while others have claimed since it began: one of them gets on each time.
    async fn ordered(&self) -> Result<Option<Taken>> {
        loop {
            let answer = self.run(&self.group.postgres.log_claim_ordered).await?;
            if !answer.as_ref().is_some_and(|answer| answer.is_refused) {
                return Ok(answer.map(|answer| answer.taken));
            }
        }
    }

    /// Runs a claim. Rows are decoded while the server is still working on the next ones.
    async fn run(&self, sql: &str) -> Result<Option<Answer>> {
        let (request, token) = (self.claiming.request, Uuid::new_v4());
        let mut session = self.session().await?;
        let query = sqlx::query(AssertSqlSafe(sql.to_owned()))
            .bind(self.group.name())
            .bind(token)
            .bind(request.lease.micros())
            .bind(self.n_examined)
            .bind(request.topics.as_deref())
            .bind(request.max_bytes.map_or(i64::MAX, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)))
            .bind(self.unread.horizon)
            .bind(self.limit)
            .bind(&self.unread.sessions);
        let mut stream = query.fetch(&mut *session);
        let mut answer = None::<Answer>;
        while let Some(row) = stream.next().await {
            let row = row.map_err(|error| self.failed(error))?;
            answer.get_or_insert_default().add(&row.into(), token, self.group.order().is_some())?;
        }
        drop(stream);
        if answer.is_none() {
            self.meet(session).await?;
        }
        Ok(answer)
    }
}

/// What one statement took of the log.
#[derive(Default)]
struct Answer {
    taken: Taken,
    /// On an ordered log: others have claimed since it began.
    is_refused: bool,
}

impl Answer {
    /// As a claim of a queue, then whether it took, whether it examined everything, and the place in the range; on an ordered log also
    /// how much it examined. A row without a message has no number and no place.
    fn add(&mut self, row: &QueryResult, token: Uuid, is_ordered: bool) -> Result<()> {
        if self.taken.rows.is_empty() {
            self.is_refused = !column::<bool>(row, 10)?;
            self.taken.is_all = column(row, 11)?;
            self.taken.n_examined = if is_ordered { column(row, 13)? } else { 0 };
        }
        if column::<Option<i64>>(row, 0)?.is_none() {
            return Ok(());
        }
        let mut claimed = ClaimedRow::decode(Dialect::Postgres, row, token)?;
        if let Some(lease) = claimed.lease_mut() {
            Place::enter(column::<i64>(row, 12)? as usize, lease);
        }
        self.taken.rows.push(claimed);
        Ok(())
    }
}
