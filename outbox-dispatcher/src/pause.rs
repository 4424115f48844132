//! Whether a lane may claim while what its handlers call is unavailable: pure.

use std::time::Duration;

use outbox_core::Backoff;
use tokio::time::Instant;

/// Closed by a handler that says *unavailable*; opened again by one message that is tried.
#[derive(Debug, Default)]
pub(crate) enum Gate {
    #[default]
    Open,
    Closed {
        until: Instant,
        n_pauses: u32,
    },
    /// One message at a time.
    Probing {
        n_pauses: u32,
        is_trying: bool,
    },
}

/// What may be claimed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    All,
    One,
    Nothing,
    NothingUntil(Instant),
}

impl Gate {
    pub(crate) fn allowed(&self) -> Allowed {
        match *self {
            Self::Open => Allowed::All,
            Self::Closed { until, .. } => Allowed::NothingUntil(until),
            Self::Probing { is_trying: false, .. } => Allowed::One,
            Self::Probing { is_trying: true, .. } => Allowed::Nothing,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }

    /// Lets one message through when the time has come.
    pub(crate) fn pass_time(&mut self, now: Instant) {
        if let Self::Closed { until, n_pauses } = *self
            && until <= now
        {
            *self = Self::Probing { n_pauses, is_trying: false };
        }
    }

    /// Marks whether the one message is at work.
    pub(crate) fn set_trying(&mut self, trying: bool) {
        if let Self::Probing { is_trying, .. } = self {
            *is_trying = trying;
        }
    }

    /// Closes the gate; `None` when it is closed already.
    pub(crate) fn close(&mut self, now: Instant, backoff: &Backoff, random: f64) -> Option<Duration> {
        let n_pauses = match *self {
            Self::Open => 1,
            Self::Probing { n_pauses, .. } => n_pauses.saturating_add(1),
            Self::Closed { .. } => return None,
        };
        let pause = backoff.delay(n_pauses, random);
        *self = Self::Closed { until: now + pause, n_pauses };
        Some(pause)
    }

    /// The tried message was answered: opens the gate. Whether it was shut.
    pub(crate) fn open(&mut self) -> bool {
        let was_probing = matches!(self, Self::Probing { .. });
        if was_probing {
            *self = Self::Open;
        }
        was_probing
    }
}

#[cfg(test)]
mod tests {
    use outbox_core::Jitter;

    use super::*;

    #[test]
    fn pauses_grow_until_a_tried_message_is_answered() {
        let backoff = Backoff::default().with_jitter(Jitter::None);
        let start = Instant::now();
        let (mut gate, mut now) = (Gate::default(), start);
        for seconds in [1, 2, 4] {
            let pause = Duration::from_secs(seconds);
            assert_eq!(gate.close(now, &backoff, 0.0), Some(pause));
            assert_eq!(gate.close(now, &backoff, 0.0), None, "many handlers say so at once");
            assert!(!gate.open(), "a handler that had begun before does not open it");
            assert_eq!(gate.allowed(), Allowed::NothingUntil(now + pause));
            now += pause;
            gate.pass_time(now);
            assert_eq!(gate.allowed(), Allowed::One);
            gate.set_trying(true);
            assert_eq!(gate.allowed(), Allowed::Nothing);
        }
        assert!(gate.open());
        assert_eq!(gate.allowed(), Allowed::All);
    }
}
