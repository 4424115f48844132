//! What becomes of a message: pure, without a clock, a database or a random source.

use std::time::Duration;

use outbox_core::{Backoff, HandlerErrorKind, MAX_DELAY, Outcome, error_text};

/// How a handler's run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Delivered,
    Failed {
        kind: HandlerErrorKind,
        text: String,
    },
    TimedOut(Duration),
    Panicked,
    /// A batch handler that did not give one result for each message.
    Miscounted {
        n_results: usize,
        n_messages: usize,
    },
    /// No handler for this topic, and the router says that such messages are dead letters.
    Unrouted(String),
    /// Dropped by us before it ended.
    Abandoned,
}

impl Ending {
    /// For spans and [`Event::Handled`](crate::Event::Handled).
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Delivered => "ok",
            Self::Failed { kind: HandlerErrorKind::DeadLetter, .. } => "dead_letter",
            Self::Failed { kind: HandlerErrorKind::Unavailable, .. } => "unavailable",
            Self::Failed { .. } | Self::Miscounted { .. } => "failed",
            Self::TimedOut(_) => "timed_out",
            Self::Panicked => "panicked",
            Self::Unrouted(_) => "unrouted",
            Self::Abandoned => "dropped",
        }
    }

    /// Whether it shows that the downstream is there.
    pub(crate) fn opens(&self) -> bool {
        !self.is_unavailable() && *self != Self::Abandoned
    }

    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(self, Self::Failed { kind: HandlerErrorKind::Unavailable, .. })
    }
}

/// When to try again, and how often.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) max_attempts: u32,
    pub(crate) backoff: Backoff,
}

/// The outcome of the attempt `attempt` (1 for the first) that ended so; `random` gives a number in [0, 1).
pub(crate) fn decide(ending: Ending, attempt: u32, policy: &Policy, random: impl FnOnce() -> f64) -> Outcome {
    let (after, error) = match ending {
        Ending::Delivered => return Outcome::Done,
        Ending::Abandoned | Ending::Failed { kind: HandlerErrorKind::Unavailable, .. } => {
            return Outcome::Release;
        }
        Ending::Unrouted(topic) => {
            return Outcome::Dead { error: error_text(&format!("no handler for topic {topic}")) };
        }
        Ending::Failed { kind: HandlerErrorKind::DeadLetter, text } => {
            return Outcome::Dead { error: error_text(&text) };
        }
        Ending::Failed { kind: HandlerErrorKind::RetryAfter(after), text } => (Some(after), text),
        Ending::Failed { text, .. } => (None, text),
        Ending::TimedOut(timeout) => (None, format!("timed out after {timeout:?}")),
        Ending::Panicked => (None, "panicked".to_owned()),
        Ending::Miscounted { n_results, n_messages } => {
            (None, format!("the batch handler gave {n_results} results for {n_messages} messages"))
        }
    };
    let error = error_text(&error);
    if attempt >= policy.max_attempts {
        return Outcome::Dead { error };
    }
    let after = after.unwrap_or_else(|| policy.backoff.delay(attempt, random()));
    Outcome::Retry { after: after.min(MAX_DELAY), error }
}

#[cfg(test)]
mod tests {
    use outbox_core::{Jitter, MAX_ERROR_BYTES};
    use proptest::prelude::*;

    use super::*;

    fn policy() -> Policy {
        Policy { max_attempts: 5, backoff: Backoff::default().with_jitter(Jitter::None) }
    }

    fn failed(kind: HandlerErrorKind) -> Ending {
        Ending::Failed { kind, text: "broken".into() }
    }

    fn decided(ending: Ending, attempt: u32) -> Outcome {
        decide(ending, attempt, &policy(), || 0.5)
    }

    fn retry(seconds: u64, error: &str) -> Outcome {
        Outcome::Retry { after: Duration::from_secs(seconds), error: error.into() }
    }

    fn dead(error: &str) -> Outcome {
        Outcome::Dead { error: error.into() }
    }

    #[test]
    fn delays_are_base_times_two_to_the_power_of_n_minus_one() {
        let outcomes = [1, 2, 3, 4].map(|attempt| decided(failed(HandlerErrorKind::Retry), attempt));
        assert_eq!(outcomes, [1, 2, 4, 8].map(|seconds| retry(seconds, "broken")));
    }

    #[test]
    fn the_last_attempt_is_followed_by_death() {
        assert_eq!(decided(failed(HandlerErrorKind::Retry), 5), dead("broken"));
        assert_eq!(decided(failed(HandlerErrorKind::RetryAfter(Duration::ZERO)), 5), dead("broken"));
        assert_eq!(decided(Ending::Panicked, 5), dead("panicked"));
        assert_eq!(decided(Ending::TimedOut(Duration::from_secs(30)), 6), dead("timed out after 30s"));
    }

    #[test]
    fn a_handler_overrides_the_backoff_up_to_ten_years() {
        let after = |delay| decided(failed(HandlerErrorKind::RetryAfter(delay)), 1);
        assert_eq!(after(Duration::from_secs(9)), retry(9, "broken"));
        assert_eq!(after(Duration::MAX), retry(MAX_DELAY.as_secs(), "broken"));
    }

    #[test]
    fn fatal_errors_and_unknown_topics_are_dead_at_once() {
        assert_eq!(decided(failed(HandlerErrorKind::DeadLetter), 1), dead("broken"));
        assert_eq!(decided(Ending::Unrouted("x".into()), 1), dead("no handler for topic x"));
    }

    #[test]
    fn unavailable_and_abandoned_burn_no_attempt() {
        assert_eq!(decided(failed(HandlerErrorKind::Unavailable), 5), Outcome::Release);
        assert_eq!(decided(Ending::Abandoned, 5), Outcome::Release);
    }

    proptest! {
        #[test]
        fn no_input_breaks_a_decision(attempt: u32, max_attempts in 1u32.., text: String, random: f64, factor in 1.0f64..) {
            let policy = Policy { max_attempts, backoff: Backoff::default().with_factor(factor) };
            let ending = Ending::Failed { kind: HandlerErrorKind::Retry, text: text.repeat(50) };
            match decide(ending, attempt, &policy, || random) {
                Outcome::Retry { after, error } => {
                    prop_assert!(attempt < max_attempts && after <= policy.backoff.cap);
                    prop_assert!(error.len() <= MAX_ERROR_BYTES && !error.contains('\0'));
                }
                Outcome::Dead { .. } => prop_assert!(attempt >= max_attempts),
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
