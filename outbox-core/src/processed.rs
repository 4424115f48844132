use std::fmt;
use std::future::Future;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::message::validate_name;
use crate::{Context, Error, MessageId, Result};

/// The most bytes of metadata or of a stored result as JSON text: 64 KiB.
pub const MAX_METADATA_BYTES: usize = 64 * 1024;
/// The deepest nesting of metadata or of a stored result: 64.
pub const MAX_METADATA_DEPTH: usize = 64;

/// The record of the messages that a consumer group has processed.
pub trait ProcessedStore: Send + Sync {
    /// Whether the record is there now. Advisory: another consumer may process the message a moment later;
    /// only [`mark_processed`](Self::mark_processed) is free of races.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for the group.
    fn is_processed(&self, group: &str, id: MessageId) -> impl Future<Output = Result<bool>> + Send;

    /// Records the message in the transaction on `cx`, or finds the record that is there.
    ///
    /// Waits while another open transaction holds a record of the same group and id. The transaction
    /// stays usable after [`Marked::Duplicate`].
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) before any statement;
    /// [`NoTransaction`](crate::ErrorKind::NoTransaction) without a transaction on the context.
    fn mark_processed(&self, cx: &Context, mark: Mark) -> impl Future<Output = Result<Marked>> + Send;

    /// Stores the handler's result with a record that this transaction has made.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) before any statement.
    fn store_result(
        &self,
        cx: &Context,
        group: &str,
        id: MessageId,
        result: Value,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Removes at most `limit` records of the group older than `age`, by the database's clock, oldest first, and
    /// says how many.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for the group.
    fn purge_before(
        &self,
        group: &str,
        age: Duration,
        limit: usize,
    ) -> impl Future<Output = Result<u64>> + Send;
}

/// What to record of a processed message.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mark {
    /// The consumer group, 1 to [`MAX_NAME_BYTES`](crate::MAX_NAME_BYTES) bytes.
    pub group: String,
    /// The message.
    pub id: MessageId,
    /// Tells messages with the same id apart, for example a hash of the content; at most 255 bytes.
    pub fingerprint: Option<String>,
    /// A JSON object to keep with the record, at most [`MAX_METADATA_BYTES`].
    pub metadata: Value,
}

impl Mark {
    /// A mark without fingerprint and with empty metadata.
    pub fn new(group: impl Into<String>, id: MessageId) -> Self {
        Self { group: group.into(), id, fingerprint: None, metadata: Value::Object(Default::default()) }
    }

    /// Sets the fingerprint.
    #[must_use]
    pub fn with_fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.fingerprint = Some(fingerprint.into());
        self
    }

    /// Sets the metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Value) -> Self {
        self.metadata = metadata;
        self
    }

    /// Checks every bound. Backends call it before any statement.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field.
    pub fn validate(&self) -> Result<()> {
        Self::validate_group(&self.group)?;
        if self.id.is_nil() {
            return Err(Error::invalid("id", "must not be the nil UUID"));
        }
        if let Some(fingerprint) = &self.fingerprint {
            validate_name("fingerprint", fingerprint)?;
        }
        if !self.metadata.is_object() {
            return Err(Error::invalid("metadata", "must be a JSON object"));
        }
        Self::validate_json("metadata", &self.metadata)
    }

    /// Checks a consumer group's name.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput).
    pub fn validate_group(group: &str) -> Result<()> {
        validate_name("group", group)
    }

    /// Checks that a JSON value can be stored as JSONB: size, depth, no NUL.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the path.
    pub fn validate_json(field: &str, value: &Value) -> Result<()> {
        validate_storable(field, "$", value, MAX_METADATA_DEPTH)?;
        let length = value.to_string().len();
        if length > MAX_METADATA_BYTES {
            return Err(Error::invalid(
                field,
                format_args!("{length} bytes of JSON, max {MAX_METADATA_BYTES}"),
            ));
        }
        Ok(())
    }
}

fn validate_storable(field: &str, path: &str, value: &Value, depth: usize) -> Result<()> {
    let nul = |path: &str| Error::invalid(field, format_args!("NUL (U+0000) at {path} cannot be stored"));
    if depth == 0 {
        return Err(Error::invalid(field, format_args!("nested deeper than {MAX_METADATA_DEPTH}")));
    }
    match value {
        Value::String(text) if text.contains('\0') => Err(nul(path)),
        Value::Array(items) => items.iter().enumerate().try_for_each(|(index, item)| {
            validate_storable(field, &format!("{path}[{index}]"), item, depth - 1)
        }),
        Value::Object(members) => members.iter().try_for_each(|(name, member)| {
            let path = format!("{path}.{}", name.replace('\0', "\u{fffd}"));
            if name.contains('\0') {
                return Err(nul(&path));
            }
            validate_storable(field, &path, member, depth - 1)
        }),
        _ => Ok(()),
    }
}

/// Hides the metadata.
impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mark").field("group", &self.group).field("id", &self.id).finish_non_exhaustive()
    }
}

/// The answer to [`ProcessedStore::mark_processed`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a duplicate must not be processed again"]
pub enum Marked {
    /// The record is new: go on, in the same transaction.
    First,
    /// The message was processed before.
    Duplicate(Processed),
}

/// The record of a processed message.
#[derive(Clone, PartialEq, Eq)]
pub struct Processed {
    /// The fingerprint of the first processing.
    pub fingerprint: Option<String>,
    /// The metadata of the first processing.
    pub metadata: Value,
    /// The result of the first processing, where one was stored.
    pub result: Option<Value>,
    /// When the record was made, by the database's clock.
    pub processed_at: DateTime<Utc>,
}

/// Hides metadata and result.
impl fmt::Debug for Processed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processed").field("processed_at", &self.processed_at).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use uuid::Uuid;

    fn refused(mark: Mark) -> String {
        mark.validate().expect_err("must be refused").to_string()
    }

    #[test]
    fn every_bound_names_its_field() {
        let mark = || Mark::new("g", Uuid::now_v7());
        assert_eq!(refused(Mark::new("", Uuid::now_v7())), "invalid group: must not be empty");
        assert_eq!(refused(Mark::new("g".repeat(300), Uuid::now_v7())), "invalid group: 300 bytes, max 255");
        assert_eq!(refused(Mark::new("g", Uuid::nil())), "invalid id: must not be the nil UUID");
        assert_eq!(refused(mark().with_metadata(json!([]))), "invalid metadata: must be a JSON object");
        assert_eq!(
            refused(mark().with_metadata(json!({"k": ["a\0"]}))),
            "invalid metadata: NUL (U+0000) at $.k[0] cannot be stored"
        );
        assert_eq!(
            refused(mark().with_metadata(json!({"k\0": 1}))),
            "invalid metadata: NUL (U+0000) at $.k\u{fffd} cannot be stored"
        );
        let deep = (0..70).fold(json!(1), |inner, _| json!({ "a": inner }));
        assert_eq!(refused(mark().with_metadata(deep)), "invalid metadata: nested deeper than 64");
        let large = json!({ "a": "x".repeat(MAX_METADATA_BYTES) });
        assert_eq!(refused(mark().with_metadata(large)), "invalid metadata: 65544 bytes of JSON, max 65536");
    }
}
