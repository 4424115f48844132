//! What only PostgreSQL needs: connections of its own, and claims that remember where they left off.

mod turns;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use outbox_core::{Claim, ClaimRequest, Error, ErrorKind, Result, TableName};
use sea_orm::sea_query::Values;
use sea_orm::sqlx::postgres::PgPoolOptions;
use sea_orm::sqlx::{self, AssertSqlSafe, ConnectOptions};
use sea_orm::{DatabaseConnection, DatabaseConnectionType, QueryResult, SqlxPostgresConnector, Value};
use uuid::Uuid;

use crate::dialect::Dialect;
use crate::error::from_sqlx;
use crate::horizon::Horizon;
use crate::repository::{Fair, OutboxTable, Table};
use crate::row::{ClaimedRow, ToDatabase, bury_undecodable, column, from_duration, texts};
use crate::sessions::Sessions;
use crate::shield::Db;
use crate::sql::PostgresSql;
use crate::turns::reached_lane;

/// How long claims may take newly arrived messages only.
const WHOLE_INTERVAL: Duration = Duration::from_millis(100);
/// How long claims may go without a look at the horizon and at parked rows.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Up to this many numbers between the marks, a claim walks them itself instead of looking first.
const MAX_WALK: i64 = 1_000;
/// How long a new loop waits at the most until it walks for expired leases below a backlog.
const FIRST_WALK: Duration = Duration::from_secs(5);
/// The most parked rows that one claim makes ready at a time.
const PROMOTE_LIMIT: i64 = 1_000;
/// Claims, settlements and extensions at the same time; the wake-up's connection comes on top.
const MAX_CONNECTIONS: u32 = 4;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// What each of our own connections is told. With these the plans of all statements are fixed: they walk the
/// indexes that were made for them, also on a table that was never analysed or was empty when they were planned
/// (where the planner sorts the whole backlog for each claim). JIT would compile because the fixed plans look dear.
const SETTINGS: [(&str, &str); 7] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
    ("idle_in_transaction_session_timeout", "60s"),
];

/// The connections of one table's dispatchers.
pub(crate) struct Own {
    pub(crate) sql: PostgresSql,
    pools: Arc<Pools>,
    reads_keys: OnceLock<bool>,
}

#[derive(Default)]
struct Pools {
    plain: OnceLock<Db>,
    relaxed: OnceLock<Db>,
}

impl Own {
    pub(crate) fn new(dialect: Dialect, table: &TableName) -> Self {
        Self { sql: PostgresSql::new(dialect, table), pools: Arc::default(), reads_keys: OnceLock::new() }
    }

    /// Uses the connections of `other`.
    pub(crate) fn share(&mut self, other: &Self) {
        self.pools = Arc::clone(&other.pools);
    }

    /// `None` on another database and with a shared pool.
    pub(crate) fn connection(&self, table: &OutboxTable) -> Result<Option<&Db>> {
        let DatabaseConnectionType::SqlxPostgresPoolConnection(_) = &table.db.inner else { return Ok(None) };
        if table.has_shared_pool() {
            return Ok(None);
        }
        let is_relaxed = table.has_relaxed_commit();
        let pool = if is_relaxed { &self.pools.relaxed } else { &self.pools.plain };
        Ok(Some(pool.get_or_init(|| open(&table.db, is_relaxed))))
    }
}

/// Whether the connection's role may read deduplication keys; asks the server once for a table's handles.
pub(crate) async fn reads_keys(
    table: &OutboxTable,
    connection: &impl sea_orm::ConnectionTrait,
) -> Result<bool> {
    let own = &table.table()?.postgres;
    if let Some(reads_keys) = own.reads_keys.get() {
        return Ok(*reads_keys);
    }
    let rows = table.query("enqueue", connection, &own.sql.reads_keys, Values(Vec::new())).await?;
    let reads_keys = rows.first().map_or(Ok(false), |row| column(row, 0))?;
    Ok(*own.reads_keys.get_or_init(|| reads_keys))
}

/// A pool with the options of `db` and our settings; connects when it is first used. An idle connection is not
/// tested before it is used: that would cost a round trip each time, and one that broke is reported as
/// unavailable, which is retried.
fn open(db: &DatabaseConnection, is_relaxed: bool) -> Db {
    let mut options = (*db.get_postgres_connection_pool().connect_options()).clone().options(SETTINGS);
    if is_relaxed {
        options = options.options([("synchronous_commit", "off")]);
    }
    let pool = PgPoolOptions::new()
        .max_connections(MAX_CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .connect_lazy_with(options.disable_statement_logging());
    Db::new(&SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

/// What a claim loop remembers between its claims.
///
/// `fast` is the highest number it has claimed; most claims go above it only. Every [`WHOLE_INTERVAL`], and at once
/// when nothing is there, one goes above `safe`: below that nothing can become claimable any more except by an
/// expired lease, which has a walk of its own. `safe` follows the claims while they leave no gap; otherwise a look
/// moves it past what it has found to be gone.
#[derive(Default)]
struct Marks {
    table: String,
    topics: Option<Vec<String>>,
    fast: Option<i64>,
    safe: i64,
    horizon: Horizon,
    /// One of them is there as long as the server has not been another, and has not crashed.
    sessions: Sessions,
    looked_at: Option<Instant>,
    whole_at: Option<Instant>,
    next_due: Option<Instant>,
    next_expiry: Option<Instant>,
    walk_at: Option<Instant>,
    was_full: bool,
    /// On an ordered table: the key where the last walk ended.
    key: String,
    /// On a fair table: the lane where it ended.
    lane: String,
    /// On an ordered table: what claims by number go by.
    front: turns::Front,
}

impl Marks {
    fn new(table: &OutboxTable, request: &ClaimRequest) -> Self {
        Self { table: table.name.to_string(), topics: request.topics.clone(), ..Self::default() }
    }

    fn of(table: &OutboxTable, request: &ClaimRequest) -> Self {
        let own = Self::new(table, request);
        let kept = request.claimer.as_ref().and_then(outbox_core::Claimer::take::<Self>);
        kept.filter(|kept| kept.table == own.table && kept.topics == own.topics).unwrap_or(own)
    }

    /// Learns the highest number, who may still add below it, and the session that has asked, from the column `at` of a row on.
    /// Nothing is open below `safe`. Says false when it forgets what was remembered: another server may have answered, or
    /// this one after a crash.
    fn learn(&mut self, row: &QueryResult, at: usize, safe: i64) -> Result<bool> {
        let (last, holders): (i64, Vec<String>) = (column(row, at)?, column(row, at + 1)?);
        let (session, is_there): (String, bool) = (column(row, at + 2)?, column(row, at + 3)?);
        // the first one finds nothing that could be forgotten
        let holds = (is_there || self.sessions.is_empty()) && self.horizon.learn(last, holders.clone(), safe);
        if !holds {
            (self.fast, self.safe) = (None, 0);
            self.horizon = Horizon::default();
            self.front.forget();
            let _ = self.horizon.learn(last, holders, 0);
        }
        self.sessions.meet(session, Instant::now());
        Ok(holds)
    }

    fn sessions(&self) -> Value {
        texts(Some(&self.sessions.names()))
    }

    /// The mark of a claim that needs no look before it: usually `fast`, now and then `safe` when that is near.
    fn mark(&mut self, now: Instant) -> Option<i64> {
        let fast = self.fast?;
        let is_recent =
            |at: Option<Instant>, interval| at.is_some_and(|at| now.duration_since(at) < interval);
        if !is_recent(self.looked_at, LOOK_INTERVAL) || self.next_due.is_some_and(|due| due <= now) {
            return None;
        }
        if is_recent(self.whole_at, WHOLE_INTERVAL) {
            return Some(fast);
        }
        self.whole_at = Some(now);
        (fast - self.safe <= MAX_WALK).then_some(self.safe)
    }

    /// On a fair table every claim goes above `safe`, since below `fast` are messages whose turn has not come; and looks
    /// move it, since what a claim takes leaves gaps.
    fn fair_mark(&self, now: Instant) -> Option<i64> {
        let is_recent = self.looked_at.is_some_and(|at| now.duration_since(at) < WHOLE_INTERVAL);
        let is_due = self.next_due.is_some_and(|due| due <= now);
        (is_recent && !is_due).then_some(self.safe)
    }

    /// A loop that starts with a backlog walks after a while: what its predecessor left is still leased.
    fn is_walk_due(&mut self, now: Instant, request: &ClaimRequest) -> bool {
        let first = || if request.claimer.is_some() { now + request.lease.min(FIRST_WALK) } else { now };
        *self.walk_at.get_or_insert_with(first) <= now
    }

    /// How far expired leases can lie: claims go upwards, so while there is a backlog nobody has claimed far
    /// above this loop.
    fn walk_bound(&self) -> i64 {
        self.fast.filter(|_| self.was_full).unwrap_or(i64::MAX)
    }

    /// `rows` are what a claim above `mark` took, in order.
    fn claimed(&mut self, mark: i64, rows: &[ClaimedRow], limit: usize) {
        if mark == self.safe {
            // without a gap nothing was passed over, and nothing can appear in between up to the horizon
            let is_next = |(place, row): &(usize, &ClaimedRow)| row.locator() == mark + 1 + *place as i64;
            let n_dense = rows.iter().enumerate().take_while(is_next).count();
            self.safe = self.safe.max(self.horizon.at.min(mark + n_dense as i64));
        }
        let highest = rows.last().map_or(0, ClaimedRow::locator);
        self.fast = Some(self.fast.unwrap_or(0).max(self.safe).max(highest));
        self.was_full = rows.len() >= limit;
    }

    /// What was read after the horizon: `lowest` is the lowest ready row above `safe` that nobody has claimed.
    fn looked(&mut self, lowest: Option<i64>, now: Instant) {
        self.looked_at = Some(now);
        self.whole_at = Some(now);
        // never above a number that was seen committed: after a crash the server hands others out again
        let bound = self.horizon.at.min(self.fast.max(lowest).unwrap_or(0));
        let open = lowest.map_or(bound, |lowest| bound.min(lowest - 1));
        self.safe = self.safe.max(open);
    }

    /// An expiry counts when the next walk can see it.
    fn next_due_in(&self, now: Instant, recover: bool) -> Option<Duration> {
        let expiry = self
            .next_expiry
            .filter(|_| recover)
            .max(self.walk_at.filter(|_| recover && self.next_expiry.is_some()));
        let next = [self.next_due, expiry].into_iter().flatten().min();
        next.map(|at| at.saturating_duration_since(now))
    }

    /// Leases were looked at: the next walk is due when the next one expires, or when one made from now on can.
    fn walked(&mut self, n_expired: i64, next: Option<Duration>, lease: Duration, now: Instant) {
        self.next_expiry = next.map(|next| now + next);
        // more of an expired group may be left
        let pause = if n_expired > 0 { Duration::ZERO } else { next.unwrap_or(lease).min(lease) };
        self.walk_at = Some(now + pause);
    }
}

/// What one look found.
struct Look {
    lowest: Option<i64>,
    is_due: bool,
    n_expired: i64,
}

/// One claim in the making.
struct Claiming<'a> {
    table: &'a OutboxTable,
    inner: &'a Table,
    request: &'a ClaimRequest,
    marks: Marks,
    claim: Claim,
}

/// See [`Repository::claim`](outbox_core::Repository::claim). A claim that fails or is dropped forgets its marks.
pub(crate) async fn claim(table: &OutboxTable, request: ClaimRequest) -> Result<Claim> {
    let mut claiming = Claiming {
        table,
        inner: table.table()?,
        request: &request,
        marks: Marks::of(table, &request),
        claim: Claim::default(),
    };
    match &claiming.inner.ordered {
        None => claiming.run().await?,
        Some(ordered) => claiming.take_turns(ordered).await?,
    }
    let Claiming { mut marks, mut claim, .. } = claiming;
    let now = Instant::now();
    if !claim.messages.is_empty() {
        let own = now + request.lease;
        marks.next_expiry = Some(marks.next_expiry.map_or(own, |next| next.min(own)));
    }
    claim.next_due_in = marks.next_due_in(now, request.recover);
    claim.ordered = table.table()?.ordered.is_some();
    if let Some(claimer) = &request.claimer {
        claimer.put(marks);
    }
    Ok(claim)
}

impl Claiming<'_> {
    async fn run(&mut self) -> Result<()> {
        let request = self.request;
        if request.recover && self.marks.is_walk_due(Instant::now(), request) && self.walk().await? {
            return Ok(());
        }
        let now = Instant::now();
        let mark = if self.inner.fair.is_some() { self.marks.fair_mark(now) } else { self.marks.mark(now) };
        if let Some(mark) = mark {
            self.take(mark).await?;
            if !self.claim.is_empty() {
                return Ok(());
            }
        }
        self.take_all().await
    }

    /// Claims whatever is claimable above `safe`, promoting what is due first.
    async fn take_all(&mut self) -> Result<()> {
        if self.marks.looked_at.is_none() && self.request.claimer.is_some() {
            let row = self.row(&self.inner.postgres.sql.horizon, vec![self.marks.sessions()]).await?;
            self.marks.learn(&row, 0, 0)?;
        }
        let mut look = self.look().await?;
        while look.is_due {
            let n_promoted = self.promote().await?;
            let next = self.look().await?;
            // the rest of a long list comes with the next claim; what others hold is theirs
            look = Look {
                is_due: next.is_due && n_promoted == PROMOTE_LIMIT as u64 && next.lowest.is_none(),
                ..next
            };
        }
        match look.lowest {
            Some(lowest) => self.take(lowest - 1).await,
            None => {
                self.marks.claimed(self.marks.safe, &[], self.request.limit);
                if self.request.recover && look.n_expired > 0 {
                    self.recover().await.map(drop)
                } else {
                    Ok(())
                }
            }
        }
    }

    async fn take(&mut self, mark: i64) -> Result<()> {
        if let Some(fair) = &self.inner.fair {
            return self.take_share(fair, mark).await;
        }
        let rows = self.rows(&self.inner.sql.claim, Uuid::new_v4(), Rest::Mark(mark)).await?;
        self.marks.claimed(mark, &rows, self.request.limit);
        self.add(rows).await
    }

    /// Takes an equal share of each lane.
    async fn take_share(&mut self, fair: &Fair, mark: i64) -> Result<()> {
        let rest = Rest::Share { mark, lane: &self.marks.lane };
        let rows = self.rows(&fair.sql.claim_fair, Uuid::new_v4(), rest).await?;
        // no number of messages says that expired leases are below them
        self.marks.claimed(mark, &rows, usize::MAX);
        if let Some(lane) = reached_lane(&fair.fairness, &self.marks.lane, &rows) {
            self.marks.lane = lane;
        }
        self.add(rows).await
    }

    /// Runs a claim.
    async fn rows(&self, sql: &str, token: Uuid, rest: Rest<'_>) -> Result<Vec<ClaimedRow>> {
        let decode = |row: &QueryResult| ClaimedRow::decode(self.inner.dialect, row, token);
        let mut rows = self.decoded(sql, token, rest, decode).await?;
        rows.sort_unstable_by_key(ClaimedRow::locator);
        Ok(rows)
    }

    async fn decoded<T: Send>(
        &self,
        sql: &str,
        token: Uuid,
        rest: Rest<'_>,
        decode: impl Fn(&QueryResult) -> Result<T> + Send + Sync,
    ) -> Result<Vec<T>> {
        self.table.repeat_moved(|| self.fetch(sql, token, rest, &decode)).await
    }

    /// Rows are decoded while the server is still working on the next ones.
    async fn fetch<T: Send>(
        &self,
        sql: &str,
        token: Uuid,
        rest: Rest<'_>,
        decode: impl Fn(&QueryResult) -> Result<T> + Send + Sync,
    ) -> Result<Vec<T>> {
        let request = self.request;
        let mut query = sqlx::query(AssertSqlSafe(sql.to_owned()))
            .bind(request.limit as i64)
            .bind(token)
            .bind(request.lease.micros())
            .bind(max_attempts(request))
            .bind(request.topics.as_deref())
            .bind(request.max_bytes.map_or(i64::MAX, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)));
        query = match rest {
            Rest::None => query,
            Rest::Mark(mark) => query.bind(mark),
            Rest::Share { mark, lane } => query.bind(mark).bind(lane),
            Rest::Turn { key, blocks, n_keyless } => query.bind(key).bind(blocks).bind(n_keyless),
            Rest::Front { floor, blocks, end } => query.bind(floor).bind(blocks).bind(end),
            Rest::Blocks(blocks) => query.bind(blocks),
        };
        let mut stream = query.fetch(self.table.hot()?.get_postgres_connection_pool());
        let mut rows = Vec::new();
        while let Some(row) = stream.next().await {
            let row = row.map_err(|error| from_sqlx("claim", &self.table.name, error))?;
            rows.push(decode(&row.into())?);
        }
        Ok(rows)
    }

    async fn add(&mut self, rows: Vec<ClaimedRow>) -> Result<()> {
        let (messages, n_dead) = bury_undecodable(self.table, rows).await?;
        self.claim.messages = messages;
        self.claim.n_dead += n_dead;
        Ok(())
    }

    /// Once more where the mark that it looked above is void.
    async fn look(&mut self) -> Result<Look> {
        let mark = self.marks.safe;
        let look = self.look_above().await?;
        if self.marks.safe < mark { self.look_above().await } else { Ok(look) }
    }

    async fn look_above(&mut self) -> Result<Look> {
        let values = vec![self.marks.safe.into(), topics(self.request), self.marks.sessions()];
        let row = self.row(&self.inner.sql.look, values).await?;
        let look = Look { lowest: column(&row, 0)?, is_due: column(&row, 1)?, n_expired: column(&row, 7)? };
        let now = Instant::now();
        self.marks.looked(look.lowest, now);
        self.marks.next_due = micros(&row, 2)?.map(|due| now + due);
        if look.lowest.is_none() && self.request.recover {
            self.marks.walked(look.n_expired, micros(&row, 8)?, self.request.lease, now);
        }
        self.marks.learn(&row, 3, self.marks.safe)?;
        Ok(look)
    }

    async fn promote(&self) -> Result<u64> {
        let values = Values(vec![PROMOTE_LIMIT.into(), self.inner.keeps_numbers().into()]);
        self.table.execute_alone("claim", self.table.hot()?, &self.inner.sql.promote, values).await
    }

    /// Looks for expired leases, and says whether some were claimed.
    async fn walk(&mut self) -> Result<bool> {
        let values = vec![self.marks.walk_bound().into(), topics(self.request)];
        let row = self.row(&self.inner.postgres.sql.leases, values).await?;
        let n_expired = column(&row, 0)?;
        self.marks.walked(n_expired, micros(&row, 1)?, self.request.lease, Instant::now());
        if n_expired > 0 { self.recover().await } else { Ok(false) }
    }

    /// Buries expired messages that are out of attempts and claims a group of the others.
    async fn recover(&mut self) -> Result<bool> {
        let limit = self.request.limit as i64;
        let values = Values(vec![limit.into(), max_attempts(self.request).into(), topics(self.request)]);
        let n_dead =
            self.table.execute_alone("claim", self.table.hot()?, &self.inner.sql.bury, values).await?;
        self.claim.n_dead += n_dead as usize;
        let rows = match &self.inner.ordered {
            None => self.rows(&self.inner.sql.recover, Uuid::new_v4(), Rest::None).await?,
            Some(ordered) => {
                self.rows(&ordered.sql.recover_ordered, Uuid::new_v4(), Rest::Blocks(ordered.blocks)).await?
            }
        };
        self.add(rows).await?;
        self.claim.recovered = !self.claim.messages.is_empty();
        Ok(self.claim.recovered)
    }

    async fn row(&self, sql: &str, values: Vec<Value>) -> Result<QueryResult> {
        let rows = self.table.query("claim", self.table.hot()?, sql, Values(values)).await?;
        rows.into_iter().next().ok_or_else(|| Error::new(ErrorKind::Other, "claim"))
    }
}

/// The parameters that only some claims have, behind the others.
#[derive(Clone, Copy)]
enum Rest<'a> {
    None,
    Mark(i64),
    Share { mark: i64, lane: &'a str },
    Turn { key: &'a str, blocks: bool, n_keyless: i64 },
    Front { floor: i64, blocks: bool, end: i64 },
    Blocks(bool),
}

/// A number of microseconds, where there is one.
pub(crate) fn micros(row: &QueryResult, index: usize) -> Result<Option<Duration>> {
    Ok(column::<Option<i64>>(row, index)?.map(|micros| from_duration(Dialect::Postgres, micros)))
}

fn max_attempts(request: &ClaimRequest) -> i32 {
    i32::try_from(request.max_attempts).unwrap_or(i32::MAX)
}

fn topics(request: &ClaimRequest) -> Value {
    texts(request.topics.as_deref())
}
