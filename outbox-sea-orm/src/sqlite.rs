//! Claims on SQLite: one writer at a time, so a read first says whether there is anything to write.

use std::time::{Duration, Instant};

use outbox_core::{Claim, ClaimRequest, Error, ErrorKind, Result};
use sea_orm::Value;
use sea_orm::sea_query::Values;
use uuid::Uuid;

use crate::dialect::Dialect;
use crate::repository::{Fair, OutboxTable, Table};
use crate::row::{ClaimedRow, ToDatabase, bury_undecodable, column, from_duration};
use crate::turns::{keyless_share, reached_key, reached_lane};

/// How long a claim loop that finds full batches claims without looking first.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The most parked rows that one claim makes ready at a time.
const PROMOTE_LIMIT: u64 = 1_000;
/// What `look` says when nothing is parked and nothing leased.
const NEVER: i64 = 1 << 61;

/// What a claim loop remembers.
#[derive(Default)]
struct Memory {
    /// Since when it has found full batches, without looking for anything else.
    full_since: Option<Instant>,
    /// On an ordered table: the key where the last claim ended.
    key: String,
    /// On a fair table: the lane where it ended.
    lane: String,
}

/// What one look found.
struct Look {
    is_ready: bool,
    is_due: bool,
    is_expired: bool,
    next: Option<Duration>,
}

/// One claim in the making.
struct Claiming<'a> {
    table: &'a OutboxTable,
    inner: &'a Table,
    request: &'a ClaimRequest,
    memory: Memory,
    claim: Claim,
}

/// See [`Repository::claim`](outbox_core::Repository::claim).
pub(crate) async fn claim(table: &OutboxTable, request: ClaimRequest) -> Result<Claim> {
    let memory = request.claimer.as_ref().and_then(outbox_core::Claimer::take::<Memory>).unwrap_or_default();
    let inner = table.table()?;
    let mut claiming = Claiming { table, inner, request: &request, memory, claim: Claim::default() };
    claiming.run().await?;
    let Claiming { memory, mut claim, .. } = claiming;
    claim.ordered = inner.ordered.is_some();
    if let Some(claimer) = &request.claimer {
        claimer.put(memory);
    }
    Ok(claim)
}

impl Claiming<'_> {
    async fn run(&mut self) -> Result<()> {
        if self.memory.full_since.is_some_and(|since| since.elapsed() < LOOK_INTERVAL) {
            self.take().await?;
            self.keep_streak(self.memory.full_since);
            if !self.claim.is_empty() {
                return Ok(());
            }
        }
        self.take_all().await
    }

    async fn take_all(&mut self) -> Result<()> {
        let looked_at = Instant::now();
        let found = self.look().await?;
        self.memory.full_since = None;
        self.claim.next_due_in = found.next;
        if self.request.recover && found.is_expired {
            self.recover().await?;
            if self.claim.recovered {
                return Ok(());
            }
        }
        if found.is_due {
            self.claim.next_due_in = self.promote().await?;
        }
        if found.is_ready || found.is_due {
            self.take().await?;
            self.keep_streak(Some(looked_at));
        }
        if !self.claim.messages.is_empty() {
            let lease = self.request.lease;
            self.claim.next_due_in = Some(self.claim.next_due_in.map_or(lease, |next| next.min(lease)));
        }
        Ok(())
    }

    fn keep_streak(&mut self, since: Option<Instant>) {
        self.memory.full_since = since.filter(|_| self.claim.messages.len() >= self.request.limit);
    }

    async fn look(&self) -> Result<Look> {
        let sql = &self.inner.sql.look;
        let values = Values(vec![topics(self.request)]);
        let rows = self.table.query("claim", self.table.hot()?, sql, values).await?;
        let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Other, "claim"))?;
        let next: i64 = column(row, 3)?;
        Ok(Look {
            is_ready: column(row, 0)?,
            is_due: column(row, 1)?,
            is_expired: column(row, 2)?,
            next: (next < NEVER).then(|| from_duration(Dialect::Sqlite, next)),
        })
    }

    /// Makes due rows ready; says to come back at once when there may be more.
    async fn promote(&self) -> Result<Option<Duration>> {
        let values = Values(vec![(PROMOTE_LIMIT as i64).into(), self.inner.keeps_numbers().into()]);
        let _ = self.table.execute("claim", self.table.hot()?, &self.inner.sql.promote, values).await?;
        Ok(Some(Duration::ZERO))
    }

    async fn take(&mut self) -> Result<()> {
        let token = Uuid::new_v4();
        if let Some(fair) = &self.inner.fair {
            return self.take_share(fair, token).await;
        }
        let Some(ordered) = &self.inner.ordered else {
            let rows = self.rows(&self.inner.sql.claim, token, Vec::new()).await?;
            return self.add(rows).await;
        };
        let share = keyless_share(self.request.limit, token);
        let turn = vec![self.memory.key.as_str().into(), ordered.blocks.into(), share.into()];
        let rows = self.rows(&ordered.sql.claim_ordered, token, turn).await?;
        if let Some(key) = reached_key(&self.memory.key, &rows) {
            self.memory.key = key;
        }
        self.add(rows).await
    }

    /// Takes an equal share of each lane.
    async fn take_share(&mut self, fair: &Fair, token: Uuid) -> Result<()> {
        let lane = vec![self.memory.lane.as_str().into()];
        let rows = self.rows(&fair.sql.claim_fair, token, lane).await?;
        if let Some(lane) = reached_lane(&fair.fairness, &self.memory.lane, &rows) {
            self.memory.lane = lane;
        }
        self.add(rows).await
    }

    /// Buries expired messages that are out of attempts and claims a group of the others.
    async fn recover(&mut self) -> Result<()> {
        let (limit, max_attempts) = (self.request.limit as i64, i64::from(self.request.max_attempts));
        let values = Values(vec![limit.into(), max_attempts.into(), topics(self.request)]);
        let sql = &self.inner.sql.bury;
        self.claim.n_dead += self.table.execute("claim", self.table.hot()?, sql, values).await? as usize;
        let token = Uuid::new_v4();
        let rows = match &self.inner.ordered {
            None => self.rows(&self.inner.sql.recover, token, Vec::new()).await?,
            Some(ordered) => {
                self.rows(&ordered.sql.recover_ordered, token, vec![ordered.blocks.into()]).await?
            }
        };
        self.add(rows).await?;
        self.claim.recovered = !self.claim.messages.is_empty();
        Ok(())
    }

    /// Runs a claim whose statement has `rest` behind the parameters that all have.
    async fn rows(&self, sql: &str, token: Uuid, rest: Vec<Value>) -> Result<Vec<ClaimedRow>> {
        let mut values = claim_values(self.request, token);
        values.0.extend(rest);
        let rows = self.table.query("claim", self.table.hot()?, sql, values).await?;
        let decode = |row| ClaimedRow::decode(Dialect::Sqlite, row, token);
        let mut rows: Vec<ClaimedRow> = rows.iter().map(decode).collect::<Result<_>>()?;
        rows.sort_unstable_by_key(ClaimedRow::locator);
        Ok(rows)
    }

    async fn add(&mut self, rows: Vec<ClaimedRow>) -> Result<()> {
        let (messages, n_dead) = bury_undecodable(self.table, rows).await?;
        self.claim.messages = messages;
        self.claim.n_dead += n_dead;
        Ok(())
    }
}

fn claim_values(request: &ClaimRequest, token: Uuid) -> Values {
    Values(vec![
        (request.limit as i64).into(),
        token.into(),
        request.lease.millis().into(),
        i64::from(request.max_attempts).into(),
        topics(request),
        request.max_bytes.map_or(i64::MAX, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)).into(),
    ])
}

fn topics(request: &ClaimRequest) -> Value {
    request.topics.as_ref().map(|topics| serde_json::json!(topics).to_string()).into()
}
