//! How far ahead of the handlers to claim: pure.

use std::time::Duration;

const SLOW: Duration = Duration::from_secs(1);

/// How many claimed messages may wait for a handler when the next claim goes out. Twice as many may wait
/// after it, three times as many where two claims are under way.
///
/// Grows while handlers run out of work before the next claim is there, shrinks to nothing while messages
/// wait for more than a second: then another dispatcher could have had them.
#[derive(Debug)]
pub(crate) struct Pace {
    ahead: usize,
    max: usize,
}

impl Pace {
    pub(crate) fn new(concurrency: usize, batch: usize) -> Self {
        Self { ahead: (concurrency / 2).min(batch), max: batch }
    }

    /// The limit of the next claim; 0: not now.
    pub(crate) fn limit(&self, n_idle: usize, n_waiting: usize) -> usize {
        match n_waiting <= self.ahead {
            true => (n_idle + 2 * self.ahead - n_waiting).min(self.max),
            false => 0,
        }
    }

    /// A full claim has arrived while handlers had nothing to do.
    pub(crate) fn starved(&mut self) {
        self.ahead = (self.ahead * 2).clamp(1, self.max);
    }

    /// It took `waited` until the next claim could go out.
    pub(crate) fn waited(&mut self, waited: Duration) {
        if waited > SLOW {
            self.ahead /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_handlers_get_full_batches_soon() {
        let mut pace = Pace::new(16, 1_000);
        let limits = std::iter::repeat_with(|| {
            let limit = pace.limit(16, 0);
            pace.starved();
            limit
        });
        assert_eq!(limits.take(9).collect::<Vec<_>>(), [32, 48, 80, 144, 272, 528, 1_000, 1_000, 1_000]);
        assert_eq!(pace.limit(0, 1_000), 1_000, "one batch ahead of the one at work");
        assert_eq!(pace.limit(16, 1_001), 0);
    }

    #[test]
    fn slow_handlers_get_what_they_can_start() {
        let mut pace = Pace::new(16, 1_000);
        for _ in 0..4 {
            pace.waited(Duration::from_secs(5));
        }
        assert_eq!([pace.limit(0, 0), pace.limit(3, 0), pace.limit(0, 1)], [0, 3, 0]);
        pace.starved();
        assert_eq!(pace.limit(3, 0), 5);
    }

    #[test]
    fn a_single_handler_gets_one_message() {
        assert_eq!(Pace::new(1, 1).limit(1, 0), 1);
        assert_eq!(Pace::new(1_000, 10).limit(1_000, 0), 10);
    }
}
