use std::collections::HashSet;
use std::time::Duration;

use outbox_core::{Backoff, Error, ErrorKind, MAX_BATCH, MAX_LEASE, Result};
use serde::{Deserialize, Serialize};

use crate::Limit;

const MIN_LEASE: Duration = Duration::from_millis(100);
const MIN_WAIT: Duration = Duration::from_millis(1);

/// How a dispatcher works; the defaults suit a service that sends a few thousand messages a second.
///
/// Durations are written as `30s`, `5m` or `1h 30m`.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use outbox_dispatcher::Config;
/// let config = Config::default().with_concurrency(64).with_max_attempts(10);
/// config.validate()?;
/// # Ok::<_, outbox_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// How many handlers run at once, 1 or more. Default 16. Too low: handlers that wait for a network leave
    /// messages waiting. Too high: the downstream, or the pool that handlers take connections from, is
    /// swamped; the dispatcher itself uses up to three connections beside theirs, four on a log.
    pub concurrency: usize,
    /// The most messages of one claim, 1 to [`MAX_BATCH`]. Default 100. The dispatcher asks for that many
    /// only while handlers are quick: for slow ones it claims what it can start soon, see
    /// [`Dispatcher`](crate::Dispatcher). Too low: a big backlog costs a round trip per few messages; 1000
    /// drains it fastest. Too high: that many messages wait for `lease` when the process is killed.
    pub batch: usize,
    /// The most payload bytes of one claim, above zero; a single larger message is claimed all the same.
    /// Default 16 MiB; `None` leaves it to `batch`. The dispatcher holds up to three claims in memory, four of a log, and as
    /// many for each limit and batch handler.
    pub max_bytes: Option<u64>,
    /// How long a claim is exclusive without being renewed, 100 ms to 24 h. Default 30 s. It is renewed every
    /// third of it for as long as the process lives, so it need not cover the handler. Too low: a pause of the
    /// process or the database lets another dispatcher deliver the same messages again. Too high: what a
    /// killed process held waits for that long.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long a handler may run before it is dropped and the attempt has failed, 1 ms to 24 h. Default 60 s;
    /// it may be longer than `lease`. `None`: a handler that hangs keeps its place in `concurrency` for ever.
    /// Too low: work is cut off that would have been finished, and is done again.
    #[serde(with = "humantime_serde")]
    pub handler_timeout: Option<Duration>,
    /// How often a message is handed to a handler before it is a dead letter, 1 or more. Default 5. Crashes
    /// count as well; [`unavailable`](outbox_core::HandlerResultExt::unavailable) and stopping do not.
    pub max_attempts: u32,
    /// The delay between the attempts of a message. Default 1 s, doubled up to 1 h, equal jitter. A handler
    /// overrides it with [`retry_after`](outbox_core::HandlerResultExt::retry_after).
    pub backoff: Backoff,
    /// How long to pause when a handler says that its downstream is unavailable; then one message is tried. Topics
    /// with a [`Limit`] or a batch handler pause by themselves, all others together.
    /// Default 1 s, doubled up to 1 min, equal jitter.
    pub pause: Backoff,
    /// How often to look for messages while a listener gives hints, 1 ms to 24 h. Default 10 s. Too low: idle
    /// statements. Too high: a message whose hint was lost waits for that long.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// Without a listener: how soon to look again after there was work, 1 ms to `max_poll`. Default 50 ms.
    /// Half of it is the typical latency in a stream of messages. Doubled after every look in vain.
    #[serde(with = "humantime_serde")]
    pub min_poll: Duration,
    /// Without a listener: how slow looking gets when there is nothing, up to 24 h. Default 1 s. The longest a
    /// message can wait that follows a quiet time.
    #[serde(with = "humantime_serde")]
    pub max_poll: Duration,
    /// How long finished messages may wait for others to be settled with in one statement, shorter than
    /// `lease`. Default 5 ms; nothing waits when no other handler runs. Too low: more statements. Too high: more
    /// messages are delivered again after a crash.
    #[serde(with = "humantime_serde")]
    pub settle_delay: Duration,
    /// How long running handlers may go on after the stop signal, up to 24 h. Default 30 s; then they are
    /// dropped and their messages released. Keep it some seconds below the time that your platform gives a
    /// process between SIGTERM and SIGKILL.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// How long one call of the repository may take, 1 ms to 24 h. Default 30 s; claims are also cut off after
    /// `lease`, renewals after a third of it. Too high: a connection that died silently is noticed late. Too
    /// low: a slow database is never given the time to answer.
    #[serde(with = "humantime_serde")]
    pub operation_timeout: Duration,
    /// How the span around a handler hangs together with the trace that the message carries. Default `parent`.
    /// Takes effect with the feature `opentelemetry`, where a layer of tracing-opentelemetry is installed.
    pub trace: TraceRelation,
    /// What some topics may use at the most. Default: no limits but `concurrency`.
    pub limits: Vec<Limit>,
}

/// How the span around a handler hangs together with the trace that the message carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceRelation {
    /// The handler is a part of the producer's trace: one trace from the request to the last retry. Whether it
    /// is sampled was decided by the producer.
    #[default]
    Parent,
    /// Each attempt is a trace of its own with a link to the producer's span: for long delays, many retries, or
    /// traces that would grow without an end because handlers enqueue again. Sampled by itself.
    Link,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            concurrency: 16,
            batch: 100,
            max_bytes: Some(16 * 1024 * 1024),
            lease: Duration::from_secs(30),
            handler_timeout: Some(Duration::from_secs(60)),
            max_attempts: 5,
            backoff: Backoff::default(),
            pause: Backoff::default().with_cap(Duration::from_secs(60)),
            poll_interval: Duration::from_secs(10),
            min_poll: Duration::from_millis(50),
            max_poll: Duration::from_secs(1),
            settle_delay: Duration::from_millis(5),
            drain_timeout: Duration::from_secs(30),
            operation_timeout: Duration::from_secs(30),
            trace: TraceRelation::Parent,
            limits: Vec::new(),
        }
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $field:ident, $type:ty;)*) => {
        impl Config {
            $($(#[$doc])* #[must_use] pub fn $name(mut self, $field: $type) -> Self {
                self.$field = $field.into();
                self
            })*
        }
    };
}

setters! {
    /// Sets [`concurrency`](Self::concurrency).
    with_concurrency: concurrency, usize;
    /// Sets [`batch`](Self::batch).
    with_batch: batch, usize;
    /// Sets [`max_bytes`](Self::max_bytes).
    with_max_bytes: max_bytes, impl Into<Option<u64>>;
    /// Sets [`lease`](Self::lease).
    with_lease: lease, Duration;
    /// Sets [`handler_timeout`](Self::handler_timeout).
    with_handler_timeout: handler_timeout, impl Into<Option<Duration>>;
    /// Sets [`max_attempts`](Self::max_attempts).
    with_max_attempts: max_attempts, u32;
    /// Sets [`backoff`](Self::backoff).
    with_backoff: backoff, Backoff;
    /// Sets [`pause`](Self::pause).
    with_pause: pause, Backoff;
    /// Sets [`poll_interval`](Self::poll_interval).
    with_poll_interval: poll_interval, Duration;
    /// Sets [`min_poll`](Self::min_poll).
    with_min_poll: min_poll, Duration;
    /// Sets [`max_poll`](Self::max_poll).
    with_max_poll: max_poll, Duration;
    /// Sets [`settle_delay`](Self::settle_delay).
    with_settle_delay: settle_delay, Duration;
    /// Sets [`drain_timeout`](Self::drain_timeout).
    with_drain_timeout: drain_timeout, Duration;
    /// Sets [`operation_timeout`](Self::operation_timeout).
    with_operation_timeout: operation_timeout, Duration;
    /// Sets [`trace`](Self::trace).
    with_trace: trace, TraceRelation;
}

impl Config {
    /// Adds to [`limits`](Self::limits).
    #[must_use]
    pub fn with_limit(mut self, limit: Limit) -> Self {
        self.limits.push(limit);
        self
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) that names the field and both values.
    pub fn validate(&self) -> Result<()> {
        self.validate_counts()?;
        self.validate_durations()?;
        self.validate_limits()?;
        self.backoff.validate()?;
        self.pause.validate().map_err(|error| refuse(renamed(&error)))
    }

    fn validate_counts(&self) -> Result<()> {
        if self.concurrency == 0 {
            return Err(refuse("concurrency (0) must be at least 1"));
        }
        if !(1..=MAX_BATCH).contains(&self.batch) {
            return Err(refuse(format!("batch ({}) must be 1 to {MAX_BATCH}", self.batch)));
        }
        if self.max_bytes == Some(0) {
            return Err(refuse("max_bytes (0) must be at least 1"));
        }
        if self.max_attempts == 0 {
            return Err(refuse("max_attempts (0) must be at least 1"));
        }
        Ok(())
    }

    fn validate_durations(&self) -> Result<()> {
        within("lease", self.lease, MIN_LEASE)?;
        within("handler_timeout", self.handler_timeout.unwrap_or(MAX_LEASE), MIN_WAIT)?;
        within("poll_interval", self.poll_interval, MIN_WAIT)?;
        within("min_poll", self.min_poll, MIN_WAIT)?;
        within("max_poll", self.max_poll, MIN_WAIT)?;
        within("drain_timeout", self.drain_timeout, Duration::ZERO)?;
        within("operation_timeout", self.operation_timeout, MIN_WAIT)?;
        if self.min_poll > self.max_poll {
            let (min, max) = (self.min_poll, self.max_poll);
            return Err(refuse(format!("min_poll ({min:?}) must not be longer than max_poll ({max:?})")));
        }
        if self.settle_delay >= self.lease {
            let (delay, lease) = (self.settle_delay, self.lease);
            return Err(refuse(format!("settle_delay ({delay:?}) must be shorter than lease ({lease:?})")));
        }
        Ok(())
    }

    fn validate_limits(&self) -> Result<()> {
        let (mut named, mut n_others) = (HashSet::new(), 0);
        for limit in &self.limits {
            limit.validate(self.concurrency)?;
            n_others += usize::from(limit.topics.is_empty());
            if let Some(topic) = limit.topics.iter().find(|topic| !named.insert(topic.as_str())) {
                return Err(refuse(format!("limit.topics: {topic:?} is named twice")));
            }
        }
        match n_others > 1 {
            true => {
                Err(refuse(format!("limit.topics must not be empty in more than one limit ({n_others})")))
            }
            false => Ok(()),
        }
    }

    /// How long a claim may take: an answer after the lease would bring what is expired.
    pub(crate) fn claim_timeout(&self) -> Duration {
        self.operation_timeout.min(self.lease)
    }

    pub(crate) fn heartbeat(&self) -> Duration {
        self.lease / 3
    }
}

fn within(field: &str, value: Duration, min: Duration) -> Result<()> {
    if value < min || value > MAX_LEASE {
        return Err(refuse(format!("{field} ({value:?}) must be {min:?} to 24h")));
    }
    Ok(())
}

fn renamed(error: &Error) -> String {
    error.to_string().replace("backoff.", "pause.")
}

fn refuse(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, "config").with_detail(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: Config) -> String {
        let error = config.validate().expect_err("must be refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        error.to_string()
    }

    #[test]
    fn errors_name_the_field_and_both_values() {
        let (config, seconds) = (Config::default, Duration::from_secs);
        for (config, text) in [
            (config().with_concurrency(0), "concurrency (0) must be at least 1"),
            (config().with_batch(0), "batch (0) must be 1 to 1000"),
            (config().with_batch(1_000_000), "batch (1000000) must be 1 to 1000"),
            (config().with_max_bytes(0), "max_bytes (0) must be at least 1"),
            (config().with_max_attempts(0), "max_attempts (0) must be at least 1"),
            (config().with_lease(Duration::ZERO), "lease (0ns) must be 100ms to 24h"),
            (config().with_lease(seconds(90_000)), "lease (90000s) must be 100ms to 24h"),
            (config().with_handler_timeout(seconds(90_000)), "handler_timeout (90000s) must be 1ms to 24h"),
            (config().with_poll_interval(Duration::ZERO), "poll_interval (0ns) must be 1ms to 24h"),
            (config().with_min_poll(seconds(2)), "min_poll (2s) must not be longer than max_poll (1s)"),
            (config().with_settle_delay(seconds(40)), "settle_delay (40s) must be shorter than lease (30s)"),
            (
                config().with_backoff(Backoff::default().with_factor(f64::NAN)),
                "invalid backoff.factor: NaN, must be 1 or more",
            ),
            (
                config().with_pause(Backoff::default().with_base(seconds(7_200))),
                "invalid pause.base: 7200s must not be longer than pause.cap (3600s)",
            ),
        ] {
            assert_eq!(refused(config), text);
        }
        config().with_handler_timeout(None).with_max_bytes(None).validate().expect("legal");
        config().validate().expect("the defaults are legal");
    }

    #[test]
    fn files_use_words_for_durations_and_refuse_unknown_fields() {
        let parse = serde_json::from_str::<Config>;
        let config =
            parse(r#"{"lease": "5m", "handler_timeout": null, "backoff": {"base": "2s"}, "trace": "link"}"#);
        let expected = Config::default()
            .with_lease(Duration::from_secs(300))
            .with_handler_timeout(None)
            .with_trace(TraceRelation::Link)
            .with_backoff(Backoff::default().with_base(Duration::from_secs(2)));
        assert_eq!(config.expect("legal"), expected);
        let text = |json| parse(json).expect_err("refused").to_string();
        assert!(text(r#"{"leas": "5m"}"#).starts_with("unknown field `leas`, expected one of"));
        assert!(text(r#"{"lease": 30}"#).contains("expected a duration"));
        assert!(text(r#"{"batch": -1}"#).contains("invalid value: integer `-1`"));
    }
}
