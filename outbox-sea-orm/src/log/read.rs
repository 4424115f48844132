//! The rows of a leased range, decoded straight from what the server sends.

use std::str;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use outbox_core::{ClaimRequest, Lease, Message, Result};
use sea_orm::sqlx::postgres::PgRow;
use sea_orm::sqlx::{self, AssertSqlSafe, Row, ValueRef};
use uuid::Uuid;

use super::LogGroup;
use super::range::Place;
use crate::error::from_sqlx;
use crate::row::{ClaimedRow, headers, undecodable};

/// From the Unix epoch to that of PostgreSQL, in microseconds.
const EPOCH: i64 = 946_684_800_000_000;
/// The end of the year 9999, in microseconds since the Unix epoch.
const LATEST: i64 = 253_402_300_800_000_000;

/// A range that was just leased.
pub(super) struct Range {
    pub(super) from: i64,
    pub(super) to: i64,
    /// Rows of other topics have no place.
    pub(super) topics: Option<Vec<String>>,
    pub(super) token: Uuid,
    /// How many places it has.
    pub(super) n: usize,
}

/// What a range holds.
pub(super) struct Read {
    pub(super) rows: Vec<ClaimedRow>,
    /// What the claim is not for: delayed, of a topic that it does not serve, or more bytes than it may take.
    pub(super) aside: Vec<Lease>,
}

/// Reads a range that was leased for a claim. When this returns, the lease is on disk.
pub(super) async fn range(group: &LogGroup, range: Range, request: &ClaimRequest) -> Result<Read> {
    let table = &group.log.table;
    let query = sqlx::query(AssertSqlSafe(group.postgres.log_read.clone()))
        .bind(range.token)
        .bind(range.from)
        .bind(range.to)
        .bind(range.topics);
    let pool = table.hot()?.get_postgres_connection_pool();
    let mut connection = pool.acquire().await.map_err(|error| from_sqlx("claim", table.name(), error))?;
    let mut stream = query.fetch(&mut *connection);
    let mut read = Read { rows: Vec::with_capacity(range.n), aside: Vec::new() };
    let (served, max_bytes) = (request.topics.as_deref(), request.max_bytes.unwrap_or(u64::MAX));
    let (mut place, mut n_bytes) = (0, 0);
    while let Some(row) = stream.next().await {
        let row = Columns(row.map_err(|error| from_sqlx("claim", table.name(), error))?);
        let mut lease =
            Lease { id: row.id().unwrap_or_default(), token: range.token, locator: row.number(0)? };
        Place::enter(place, &mut lease);
        place += 1;
        let is_for = row.is_for(served);
        n_bytes += if is_for { row.value(4)?.len() as u64 } else { 0 };
        match is_for && (n_bytes <= max_bytes || read.rows.is_empty()) {
            true => read.rows.push(ClaimedRow::of(lease, row.message(), || row.key().unwrap_or_default())),
            false => read.aside.push(lease),
        }
    }
    Ok(read)
}

/// A row of log_read: `seq, id, topic, key, payload, headers, created_at, state`, in the binary format.
struct Columns(PgRow);

impl Columns {
    fn value(&self, index: usize) -> Result<&[u8]> {
        self.optional(index)?.ok_or_else(|| undecodable(index))
    }

    fn optional(&self, index: usize) -> Result<Option<&[u8]>> {
        let value = self.0.try_get_raw(index).map_err(|_| undecodable(index))?;
        if value.is_null() {
            return Ok(None);
        }
        value.as_bytes().map(Some).map_err(|_| undecodable(index))
    }

    fn fixed<const N: usize>(&self, index: usize) -> Result<[u8; N]> {
        self.value(index)?.try_into().map_err(|_| undecodable(index))
    }

    fn number(&self, index: usize) -> Result<i64> {
        self.fixed(index).map(i64::from_be_bytes)
    }

    fn text(&self, index: usize) -> Result<&str> {
        str::from_utf8(self.value(index)?).map_err(|_| undecodable(index))
    }

    fn id(&self) -> Result<Uuid> {
        self.fixed(1).map(Uuid::from_bytes)
    }

    fn key(&self) -> Result<Option<String>> {
        self.optional(3)?.map(|_| self.text(3).map(str::to_owned)).transpose()
    }

    fn created_at(&self) -> Result<DateTime<Utc>> {
        let micros = self.number(6)?.checked_add(EPOCH).filter(|micros| (0..LATEST).contains(micros));
        micros.and_then(DateTime::from_timestamp_micros).ok_or_else(|| undecodable(6))
    }

    /// Whether it is not delayed, and has a topic that is served.
    fn is_for(&self, served: Option<&[String]>) -> bool {
        let is_served = |topic: &str| served.is_none_or(|served| served.iter().any(|served| served == topic));
        self.fixed(7).is_ok_and(|state| state == [0, 0]) && self.text(2).is_ok_and(is_served)
    }

    /// As its first attempt.
    fn message(&self) -> Result<Message> {
        Ok(Message {
            id: self.id()?,
            topic: self.text(2)?.to_owned(),
            key: self.key()?,
            payload: Bytes::copy_from_slice(self.value(4)?),
            // behind the version of the format
            headers: headers(self.value(5)?.get(1..).unwrap_or_default())?,
            created_at: self.created_at()?,
            attempt: 1,
            fence: 1,
        })
    }
}
