//! Claims of a group: ranges of the log, and what is in the group's own table.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use outbox_core::{Claim, ClaimRequest, Claimer, Error, ErrorKind, HeldBack, OnDead, Repository, Result};
use sea_orm::QueryResult;
use sea_orm::sea_query::Values;
use sea_orm::sqlx::{self, AssertSqlSafe};
use uuid::Uuid;

use super::LogGroup;
use super::range::Place;
use super::reader::{Poll, Reader};
use crate::dialect::Dialect;
use crate::error::from_sqlx;
use crate::postgres::micros;
use crate::row::{ClaimedRow, Readable, ToDatabase, column, read};

/// How long claims may take from the log only.
const OWN_INTERVAL: Duration = Duration::from_millis(100);
/// How long a loop may go without a look at the leases of ranges.
const LEASES_INTERVAL: Duration = Duration::from_secs(1);
/// The most rows that one statement examines where it finds none that the group wants.
const MAX_EXAMINED: i64 = 10_000;
/// The most expired ranges that one claim gives up.
const MAX_EXPIRED: i64 = 10;

/// What a claim loop remembers between its claims.
struct Loop {
    group: String,
    /// Its place in the group's own table.
    own: Claimer,
    leases_at: Option<Instant>,
    next_expiry: Option<Instant>,
    /// Messages of ranges that were given up are being recovered.
    is_recovering: bool,
    /// The claim before took from the group's own table: it is the log's turn.
    is_log_next: bool,
}

impl Loop {
    fn of(group: &LogGroup, request: &ClaimRequest) -> Self {
        let name = group.own.name().to_string();
        let kept = request.claimer.as_ref().and_then(Claimer::take::<Self>);
        kept.filter(|kept| kept.group == name).unwrap_or_else(|| Self {
            group: name,
            own: Claimer::new(),
            leases_at: None,
            next_expiry: None,
            is_recovering: false,
            is_log_next: false,
        })
    }

    fn are_leases_due(&self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.duration_since(at) < LEASES_INTERVAL;
        self.is_recovering
            || !self.leases_at.is_some_and(is_recent)
            || self.next_expiry.is_some_and(|expiry| expiry <= now)
    }
}

/// One claim in the making.
struct Claiming<'a> {
    group: &'a LogGroup,
    request: &'a ClaimRequest,
    kept: Loop,
    claim: Claim,
    look_in: Option<Duration>,
}

/// See [`Repository::claim`]. A claim that fails or is dropped forgets where its loop left off.
pub(super) async fn claim(group: &LogGroup, request: ClaimRequest) -> Result<Claim> {
    let kept = Loop::of(group, &request);
    let mut claiming = Claiming { group, request: &request, kept, claim: Claim::default(), look_in: None };
    claiming.run().await?;
    let Claiming { mut kept, mut claim, look_in, .. } = claiming;
    let now = Instant::now();
    if !claim.messages.is_empty() {
        let expiry = now + request.lease;
        kept.next_expiry = Some(kept.next_expiry.map_or(expiry, |next| next.min(expiry)));
    }
    let expiry = kept.next_expiry.filter(|_| request.recover);
    let timers = [claim.next_due_in, look_in, expiry.map(|at| at.saturating_duration_since(now))];
    claim.next_due_in = timers.into_iter().flatten().min();
    if let Some(claimer) = &request.claimer {
        claimer.put(kept);
    }
    claim.ordered = group.order().is_some();
    Ok(claim)
}

/// Reads on an ordered log as far as every message is held by its key, so that what waits for whom is in the group's own table.
pub(super) async fn read_ahead(group: &LogGroup) -> Result<()> {
    let request = ClaimRequest::new(1, Duration::from_secs(1));
    let kept = Loop::of(group, &request);
    let mut claiming = Claiming { group, request: &request, kept, claim: Claim::default(), look_in: None };
    while let Some(Unread { horizon, .. }) = claiming.unread().await? {
        let taken = claiming.take_ordered(horizon, MAX_EXAMINED, 0).await?;
        if taken.is_all {
            group.reader.lock().await.examined(horizon);
        } else if taken.n_examined == 0 {
            break;
        }
    }
    Ok(())
}

impl Claiming<'_> {
    async fn run(&mut self) -> Result<()> {
        if self.request.recover && self.kept.are_leases_due(Instant::now()) && self.recover().await? {
            return Ok(());
        }
        let is_own_first = !std::mem::take(&mut self.kept.is_log_next) && self.is_own_due().await;
        if is_own_first && self.take_own(self.request.limit.div_ceil(2)).await? {
            self.kept.is_log_next = true;
            return Ok(());
        }
        self.take_log().await?;
        let n_left = self.n_left();
        let may_add = self.claim.messages.is_empty() || self.request.max_bytes.is_none();
        if !is_own_first && n_left > 0 && may_add {
            self.take_own(n_left).await?;
        }
        Ok(())
    }

    async fn is_own_due(&self) -> bool {
        let at = self.group.reader.lock().await.own_at;
        self.request.claimer.is_some() && at.is_some_and(|at| at.elapsed() >= OWN_INTERVAL)
    }

    /// Claims from the group's own table, apart from what is claimed already, and says whether it found something.
    async fn take_own(&mut self, limit: usize) -> Result<bool> {
        self.group.reader.lock().await.own_at = Some(Instant::now());
        let mut request = self.request.clone();
        request.limit = limit;
        request.recover &= self.claim.messages.is_empty();
        request.claimer = self.request.claimer.as_ref().map(|_| self.kept.own.clone());
        self.add_own(request).await
    }

    async fn add_own(&mut self, request: ClaimRequest) -> Result<bool> {
        let own = self.group.own.claim(request).await?;
        let is_found = !own.is_empty();
        self.claim.messages.extend(own.messages);
        self.claim.n_dead += own.n_dead;
        self.claim.recovered |= own.recovered;
        self.claim.next_due_in = own.next_due_in;
        Ok(is_found)
    }

    /// Gives up expired ranges and recovers their messages; whether it found any.
    async fn recover(&mut self) -> Result<bool> {
        let now = Instant::now();
        // a range may have been here and its messages elsewhere by now
        let is_due = self.kept.next_expiry.is_some_and(|expiry| expiry <= now);
        let n_expired = self.look_at_leases().await?;
        if n_expired == 0 && !self.kept.is_recovering && !is_due {
            return Ok(false);
        }
        for _ in 0..n_expired.min(MAX_EXPIRED) {
            let values = Values(vec![self.group.name().into(), self.group.order().is_some().into()]);
            let hot = self.group.log.table.hot()?;
            self.group.log.table.execute("claim", hot, &self.group.sql.log_recover, values).await?;
        }
        let mut request = self.request.clone();
        request.claimer = None;
        let is_found = self.add_own(request).await?;
        self.kept.is_recovering = is_found;
        Ok(is_found)
    }

    /// How many ranges have expired.
    async fn look_at_leases(&mut self) -> Result<i64> {
        let row = row(self.group, &self.group.sql.log_leases).await?;
        let now = Instant::now();
        self.kept.leases_at = Some(now);
        let known = self.kept.next_expiry.filter(|expiry| *expiry > now);
        let next = micros(&row, 1)?.map(|next| now + next);
        self.kept.next_expiry = known.into_iter().chain(next).min();
        column(&row, 0)
    }

    /// Leases the next range of the log that holds a message for this claim; and the one behind it where the first ended
    /// at a horizon that is older than this claim.
    async fn take_log(&mut self) -> Result<()> {
        let mut n_examined = self.request.limit as i64;
        while let Some(Unread { horizon, is_fresh }) = self.unread().await? {
            let taken = self.take(horizon, n_examined).await?;
            let is_all = taken.is_all;
            if is_all {
                self.group.reader.lock().await.examined(horizon);
            }
            self.add(taken.rows).await?;
            let may_go_on = is_all && !is_fresh && self.request.max_bytes.is_none() && self.n_left() > 0;
            if !self.claim.is_empty() && !may_go_on {
                return Ok(());
            }
            n_examined = (n_examined * 4).min(MAX_EXAMINED);
        }
        Ok(())
    }

    /// How many messages more the claim may take.
    fn n_left(&self) -> usize {
        self.request.limit - self.claim.messages.len()
    }

    /// The horizon, where something may be unread below it. One poll at a time, so that they are learned in their order.
    async fn unread(&mut self) -> Result<Option<Unread>> {
        let mut reader = self.group.reader.lock().await;
        if let Some(horizon) = reader.unread() {
            return Ok(Some(Unread { horizon, is_fresh: false }));
        }
        let now = poll(self.group, &mut reader).await?;
        self.look_in = reader.look_in(now);
        Ok(reader.unread().map(|horizon| Unread { horizon, is_fresh: true }))
    }

    /// By the plain statement where it can.
    async fn take(&self, horizon: i64, n_examined: i64) -> Result<Taken> {
        let (sql, limit) = (&self.group.sql, self.n_left() as i64);
        if self.group.order().is_some() {
            return self.take_ordered(horizon, n_examined, limit).await;
        }
        let taken = self.run_claim(&sql.log_claim, horizon, n_examined, limit).await?;
        if taken.is_refused {
            return self.run_claim(&sql.log_claim_mixed, horizon, n_examined, limit).await;
        }
        Ok(taken)
    }

    /// It is refused while others have claimed since it began: one of them gets on each time.
    async fn take_ordered(&self, horizon: i64, n_examined: i64, limit: i64) -> Result<Taken> {
        loop {
            let sql = &self.group.sql.log_claim_ordered;
            let taken = self.run_claim(sql, horizon, n_examined, limit).await?;
            if !taken.is_refused {
                return Ok(taken);
            }
        }
    }

    /// Runs a claim. Rows are decoded while the server is still working on the next ones.
    async fn run_claim(&self, sql: &str, horizon: i64, n_examined: i64, limit: i64) -> Result<Taken> {
        let (request, token) = (self.request, Uuid::new_v4());
        let query = sqlx::query(AssertSqlSafe(sql.to_owned()))
            .bind(self.group.name())
            .bind(token)
            .bind(request.lease.micros())
            .bind(n_examined)
            .bind(request.topics.as_deref())
            .bind(request.max_bytes.map_or(i64::MAX, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)))
            .bind(horizon)
            .bind(limit);
        let mut stream = query.fetch(self.group.log.table.hot()?.get_postgres_connection_pool());
        let mut taken = None::<Taken>;
        while let Some(row) = stream.next().await {
            let row = row.map_err(|error| from_sqlx("claim", self.group.log.name(), error))?;
            taken.get_or_insert_default().add(&row.into(), token, self.group.order().is_some())?;
        }
        taken.ok_or_else(|| unknown(self.group))
    }

    async fn add(&mut self, rows: Vec<ClaimedRow>) -> Result<()> {
        let blocks = self.group.order() == Some(OnDead::Block);
        let Readable { messages, burials, n_dead } = read(rows, blocks);
        if !burials.is_empty() {
            // a lease lost meanwhile is somebody else's to bury
            let _ = self.group.settle(burials).await?;
        }
        self.claim.messages.extend(messages);
        self.claim.n_dead += n_dead;
        Ok(())
    }
}

/// The first row of a statement whose parameter is the group.
async fn row(group: &LogGroup, sql: &str) -> Result<QueryResult> {
    let values = Values(vec![group.name().into()]);
    let rows = group.log.table.query("claim", group.log.table.hot()?, sql, values).await?;
    rows.into_iter().next().ok_or_else(|| Error::new(ErrorKind::Other, "claim"))
}

fn unknown(group: &LogGroup) -> Error {
    let detail = format!("there is no group {}: register it", group.name());
    Error::new(ErrorKind::Schema, "claim").with_table(group.log.name()).with_detail(detail)
}

/// Asks how far the log may be read.
async fn poll(group: &LogGroup, reader: &mut Reader) -> Result<Instant> {
    let row = row(group, &group.sql.log_horizon).await?;
    let position = column::<Option<i64>>(&row, 2)?.ok_or_else(|| unknown(group))?;
    let poll =
        Poll { last: column(&row, 0)?, holders: column(&row, 1)?, position, session: column(&row, 3)? };
    let now = Instant::now();
    reader.learn(poll, now);
    Ok(now)
}

/// What keeps the group from reading on.
pub(super) async fn held_back(group: &LogGroup) -> Result<Option<HeldBack>> {
    let mut reader = group.reader.lock().await;
    poll(group, &mut reader).await?;
    let n_numbers = reader.n_held();
    drop(reader);
    if n_numbers == 0 {
        return Ok(None);
    }
    let sql = &group.sql.log_blockers;
    let rows = group.log.table.query("stats", &group.log.table.db, sql, Values(Vec::new())).await?;
    // it may have ended meanwhile
    let Some(row) = rows.first() else { return Ok(None) };
    let open_for = micros(row, 1)?.unwrap_or_default();
    Ok(Some(HeldBack { n_numbers, by: column(row, 0)?, open_for }))
}

/// Up to where the log may be read.
struct Unread {
    horizon: i64,
    /// It was asked for just now.
    is_fresh: bool,
}

/// What one statement took of the log.
#[derive(Default)]
struct Taken {
    rows: Vec<ClaimedRow>,
    /// The plain statement was not enough.
    is_refused: bool,
    /// It examined everything up to the horizon.
    is_all: bool,
    /// On an ordered log: how many rows are behind the position now.
    n_examined: i64,
}

impl Taken {
    /// As a claim of a queue, then whether it took, and whether it examined everything; on an ordered log the place in the range, and
    /// how much it examined. A row without a message has no number and no place.
    fn add(&mut self, row: &QueryResult, token: Uuid, is_ordered: bool) -> Result<()> {
        if self.rows.is_empty() {
            self.is_refused = !column::<bool>(row, 10)?;
            self.is_all = column(row, 11)?;
            self.n_examined = if is_ordered { column(row, 13)? } else { 0 };
        }
        if column::<Option<i64>>(row, 0)?.is_none() {
            return Ok(());
        }
        let mut claimed = ClaimedRow::decode(Dialect::Postgres, row, token)?;
        let place = if is_ordered { column::<i64>(row, 12)? as usize } else { self.rows.len() };
        if let Some(lease) = claimed.lease_mut() {
            Place::enter(place, lease);
        }
        self.rows.push(claimed);
        Ok(())
    }
}
