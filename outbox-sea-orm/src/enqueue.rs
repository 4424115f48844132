#[cfg(feature = "postgres")]
use std::time::Duration;

use outbox_core::{Draft, Error, ErrorKind, MessageId, Result, validate_dedup_retention, validate_drafts};
use sea_orm::ConnectionTrait;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use sea_orm::Value;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use sea_orm::sea_query::Values;

use crate::dedup::Keys;
use crate::dialect::Dialect;
use crate::repository::OutboxTable;
#[cfg(feature = "postgres")]
use crate::repository::Table;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use crate::row::ToDatabase;

/// The most rows and payload bytes in one statement: PostgreSQL takes 1 GiB, SQLite 32,766
/// parameters, MySQL what its server says and places of 1,000 rows.
async fn max_rows_and_bytes(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    drafts: &[Draft],
) -> Result<(usize, usize)> {
    let _ = (connection, drafts);
    Ok(match table.table()?.dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => (usize::MAX, 128 * 1024 * 1024),
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => (1_000, usize::MAX),
        #[cfg(feature = "mysql")]
        Dialect::MySql => {
            (crate::mysql::MAX_ROWS, crate::mysql::max_packet(table, connection, drafts).await?)
        }
    })
}

/// What a draft adds to the size of a statement.
fn bytes(dialect: Dialect, draft: &Draft) -> usize {
    match dialect {
        #[cfg(feature = "mysql")]
        Dialect::MySql => crate::mysql::row_bytes(draft),
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => draft.payload.len(),
    }
}

pub(crate) async fn enqueue(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    drafts: Vec<Draft>,
) -> Result<Vec<MessageId>> {
    validate_drafts(&drafts, &table.limits)?;
    validate_dedup_retention(table.dedup_retention)?;
    if has_keys(&drafts) {
        return enqueue_keyed(table, connection, drafts).await;
    }
    let ids: Vec<MessageId> = drafts.iter().map(|draft| draft.id).collect();
    let n_there = store(table, connection, drafts).await?;
    all_new(table, n_there, ids)
}

/// Whether any draft is to be stored only once.
pub(crate) fn has_keys(drafts: &[Draft]) -> bool {
    drafts.iter().any(|draft| draft.dedup_key.is_some())
}

/// First the keys, all of them, then the messages of those that were free.
async fn enqueue_keyed(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    drafts: Vec<Draft>,
) -> Result<Vec<MessageId>> {
    let keys = Keys::take(table, connection, &drafts).await?;
    let ids: Vec<_> = drafts.iter().map(|draft| keys.id(draft)).collect();
    let n_hidden = ids.iter().filter(|id| id.is_none()).count();
    let new = drafts.into_iter().filter(|draft| keys.is_new(draft)).collect();
    let n_there = store(table, connection, new).await?;
    // an id that is not known is that of a draft that was there
    all_new(table, n_there + n_hidden, ids.into_iter().map(Option::unwrap_or_default).collect())
}

/// The ids, unless some of the drafts were there already.
fn all_new(table: &OutboxTable, n_there: usize, ids: Vec<MessageId>) -> Result<Vec<MessageId>> {
    if n_there == 0 {
        return Ok(ids);
    }
    let detail = format!("{n_there} of {}", ids.len());
    Err(Error::new(ErrorKind::AlreadyEnqueued, "enqueue").with_table(&table.name).with_detail(detail))
}

/// Inserts the drafts; how many of their ids were there already.
async fn store(table: &OutboxTable, connection: &impl ConnectionTrait, drafts: Vec<Draft>) -> Result<usize> {
    let mut n_there = drafts.len() as u64;
    let most = max_rows_and_bytes(table, connection, &drafts).await?;
    for chunk in chunks(table.table()?.dialect, most, drafts) {
        n_there = n_there.saturating_sub(insert(table, connection, chunk).await?);
    }
    Ok(n_there as usize)
}

fn chunks(dialect: Dialect, (max_rows, max_bytes): (usize, usize), drafts: Vec<Draft>) -> Vec<Vec<Draft>> {
    let mut chunks: Vec<Vec<Draft>> = Vec::new();
    let mut n_bytes = 0;
    for draft in drafts {
        n_bytes += bytes(dialect, &draft);
        match chunks.last_mut().filter(|chunk| chunk.len() < max_rows && n_bytes <= max_bytes) {
            Some(chunk) => chunk.push(draft),
            None => {
                n_bytes = bytes(dialect, &draft);
                chunks.push(vec![draft]);
            }
        }
    }
    chunks
}

async fn insert(table: &OutboxTable, connection: &impl ConnectionTrait, drafts: Vec<Draft>) -> Result<u64> {
    let inner = table.table()?;
    match inner.dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            let (sql, values) = postgres(inner, drafts)?;
            table.execute("enqueue", connection, sql, values).await
        }
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => {
            let sql = crate::sql::repeat_values(&inner.sql.enqueue, drafts.len());
            let values = drafts.into_iter().map(sqlite_row).collect::<Result<Vec<_>>>()?;
            table.execute("enqueue", connection, &sql, Values(values.into_iter().flatten().collect())).await
        }
        #[cfg(feature = "mysql")]
        Dialect::MySql => crate::mysql::insert(table, connection, &drafts).await,
    }
}

/// The cheapest statement for these drafts.
#[cfg(feature = "postgres")]
fn postgres(table: &Table, drafts: Vec<Draft>) -> Result<(&str, Values)> {
    if !drafts.iter().all(Draft::is_first_use) {
        return Ok((&table.postgres.sql.enqueue_repeated, columns(drafts)?));
    }
    match <[Draft; 1]>::try_from(drafts) {
        Ok([draft]) => Ok((&table.postgres.sql.enqueue_one, row(draft)?)),
        Err(drafts) => Ok((&table.sql.enqueue, columns(drafts)?)),
    }
}

#[cfg(feature = "postgres")]
fn row(draft: Draft) -> Result<Values> {
    let headers = json(&draft)?;
    let delay = draft.delay.micros();
    Ok(Values(vec![
        draft.id.into(),
        draft.topic.into(),
        draft.key.into(),
        Vec::from(draft.payload).into(),
        headers.into(),
        delay.into(),
    ]))
}

/// One array a column, but for the payloads; empty where the statement does without. No element is NULL, which the driver could not bind.
#[cfg(feature = "postgres")]
fn columns(drafts: Vec<Draft>) -> Result<Values> {
    let n = drafts.len();
    let n_keys = drafts.iter().filter(|draft| draft.key.is_some()).count();
    let is_same = |same: fn(&Draft, &Draft) -> bool| drafts.windows(2).all(|pair| same(&pair[0], &pair[1]));
    let n_topics = if is_same(|a, b| a.topic == b.topic) { 1 } else { n };
    let n_headers = if is_same(|a, b| a.headers == b.headers) { 1 } else { n };
    let has_delay = drafts.iter().any(|draft| draft.delay > Duration::ZERO);
    let mut ids = Vec::with_capacity(n);
    let mut topics = Vec::with_capacity(n_topics);
    let mut keys = Vec::with_capacity(n);
    let mut is_keyless = Vec::new();
    let mut payloads = Vec::with_capacity(drafts.iter().map(|draft| draft.payload.len()).sum());
    let mut starts = Vec::with_capacity(n);
    let mut lengths = Vec::with_capacity(n);
    let mut headers = Vec::with_capacity(n_headers);
    let mut delays = Vec::new();
    for draft in drafts {
        if headers.len() < n_headers {
            headers.push(json(&draft)?);
        }
        if topics.len() < n_topics {
            topics.push(draft.topic);
        }
        ids.push(draft.id);
        starts.push(position(payloads.len() + 1)?);
        lengths.push(position(draft.payload.len())?);
        payloads.extend_from_slice(&draft.payload);
        if has_delay {
            delays.push(draft.delay.micros());
        }
        if 0 < n_keys && n_keys < n {
            is_keyless.push(draft.key.is_none());
        }
        if n_keys > 0 {
            keys.push(draft.key.unwrap_or_default());
        }
    }
    let columns: Vec<Value> = vec![
        ids.into(),
        topics.into(),
        keys.into(),
        is_keyless.into(),
        payloads.into(),
        starts.into(),
        lengths.into(),
        headers.into(),
        delays.into(),
    ];
    Ok(Values(columns))
}

/// A place in all payloads of a statement.
#[cfg(feature = "postgres")]
fn position(bytes: usize) -> Result<i32> {
    i32::try_from(bytes).map_err(|_| Error::invalid("payload", "exceeds 2 GiB"))
}

#[cfg(feature = "sqlite")]
fn sqlite_row(draft: Draft) -> Result<[Value; 6]> {
    let headers = json(&draft)?;
    let delay = draft.delay.millis();
    Ok([
        draft.id.into(),
        draft.topic.into(),
        draft.key.into(),
        Vec::from(draft.payload).into(),
        headers.into(),
        Value::from(delay),
    ])
}

pub(crate) fn json(draft: &Draft) -> Result<String> {
    if draft.headers.is_empty() {
        return Ok("{}".to_owned());
    }
    serde_json::to_string(&draft.headers).map_err(|_| Error::invalid("headers", "cannot be written as JSON"))
}
