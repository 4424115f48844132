//! What only MySQL and MariaDB need: connections of our own, claims in two statements, and settlements that answer
//! exactly without RETURNING.

pub(crate) mod keys;
mod lanes;
mod turns;
mod walk;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use outbox_core::{Claim, ClaimRequest, Draft, Error, ErrorKind, Lease, MessageId, Result, recovery_group};
use sea_orm::sea_query::Values;
use sea_orm::sqlx::mysql::MySqlPoolOptions;
use sea_orm::sqlx::{self, ConnectOptions, Executor};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseConnectionType, ExecResult, SqlxMySqlConnector, Statement,
    Value,
};
use serde_json::json;
use uuid::Uuid;

use crate::dialect::Dialect;
use crate::error::from_db;
use crate::repository::{OutboxTable, Table};
use crate::row::{ClaimedRow, ToDatabase, bury_undecodable, column, from_duration};
use crate::shield::Db;
use crate::sql::MySqlSql;

/// Claims, settlements and extensions at the same time.
const MAX_CONNECTIONS: u32 = 4;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a claim loop that finds full batches claims without looking first.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// When to claim again if ready rows were there and none was free: other claims pass over them with locks.
const PASSING_LOCK: Duration = Duration::from_millis(10);
/// The most parked rows that one claim makes ready at a time. Their places differ by nanoseconds: at most 1,000.
const PROMOTE_LIMIT: u64 = 1_000;
/// The most rows that one statement settles or redrives, for the same reason.
pub(crate) const MAX_ROWS: usize = 1_000;
/// What `look` says when nothing is parked and nothing leased lies beyond this.
const NEVER: i64 = 1 << 52;
/// How often leases that were good a moment ago may turn out not to be.
const MAX_ROUNDS: usize = 100;
/// Statements up to this size are sent without knowing the server's limit, whose least sensible value is 1 MiB.
pub(crate) const SMALL_PACKET: usize = 512 * 1024;
/// The most bytes of a statement, however many the server takes.
const LARGE_PACKET: usize = 8 * 1024 * 1024;
/// What a row needs beyond its texts.
const ROW_OVERHEAD: usize = 256;

/// What each of our own connections is told. Without gaps to lock, claims, settlements and producers wait for nobody;
/// under REPEATABLE READ, the server's default, they would deadlock.
const SETTINGS: &str = "SET SESSION autocommit = 1, innodb_lock_wait_timeout = 10; \
                        SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// What is kept for one table.
pub(crate) struct Own {
    pub(crate) sql: MySqlSql,
    pool: OnceLock<Db>,
    packet: OnceLock<usize>,
}

impl Own {
    pub(crate) fn new(dialect: Dialect, table: &outbox_core::TableName) -> Self {
        Self { sql: MySqlSql::new(dialect, table), pool: OnceLock::new(), packet: OnceLock::new() }
    }

    /// `None` on another database and with a shared pool.
    pub(crate) fn connection(&self, table: &OutboxTable) -> Option<&Db> {
        let DatabaseConnectionType::SqlxMySqlPoolConnection(_) = &table.db.inner else { return None };
        (!table.has_shared_pool()).then(|| self.pool.get_or_init(|| open(&table.db)))
    }
}

/// A pool with the options of `db` and our settings; connects when it is first used.
fn open(db: &DatabaseConnection) -> Db {
    let options = (*db.get_mysql_connection_pool().connect_options()).clone();
    let pool = MySqlPoolOptions::new()
        .max_connections(MAX_CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .after_connect(|connection, _| {
            Box::pin(async { connection.execute(sqlx::raw_sql(SETTINGS)).await.map(drop) })
        })
        .connect_lazy_with(options.disable_statement_logging());
    Db::new(&SqlxMySqlConnector::from_sqlx_mysql_pool(pool))
}

// ---- enqueue

/// The most bytes of rows in one statement; asks the server, once, where it matters.
pub(crate) async fn max_packet(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    drafts: &[Draft],
) -> Result<usize> {
    if drafts.iter().map(row_bytes).sum::<usize>() <= SMALL_PACKET {
        return Ok(SMALL_PACKET);
    }
    let own = &table.table()?.mysql;
    let packet = match own.packet.get() {
        Some(packet) => *packet,
        None => {
            let packet = read_packet(table, connection).await?;
            *own.packet.get_or_init(|| packet)
        }
    };
    let most = packet.saturating_sub(SMALL_PACKET / 64);
    match drafts.iter().map(row_bytes).find(|bytes| *bytes > most) {
        Some(bytes) => Err(Error::invalid(
            "payload",
            format_args!("{bytes} bytes of a row, the server's max_allowed_packet is {packet}"),
        )),
        None => Ok(most.min(LARGE_PACKET)),
    }
}

async fn read_packet(table: &OutboxTable, connection: &impl ConnectionTrait) -> Result<usize> {
    let sql = &table.table()?.mysql.sql.max_packet;
    let rows = table.query("enqueue", connection, sql, Values(Vec::new())).await?;
    let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Other, "enqueue"))?;
    Ok(usize::try_from(column::<i64>(row, 0)?).unwrap_or(usize::MAX))
}

pub(crate) fn row_bytes(draft: &Draft) -> usize {
    let headers: usize = draft.headers.iter().map(|(name, value)| 2 * (name.len() + value.len()) + 6).sum();
    draft.payload.len()
        + headers
        + draft.topic.len()
        + draft.key.as_ref().map_or(0, String::len)
        + ROW_OVERHEAD
}

/// Inserts drafts and says how many were new. A duplicate fails the whole statement, so its halves are tried, down to
/// the draft that it is; the statement alone is rolled back, the transaction goes on.
pub(crate) async fn insert(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    drafts: &[Draft],
) -> Result<u64> {
    let mut n_new = 0;
    let mut parts = vec![drafts];
    while let Some(part) = parts.pop() {
        let sql = crate::sql::repeat_rows(&table.table()?.sql.enqueue, part.len());
        match execute(connection, &sql, rows(part, table.table()?.keeps_numbers())?).await {
            Ok(_) => n_new += part.len() as u64,
            Err(error) if crate::error::is_duplicate_id(&error, &table.name) => {
                let (head, tail) = part.split_at(part.len() / 2);
                parts.extend(
                    [tail, head].into_iter().filter(|half| !half.is_empty() && half.len() < part.len()),
                );
            }
            Err(error) => return Err(from_db("enqueue", &table.name, error)),
        }
    }
    Ok(n_new)
}

fn rows(drafts: &[Draft], is_ordered: bool) -> Result<Values> {
    let mut values: Vec<Value> = Vec::with_capacity(drafts.len() * 9);
    for (place, draft) in drafts.iter().enumerate() {
        let has_place = !is_ordered || draft.key.is_none();
        let (place, delay) = (place as i64, draft.delay.micros() * 1_000);
        values.extend([
            draft.id.into(),
            draft.topic.as_str().into(),
            draft.key.as_deref().into(),
            draft.payload.to_vec().into(),
            crate::enqueue::json(draft)?.into(),
            Value::from(i16::from(delay > 0)),
            has_place.then_some(place).into(),
            (place + delay).into(),
            (place + delay).into(),
        ]);
    }
    Ok(Values(values))
}

pub(crate) async fn execute(
    connection: &impl ConnectionTrait,
    sql: &str,
    values: Values,
) -> Result<ExecResult, sea_orm::DbErr> {
    let db_backend = connection.get_database_backend();
    connection.execute_raw(Statement { sql: sql.to_owned(), values: Some(values), db_backend }).await
}

// ---- claim

/// What a claim loop remembers.
#[derive(Default)]
struct Memory {
    /// Since when it has found full batches, without looking for anything else.
    full_since: Option<Instant>,
    /// On an ordered table: the key where the last claim ended.
    key: String,
    /// On a fair table: the lane where it ended, and how many lanes it has found, up to its limit.
    lane: String,
    n_lanes: usize,
}

/// What one look found.
struct Look {
    is_ready: bool,
    is_due: bool,
    is_exhausted: bool,
    /// How many attempts the first expired message has had.
    expired_attempts: Option<u32>,
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
///
/// Two statements take messages: one leases them, one reads what it has leased. Dropped or failing in between, it is as
/// if the call had finished and its answer was lost: the messages come back when the leases have expired.
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
        if let Some(since) = self.memory.full_since.filter(|since| since.elapsed() < LOOK_INTERVAL) {
            self.take_ready().await?;
            self.keep_streak(since);
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
        if self.request.recover {
            self.recover(&found).await?;
            if self.claim.recovered {
                return Ok(());
            }
        }
        let promoted = if found.is_due { self.promote().await? } else { 0 };
        if promoted > 0 {
            // there may be more
            self.claim.next_due_in = Some(Duration::ZERO);
        }
        if found.is_ready || promoted > 0 {
            let is_passed_over = self.take_ready().await?;
            self.keep_streak(looked_at);
            self.come_back_in(is_passed_over);
        }
        Ok(())
    }

    /// When to claim again at the latest.
    fn come_back_in(&mut self, is_passed_over: bool) {
        let again = match self.claim.is_empty() {
            true if is_passed_over => PASSING_LOCK,
            true => return,
            false => self.request.lease,
        };
        self.claim.next_due_in = Some(self.claim.next_due_in.map_or(again, |next| next.min(again)));
    }

    fn keep_streak(&mut self, since: Instant) {
        self.memory.full_since = (self.claim.messages.len() >= self.request.limit).then_some(since);
    }

    async fn look(&self) -> Result<Look> {
        let sql = crate::sql::repeat_list(&self.inner.sql.look, n_topics(self.request));
        let max_attempts = || Value::from(max_attempts(self.request));
        let mut values = topics(self.request);
        for _ in 0..2 {
            values.extend(topics(self.request));
            values.push(max_attempts());
        }
        let rows = self.table.query("claim", self.table.hot()?, &sql, Values(values)).await?;
        let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Other, "claim"))?;
        let next: i64 = column(row, 4)?;
        let expired_attempts = column::<Option<i32>>(row, 3)?;
        Ok(Look {
            is_ready: column(row, 0)?,
            is_due: column(row, 1)?,
            is_exhausted: column(row, 2)?,
            expired_attempts: expired_attempts.map(|attempts| u32::try_from(attempts).unwrap_or(0)),
            next: (next < NEVER).then(|| from_duration(Dialect::MySql, next)),
        })
    }

    async fn promote(&self) -> Result<u64> {
        let values = Values(vec![(PROMOTE_LIMIT as i64).into()]);
        self.table.execute("claim", self.table.hot()?, &self.inner.sql.promote, values).await
    }

    /// Whether ready rows were there that another claim holds.
    async fn take_ready(&mut self) -> Result<bool> {
        if let Some(ordered) = &self.inner.ordered {
            return self.take_turns(ordered).await;
        }
        if let Some(fair) = &self.inner.fair {
            return self.take_share(fair).await;
        }
        let sql = crate::sql::repeat_list(&self.inner.sql.claim, n_topics(self.request));
        let token = Uuid::new_v4();
        let mut values = vec![max_attempts(self.request).into()];
        values.extend(topics(self.request));
        values.extend([
            (self.request.limit as i64).into(),
            max_bytes(self.request),
            token.into(),
            self.request.lease.micros().into(),
        ]);
        let rows = self.take(&sql, values, token).await?;
        self.add(rows).await?;
        Ok(true)
    }

    /// Buries expired messages that are out of attempts and claims a group of the others.
    async fn recover(&mut self, found: &Look) -> Result<()> {
        if found.is_exhausted {
            let sql = crate::sql::repeat_list(&self.inner.sql.bury, n_topics(self.request));
            let mut values = topics(self.request);
            values.extend([max_attempts(self.request).into(), (self.request.limit as i64).into()]);
            let n_dead = self.table.execute("claim", self.table.hot()?, &sql, Values(values)).await?;
            self.claim.n_dead += n_dead as usize;
        }
        let Some(attempts) = found.expired_attempts else { return Ok(()) };
        let rows = match &self.inner.ordered {
            None => self.recover_group(attempts).await?,
            Some(ordered) => self.recover_turns(ordered).await?,
        };
        self.add(rows).await?;
        self.claim.recovered = !self.claim.messages.is_empty();
        Ok(())
    }

    /// Some of those that have had as many attempts.
    async fn recover_group(&mut self, attempts: u32) -> Result<Vec<ClaimedRow>> {
        let sql = crate::sql::repeat_list(&self.inner.sql.recover, n_topics(self.request));
        let token = Uuid::new_v4();
        let group = recovery_group(self.request.limit, attempts, self.request.max_attempts);
        let mut values = topics(self.request);
        values.extend([attempts.into(), (group as i64).into(), max_bytes(self.request), token.into()]);
        values.push(self.request.lease.micros().into());
        self.take(&sql, values, token).await
    }

    /// Runs a statement that leases rows or makes them dead, and reads what it has leased.
    async fn take(&mut self, sql: &str, values: Vec<Value>, token: Uuid) -> Result<Vec<ClaimedRow>> {
        let taken = execute(self.table.hot()?, sql, Values(values)).await;
        let taken = taken.map_err(|error| from_db("claim", &self.table.name, error))?;
        let n_taken = taken.rows_affected() as usize;
        if n_taken == 0 {
            return Ok(Vec::new());
        }
        // the end of the leases, unless a trigger of somebody's has got in its way
        let until = taken.last_insert_id() as i64;
        let sql = &self.inner.mysql.sql;
        let mut rows = self.claimed(&sql.claimed, vec![until.into(), token.into()], token).await?;
        if rows.len() < n_taken {
            rows = self.claimed(&sql.claimed_by_token, vec![token.into()], token).await?;
        }
        self.claim.n_dead += n_taken.saturating_sub(rows.len());
        Ok(rows)
    }

    async fn claimed(&self, sql: &str, values: Vec<Value>, token: Uuid) -> Result<Vec<ClaimedRow>> {
        let values = Values(values);
        let rows = self.table.query("claim", self.table.hot()?, sql, values).await?;
        rows.iter().map(|row| ClaimedRow::decode(Dialect::MySql, row, token)).collect()
    }

    async fn add(&mut self, rows: Vec<ClaimedRow>) -> Result<()> {
        let (messages, n_dead) = bury_undecodable(self.table, rows).await?;
        self.claim.messages = messages;
        self.claim.n_dead += n_dead;
        Ok(())
    }
}

/// Whether all topics are meant, and a list that is never empty.
fn topics(request: &ClaimRequest) -> Vec<Value> {
    let names = request.topics.iter().flatten().map(|topic| Value::from(topic.as_str()));
    let mut values = vec![Value::from(i16::from(request.topics.is_none()))];
    values.extend(names);
    if request.topics.is_none() {
        values.push("".into());
    }
    values
}

fn n_topics(request: &ClaimRequest) -> usize {
    request.topics.as_ref().map_or(1, Vec::len)
}

fn max_attempts(request: &ClaimRequest) -> i64 {
    i64::from(request.max_attempts)
}

fn max_bytes(request: &ClaimRequest) -> Value {
    request.max_bytes.map_or(i64::MAX, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)).into()
}

// ---- settle, extend, redrive, discard

/// A statement that changes all the rows that it names or none of them, and the one that says which of them it could.
pub(crate) struct AllOrNone<'a> {
    pub(crate) operation: &'static str,
    pub(crate) sql: &'a str,
    pub(crate) good: &'a str,
    /// What comes before the rows.
    pub(crate) first: Option<Value>,
    /// Whether to ask first which are good: where the others may be rows of open transactions, on which the statement
    /// would wait.
    pub(crate) look_first: bool,
}

impl AllOrNone<'_> {
    /// Says which of the rows were changed. There is no RETURNING in MySQL; so the statement changes none unless all of
    /// them are good, and is repeated without those that are not: they cannot become good again.
    pub(crate) async fn run(self, table: &OutboxTable, rows: &[serde_json::Value]) -> Result<Vec<bool>> {
        let mut changed = vec![false; rows.len()];
        let mut left: Vec<usize> = (0..rows.len()).collect();
        let mut is_looked_at = !self.look_first;
        for _ in 0..MAX_ROUNDS {
            if left.is_empty() {
                return Ok(changed);
            }
            let named: Vec<_> = left.iter().map(|index| &rows[*index]).collect();
            let named = json!(named).to_string();
            if is_looked_at && self.change(table, &named, left.len()).await? {
                left.into_iter().for_each(|index| changed[index] = true);
                return Ok(changed);
            }
            left = self
                .good(table, named)
                .await?
                .into_iter()
                .filter_map(|place| left.get(place).copied())
                .collect();
            is_looked_at = true;
        }
        Err(Error::new(ErrorKind::Contention, self.operation).with_table(&table.name))
    }

    /// The places of the good ones, from 0.
    async fn good(&self, table: &OutboxTable, named: String) -> Result<Vec<usize>> {
        let rows = table.query(self.operation, table.hot()?, self.good, Values(vec![named.into()])).await?;
        rows.iter().map(|row| Ok(usize::try_from(column::<i64>(row, 0)? - 1).unwrap_or(usize::MAX))).collect()
    }

    async fn change(&self, table: &OutboxTable, named: &str, n: usize) -> Result<bool> {
        let mut values: Vec<Value> = self.first.iter().cloned().collect();
        values.extend([named.into(), Value::from(n as i64)]);
        let changed = table.execute(self.operation, table.hot()?, self.sql, Values(values)).await?;
        Ok(changed > 0)
    }
}

/// A number and a token, as the statements take them.
pub(crate) fn lease_row(lease: &Lease) -> serde_json::Value {
    json!([lease.locator, hex(lease.token)])
}

pub(crate) fn hex(id: Uuid) -> String {
    id.simple().to_string()
}

/// Redrives or discards; returns the ids that it did that to.
pub(crate) async fn move_dead(
    table: &OutboxTable,
    operation: &'static str,
    sql: &str,
    ids: &[MessageId],
) -> Result<Vec<MessageId>> {
    let good = &table.table()?.mysql.sql.dead;
    let mut moved = Vec::new();
    for chunk in ids.chunks(MAX_ROWS) {
        let rows: Vec<_> = chunk.iter().map(|id| json!(hex(*id))).collect();
        let changed =
            AllOrNone { operation, sql, good, first: None, look_first: true }.run(table, &rows).await?;
        moved.extend(chunk.iter().zip(changed).filter(|(_, changed)| *changed).map(|(id, _)| *id));
    }
    Ok(moved)
}
