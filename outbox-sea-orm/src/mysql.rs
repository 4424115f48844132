//! What only MySQL and MariaDB need: connections of our own, claims in two statements, and settlements that answer
//! exactly without RETURNING.

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
use crate::repository::OutboxTable;
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
const SMALL_PACKET: usize = 512 * 1024;
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
        match execute(connection, &sql, rows(part)?).await {
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

fn rows(drafts: &[Draft]) -> Result<Values> {
    let mut values: Vec<Value> = Vec::with_capacity(drafts.len() * 9);
    for (place, draft) in drafts.iter().enumerate() {
        let (place, delay) = (place as i64, draft.delay.micros() * 1_000);
        values.extend([
            draft.id.into(),
            draft.topic.as_str().into(),
            draft.key.as_deref().into(),
            draft.payload.to_vec().into(),
            crate::enqueue::json(draft)?.into(),
            Value::from(i16::from(delay > 0)),
            place.into(),
            (place + delay).into(),
            (place + delay).into(),
        ]);
    }
    Ok(Values(values))
}

async fn execute(
    connection: &impl ConnectionTrait,
    sql: &str,
    values: Values,
) -> Result<ExecResult, sea_orm::DbErr> {
    let db_backend = connection.get_database_backend();
    connection.execute_raw(Statement { sql: sql.to_owned(), values: Some(values), db_backend }).await
}

// ---- claim

/// What a claim loop remembers: since when it has found full batches, without looking for anything else.
struct Streak(Instant);

/// What one look found.
struct Look {
    is_ready: bool,
    is_due: bool,
    is_exhausted: bool,
    /// How many attempts the first expired message has had.
    expired_attempts: Option<u32>,
    next: Option<Duration>,
}

/// See [`Repository::claim`](outbox_core::Repository::claim).
///
/// Two statements take messages: one leases them, one reads what it has leased. Dropped or failing in between, it is as
/// if the call had finished and its answer was lost: the messages come back when the leases have expired.
pub(crate) async fn claim(table: &OutboxTable, request: ClaimRequest) -> Result<Claim> {
    let streak = request.claimer.as_ref().and_then(outbox_core::Claimer::take::<Streak>);
    let mut claim = Claim::default();
    if let Some(streak) = streak.filter(|streak| streak.0.elapsed() < LOOK_INTERVAL) {
        take_ready(table, &request, &mut claim).await?;
        keep_streak(&request, &claim, streak.0);
        if !claim.is_empty() {
            return Ok(claim);
        }
    }
    let looked_at = Instant::now();
    let found = look(table, &request).await?;
    claim.next_due_in = found.next;
    if request.recover {
        recover(table, &request, &found, &mut claim).await?;
        if claim.recovered {
            return Ok(claim);
        }
    }
    let promoted = if found.is_due { promote(table).await? } else { 0 };
    if promoted > 0 {
        // there may be more
        claim.next_due_in = Some(Duration::ZERO);
    }
    if found.is_ready || promoted > 0 {
        take_ready(table, &request, &mut claim).await?;
        keep_streak(&request, &claim, looked_at);
        let again = if claim.is_empty() { PASSING_LOCK } else { request.lease };
        claim.next_due_in = Some(claim.next_due_in.map_or(again, |next| next.min(again)));
    }
    Ok(claim)
}

fn keep_streak(request: &ClaimRequest, claim: &Claim, since: Instant) {
    if let Some(claimer) = request.claimer.as_ref().filter(|_| claim.messages.len() >= request.limit) {
        claimer.put(Streak(since));
    }
}

async fn look(table: &OutboxTable, request: &ClaimRequest) -> Result<Look> {
    let sql = crate::sql::repeat_list(&table.table()?.sql.look, n_topics(request));
    let max_attempts = || Value::from(max_attempts(request));
    let mut values = topics(request);
    for _ in 0..2 {
        values.extend(topics(request));
        values.push(max_attempts());
    }
    let rows = table.query("claim", table.hot()?, &sql, Values(values)).await?;
    let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Other, "claim"))?;
    let next: i64 = column(row, 4)?;
    Ok(Look {
        is_ready: column(row, 0)?,
        is_due: column(row, 1)?,
        is_exhausted: column(row, 2)?,
        expired_attempts: column::<Option<i32>>(row, 3)?.map(|attempts| u32::try_from(attempts).unwrap_or(0)),
        next: (next < NEVER).then(|| from_duration(Dialect::MySql, next)),
    })
}

async fn promote(table: &OutboxTable) -> Result<u64> {
    let values = Values(vec![(PROMOTE_LIMIT as i64).into()]);
    table.execute("claim", table.hot()?, &table.table()?.sql.promote, values).await
}

async fn take_ready(table: &OutboxTable, request: &ClaimRequest, claim: &mut Claim) -> Result<()> {
    let sql = crate::sql::repeat_list(&table.table()?.sql.claim, n_topics(request));
    let token = Uuid::new_v4();
    let mut values = vec![max_attempts(request).into()];
    values.extend(topics(request));
    values.extend([
        (request.limit as i64).into(),
        max_bytes(request),
        token.into(),
        request.lease.micros().into(),
    ]);
    take(table, &sql, values, token, claim).await
}

/// Buries expired messages that are out of attempts and claims a group of the others.
async fn recover(table: &OutboxTable, request: &ClaimRequest, found: &Look, claim: &mut Claim) -> Result<()> {
    if found.is_exhausted {
        let sql = crate::sql::repeat_list(&table.table()?.sql.bury, n_topics(request));
        let mut values = topics(request);
        values.extend([max_attempts(request).into(), (request.limit as i64).into()]);
        claim.n_dead += table.execute("claim", table.hot()?, &sql, Values(values)).await? as usize;
    }
    let Some(attempts) = found.expired_attempts else { return Ok(()) };
    let sql = crate::sql::repeat_list(&table.table()?.sql.recover, n_topics(request));
    let token = Uuid::new_v4();
    let group = recovery_group(request.limit, attempts, request.max_attempts);
    let mut values = topics(request);
    values.extend([attempts.into(), (group as i64).into(), max_bytes(request), token.into()]);
    values.push(request.lease.micros().into());
    take(table, &sql, values, token, claim).await?;
    claim.recovered = !claim.messages.is_empty();
    Ok(())
}

/// Runs a statement that leases rows or makes them dead, and reads what it has leased.
async fn take(
    table: &OutboxTable,
    sql: &str,
    values: Vec<Value>,
    token: Uuid,
    claim: &mut Claim,
) -> Result<()> {
    let taken = execute(table.hot()?, sql, Values(values)).await;
    let taken = taken.map_err(|error| from_db("claim", &table.name, error))?;
    // the end of the leases, where there are any
    let until = taken.last_insert_id();
    let rows = if until == 0 { Vec::new() } else { claimed(table, until as i64, token).await? };
    claim.n_dead += (taken.rows_affected() as usize).saturating_sub(rows.len());
    let (messages, n_dead) = bury_undecodable(table, rows).await?;
    claim.messages = messages;
    claim.n_dead += n_dead;
    Ok(())
}

async fn claimed(table: &OutboxTable, until: i64, token: Uuid) -> Result<Vec<ClaimedRow>> {
    let values = Values(vec![until.into(), token.into()]);
    let rows = table.query("claim", table.hot()?, &table.table()?.mysql.sql.claimed, values).await?;
    rows.iter().map(|row| ClaimedRow::decode(Dialect::MySql, row, token)).collect()
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
        Ok(changed == n as u64)
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
