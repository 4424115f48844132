use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::{Error, ErrorKind, Result};

/// Names one message: a UUID made by the producer, version 7 unless [`Draft::id`] says otherwise.
pub type MessageId = Uuid;

/// Header names and values, ordered by name.
pub type Headers = BTreeMap<String, String>;

/// The longest topic, key, header name or consumer group: 255 bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// The most headers a message can have: 64.
pub const MAX_HEADERS: usize = 64;
/// The most bytes of all header names and values of a message together: 16 KiB.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
/// The longest delay of a message, and the longest backoff: 10 years.
pub const MAX_DELAY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// How long a deduplication key is honoured unless the handle says otherwise: 24 hours.
pub const DEDUP_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

const CONTENT_TYPE: &str = "content-type";

/// A message that is not stored yet.
///
/// The id exists before the message is enqueued, so that a retry after a commit whose answer was lost
/// can name it. Bounds are checked when the draft is enqueued, before any statement is sent.
///
/// Ids of your own come from wherever you say: [`id`](Self::id) takes them, so a generator is a function of yours that makes
/// the drafts.
///
/// # Examples
/// ```
/// use outbox_core::Draft;
/// let draft = Draft::json("order.placed", &serde_json::json!({ "order": 7 }))?
///     .key(7)
///     .header("tenant", "acme")
///     .delay(std::time::Duration::from_secs(60));
/// assert_eq!(draft.key.as_deref(), Some("7"));
/// # Ok::<_, outbox_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Draft {
    /// The message's name; unique within a table while the message is in it. Not nil.
    pub id: MessageId,
    /// Routing name, 1 to [`MAX_NAME_BYTES`] bytes without control characters.
    pub topic: String,
    /// Ordering key, often the id of the aggregate; at most [`MAX_NAME_BYTES`] bytes without NUL.
    /// The empty key is a key like any other and not the same as none.
    pub key: Option<String>,
    /// Opaque bytes, delivered as they are; at most [`Limits::max_payload`] bytes.
    pub payload: Bytes,
    /// At most [`MAX_HEADERS`] headers of [`MAX_HEADER_BYTES`] bytes in all, without control characters.
    pub headers: Headers,
    /// How long after the enqueue, by the database's clock, the message becomes due; at most [`MAX_DELAY`].
    pub delay: Duration,
    /// Deduplication key, 1 to [`MAX_NAME_BYTES`] bytes without NUL; see [`Draft::dedup_key`].
    pub dedup_key: Option<String>,
    origin: Origin,
}

/// Where the id of a draft comes from.
struct Origin {
    generated: MessageId,
    is_cloned: AtomicBool,
}

/// Both drafts have the id from now on.
impl Clone for Origin {
    fn clone(&self) -> Self {
        self.is_cloned.store(true, Relaxed);
        Self { generated: self.generated, is_cloned: AtomicBool::new(true) }
    }
}

/// Two drafts are the same if they say the same, wherever they come from.
impl PartialEq for Origin {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Origin {}

impl Draft {
    /// A draft of opaque bytes.
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        let id = Uuid::now_v7();
        Self {
            id,
            topic: topic.into(),
            key: None,
            payload: payload.into(),
            headers: Headers::new(),
            delay: Duration::ZERO,
            dedup_key: None,
            origin: Origin { generated: id, is_cloned: AtomicBool::new(false) },
        }
    }

    /// A draft whose payload is `value` as JSON, with the header `content-type: application/json`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the value cannot be written as JSON.
    pub fn json(topic: impl Into<String>, value: &(impl Serialize + ?Sized)) -> Result<Self> {
        let payload = serde_json::to_vec(value)
            .map_err(|_| Error::invalid("payload", "the value cannot be written as JSON"))?;
        Ok(Self::new(topic, payload).header(CONTENT_TYPE, "application/json"))
    }

    /// Sets the ordering key.
    #[must_use]
    pub fn key(mut self, key: impl ToString) -> Self {
        self.key = Some(key.to_string());
        self
    }

    /// Adds a header, or replaces the one of that name.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Makes the message due this long after it was enqueued.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Makes the enqueue idempotent: while the key is honoured, a further draft with it is not stored in the same table, and
    /// the answer has the first one's id in its place. Topic, key and payload are not compared.
    ///
    /// The key is taken with the transaction that stores the message, and free again when that rolls back. It is
    /// honoured for the retention that the first one's handle declares, by default [`DEDUP_RETENTION`], counted by the
    /// database's clock from the enqueue, also when the message was delivered, has died or was discarded. Afterwards a
    /// draft with it is a new message.
    ///
    /// # Examples
    /// ```
    /// # use outbox_core::{Context, Draft, MemoryRepository, Repository, Result};
    /// # async fn example(cx: &Context, outbox: &MemoryRepository) -> Result<()> {
    /// let draft = Draft::new("invoice.due", "7").dedup_key("invoice-7-2026-11");
    /// let own = draft.id;
    /// let ids = outbox.enqueue(cx, vec![draft]).await?;
    /// let is_new = ids[0] == own; // otherwise the id is that of the first message with the key
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn dedup_key(mut self, key: impl ToString) -> Self {
        self.dedup_key = Some(key.to_string());
        self
    }

    /// Replaces the generated id: with that of a draft whose commit had an unknown end, or with one of your own
    /// generator, of whatever version.
    ///
    /// # Examples
    /// Ids that follow from what the message says:
    /// ```
    /// use outbox_core::Draft;
    /// use uuid::Uuid;
    /// fn placed(order: u128) -> Draft {
    ///     let id = Uuid::from_u128(0x0b5e_0000_0000_8000_8000_0000_0000_0000 | order);
    ///     Draft::new("order.placed", order.to_string()).id(id)
    /// }
    /// assert_eq!(placed(7).id, placed(7).id);
    /// ```
    #[must_use]
    pub fn id(mut self, id: MessageId) -> Self {
        self.id = id;
        self
    }

    /// Whether nothing else can have been enqueued under this id: it was generated with the draft, which was
    /// never cloned. Enqueueing consumes a draft, so a backend need not look for the id in its table.
    pub fn is_first_use(&self) -> bool {
        self.id == self.origin.generated && !self.origin.is_cloned.load(Relaxed)
    }

    /// Checks every bound of this draft.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] that names the field.
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        if self.id.is_nil() {
            return Err(Error::invalid("id", "must not be the nil UUID"));
        }
        validate_name("topic", &self.topic)?;
        if let Some(key) = &self.key {
            validate_length("key", key.len(), MAX_NAME_BYTES)?;
            validate_nul("key", key)?;
        }
        if let Some(key) = &self.dedup_key {
            validate_dedup_key(key)?;
        }
        validate_length("payload", self.payload.len(), limits.max_payload)?;
        validate_headers(&self.headers)?;
        validate_delay("delay", self.delay)
    }
}

impl From<Draft> for Vec<Draft> {
    fn from(draft: Draft) -> Self {
        vec![draft]
    }
}

/// Shows sizes instead of payload and headers, and no deduplication key.
impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft")
            .field("id", &self.id)
            .field("topic", &self.topic)
            .field("key", &self.key)
            .field("payload_bytes", &self.payload.len())
            .field("n_headers", &self.headers.len())
            .field("delay", &self.delay)
            .field("has_dedup_key", &self.dedup_key.is_some())
            .finish()
    }
}

/// A stored message as a handler sees it.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// The id that the producer gave.
    pub id: MessageId,
    /// Routing name.
    pub topic: String,
    /// Ordering key.
    pub key: Option<String>,
    /// The bytes as they were enqueued.
    pub payload: Bytes,
    /// The headers as they were enqueued.
    pub headers: Headers,
    /// When the message was enqueued, by the database's clock.
    pub created_at: DateTime<Utc>,
    /// Which attempt this is: 1 for the first, counted when the message was claimed.
    pub attempt: u32,
    /// Rises with every claim of this message and never falls: hand it to systems downstream that
    /// must refuse a claim that was overtaken.
    pub fence: i64,
}

impl Message {
    /// Decodes the payload as JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Undecodable`], with the position and without the payload.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.payload).map_err(|error| {
            let place = format!("JSON payload at line {} column {}", error.line(), error.column());
            Error::new(ErrorKind::Undecodable, "decode").with_detail(place)
        })
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// Shows sizes instead of payload and headers.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id)
            .field("topic", &self.topic)
            .field("key", &self.key)
            .field("payload_bytes", &self.payload.len())
            .field("n_headers", &self.headers.len())
            .field("created_at", &self.created_at)
            .field("attempt", &self.attempt)
            .field("fence", &self.fence)
            .finish()
    }
}

/// Bounds that a table can set for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The largest payload in bytes, inclusive. Default 1 MiB. Larger payloads make claims slow and
    /// belong into an object store; the value a broker behind the dispatcher accepts is a good limit.
    pub max_payload: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_payload: 1024 * 1024 }
    }
}

impl Limits {
    /// Sets the largest payload in bytes.
    #[must_use]
    pub fn with_max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = bytes;
        self
    }
}

/// Checks every draft of a call and that no id is named twice. Backends call it before any statement.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] that names the field.
pub fn validate_drafts(drafts: &[Draft], limits: &Limits) -> Result<()> {
    let mut ids = HashSet::with_capacity(drafts.len());
    for draft in drafts {
        draft.validate(limits)?;
        if !ids.insert(draft.id) {
            return Err(Error::invalid("id", format_args!("{} is named twice in one call", draft.id)));
        }
    }
    Ok(())
}

/// Checks how long a handle honours deduplication keys: more than zero, at most [`MAX_DELAY`]. Backends call it before any
/// statement of an enqueue.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] that names the field.
pub fn validate_dedup_retention(retention: Duration) -> Result<()> {
    if retention.is_zero() {
        return Err(Error::invalid("dedup_retention", "must not be zero"));
    }
    validate_delay("dedup_retention", retention)
}

/// For a backend that does not know deduplication keys: to ignore one would store a message twice.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when a draft has one.
pub fn refuse_dedup_keys(drafts: &[Draft]) -> Result<()> {
    match drafts.iter().any(|draft| draft.dedup_key.is_some()) {
        true => Err(Error::new(ErrorKind::Unsupported, "enqueue").with_detail("dedup_key")),
        false => Ok(()),
    }
}

fn validate_dedup_key(key: &str) -> Result<()> {
    if key.is_empty() {
        return Err(Error::invalid("dedup_key", "must not be empty"));
    }
    validate_length("dedup_key", key.len(), MAX_NAME_BYTES)?;
    validate_nul("dedup_key", key)
}

pub(crate) fn validate_name(field: &str, value: &str) -> Result<()> {
    if value.is_empty() {
        return Err(Error::invalid(field, "must not be empty"));
    }
    validate_length(field, value.len(), MAX_NAME_BYTES)?;
    validate_printable(field, value)
}

fn validate_printable(field: &str, value: &str) -> Result<()> {
    // most texts are ASCII, and bytes are compared several at a time
    let is_printable = match value.is_ascii() {
        true => !value.bytes().any(|byte| byte.is_ascii_control()),
        false => !value.chars().any(char::is_control),
    };
    if is_printable {
        return Ok(());
    }
    validate_nul(field, value)?;
    Err(Error::invalid(field, "contains a control character"))
}

pub(crate) fn validate_delay(field: &str, delay: Duration) -> Result<()> {
    if delay > MAX_DELAY {
        return Err(Error::invalid(field, "exceeds 10 years"));
    }
    Ok(())
}

fn validate_length(field: &str, length: usize, max: usize) -> Result<()> {
    if length > max {
        return Err(Error::invalid(field, format_args!("{length} bytes, max {max}")));
    }
    Ok(())
}

pub(crate) fn validate_nul(field: &str, value: &str) -> Result<()> {
    if value.contains('\0') {
        return Err(Error::invalid(field, "contains NUL (U+0000)"));
    }
    Ok(())
}

fn validate_headers(headers: &Headers) -> Result<()> {
    if headers.len() > MAX_HEADERS {
        return Err(Error::invalid("headers", format_args!("{} headers, max {MAX_HEADERS}", headers.len())));
    }
    let total = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    validate_length("headers", total, MAX_HEADER_BYTES)?;
    for (name, value) in headers {
        validate_name("header name", name)?;
        validate_printable("header value", value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(draft: Draft) -> String {
        let error = draft.validate(&Limits::default()).expect_err("must be refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        error.to_string()
    }

    #[test]
    fn an_id_that_another_draft_may_have_is_no_first_use() {
        let draft = || Draft::new("t", "x");
        let first = draft();
        assert!(first.is_first_use());
        let again = first.clone();
        assert!(!first.is_first_use() && !again.is_first_use());
        assert!(!draft().id(first.id).is_first_use());
        let mut renamed = draft();
        renamed.id = first.id;
        assert!(!renamed.is_first_use());
        assert_eq!(first, again);
    }

    #[test]
    fn every_bound_names_its_field() {
        let draft = || Draft::new("t", "x");
        assert_eq!(refused(Draft::new("", "x")), "invalid topic: must not be empty");
        assert_eq!(refused(Draft::new("a\0", "x")), "invalid topic: contains NUL (U+0000)");
        assert_eq!(refused(Draft::new("a\nb", "x")), "invalid topic: contains a control character");
        assert_eq!(refused(draft().key("k\0")), "invalid key: contains NUL (U+0000)");
        assert_eq!(refused(draft().key("k".repeat(256))), "invalid key: 256 bytes, max 255");
        assert_eq!(refused(draft().dedup_key("")), "invalid dedup_key: must not be empty");
        assert_eq!(refused(draft().dedup_key("k\0")), "invalid dedup_key: contains NUL (U+0000)");
        assert_eq!(refused(draft().dedup_key("k".repeat(256))), "invalid dedup_key: 256 bytes, max 255");
        assert_eq!(
            refused(draft().header("a\r\nb", "x")),
            "invalid header name: contains a control character"
        );
        assert_eq!(
            refused(draft().header("a", "x\r\n")),
            "invalid header value: contains a control character"
        );
        assert_eq!(
            refused(draft().header("a", "x".repeat(17_000))),
            "invalid headers: 17001 bytes, max 16384"
        );
        assert_eq!(refused(draft().delay(Duration::MAX)), "invalid delay: exceeds 10 years");
        assert_eq!(refused(draft().id(Uuid::nil())), "invalid id: must not be the nil UUID");
        assert_eq!(
            refused(Draft::new("t", vec![0; 1_048_577])),
            "invalid payload: 1048577 bytes, max 1048576"
        );
    }

    #[test]
    fn dedup_retention_is_bounded() {
        let refused = |retention| validate_dedup_retention(retention).expect_err("out of bounds").to_string();
        assert_eq!(refused(Duration::ZERO), "invalid dedup_retention: must not be zero");
        assert_eq!(refused(Duration::MAX), "invalid dedup_retention: exceeds 10 years");
        validate_dedup_retention(MAX_DELAY).expect("legal");
    }

    #[test]
    fn unusual_but_legal_values_pass() {
        for draft in [
            Draft::new("t", ""),
            Draft::new("t", vec![0xff, 0xc0]).key(""),
            Draft::new("t", "x").key("a\n\u{202e}😀"),
            Draft::new("t", "x").dedup_key("a\n\u{202e}😀"),
        ] {
            draft.validate(&Limits::default()).expect("legal");
        }
    }

    #[test]
    fn debug_shows_no_payload_no_header_and_no_dedup_key() {
        let draft = Draft::new("t", "S3CR3T").header("auth", "S3CR3T").dedup_key("S3CR3T");
        assert!(!format!("{draft:?}").contains("S3CR3T"));
    }
}
