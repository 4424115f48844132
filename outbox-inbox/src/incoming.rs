use std::fmt;

use outbox_core::{Mark, Message, MessageId};
use serde_json::{Value, json};
use uuid::Uuid;

/// Separates our derived ids and fingerprints from everybody else's.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f75_7462_6f78_5f69_6e62_6f78_0000_0001);

/// A message to process: its name, and what to keep with its record.
///
/// Made from a bare [`MessageId`], from a [`Message`] of the outbox, or from the id that a foreign source
/// gives ([`from_source`](Self::from_source)). Bounds are those of [`Mark`], checked before any statement.
///
/// # Examples
/// ```
/// use outbox_inbox::Incoming;
/// let webhook = Incoming::from_source("stripe", "evt_1NG8Du2eZvKYlo2CUI79vXWy")
///     .fingerprint("sha256:5f70bf18")
///     .metadata(serde_json::json!({ "account": 7 }));
/// assert_ne!(webhook.id, Incoming::from_source("adyen", "evt_1NG8Du2eZvKYlo2CUI79vXWy").id);
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Incoming {
    /// Unique within the group. Whoever can choose it can make a message look like a duplicate.
    pub id: MessageId,
    /// Tells messages with the same id apart: two different ones are a conflict, one without any is not
    /// compared.
    pub fingerprint: Option<String>,
    /// A JSON object that is stored with the record.
    pub metadata: Value,
}

impl Incoming {
    /// A message with an id from a source that you trust, without fingerprint and with empty metadata.
    pub fn new(id: MessageId) -> Self {
        Self { id, fingerprint: None, metadata: json!({}) }
    }

    /// A message that a foreign source names in its own way: the source is part of the name, so one source
    /// cannot suppress a message of another. Both stand in the metadata; the id is a version 5 UUID.
    pub fn from_source(source: &str, id: &str) -> Self {
        Self::new(derive(&derive(&NAMESPACE, source.as_bytes()), id.as_bytes()))
            .metadata(json!({ "source": source, "source_id": id }))
    }

    /// Sets the fingerprint, for example a hash of the content.
    #[must_use]
    pub fn fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.fingerprint = Some(fingerprint.into());
        self
    }

    /// Replaces the metadata.
    #[must_use]
    pub fn metadata(mut self, metadata: Value) -> Self {
        self.metadata = metadata;
        self
    }

    pub(crate) fn into_mark(self, group: &str) -> Mark {
        let mark = Mark::new(group, self.id).with_metadata(self.metadata);
        match self.fingerprint {
            Some(fingerprint) => mark.with_fingerprint(fingerprint),
            None => mark,
        }
    }
}

impl From<MessageId> for Incoming {
    fn from(id: MessageId) -> Self {
        Self::new(id)
    }
}

/// The message's id, a stable hash of topic and payload as fingerprint, and the metadata
/// `{"topic": …, "key": …}` (`key` only where there is one).
///
/// An id is unique in an outbox only while its message is there. The fingerprint turns an id that a
/// producer uses for a second message into a conflict instead of a silent loss.
impl From<&Message> for Incoming {
    fn from(message: &Message) -> Self {
        let mut metadata = json!({ "topic": message.topic });
        if let Some(key) = &message.key {
            metadata["key"] = key.as_str().into();
        }
        Self::new(message.id).fingerprint(content_hash(&message.topic, &message.payload)).metadata(metadata)
    }
}

fn content_hash(topic: &str, payload: &[u8]) -> String {
    derive(&derive(&NAMESPACE, topic.as_bytes()), payload).to_string()
}

fn derive(namespace: &Uuid, name: &[u8]) -> Uuid {
    Uuid::new_v5(namespace, name)
}

/// Hides the metadata and the fingerprint.
impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_part_of_the_name_and_cannot_be_shifted_into_the_id() {
        let id = |source, id| Incoming::from_source(source, id).id;
        assert_eq!(id("a", "7"), id("a", "7"));
        assert_ne!(id("a", "7"), id("b", "7"));
        assert_ne!(id("a", "b7"), id("ab", "7"));
        assert_ne!(id("", "7"), id("7", ""));
    }

    #[test]
    fn derived_ids_never_change() {
        // records of an earlier release must still be found
        let id = Incoming::from_source("stripe", "evt_1").id;
        assert_eq!(id.to_string(), "2c4af875-7c6f-5ae4-aac6-d4feed67568a");
        assert_eq!(content_hash("order.placed", b"{}"), "5395d4e9-bcc0-522d-b3bf-95138c10ea3f");
    }

    #[test]
    fn debug_shows_no_content() {
        let incoming = Incoming::from_source("s", "S3CR3T").fingerprint("S3CR3T");
        assert!(!format!("{incoming:?}").contains("S3CR3T"));
    }
}
