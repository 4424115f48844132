//! Rows of the log as pgoutput sends them, in binary.

use bytes::{Buf, Bytes};
use chrono::{DateTime, Utc};
use outbox_core::{Claimed, Error, ErrorKind, Lease, Message, Result};
use uuid::Uuid;

use crate::row::{ClaimedRow, Undecodable, headers};

/// The columns that are read, in the order of [`Row`]'s fields.
const COLUMNS: [&str; 8] = ["seq", "id", "topic", "key", "payload", "headers", "created_at", "state"];
/// From 1970 to 2000 in microseconds, where PostgreSQL counts from.
const EPOCH: i64 = 946_684_800_000_000;
/// The last microsecond of the year 9999.
const LAST: i64 = 253_402_300_799_999_999;

/// One row of the log.
pub(super) struct Row {
    pub(super) seq: i64,
    id: Uuid,
    pub(super) topic: String,
    key: Option<String>,
    pub(super) payload: Bytes,
    headers: Bytes,
    created_at: i64,
    /// It needs not wait for a time.
    pub(super) is_due: bool,
}

/// Which column of the log is where in a row.
#[derive(Debug, Default)]
pub(super) struct Columns {
    /// For each column of a row its place in [`COLUMNS`].
    places: Vec<Option<usize>>,
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Undecodable, "feed").with_detail(format!("{what} of the replication stream"))
}

/// What is left to be read of a message.
struct Rest(Bytes);

impl Rest {
    fn take(&mut self, n: usize, what: &str) -> Result<Bytes> {
        if self.0.len() < n {
            return Err(malformed(what));
        }
        Ok(self.0.split_to(n))
    }

    fn u8(&mut self, what: &str) -> Result<u8> {
        Ok(self.take(1, what)?.get_u8())
    }

    fn u16(&mut self, what: &str) -> Result<u16> {
        Ok(self.take(2, what)?.get_u16())
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(self.take(4, what)?.get_u32())
    }

    fn text(&mut self, what: &str) -> Result<Bytes> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or_else(|| malformed(what))?;
        let text = self.take(end, what)?;
        self.u8(what)?;
        Ok(text)
    }
}

impl Columns {
    /// Of a message `R`, without its first byte.
    pub(super) fn read(data: Bytes) -> Result<Self> {
        const WHAT: &str = "the columns";
        let mut rest = Rest(data);
        rest.u32(WHAT)?;
        rest.text(WHAT)?;
        rest.text(WHAT)?;
        rest.u8(WHAT)?;
        let n = rest.u16(WHAT)?;
        let mut places = Vec::with_capacity(usize::from(n));
        for _ in 0..n {
            rest.u8(WHAT)?;
            let name = rest.text(WHAT)?;
            rest.take(8, WHAT)?;
            places.push(COLUMNS.iter().position(|column| column.as_bytes() == name));
        }
        match (0..COLUMNS.len()).all(|place| places.contains(&Some(place))) {
            true => Ok(Self { places }),
            false => Err(malformed("a column is missing: the columns")),
        }
    }

    /// The row of a message `I`, without its first byte.
    pub(super) fn row(&self, data: Bytes) -> Result<Row> {
        const WHAT: &str = "a row";
        let mut rest = Rest(data);
        rest.u32(WHAT)?;
        if rest.u8(WHAT)? != b'N' || usize::from(rest.u16(WHAT)?) != self.places.len() {
            return Err(malformed(WHAT));
        }
        let mut values: [Option<Bytes>; COLUMNS.len()] = Default::default();
        for place in &self.places {
            let value = match rest.u8(WHAT)? {
                b'n' => None,
                b'b' => {
                    let n = rest.u32(WHAT)?;
                    Some(rest.take(n as usize, WHAT)?)
                }
                _ => return Err(malformed("the format of a row")),
            };
            if let Some(place) = place {
                values[*place] = value;
            }
        }
        Row::of(values).ok_or_else(|| malformed("a value of a row"))
    }
}

#[cfg(test)]
impl Row {
    pub(super) fn any() -> Self {
        Self {
            seq: 1,
            id: Uuid::nil(),
            topic: "a".to_owned(),
            key: None,
            payload: Bytes::new(),
            headers: Bytes::new(),
            created_at: 0,
            is_due: true,
        }
    }
}

impl Row {
    fn of([seq, id, topic, key, payload, headers, created_at, state]: [Option<Bytes>; 8]) -> Option<Self> {
        let text = |bytes: Bytes| String::from_utf8(bytes.into()).ok();
        let number = |bytes: Bytes| Some(i64::from_be_bytes(bytes.as_ref().try_into().ok()?));
        Some(Self {
            seq: number(seq?)?,
            id: Uuid::from_slice(&id?).ok()?,
            topic: text(topic?)?,
            key: match key {
                Some(key) => Some(text(key)?),
                None => None,
            },
            payload: payload?,
            headers: headers?,
            created_at: number(created_at?)?,
            is_due: state?.iter().all(|byte| *byte == 0),
        })
    }

    /// The message under this lease, or why it is none.
    pub(super) fn claimed(self, lease: Lease) -> ClaimedRow {
        let key = self.key.clone();
        match self.message() {
            Ok(message) => ClaimedRow::Message(Claimed { message, lease }),
            Err(error) => {
                ClaimedRow::Undecodable(Undecodable::new(lease, key, format!("undecodable row: {error}")))
            }
        }
    }

    pub(super) fn lease(&self, token: Uuid) -> Lease {
        Lease { id: self.id, token, locator: self.seq }
    }

    fn message(self) -> Result<Message> {
        // binary jsonb is a version and the text
        Ok(Message {
            id: self.id,
            headers: headers(self.headers.get(1..).unwrap_or_default())?,
            created_at: time(self.created_at)?,
            topic: self.topic,
            key: self.key,
            payload: self.payload,
            attempt: 1,
            fence: 1,
        })
    }
}

/// Of the years that a claim of a queue takes.
fn time(micros: i64) -> Result<DateTime<Utc>> {
    let micros = micros.checked_add(EPOCH).filter(|micros| (0..=LAST).contains(micros));
    micros.and_then(DateTime::from_timestamp_micros).ok_or_else(|| malformed("the time of a row"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(names: &[&str]) -> Bytes {
        let mut data = vec![0, 0, 0, 7];
        data.extend_from_slice(b"public\0log\0d");
        data.extend_from_slice(&(names.len() as u16).to_be_bytes());
        for name in names {
            data.push(0);
            data.extend_from_slice(name.as_bytes());
            data.extend_from_slice(&[0; 9]);
        }
        data.into()
    }

    fn insert(values: &[Option<&[u8]>]) -> Bytes {
        let mut data = vec![0, 0, 0, 7, b'N'];
        data.extend_from_slice(&(values.len() as u16).to_be_bytes());
        for value in values {
            match value {
                None => data.push(b'n'),
                Some(value) => {
                    data.push(b'b');
                    data.extend_from_slice(&(value.len() as u32).to_be_bytes());
                    data.extend_from_slice(value);
                }
            }
        }
        data.into()
    }

    #[test]
    fn a_row_is_read_by_the_names_of_its_columns() {
        let names = ["payload", "seq", "other", "id", "topic", "key", "headers", "created_at", "state"];
        let columns = Columns::read(relation(&names)).expect("columns");
        let id = Uuid::new_v4();
        let (seq, at) = (7_i64.to_be_bytes(), (-EPOCH).to_be_bytes());
        let row = |at: &[u8]| {
            let values: [Option<&[u8]>; 9] = [
                Some(b"pay"),
                Some(&seq),
                Some(b"?"),
                Some(id.as_bytes()),
                Some(b"topic"),
                None,
                Some(b"\x01{\"a\": \"b\"}"),
                Some(at),
                Some(&[0, 0]),
            ];
            columns.row(insert(&values)).expect("a row")
        };
        let read = row(&at);
        assert!(read.is_due);
        let message = read.message().expect("a message");
        assert_eq!((message.id, message.topic.as_str(), message.key), (id, "topic", None));
        assert_eq!((message.payload.as_ref(), message.headers["a"].as_str()), (b"pay".as_slice(), "b"));
        assert_eq!(message.created_at, DateTime::UNIX_EPOCH);
        let broken = row(&i64::MAX.to_be_bytes());
        let lease = broken.lease(Uuid::nil());
        assert!(matches!(broken.claimed(lease), ClaimedRow::Undecodable(_)), "an infinite time");
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let columns = Columns::read(relation(&COLUMNS)).expect("columns");
        let whole = insert(&[None; 8]);
        for end in 0..whole.len() {
            assert!(columns.row(whole.slice(..end)).is_err(), "{end}");
        }
        assert!(columns.row(whole).is_err(), "no value may be missing but the key");
        let whole = relation(&COLUMNS);
        for end in 0..whole.len() {
            assert!(Columns::read(whole.slice(..end)).is_err(), "{end}");
        }
        assert!(Columns::read(relation(&COLUMNS[1..])).is_err());
    }
}
