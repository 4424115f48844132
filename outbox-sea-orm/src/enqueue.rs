use outbox_core::{Draft, Error, ErrorKind, MessageId, Result, validate_drafts};
use sea_orm::sea_query::Values;
use sea_orm::{ConnectionTrait, Value};

use crate::dialect::Dialect;
use crate::repository::OutboxTable;
use crate::row::ToDatabase;

/// The most rows and payload bytes in one statement: PostgreSQL takes 1 GiB, SQLite 32,766 parameters.
fn max_rows_and_bytes(dialect: Dialect) -> (usize, usize) {
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => (usize::MAX, 128 * 1024 * 1024),
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => (1_000, usize::MAX),
    }
}

pub(crate) async fn enqueue(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    drafts: Vec<Draft>,
) -> Result<Vec<MessageId>> {
    validate_drafts(&drafts, &table.limits)?;
    let n_drafts = drafts.len();
    let ids = drafts.iter().map(|draft| draft.id).collect();
    let mut n_stored = 0;
    for chunk in chunks(table.table()?.dialect, drafts) {
        n_stored += insert(table, connection, chunk).await?;
    }
    if n_stored < n_drafts as u64 {
        let detail = format!("{} of {n_drafts}", n_drafts as u64 - n_stored);
        return Err(Error::new(ErrorKind::AlreadyEnqueued, "enqueue")
            .with_table(&table.name)
            .with_detail(detail));
    }
    Ok(ids)
}

fn chunks(dialect: Dialect, drafts: Vec<Draft>) -> Vec<Vec<Draft>> {
    let (max_rows, max_bytes) = max_rows_and_bytes(dialect);
    let mut chunks: Vec<Vec<Draft>> = Vec::new();
    let mut bytes = 0;
    for draft in drafts {
        bytes += draft.payload.len();
        match chunks.last_mut().filter(|chunk| chunk.len() < max_rows && bytes <= max_bytes) {
            Some(chunk) => chunk.push(draft),
            None => {
                bytes = draft.payload.len();
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
        Dialect::Postgres => table.execute("enqueue", connection, &inner.sql.enqueue, columns(drafts)?).await,
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => {
            let sql = crate::sql::repeat_values(&inner.sql.enqueue, drafts.len());
            table.execute("enqueue", connection, &sql, rows(drafts)?).await
        }
    }
}

/// One array a column. No element is NULL, which the driver could not bind.
#[cfg(feature = "postgres")]
fn columns(drafts: Vec<Draft>) -> Result<Values> {
    let n = drafts.len();
    let mut ids = Vec::with_capacity(n);
    let mut topics = Vec::with_capacity(n);
    let mut keys = Vec::with_capacity(n);
    let mut has_key = Vec::with_capacity(n);
    let mut payloads: Vec<Vec<u8>> = Vec::with_capacity(n);
    let mut headers = Vec::with_capacity(n);
    let mut delays = Vec::with_capacity(n);
    for draft in drafts {
        headers.push(json(&draft)?);
        delays.push(draft.delay.micros());
        ids.push(draft.id);
        topics.push(draft.topic);
        has_key.push(draft.key.is_some());
        keys.push(draft.key.unwrap_or_default());
        payloads.push(draft.payload.into());
    }
    let columns: Vec<Value> = vec![
        ids.into(),
        topics.into(),
        keys.into(),
        has_key.into(),
        payloads.into(),
        headers.into(),
        delays.into(),
    ];
    Ok(Values(columns))
}

#[cfg(feature = "sqlite")]
fn rows(drafts: Vec<Draft>) -> Result<Values> {
    let mut values: Vec<Value> = Vec::with_capacity(drafts.len() * 6);
    for draft in drafts {
        let headers = json(&draft)?;
        let delay = draft.delay.millis();
        values.extend([
            draft.id.into(),
            draft.topic.into(),
            draft.key.into(),
            Vec::from(draft.payload).into(),
            headers.into(),
            Value::from(delay),
        ]);
    }
    Ok(Values(values))
}

fn json(draft: &Draft) -> Result<String> {
    if draft.headers.is_empty() {
        return Ok("{}".to_owned());
    }
    serde_json::to_string(&draft.headers).map_err(|_| Error::invalid("headers", "cannot be written as JSON"))
}
