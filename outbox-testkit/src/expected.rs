//! What a test expects to be enqueued, and how a message differs from it.

use std::fmt;
use std::time::Duration;

use outbox_core::{Context, Enqueued, Inspect, MAX_BATCH, Message};
use serde::Serialize;
use serde_json::Value;

/// How much later than expected a message may become due: a backend may count from the begin of the transaction.
const LATE: Duration = Duration::from_secs(10);
/// How many messages a failure shows.
const SHOWN: usize = 10;

/// Asserts that a message is enqueued that agrees with every field that is named, and returns all such messages.
///
/// The first argument is an [`Inspect`]: an outbox, for what is committed and waits, or a
/// [`Rehearsal`](crate::Rehearsal), for what its transaction has enqueued. The fields are the methods of [`Expected`].
/// It awaits, so use it in an `async` test. It looks at the last [`MAX_BATCH`] messages.
///
/// # Panics
/// When there is none; the text shows the messages that there are, the closest first, and where they differ. It
/// shows payloads and headers: they are your test's own.
///
/// # Examples
/// ```
/// use outbox_core::{Draft, MemoryRepository, Repository, Transactor};
/// use outbox_testkit::{assert_enqueued, refute_enqueued};
/// use serde_json::json;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> outbox_core::Result<()> {
/// let outbox = MemoryRepository::new();
/// let draft = Draft::json("order.placed", &json!({ "order": 7, "cents": 1999 }))?.key(7).header("tenant", "acme");
/// Transactor::over(&outbox).run(async |cx| outbox.enqueue(cx, vec![draft]).await).await?;
///
/// assert_enqueued!(outbox, topic = "order.placed", key = 7, json = json!({ "order": 7 }));
/// let placed = assert_enqueued!(outbox, topic = "order.placed", header = ("tenant", "acme"));
/// assert_eq!(placed.len(), 1);
/// refute_enqueued!(outbox, topic = "order.cancelled");
/// # Ok(()) }
/// ```
#[macro_export]
macro_rules! assert_enqueued {
    ($source:expr $(, $field:ident = $value:expr)* $(,)?) => {
        match $crate::Expected::new()$(.$field($value))*.find(&$source).await {
            ::std::result::Result::Ok(messages) => messages,
            ::std::result::Result::Err(difference) => ::std::panic!("{difference}"),
        }
    };
}

/// Asserts that no message is enqueued that agrees with every field that is named; without fields, none at all.
/// Takes what [`assert_enqueued!`](crate::assert_enqueued!) takes.
///
/// # Panics
/// When there is one; the text shows it.
#[macro_export]
macro_rules! refute_enqueued {
    ($source:expr $(, $field:ident = $value:expr)* $(,)?) => {
        if let ::std::result::Result::Err(found) = $crate::Expected::new()$(.$field($value))*.refute(&$source).await {
            ::std::panic!("{found}")
        }
    };
}

/// What a test expects of a message: the fields of [`assert_enqueued!`](crate::assert_enqueued!). What is not named is
/// not looked at.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    topic: Option<String>,
    key: Option<String>,
    json: Option<Value>,
    payload: Option<Vec<u8>>,
    headers: Vec<(String, String)>,
    delay: Option<Duration>,
}

impl Expected {
    /// Anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// This topic.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// This key.
    #[must_use]
    pub fn key(mut self, key: impl ToString) -> Self {
        self.key = Some(key.to_string());
        self
    }

    /// A JSON payload that has at least this: each field of an object agrees in turn and further ones may be there;
    /// arrays have as many elements, each of which agrees; everything else is equal (`1` is not `1.0`).
    ///
    /// # Panics
    /// When the value cannot be written as JSON.
    #[must_use]
    pub fn json(mut self, subset: impl Serialize) -> Self {
        self.json = Some(serde_json::to_value(subset).expect("the expected value as JSON"));
        self
    }

    /// Exactly these bytes.
    #[must_use]
    pub fn payload(mut self, payload: impl AsRef<[u8]>) -> Self {
        self.payload = Some(payload.as_ref().to_owned());
        self
    }

    /// A header of this name and value, among others. Can be named again for another one.
    #[must_use]
    pub fn header(mut self, (name, value): (&str, &str)) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Becomes due this long after it was enqueued, or up to ten seconds later, because a database may count from the
    /// begin of the transaction. Zero: due at once.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// The messages of `source` that agree.
    ///
    /// # Errors
    /// A text for a reader when there is none, or when the storage fails.
    pub async fn find(&self, source: &impl Inspect) -> Result<Vec<Message>, String> {
        let all = read(source).await?;
        let found: Vec<_> = all.iter().filter(|one| self.differences(one).is_empty()).collect();
        if found.is_empty() {
            return Err(self.describe_missing(&all));
        }
        Ok(found.into_iter().map(|one| one.message.clone()).collect())
    }

    /// Checks that no message of `source` agrees.
    ///
    /// # Errors
    /// A text for a reader when there is one, or when the storage fails.
    pub async fn refute(&self, source: &impl Inspect) -> Result<(), String> {
        let all = read(source).await?;
        let found: Vec<_> = all.iter().filter(|one| self.differences(one).is_empty()).collect();
        if found.is_empty() {
            return Ok(());
        }
        let mut text = format!("{} enqueued messages match{self}\nand should not be there:", found.len());
        for one in found.iter().take(SHOWN) {
            text += &format!("\n  {}\n    payload  {}", title(one), Payload(&one.message.payload));
        }
        Err(text + &more(found.len()))
    }

    /// One line for each thing that does not agree.
    fn differences(&self, one: &Enqueued) -> Vec<String> {
        let message = &one.message;
        let mut lines = Vec::new();
        if self.topic.as_ref().is_some_and(|topic| *topic != message.topic) {
            lines.push(format!("topic    {}", instead(&message.topic, self.topic.as_deref())));
        }
        if self.key.is_some() && self.key != message.key {
            let key = message.key.as_ref().map_or("none".to_owned(), |key| format!("{key:?}"));
            lines.push(format!("key      {key} instead of {:?}", self.key.as_deref().unwrap_or_default()));
        }
        if let Some(expected) = &self.json {
            match serde_json::from_slice(&message.payload) {
                Ok(actual) => compare("$", expected, &actual, &mut lines),
                Err(_) => lines.push(format!("json     no JSON: {}", Payload(&message.payload))),
            }
        }
        if self.payload.as_ref().is_some_and(|payload| **payload != *message.payload) {
            lines.push(format!("payload  {}", Payload(&message.payload)));
        }
        lines.extend(self.headers.iter().filter_map(|header| differing_header(header, message)));
        lines.extend(self.delay.and_then(|delay| differing_delay(delay, one.delay)));
        lines
    }

    fn describe_missing(&self, all: &[Enqueued]) -> String {
        if all.is_empty() {
            return format!("no message is enqueued, but expected was one with{self}");
        }
        let is_other_topic =
            |one: &Enqueued| self.topic.as_ref().is_some_and(|topic| *topic != one.message.topic);
        let mut ranked: Vec<_> = all.iter().map(|one| (one, self.differences(one))).collect();
        ranked.sort_by_key(|(one, differences)| (is_other_topic(one), differences.len()));
        let mut text = format!("none of {} enqueued messages matches{self}\nthe closest first:", all.len());
        for (one, differences) in ranked.iter().take(SHOWN) {
            text += &format!("\n  {}", title(one));
            differences.iter().for_each(|line| text += &format!("\n    {line}"));
        }
        text + &more(all.len())
    }
}

/// A line for each expectation.
impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &dyn fmt::Display| write!(f, "\n    {name:8} {value}");
        if let Some(topic) = &self.topic {
            line("topic", &format_args!("{topic:?}"))?;
        }
        if let Some(key) = &self.key {
            line("key", &format_args!("{key:?}"))?;
        }
        if let Some(json) = &self.json {
            line("json", json)?;
        }
        if let Some(payload) = &self.payload {
            line("payload", &Payload(payload))?;
        }
        for (name, value) in &self.headers {
            line("header", &format_args!("{name} = {value:?}"))?;
        }
        match self.delay {
            Some(delay) => line("delay", &format_args!("{delay:?}")),
            None => Ok(()),
        }
    }
}

async fn read(source: &impl Inspect) -> Result<Vec<Enqueued>, String> {
    let all = source.enqueued(&Context::new(), MAX_BATCH).await;
    all.map_err(|error| format!("cannot read what is enqueued: {error:?}"))
}

fn title(one: &Enqueued) -> String {
    let key = one.message.key.as_ref().map_or("no key".to_owned(), |key| format!("key {key:?}"));
    format!("{:?}, {key}", one.message.topic)
}

fn more(n: usize) -> String {
    if n > SHOWN { format!("\n  and {} more", n - SHOWN) } else { String::new() }
}

fn instead(actual: &str, expected: Option<&str>) -> String {
    format!("{actual:?} instead of {:?}", expected.unwrap_or_default())
}

/// A line for each place where `actual` lacks something of `expected`.
fn compare(path: &str, expected: &Value, actual: &Value, lines: &mut Vec<String>) {
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => {
            for (name, expected) in expected {
                let path = format!("{path}.{name}");
                match actual.get(name) {
                    Some(actual) => compare(&path, expected, actual, lines),
                    None => lines.push(format!("json     {path}: missing, expected {expected}")),
                }
            }
        }
        (Value::Array(expected), Value::Array(actual)) if expected.len() == actual.len() => {
            for (index, (expected, actual)) in expected.iter().zip(actual).enumerate() {
                compare(&format!("{path}[{index}]"), expected, actual, lines);
            }
        }
        _ if expected == actual => {}
        _ => lines.push(format!("json     {path}: {actual} instead of {expected}")),
    }
}

fn differing_header((name, value): &(String, String), message: &Message) -> Option<String> {
    match message.header(name) {
        Some(actual) if actual == value => None,
        Some(actual) => Some(format!("header   {name}: {}", instead(actual, Some(value)))),
        None => Some(format!("header   {name}: missing, expected {value:?}")),
    }
}

fn differing_delay(expected: Duration, actual: Duration) -> Option<String> {
    let agrees = match expected {
        Duration::ZERO => actual.is_zero(),
        _ => (expected..=expected.saturating_add(LATE)).contains(&actual),
    };
    (!agrees).then(|| format!("delay    {actual:?} instead of {expected:?}"))
}

/// Shows text as text and everything else as a number of bytes.
struct Payload<'a>(&'a [u8]);

impl fmt::Display for Payload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(self.0) {
            Ok(text) => f.write_str(text),
            Err(_) => write!(f, "{} bytes that are no text", self.0.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use outbox_core::{Draft, MemoryRepository, Repository, Result, Transactor};
    use serde_json::json;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    async fn enqueued(drafts: impl Into<Vec<Draft>>) -> MemoryRepository {
        let outbox = MemoryRepository::new();
        let drafts = drafts.into();
        let stored: Result<_> =
            Transactor::over(&outbox).run(async |cx| outbox.enqueue(cx, drafts).await).await;
        stored.expect("enqueue");
        outbox
    }

    fn placed(order: u64) -> Draft {
        let event = json!({ "order": order, "lines": [{ "item": "lamp", "n": 2 }], "note": null });
        Draft::json("order.placed", &event).expect("json").key(order)
    }

    #[tokio::test]
    async fn every_field_is_compared() {
        let outbox =
            enqueued([placed(7).header("tenant", "acme").delay(HOUR), Draft::new("raw", vec![0xff])]).await;
        let lines = json!({ "lines": [{ "item": "lamp" }] });
        let found = assert_enqueued!(
            outbox,
            topic = "order.placed",
            key = 7,
            json = lines,
            header = ("tenant", "acme"),
            delay = HOUR,
        );
        assert_eq!(found.len(), 1);
        assert_enqueued!(outbox, topic = "raw", payload = [0xff_u8], delay = Duration::ZERO);
        assert_eq!(assert_enqueued!(outbox).len(), 2);

        refute_enqueued!(outbox, topic = "order");
        refute_enqueued!(outbox, key = 8);
        refute_enqueued!(outbox, topic = "raw", key = "");
        refute_enqueued!(outbox, payload = "");
        refute_enqueued!(outbox, json = json!({ "lines": [] }));
        refute_enqueued!(outbox, json = json!({ "order": "7" }));
        refute_enqueued!(outbox, json = json!({ "customer": null }));
        refute_enqueued!(outbox, header = ("tenant", "other"));
        refute_enqueued!(outbox, header = ("Tenant", "acme"));
        refute_enqueued!(outbox, topic = "order.placed", delay = Duration::ZERO);
        refute_enqueued!(outbox, topic = "order.placed", delay = 2 * HOUR);
        refute_enqueued!(outbox, topic = "order.placed", delay = HOUR / 2);
    }

    #[tokio::test]
    async fn a_failure_shows_the_closest_message_first() {
        let outbox =
            enqueued([Draft::new("order.cancelled", "").key(7), placed(8).header("tenant", "acme")]).await;
        let expected = Expected::new().topic("order.placed").key(7).header(("tenant", "other")).delay(HOUR);
        let json = json!({ "order": 7, "lines": [{ "n": 3 }], "cents": 5 });
        let text = expected.json(json).find(&outbox).await.expect_err("differs");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "none of 2 enqueued messages matches",
                "    topic    \"order.placed\"",
                "    key      \"7\"",
                "    json     {\"cents\":5,\"lines\":[{\"n\":3}],\"order\":7}",
                "    header   tenant = \"other\"",
                "    delay    3600s",
                "the closest first:",
                "  \"order.placed\", key \"8\"",
                "    key      \"8\" instead of \"7\"",
                "    json     $.cents: missing, expected 5",
                "    json     $.lines[0].n: 2 instead of 3",
                "    json     $.order: 8 instead of 7",
                "    header   tenant: \"acme\" instead of \"other\"",
                "    delay    0ns instead of 3600s",
                "  \"order.cancelled\", key \"7\"",
                "    topic    \"order.cancelled\" instead of \"order.placed\"",
                "    json     no JSON: ",
                "    header   tenant: missing, expected \"other\"",
                "    delay    0ns instead of 3600s",
            ]
        );
    }

    #[tokio::test]
    async fn an_empty_table_and_a_long_one_are_described() {
        let none = Expected::new().topic("a").find(&enqueued([]).await).await.expect_err("none");
        assert_eq!(none, "no message is enqueued, but expected was one with\n    topic    \"a\"");
        let many = enqueued((0..12).map(placed).collect::<Vec<_>>()).await;
        let text = Expected::new().topic("a").find(&many).await.expect_err("none");
        assert!(text.ends_with("\n  and 2 more"), "{text}");
    }

    #[tokio::test]
    async fn a_refuted_message_is_shown() {
        let text = Expected::new().key(7).refute(&enqueued(placed(7)).await).await.expect_err("there is one");
        assert!(
            text.starts_with("1 enqueued messages match\n    key      \"7\"\nand should not be there:"),
            "{text}"
        );
        assert!(text.contains("\"order.placed\", key \"7\"\n    payload  {\"lines\":"), "{text}");
    }

    #[tokio::test]
    #[should_panic(expected = "no message is enqueued")]
    async fn assert_panics() {
        assert_enqueued!(MemoryRepository::new(), topic = "a");
    }

    #[tokio::test]
    #[should_panic(expected = "should not be there")]
    async fn refute_panics() {
        refute_enqueued!(enqueued(placed(7)).await);
    }
}
