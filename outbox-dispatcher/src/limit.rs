//! What some topics may use of a dispatcher.

use std::time::Duration;

use outbox_core::{Error, ErrorKind, MAX_LEASE, Result};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Bounds how many handlers of some topics run at once, and how many of their messages are started in a time.
///
/// Messages of limited topics are claimed apart from the others, and only as many as may start soon: a backlog
/// of theirs holds up no other topic, and is there for other dispatchers. It costs a claim of its own at every
/// look. The limit is that of one dispatcher: two of them deliver twice as much.
///
/// When one of their handlers says that its downstream is unavailable, these topics pause and no other does.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use outbox_dispatcher::{Config, Limit, Rate};
/// let config = Config::default()
///     .with_limit(Limit::new(["mail.welcome", "mail.invoice"]).with_rate(Rate::new(100, Duration::from_secs(60))))
///     .with_limit(Limit::new(["report.build"]).with_concurrency(2));
/// config.validate()?;
/// # Ok::<_, outbox_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Limit {
    /// The topics that share the limit; empty: all that no other limit names.
    #[serde(default)]
    pub topics: Vec<String>,
    /// How many of their handlers run at once, 1 to [`Config::concurrency`](crate::Config::concurrency); a batch
    /// is one handler. Default `None`: as many as the dispatcher has. Too low: their messages wait. Too high:
    /// slow handlers of these topics leave no place for others.
    #[serde(default)]
    pub concurrency: Option<usize>,
    /// How many of their messages are started in a time. Default `None`: no bound. A message that waits for it
    /// keeps its lease and costs no attempt.
    #[serde(default)]
    pub rate: Option<Rate>,
}

impl Limit {
    /// A limit for the messages of these topics together that bounds nothing yet.
    pub fn new<T: Into<String>>(topics: impl IntoIterator<Item = T>) -> Self {
        Self { topics: topics.into_iter().map(Into::into).collect(), concurrency: None, rate: None }
    }

    /// A limit for all messages together whose topics no other limit names.
    pub fn others() -> Self {
        Self::new::<String>([])
    }

    /// Sets [`concurrency`](Self::concurrency).
    #[must_use]
    pub fn with_concurrency(mut self, concurrency: impl Into<Option<usize>>) -> Self {
        self.concurrency = concurrency.into();
        self
    }

    /// Sets [`rate`](Self::rate).
    #[must_use]
    pub fn with_rate(mut self, rate: impl Into<Option<Rate>>) -> Self {
        self.rate = rate.into();
        self
    }

    pub(crate) fn validate(&self, most: usize) -> Result<()> {
        match self.concurrency {
            Some(0) => return Err(refuse("limit.concurrency (0) must be at least 1")),
            Some(n) if n > most => {
                return Err(refuse(format!("limit.concurrency ({n}) must not exceed concurrency ({most})")));
            }
            None if self.rate.is_none() => return Err(refuse("limit needs a concurrency or a rate")),
            _ => {}
        }
        self.rate.as_ref().map_or(Ok(()), Rate::validate)
    }
}

/// So many messages in a time, as a token bucket: in any span of time `t` at most `burst + messages · t / per`
/// are started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Rate {
    /// How many, 1 or more.
    pub messages: u32,
    /// In which time, up to 24 h; at least 1 µs for each message. In files `1s` when it is not given.
    #[serde(default = "second", with = "humantime_serde")]
    pub per: Duration,
    /// How many may start at once after a quiet time, 1 or more; `per` and this many messages together take at
    /// most 24 h. Default `None`: as many as `messages`. Too low: nothing is made up for after a pause. Too high:
    /// a peak that the downstream refuses.
    #[serde(default)]
    pub burst: Option<u32>,
}

fn second() -> Duration {
    Duration::from_secs(1)
}

impl Rate {
    /// `messages` in each `per`.
    pub fn new(messages: u32, per: Duration) -> Self {
        Self { messages, per, burst: None }
    }

    /// Sets [`burst`](field@Self::burst).
    #[must_use]
    pub fn with_burst(mut self, burst: impl Into<Option<u32>>) -> Self {
        self.burst = burst.into();
        self
    }

    fn burst(&self) -> u32 {
        self.burst.unwrap_or(self.messages)
    }

    /// The time for one message.
    fn interval(&self) -> Duration {
        self.per / self.messages.max(1)
    }

    fn validate(&self) -> Result<()> {
        let Self { messages, per, .. } = *self;
        if messages == 0 {
            return Err(refuse("rate.messages (0) must be at least 1"));
        }
        if self.burst() == 0 {
            return Err(refuse("rate.burst (0) must be at least 1"));
        }
        if self.interval() < Duration::from_micros(1) || per > MAX_LEASE {
            return Err(refuse(format!(
                "rate.per ({per:?}) must be 1us for each of {messages} messages to 24h"
            )));
        }
        if self.interval().saturating_mul(self.burst()) > MAX_LEASE {
            let burst = self.burst();
            return Err(refuse(format!("rate.burst ({burst}) must not be more than what comes in 24h")));
        }
        Ok(())
    }
}

fn refuse(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, "config").with_detail(text)
}

/// The tokens of a [`Rate`], kept as the time at which the bucket is full again.
#[derive(Debug)]
pub(crate) struct Bucket {
    interval: Duration,
    burst: u32,
    full_at: Instant,
}

impl Bucket {
    pub(crate) fn new(rate: &Rate, now: Instant) -> Self {
        Self { interval: rate.interval(), burst: rate.burst(), full_at: now }
    }

    pub(crate) fn burst(&self) -> usize {
        self.burst as usize
    }

    /// How many tokens there are at `now`.
    pub(crate) fn tokens(&self, now: Instant) -> usize {
        let missing = self.full_at.saturating_duration_since(now);
        self.burst().saturating_sub(whole(missing.as_nanos().div_ceil(self.interval.as_nanos())))
    }

    /// How many tokens there are or come until `until`.
    pub(crate) fn until(&self, now: Instant, until: Instant) -> usize {
        let full_at = self.full_at.max(now);
        match until.checked_duration_since(full_at) {
            Some(rest) => self.burst().saturating_add(whole(rest.as_nanos() / self.interval.as_nanos())),
            None => self.tokens(until),
        }
    }

    /// When there are `n` tokens; `n` beyond the burst counts on what is taken meanwhile.
    pub(crate) fn at(&self, n: usize) -> Instant {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        match n <= self.burst {
            true => {
                let spare = self.interval.saturating_mul(self.burst - n);
                self.full_at.checked_sub(spare).unwrap_or(self.full_at)
            }
            false => self.full_at + self.interval.saturating_mul(n - self.burst).min(MAX_LEASE),
        }
    }

    pub(crate) fn take(&mut self, n: usize, now: Instant) {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        self.full_at = self.full_at.max(now) + self.interval.saturating_mul(n).min(MAX_LEASE);
    }
}

fn whole(n: u128) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn milliseconds(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_bucket_lets_through_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(&Rate::new(100, milliseconds(1_000)).with_burst(5), start);
        let mut taken = 0;
        for at in 0..1_000 {
            let now = start + milliseconds(at);
            let n = bucket.tokens(now);
            bucket.take(n, now);
            taken += n;
            assert!(taken <= 5 + at as usize / 10, "{taken} in {at} ms");
        }
        assert_eq!(taken, 5 + 99);
    }

    #[test]
    fn a_quiet_time_saves_no_more_than_a_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::new(&Rate::new(10, milliseconds(1_000)), start);
        bucket.take(10, start);
        assert_eq!(bucket.tokens(start + milliseconds(99)), 0);
        assert_eq!(bucket.tokens(start + milliseconds(250)), 2);
        assert_eq!(bucket.tokens(start + milliseconds(60_000)), 10);
        assert_eq!(bucket.at(1), start + milliseconds(100));
        assert_eq!(bucket.at(10), start + milliseconds(1_000));
        assert_eq!(bucket.at(12), start + milliseconds(1_200));
        assert_eq!(bucket.until(start, start + milliseconds(350)), 3);
    }

    #[test]
    fn slow_rates_are_exact() {
        let start = Instant::now();
        let mut bucket = Bucket::new(&Rate::new(7, Duration::from_secs(3_600)).with_burst(1), start);
        let mut now = start;
        for _ in 0..7 {
            assert_eq!((bucket.tokens(now), bucket.at(1) <= now), (1, true));
            bucket.take(1, now);
            assert_eq!(bucket.tokens(bucket.at(1) - Duration::from_nanos(1)), 0);
            now = bucket.at(1);
        }
        assert!((now - start).as_secs_f64() > 3_599.999);
    }
}
