//! Claims of a group: ranges of the log, and what is in the group's own table.

use std::time::{Duration, Instant};

use outbox_core::{Claim, ClaimRequest, Claimer, Error, ErrorKind, HeldBack, OnDead, Repository, Result};
use sea_orm::sea_query::Values;
use sea_orm::{QueryResult, Value};

use super::LogGroup;
use super::reader::{Met, Poll, Reader};
use crate::dialect::Dialect;
use crate::row::{ClaimedRow, Readable, column, from_duration};

/// How long claims may take from the log only.
const OWN_INTERVAL: Duration = Duration::from_millis(100);
/// How long a loop may go without a look at the leases of ranges.
const LEASES_INTERVAL: Duration = Duration::from_secs(1);
/// The most rows that one statement examines where it finds none that the group wants.
const MAX_EXAMINED: i64 = 10_000;
/// How many times the payloads of a range may be as large as the ones before, until `max_bytes` makes it shorter than it was leased.
#[cfg(feature = "postgres")]
const MARGIN: u64 = 2;
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
    /// The mean size of the payloads that were read last.
    payload_bytes: Option<u64>,
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
            payload_bytes: None,
        })
    }

    /// Whether so many messages are sure enough to be within a limit.
    #[cfg(feature = "postgres")]
    fn is_within(&self, max_bytes: Option<u64>, n: usize) -> bool {
        let likely = self.payload_bytes.map(|mean| mean.saturating_mul(MARGIN * n as u64));
        max_bytes.is_none_or(|max| likely.is_some_and(|likely| likely <= max))
    }

    fn note_size(&mut self, rows: &[ClaimedRow]) {
        let n_bytes: usize = rows.iter().map(ClaimedRow::payload_len).sum();
        self.payload_bytes = n_bytes.checked_div(rows.len()).map(|mean| mean as u64).or(self.payload_bytes);
    }

    fn are_leases_due(&self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.duration_since(at) < LEASES_INTERVAL;
        self.is_recovering
            || !self.leases_at.is_some_and(is_recent)
            || self.next_expiry.is_some_and(|expiry| expiry <= now)
    }
}

/// One claim in the making.
pub(super) struct Claiming<'a> {
    pub(super) group: &'a LogGroup,
    pub(super) request: &'a ClaimRequest,
    kept: Loop,
    claim: Claim,
    look_in: Option<Duration>,
    /// On an ordered log: for the claim before.
    has_waited: bool,
    /// What is known of the horizon may not hold for this claim: a poll tells.
    is_poll_due: bool,
    /// How many of its statements came to a session of which nobody knew.
    #[cfg(feature = "postgres")]
    n_met: usize,
}

/// See [`Repository::claim`]. A claim that fails or is dropped forgets where its loop left off.
pub(super) async fn claim(group: &LogGroup, request: ClaimRequest) -> Result<Claim> {
    let mut claiming = Claiming::new(group, &request);
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
    claim.overlaps = overlaps(group);
    Ok(claim)
}

/// Whether the position is free before the rows are read.
fn overlaps(group: &LogGroup) -> bool {
    match group.dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => group.order().is_none() && !group.has_feed(),
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => false,
    }
}

/// Reads on an ordered log as far as every message is held by its key, so that what waits for whom is in the group's own table.
pub(super) async fn read_ahead(group: &LogGroup) -> Result<()> {
    let request = ClaimRequest::new(1, Duration::from_secs(1));
    let mut claiming = Claiming::new(group, &request);
    while let Some(unread) = claiming.unread().await? {
        let Some(taken) = claiming.take(&unread, MAX_EXAMINED, 0).await? else { continue };
        if taken.is_all {
            group.reader.lock().await.examined(unread.epoch, unread.horizon);
        } else if taken.n_examined == 0 {
            break;
        }
    }
    Ok(())
}

impl<'a> Claiming<'a> {
    fn new(group: &'a LogGroup, request: &'a ClaimRequest) -> Self {
        Self {
            group,
            request,
            kept: Loop::of(group, request),
            claim: Claim::default(),
            look_in: None,
            has_waited: false,
            is_poll_due: false,
            #[cfg(feature = "postgres")]
            n_met: 0,
        }
    }

    async fn run(&mut self) -> Result<()> {
        if self.request.recover && self.kept.are_leases_due(Instant::now()) && self.recover().await? {
            return Ok(());
        }
        let is_own_first = !std::mem::take(&mut self.kept.is_log_next) && self.is_own_due().await;
        if is_own_first && self.take_own(self.request.limit.div_ceil(2)).await? {
            self.kept.is_log_next = true;
            return Ok(());
        }
        self.take_unread().await?;
        let n_left = self.n_left();
        let may_add = self.claim.messages.is_empty() || self.request.max_bytes.is_none();
        if !is_own_first && n_left > 0 && may_add {
            self.take_own(n_left).await?;
        }
        Ok(())
    }

    /// Claims what the group has not read yet.
    async fn take_unread(&mut self) -> Result<()> {
        #[cfg(feature = "wal")]
        if super::feed::take(self).await? {
            return Ok(());
        }
        self.take_log().await
    }

    #[cfg(feature = "wal")]
    pub(super) fn is_empty(&self) -> bool {
        self.claim.messages.is_empty()
    }

    /// Asks to be called again after this time although nobody says that there is something.
    #[cfg(feature = "wal")]
    pub(super) fn look_in_at_most(&mut self, look_in: Option<Duration>) {
        self.look_in = self.look_in.into_iter().chain(look_in).min();
    }

    async fn is_own_due(&self) -> bool {
        let at = self.group.reader.lock().await.own_at;
        self.request.claimer.is_some() && at.is_none_or(|at| at.elapsed() >= OWN_INTERVAL)
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
            give_up(self.group).await?;
        }
        let mut request = self.request.clone();
        request.claimer = None;
        let is_found = self.add_own(request).await?;
        self.kept.is_recovering = is_found;
        Ok(is_found)
    }

    /// How many ranges have expired.
    async fn look_at_leases(&mut self) -> Result<i64> {
        let row = row(self.group, &self.group.sql.log_leases, Values(vec![self.group.name().into()])).await?;
        let now = Instant::now();
        self.kept.leases_at = Some(now);
        let known = self.kept.next_expiry.filter(|expiry| *expiry > now);
        let next = elapse(self.group, &row, 1)?.map(|next| now + next);
        self.kept.next_expiry = known.into_iter().chain(next).min();
        column(&row, 0)
    }

    /// Leases the next range of the log that holds a message for this claim; and the one behind it where the first ended
    /// at a horizon that is older than this claim.
    pub(super) async fn take_log(&mut self) -> Result<()> {
        let mut n_examined = self.request.limit as i64;
        let is_ordered = self.group.order().is_some();
        while let Some(unread) = self.unread().await? {
            if is_ordered && self.request.claimer.is_some() && !std::mem::replace(&mut self.has_waited, true)
            {
                self.group.last_claim.wait().await;
            }
            let Some(taken) = self.take(&unread, n_examined, self.n_left()).await? else { continue };
            let is_all = taken.is_all;
            self.kept.note_size(&taken.rows);
            if is_all {
                self.group.reader.lock().await.examined(unread.epoch, unread.horizon);
            }
            self.add(taken.rows).await?;
            if is_ordered {
                self.group.last_claim.claimed(&self.claim.messages);
            }
            let may_go_on =
                is_all && !unread.is_fresh && self.request.max_bytes.is_none() && self.n_left() > 0;
            if !self.claim.is_empty() && !may_go_on {
                return Ok(());
            }
            n_examined = (n_examined * 4).min(MAX_EXAMINED);
        }
        Ok(())
    }

    /// Whether so many messages are sure enough to be within the bytes that the claim may take.
    #[cfg(feature = "postgres")]
    pub(super) fn is_within(&self, n: usize) -> bool {
        self.kept.is_within(self.request.max_bytes, n)
    }

    /// How many messages more the claim may take.
    pub(super) fn n_left(&self) -> usize {
        self.request.limit - self.claim.messages.len()
    }

    /// The horizon, where something may be unread below it. One poll at a time, so that they are learned in their order.
    async fn unread(&mut self) -> Result<Option<Unread>> {
        let mut reader = self.group.reader.lock().await;
        let known = Unread::of(&reader, false);
        // a second range of this claim would find the keys of the first one held
        let is_enough = self.group.order().is_none() || reader.n_unread() >= self.request.limit as u64;
        if !std::mem::take(&mut self.is_poll_due) && is_enough && known.is_some() {
            return Ok(known);
        }
        let Some(Polled { now, is_fed }) = poll(self.group, &mut reader).await? else {
            return Err(standby(self.group));
        };
        if is_fed && !self.group.has_feed() {
            reader.read_again();
            return Err(fed(self.group));
        }
        self.look_in = reader.look_in(now);
        Ok(Unread::of(&reader, true))
    }

    /// `None` where what was known of the horizon has turned out to be void.
    async fn take(&mut self, unread: &Unread, n_examined: i64, limit: usize) -> Result<Option<Taken>> {
        match self.group.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => {
                let taken = super::postgres::take(self, unread, n_examined, limit).await?;
                self.is_poll_due = taken.is_none();
                self.n_met += usize::from(taken.is_none());
                if self.n_met > 2 * crate::sessions::MAX { Err(forgetful(self.group)) } else { Ok(taken) }
            }
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => {
                // whatever is there is committed
                let _ = unread;
                super::sqlite::take(self.group, self.request, n_examined, limit).await.map(Some)
            }
            #[cfg(feature = "mysql")]
            Dialect::MySql => Ok(Some(Taken::default())),
        }
    }

    pub(super) async fn add(&mut self, rows: Vec<ClaimedRow>) -> Result<()> {
        let blocks = self.group.order() == Some(OnDead::Block);
        let Readable { messages, burials, n_dead } = crate::row::read(rows, blocks);
        if !burials.is_empty() {
            // a lease lost meanwhile is somebody else's to bury
            let _ = self.group.settle(burials).await?;
        }
        self.claim.messages.extend(messages);
        self.claim.n_dead += n_dead;
        Ok(())
    }
}

/// Makes what is not settled of an expired range messages of the group's own table.
async fn give_up(group: &LogGroup) -> Result<()> {
    match group.dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            let values = Values(vec![group.name().into(), group.order().is_some().into()]);
            let hot = group.log.table.hot()?;
            group.log.table.execute("claim", hot, &group.sql.log_recover, values).await.map(drop)
        }
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => super::sqlite::give_up(group).await,
        #[cfg(feature = "mysql")]
        Dialect::MySql => Ok(()),
    }
}

/// The row of a statement that always gives one.
async fn row(group: &LogGroup, sql: &str, values: Values) -> Result<QueryResult> {
    let rows = group.log.table.query("claim", group.log.table.hot()?, sql, values).await?;
    rows.into_iter().next().ok_or_else(|| Error::new(ErrorKind::Other, "claim"))
}

/// What log_horizon is asked with.
pub(super) fn horizon_of(
    group: &LogGroup,
    #[allow(unused_variables, reason = "SQLite has none")] sessions: &[String],
) -> Values {
    let name = Value::from(group.name());
    match group.dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => Values(vec![name, crate::row::texts(Some(sessions))]),
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => Values(vec![name]),
    }
}

pub(super) fn unknown(group: &LogGroup) -> Error {
    let detail = format!("there is no group {}: register it", group.name());
    Error::new(ErrorKind::Schema, "claim").with_table(group.log.name()).with_detail(detail)
}

/// More sessions than are remembered, each of them a new one.
#[cfg(feature = "postgres")]
fn forgetful(group: &LogGroup) -> Error {
    let detail = "each session was a new one, and none before it is there: this role may not see when its sessions began, \
                  and a pooler resets them after each transaction or ends them; a group of a log has to know them";
    Error::new(ErrorKind::Unsupported, "claim").with_table(group.log.name()).with_detail(detail)
}

fn fed(group: &LogGroup) -> Error {
    let detail =
        format!("group {} is fed from the WAL: claim it with with_feed, or call stop_feed", group.name());
    Error::new(ErrorKind::Schema, "claim").with_table(group.log.name()).with_detail(detail)
}

/// What else a poll has found out.
pub(super) struct Polled {
    now: Instant,
    /// The WAL delivers all that is not read.
    is_fed: bool,
}

pub(super) fn standby(group: &LogGroup) -> Error {
    let detail = "this is a standby: groups claim from the primary";
    Error::new(ErrorKind::ReadOnly, "claim").with_table(group.log.name()).with_detail(detail)
}

/// Asks how far the log may be read. A standby cannot say: it has no locks of writers.
pub(super) async fn poll(group: &LogGroup, reader: &mut Reader) -> Result<Option<Polled>> {
    let row = row(group, &group.sql.log_horizon, horizon_of(group, &reader.sessions())).await?;
    let Some(position) = column(&row, 2)? else {
        // it may be registered again, and begin elsewhere
        reader.forget();
        return Err(unknown(group));
    };
    let last = column(&row, 0)?;
    let poll = match group.dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres if column(&row, 5)? => return Ok(None),
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            let session = Met { name: column(&row, 3)?, is_known: column(&row, 4)? };
            Poll { last, holders: column(&row, 1)?, position, session }
        }
        // what is committed is below everything that is not: there is nobody to wait for
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => {
            let session = Met { name: String::new(), is_known: true };
            Poll { last, holders: Vec::new(), position, session }
        }
    };
    let is_fed = match group.dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => column(&row, 6)?,
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => false,
    };
    let now = Instant::now();
    reader.learn(poll, now);
    Ok(Some(Polled { now, is_fed }))
}

/// What keeps the group from reading on. Nothing on a standby, where nobody reads on.
pub(super) async fn held_back(group: &LogGroup) -> Result<Option<HeldBack>> {
    match group.dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => held_back_postgres(group).await,
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => Ok(None),
    }
}

#[cfg(feature = "postgres")]
async fn held_back_postgres(group: &LogGroup) -> Result<Option<HeldBack>> {
    let mut reader = group.reader.lock().await;
    let polled = poll(group, &mut reader).await?;
    let n_numbers = reader.n_held();
    drop(reader);
    // the WAL delivers past transactions that stay open
    if polled.is_none_or(|polled| polled.is_fed) || n_numbers == 0 {
        return Ok(None);
    }
    blocker(group, n_numbers).await
}

#[cfg(feature = "postgres")]
async fn blocker(group: &LogGroup, n_numbers: u64) -> Result<Option<HeldBack>> {
    let sql = &group.postgres.log_blockers;
    let rows = group.log.table.query("stats", &group.log.table.db, sql, Values(Vec::new())).await?;
    // it may have ended meanwhile
    let Some(row) = rows.first() else { return Ok(None) };
    let open_for = elapse(group, row, 1)?.unwrap_or_default();
    Ok(Some(HeldBack { n_numbers, by: column(row, 0)?, open_for }))
}

/// A duration in the column at `index`.
fn elapse(group: &LogGroup, row: &QueryResult, index: usize) -> Result<Option<Duration>> {
    Ok(column::<Option<i64>>(row, index)?.map(|value| from_duration(group.dialect, value)))
}

/// Up to where the log may be read.
pub(super) struct Unread {
    pub(super) horizon: i64,
    epoch: u64,
    /// For which this holds.
    #[cfg(feature = "postgres")]
    pub(super) sessions: Vec<String>,
    /// It was asked for just now.
    is_fresh: bool,
}

impl Unread {
    fn of(reader: &Reader, is_fresh: bool) -> Option<Self> {
        let unread = |horizon| Self {
            horizon,
            epoch: reader.epoch(),
            #[cfg(feature = "postgres")]
            sessions: reader.sessions(),
            is_fresh,
        };
        reader.unread().map(unread)
    }
}

/// What was taken of the log at once.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) rows: Vec<ClaimedRow>,
    /// It examined everything up to the horizon.
    pub(super) is_all: bool,
    /// On an ordered log: how many rows are behind the position now.
    pub(super) n_examined: i64,
}
