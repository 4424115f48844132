//! Claims on SQLite: one writer at a time, so a read first says whether there is anything to write.

use std::time::{Duration, Instant};

use outbox_core::{Claim, ClaimRequest, Error, ErrorKind, Result};
use sea_orm::Value;
use sea_orm::sea_query::Values;
use uuid::Uuid;

use crate::dialect::Dialect;
use crate::repository::OutboxTable;
use crate::row::{ClaimedRow, ToDatabase, bury_undecodable, column, from_duration};

/// How long a claim loop that finds full batches claims without looking first.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The most parked rows that one claim makes ready at a time.
const PROMOTE_LIMIT: u64 = 1_000;
/// What `look` says when nothing is parked and nothing leased.
const NEVER: i64 = 1 << 61;

/// What a claim loop remembers: since when it has found full batches, without looking for anything else.
struct Streak(Instant);

/// What one look found.
struct Look {
    is_ready: bool,
    is_due: bool,
    is_expired: bool,
    next: Option<Duration>,
}

/// See [`Repository::claim`](outbox_core::Repository::claim).
pub(crate) async fn claim(table: &OutboxTable, request: ClaimRequest) -> Result<Claim> {
    let streak = request.claimer.as_ref().and_then(outbox_core::Claimer::take::<Streak>);
    let mut claim = Claim::default();
    if let Some(streak) = streak.filter(|streak| streak.0.elapsed() < LOOK_INTERVAL) {
        take(table, &request, &mut claim).await?;
        keep_streak(&request, &claim, streak.0);
        if !claim.is_empty() {
            return Ok(claim);
        }
    }
    let looked_at = Instant::now();
    let found = look(table, &request).await?;
    claim.next_due_in = found.next;
    if request.recover && found.is_expired {
        recover(table, &request, &mut claim).await?;
        if claim.recovered {
            return Ok(claim);
        }
    }
    if found.is_due {
        claim.next_due_in = promote(table).await?;
    }
    if found.is_ready || found.is_due {
        take(table, &request, &mut claim).await?;
        keep_streak(&request, &claim, looked_at);
    }
    if !claim.messages.is_empty() {
        claim.next_due_in = Some(claim.next_due_in.map_or(request.lease, |next| next.min(request.lease)));
    }
    Ok(claim)
}

fn keep_streak(request: &ClaimRequest, claim: &Claim, since: Instant) {
    if let Some(claimer) = request.claimer.as_ref().filter(|_| claim.messages.len() >= request.limit) {
        claimer.put(Streak(since));
    }
}

async fn look(table: &OutboxTable, request: &ClaimRequest) -> Result<Look> {
    let sql = &table.table()?.sql.look;
    let rows = table.query("claim", table.hot()?, sql, Values(vec![topics(request)])).await?;
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
async fn promote(table: &OutboxTable) -> Result<Option<Duration>> {
    let sql = &table.table()?.sql.promote;
    let values = Values(vec![(PROMOTE_LIMIT as i64).into()]);
    let _ = table.execute("claim", table.hot()?, sql, values).await?;
    Ok(Some(Duration::ZERO))
}

async fn take(table: &OutboxTable, request: &ClaimRequest, claim: &mut Claim) -> Result<()> {
    rows(table, &table.table()?.sql.claim, request, claim).await
}

async fn recover(table: &OutboxTable, request: &ClaimRequest, claim: &mut Claim) -> Result<()> {
    let sql = &table.table()?.sql;
    let limit = request.limit as i64;
    let values = Values(vec![limit.into(), i64::from(request.max_attempts).into(), topics(request)]);
    claim.n_dead += table.execute("claim", table.hot()?, &sql.bury, values).await? as usize;
    rows(table, &sql.recover, request, claim).await?;
    claim.recovered = !claim.messages.is_empty();
    Ok(())
}

async fn rows(table: &OutboxTable, sql: &str, request: &ClaimRequest, claim: &mut Claim) -> Result<()> {
    let token = Uuid::new_v4();
    let rows = table.query("claim", table.hot()?, sql, claim_values(request, token)).await?;
    let decode = |row| ClaimedRow::decode(Dialect::Sqlite, row, token);
    let mut rows: Vec<ClaimedRow> = rows.iter().map(decode).collect::<Result<_>>()?;
    rows.sort_unstable_by_key(ClaimedRow::locator);
    let (messages, n_dead) = bury_undecodable(table, rows).await?;
    claim.messages = messages;
    claim.n_dead += n_dead;
    Ok(())
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
