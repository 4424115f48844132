use std::time::Duration;

use humantime_serde::re::humantime::format_duration;
use outbox_core::{Error, ErrorKind, MAX_DELAY, Result};
use serde::{Deserialize, Serialize};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The most records one purge step may remove: 10,000.
pub const MAX_PURGE_STEP: usize = 10_000;

/// How long the inbox remembers. Durations are written like `30days` in configuration files.
///
/// # Examples
/// ```
/// use outbox_inbox::Config;
/// let config: Config = serde_json::from_str(r#"{ "retention": "90days" }"#)?;
/// assert_eq!(config, Config::default().with_retention(std::time::Duration::from_secs(90 * 86_400)));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// How old a record must be, by the database's clock, before a purge may remove it. Default 30 days,
    /// longer than [`redelivery_horizon`](Self::redelivery_horizon), at most 10 years.
    ///
    /// Too short: a late redelivery takes effect a second time. Too long: a larger table. The age applies
    /// to every group whose records are in the same table, so give all of them the longest.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// How long after its first delivery a message can still come back: all retries with their backoff, an
    /// outage of the consumer, the redrive of a dead letter, the restore of a producer from a backup.
    /// Default 14 days.
    ///
    /// It is a declaration that [`retention`](Self::retention) is checked against; nothing else uses it.
    #[serde(with = "humantime_serde")]
    pub redelivery_horizon: Duration,
    /// The most records one [`purge`](crate::Inbox::purge) removes, 1 to [`MAX_PURGE_STEP`]. Default 1,000.
    ///
    /// Too high: one statement holds its locks for long. Too low: more round trips.
    pub purge_step: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { retention: 30 * DAY, redelivery_horizon: 14 * DAY, purge_step: 1_000 }
    }
}

impl Config {
    /// Sets how old a record must be to be purged.
    #[must_use]
    pub fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Declares how late a message can come back.
    #[must_use]
    pub fn with_redelivery_horizon(mut self, horizon: Duration) -> Self {
        self.redelivery_horizon = horizon;
        self
    }

    /// Sets the most records that one purge removes.
    #[must_use]
    pub fn with_purge_step(mut self, records: usize) -> Self {
        self.purge_step = records;
        self
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// [`InvalidInput`](outbox_core::ErrorKind::InvalidInput) that names the fields and their values.
    pub fn validate(&self) -> Result<()> {
        let Self { retention, redelivery_horizon, purge_step } = self;
        if retention <= redelivery_horizon {
            let (retention, horizon) = (format_duration(*retention), format_duration(*redelivery_horizon));
            return Err(refuse(format!(
                "retention ({retention}) must exceed redelivery_horizon ({horizon})"
            )));
        }
        if *retention > MAX_DELAY {
            let retention = format_duration(*retention);
            return Err(refuse(format!("retention ({retention}) must not exceed 10 years")));
        }
        if !(1..=MAX_PURGE_STEP).contains(purge_step) {
            return Err(refuse(format!("purge_step ({purge_step}) must be 1 to {MAX_PURGE_STEP}")));
        }
        Ok(())
    }
}

fn refuse(text: String) -> Error {
    Error::new(ErrorKind::InvalidInput, "config").with_detail(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: Config) -> String {
        config.validate().expect_err("must be refused").to_string()
    }

    #[test]
    fn the_retention_must_exceed_the_horizon() {
        Config::default().validate().expect("legal");
        assert_eq!(
            refused(Config::default().with_retention(7 * DAY)),
            "retention (7days) must exceed redelivery_horizon (14days)"
        );
        assert_eq!(
            refused(Config::default().with_redelivery_horizon(30 * DAY)),
            "retention (30days) must exceed redelivery_horizon (30days)"
        );
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        assert_eq!(
            refused(Config::default().with_retention(Duration::from_secs(20 * 31_557_600))),
            "retention (20years) must not exceed 10 years"
        );
        Config::default().with_retention(Duration::MAX).validate().expect_err("must be refused");
        for step in [0, 10_001] {
            let text = format!("purge_step ({step}) must be 1 to 10000");
            assert_eq!(refused(Config::default().with_purge_step(step)), text);
        }
    }

    #[test]
    fn a_file_with_a_mistake_says_which() {
        let error = |text: &str| serde_json::from_str::<Config>(text).expect_err("refused").to_string();
        assert!(error(r#"{"retentoin": "1day"}"#).starts_with("unknown field `retentoin`, expected one of"));
        assert!(error(r#"{"retention": 30}"#).contains("expected a duration"));
        assert!(error(r#"{"purge_step": -1}"#).contains("invalid value: integer `-1`"));
    }
}
