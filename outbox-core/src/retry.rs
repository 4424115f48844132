use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Error, MAX_DELAY, Result};

/// How the delay between attempts grows: `base · factor^(n−1)`, at most `cap`, then jitter.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use outbox_core::{Backoff, Jitter};
/// let backoff = Backoff::default().with_base(Duration::from_secs(1)).with_jitter(Jitter::None);
/// assert_eq!(backoff.delay(1, 0.5), Duration::from_secs(1));
/// assert_eq!(backoff.delay(4, 0.5), Duration::from_secs(8));
/// assert_eq!(backoff.delay(u32::MAX, 0.5), backoff.cap);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Backoff {
    /// The delay after the first failed attempt. Default 1 s. Too low: a downstream that is down is
    /// hammered. Too high: a passing fault delays a message for long.
    #[serde(with = "humantime_serde")]
    pub base: Duration,
    /// What each further delay is multiplied with, 1 or more. Default 2.
    pub factor: f64,
    /// The longest delay. Default 1 h, at most [`MAX_DELAY`].
    #[serde(with = "humantime_serde")]
    pub cap: Duration,
    /// How the delay is spread, so that messages that failed together do not come back together. Default equal.
    pub jitter: Jitter,
}

/// How a delay is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Jitter {
    /// The delay as it is.
    None,
    /// Anything between zero and the delay.
    Full,
    /// Anything between half the delay and the delay.
    Equal,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(1),
            factor: 2.0,
            cap: Duration::from_secs(3600),
            jitter: Jitter::Equal,
        }
    }
}

impl Backoff {
    /// Sets the first delay.
    #[must_use]
    pub fn with_base(mut self, base: Duration) -> Self {
        self.base = base;
        self
    }

    /// Sets the factor.
    #[must_use]
    pub fn with_factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// Sets the longest delay.
    #[must_use]
    pub fn with_cap(mut self, cap: Duration) -> Self {
        self.cap = cap;
        self
    }

    /// Sets the jitter.
    #[must_use]
    pub fn with_jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field and both values.
    pub fn validate(&self) -> Result<()> {
        if !(self.factor.is_finite() && self.factor >= 1.0) {
            return Err(Error::invalid("backoff.factor", format_args!("{}, must be 1 or more", self.factor)));
        }
        if self.cap > MAX_DELAY {
            return Err(Error::invalid("backoff.cap", "exceeds 10 years"));
        }
        if self.base > self.cap {
            let reason = format!("{:?} must not be longer than backoff.cap ({:?})", self.base, self.cap);
            return Err(Error::invalid("backoff.base", reason));
        }
        Ok(())
    }

    /// The delay after the failed attempt `attempt` (1 for the first). `random` is uniform in [0, 1).
    /// Never overflows and never exceeds `cap`.
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let exponent = f64::from(attempt.saturating_sub(1));
        let grown = self.base.as_secs_f64() * self.factor.powf(exponent);
        // `min` also replaces NaN, from zero times infinity
        let capped = grown.min(self.cap.as_secs_f64());
        let random = random.clamp(0.0, 1.0);
        let spread = match self.jitter {
            Jitter::None => 1.0,
            Jitter::Full => random,
            Jitter::Equal => 0.5 + random / 2.0,
        };
        Duration::try_from_secs_f64(capped * spread).map_or(self.cap, |delay| delay.min(self.cap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_and_never_overflow() {
        let backoff = Backoff::default().with_jitter(Jitter::None);
        let seconds = |attempt| backoff.delay(attempt, 0.0).as_secs();
        assert_eq!([1, 2, 3, 11, 12, 13].map(seconds), [1, 2, 4, 1024, 2048, 3600]);
        assert_eq!([64, 65, 1_000, u32::MAX].map(seconds), [3600; 4]);
        assert_eq!(backoff.clone().with_base(Duration::ZERO).delay(u32::MAX, 0.0), Duration::from_secs(3600));
    }

    #[test]
    fn jitter_stays_in_its_bounds() {
        let delay = |jitter, random| Backoff::default().with_jitter(jitter).delay(3, random);
        assert_eq!(delay(Jitter::Full, 0.0), Duration::ZERO);
        assert_eq!(delay(Jitter::Equal, 0.0), Duration::from_secs(2));
        assert!(delay(Jitter::Full, 0.999) < Duration::from_secs(4));
    }

    #[test]
    fn bad_values_are_named() {
        let text = |backoff: Backoff| backoff.validate().expect_err("refused").to_string();
        assert_eq!(
            text(Backoff::default().with_factor(f64::NAN)),
            "invalid backoff.factor: NaN, must be 1 or more"
        );
        assert_eq!(
            text(Backoff::default().with_factor(-1.0)),
            "invalid backoff.factor: -1, must be 1 or more"
        );
        assert_eq!(text(Backoff::default().with_cap(Duration::MAX)), "invalid backoff.cap: exceeds 10 years");
        assert_eq!(
            text(Backoff::default().with_base(Duration::from_secs(7200))),
            "invalid backoff.base: 7200s must not be longer than backoff.cap (3600s)"
        );
    }
}
