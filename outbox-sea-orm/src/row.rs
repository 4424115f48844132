//! Rows of the database as values of the contract, and back.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use outbox_core::{Claimed, Error, ErrorKind, Headers, Lease, Message, Outcome, Result, Settlement};
#[cfg(feature = "postgres")]
use sea_orm::Value;
#[cfg(feature = "postgres")]
use sea_orm::sea_query::ArrayType;
use sea_orm::{QueryResult, TryGetable};
use uuid::Uuid;

use crate::dialect::Dialect;
use crate::repository::OutboxTable;

/// Durations as the databases take them; rounded up, so that nothing above zero becomes nothing.
pub(crate) trait ToDatabase {
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    fn micros(self) -> i64;
    #[cfg(feature = "sqlite")]
    fn millis(self) -> i64;
}

impl ToDatabase for Duration {
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    fn micros(self) -> i64 {
        i64::try_from(self.as_nanos().div_ceil(1_000)).unwrap_or(i64::MAX)
    }

    #[cfg(feature = "sqlite")]
    fn millis(self) -> i64 {
        i64::try_from(self.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
    }
}

/// A duration in the unit of the dialect.
pub(crate) fn duration(dialect: Dialect, duration: Duration) -> i64 {
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => duration.micros(),
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => duration.millis(),
        #[cfg(feature = "mysql")]
        Dialect::MySql => duration.micros(),
    }
}

/// What the database says in its unit, never below zero.
pub(crate) fn from_duration(dialect: Dialect, value: i64) -> Duration {
    let value = u64::try_from(value).unwrap_or(0);
    match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => Duration::from_micros(value),
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => Duration::from_millis(value),
        #[cfg(feature = "mysql")]
        Dialect::MySql => Duration::from_micros(value),
    }
}

/// The column at `index` (from 0).
pub(crate) fn column<T: TryGetable>(row: &QueryResult, index: usize) -> Result<T> {
    T::try_get_by_index(row, index).map_err(|_| undecodable(index))
}

/// An array of texts, or NULL.
#[cfg(feature = "postgres")]
pub(crate) fn texts(texts: Option<&[String]>) -> Value {
    let elements = |texts: &[String]| Box::new(texts.iter().map(|text| Value::from(text.as_str())).collect());
    Value::Array(ArrayType::String, texts.map(elements))
}

pub(crate) fn undecodable(index: usize) -> Error {
    Error::new(ErrorKind::Undecodable, "decode").with_detail(format!("column {}", index + 1))
}

/// The time in the column at `index`.
pub(crate) fn time(dialect: Dialect, row: &QueryResult, index: usize) -> Result<DateTime<Utc>> {
    let time = match dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => column::<Option<DateTime<Utc>>>(row, index)?,
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => DateTime::from_timestamp_millis(column(row, index)?),
        #[cfg(feature = "mysql")]
        Dialect::MySql => column::<Option<DateTime<Utc>>>(row, index)?,
    };
    time.ok_or_else(|| undecodable(index))
}

/// A row of a claim.
pub(crate) enum ClaimedRow {
    Message(Claimed),
    /// The claim itself made it dead; the number is that of the row.
    Dead(
        #[cfg_attr(
            not(any(feature = "postgres", feature = "sqlite")),
            allow(dead_code, reason = "MySQL returns no rows that it makes dead")
        )]
        i64,
    ),
    /// It is leased and cannot be read.
    Undecodable(Undecodable),
}

/// A claimed row that cannot be read.
pub(crate) struct Undecodable {
    lease: Lease,
    key: Option<String>,
    reason: String,
}

#[cfg(feature = "wal")]
impl Undecodable {
    pub(crate) fn new(lease: Lease, key: Option<String>, reason: String) -> Self {
        Self { lease, key, reason }
    }
}

impl ClaimedRow {
    /// `seq, id, topic, key, payload, headers, created_at, attempts, fence, state`.
    pub(crate) fn decode(dialect: Dialect, row: &QueryResult, token: Uuid) -> Result<Self> {
        let locator = column(row, 0)?;
        if column::<i16>(row, 9)? != 0 {
            return Ok(Self::Dead(locator));
        }
        let id = column(row, 1).unwrap_or_default();
        let lease = Lease { id, token, locator };
        // a claim counts its attempt from 1
        let message = message(dialect, row).and_then(|message| match message.attempt {
            0 => Err(undecodable(7)),
            _ => Ok(message),
        });
        Ok(Self::of(lease, message, || column(row, 3).unwrap_or_default()))
    }

    /// A leased row, whose key is asked for where the message cannot be read.
    pub(crate) fn of(lease: Lease, message: Result<Message>, key: impl FnOnce() -> Option<String>) -> Self {
        match message {
            Ok(message) => Self::Message(Claimed { message, lease }),
            Err(error) => Self::Undecodable(Undecodable {
                lease,
                key: key(),
                reason: format!("undecodable row: {error}"),
            }),
        }
    }

    /// The lease, where this is one.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn lease_mut(&mut self) -> Option<&mut Lease> {
        match self {
            Self::Message(claimed) => Some(&mut claimed.lease),
            Self::Dead(_) => None,
            Self::Undecodable(broken) => Some(&mut broken.lease),
        }
    }

    pub(crate) fn key(&self) -> Option<&str> {
        match self {
            Self::Message(claimed) => claimed.message.key.as_deref(),
            Self::Dead(_) => None,
            Self::Undecodable(broken) => broken.key.as_deref(),
        }
    }

    /// The lane of a message on a fair table.
    pub(crate) fn lane(&self, fairness: &outbox_core::Fairness) -> Option<String> {
        let Self::Message(Claimed { message, .. }) = self else { return None };
        Some(fairness.lane(&message.topic, message.key.as_deref(), &message.headers))
    }

    /// None of a row that is dead.
    #[cfg(feature = "mysql")]
    pub(crate) fn lease(&self) -> Option<Lease> {
        match self {
            Self::Message(claimed) => Some(claimed.lease),
            Self::Dead(_) => None,
            Self::Undecodable(broken) => Some(broken.lease),
        }
    }

    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn payload_len(&self) -> usize {
        match self {
            Self::Message(claimed) => claimed.message.payload.len(),
            Self::Dead(_) | Self::Undecodable(_) => 0,
        }
    }

    pub(crate) fn locator(&self) -> i64 {
        match self {
            Self::Message(claimed) => claimed.lease.locator,
            Self::Dead(locator) => *locator,
            Self::Undecodable(broken) => broken.lease.locator,
        }
    }
}

fn message(dialect: Dialect, row: &QueryResult) -> Result<Message> {
    Ok(Message {
        id: column(row, 1)?,
        topic: column(row, 2)?,
        key: column(row, 3)?,
        payload: Bytes::from(column::<Vec<u8>>(row, 4)?),
        headers: headers(column::<String>(row, 5)?.as_bytes())?,
        created_at: time(dialect, row, 6)?,
        attempt: attempt(row)?,
        fence: column(row, 8)?,
    })
}

/// What can be read of a message, whatever is wrong with it.
pub(crate) fn readable(dialect: Dialect, row: &QueryResult) -> Message {
    message(dialect, row).unwrap_or_else(|_| Message {
        id: column(row, 1).unwrap_or_default(),
        topic: column(row, 2).unwrap_or_default(),
        key: column(row, 3).unwrap_or_default(),
        payload: Bytes::from(column::<Vec<u8>>(row, 4).unwrap_or_default()),
        headers: column::<String>(row, 5).and_then(|text| headers(text.as_bytes())).unwrap_or_default(),
        created_at: time(dialect, row, 6).unwrap_or_default(),
        attempt: attempt(row).unwrap_or_default(),
        fence: column(row, 8).unwrap_or_default(),
    })
}

fn attempt(row: &QueryResult) -> Result<u32> {
    u32::try_from(column::<i32>(row, 7)?).map_err(|_| undecodable(7))
}

/// Headers as JSON has them.
pub(crate) fn headers(text: &[u8]) -> Result<Headers> {
    if text == b"{}" {
        return Ok(Headers::new());
    }
    serde_json::from_slice(text)
        .map_err(|_| Error::new(ErrorKind::Undecodable, "decode").with_detail("headers"))
}

/// The ids that a statement returned in its first column.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) fn ids(rows: &[QueryResult]) -> Result<Vec<outbox_core::MessageId>> {
    rows.iter().map(|row| column(row, 0)).collect()
}

/// Makes dead what cannot be read, and counts it with what the claim itself made dead. Where a dead letter blocks its
/// key, what the claim took behind it is released. The rows are sorted by number.
pub(crate) async fn bury_undecodable(
    table: &OutboxTable,
    rows: Vec<ClaimedRow>,
) -> Result<(Vec<Claimed>, usize)> {
    let Readable { messages, burials, n_dead } = read(rows, table.table()?.dead_blocks());
    if !burials.is_empty() {
        // a lease lost meanwhile is somebody else's to bury
        let _ = crate::settle::settle(table, burials).await?;
    }
    Ok((messages, n_dead))
}

/// The rows of a claim, told apart.
pub(crate) struct Readable {
    pub(crate) messages: Vec<Claimed>,
    /// What is to be settled because it cannot be read, or stands behind what cannot.
    pub(crate) burials: Vec<Settlement>,
    /// How many are dead, those that cannot be read among them.
    pub(crate) n_dead: usize,
}

/// Tells the rows of a claim apart.
pub(crate) fn read(rows: Vec<ClaimedRow>, dead_blocks: bool) -> Readable {
    let mut messages = Vec::with_capacity(rows.len());
    let mut burials = Vec::new();
    let mut blocked = HashSet::new();
    let mut n_dead = 0;
    for row in rows {
        match row {
            ClaimedRow::Message(claimed) => match &claimed.message.key {
                Some(key) if blocked.contains(key) => {
                    burials.push(Settlement::new(claimed.lease, Outcome::Release));
                }
                _ => messages.push(claimed),
            },
            ClaimedRow::Dead(_) => n_dead += 1,
            ClaimedRow::Undecodable(Undecodable { lease, key, reason }) => {
                n_dead += 1;
                burials.push(Settlement::new(lease, Outcome::Dead { error: reason }));
                blocked.extend(key.filter(|_| dead_blocks));
            }
        }
    }
    Readable { messages, burials, n_dead }
}
