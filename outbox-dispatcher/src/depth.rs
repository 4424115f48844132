use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use outbox_core::{HeldBack, MAX_LEASE, Operations, Result, SlotLag, Stats, TopicStats};
use tokio::time::{Instant, sleep_until};

use crate::health::Health;
use crate::observer::Observers;
use crate::{CancellationToken, Event, Observer};

const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Tells an observer again and again how many messages there are and how long they wait.
///
/// One for each table is enough, however many dispatchers there are.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use outbox_core::MemoryRepository;
/// use outbox_dispatcher::{CancellationToken, DepthWatch, TracingObserver};
/// # async fn example(outbox: MemoryRepository, token: CancellationToken) {
/// let watch = DepthWatch::new(outbox, TracingObserver);
/// tokio::spawn(watch.run(Duration::from_secs(60), token));
/// # }
/// ```
pub struct DepthWatch<O> {
    operations: O,
    observers: Observers,
    health: Health,
    /// Those told of at the last look.
    topics: BTreeSet<String>,
    was_held_back: bool,
    had_slot: bool,
}

impl<O: Operations> DepthWatch<O> {
    /// Looks at one table.
    pub fn new(operations: O, observer: impl Observer) -> Self {
        let observers = Observers::new(observer);
        let health = Health::new("stats", observers.clone());
        Self { operations, observers, health, topics: BTreeSet::new(), was_held_back: false, had_slot: false }
    }

    /// Looks once: an [`Event::Depth`] for each topic that has a message or had one at the last look, and an [`Event::HeldBack`] for
    /// a group of a log that is held back or was at the last look, and an [`Event::SlotLag`] for one that is fed from the WAL or was. What is in the way for longer than `limit` is an error.
    ///
    /// # Errors
    /// Those of [`Operations::stats`]; [`Timeout`](outbox_core::ErrorKind::Timeout).
    pub async fn look(&mut self, limit: Duration) -> Result<()> {
        let stats = self.health.watch(limit, self.operations.stats()).await?;
        self.tell(&stats);
        Ok(())
    }

    fn tell(&mut self, stats: &Stats) {
        self.tell_depth(stats);
        self.tell_held_back(stats.held_back.as_ref());
        self.tell_slot_lag(stats.slot_lag.as_ref());
    }

    fn tell_held_back(&mut self, held_back: Option<&HeldBack>) {
        if held_back.is_some() || self.was_held_back {
            self.observers.emit(&Event::HeldBack {
                n_numbers: held_back.map_or(0, |held| held.n_numbers),
                open_for: held_back.map_or(Duration::ZERO, |held| held.open_for),
                by: held_back.map(|held| &*held.by),
            });
        }
        self.was_held_back = held_back.is_some();
    }

    fn tell_slot_lag(&mut self, lag: Option<&SlotLag>) {
        if lag.is_some() || self.had_slot {
            self.observers.emit(&Event::SlotLag {
                slot: lag.map(|lag| &*lag.slot),
                n_retained: lag.map_or(0, |lag| lag.n_retained),
                n_unconfirmed: lag.map_or(0, |lag| lag.n_unconfirmed),
                is_active: lag.is_some_and(|lag| lag.is_active),
            });
        }
        self.had_slot = lag.is_some();
    }

    fn tell_depth(&mut self, Stats { topics, is_estimate, .. }: &Stats) {
        let is_estimate = *is_estimate;
        // an estimate may miss a topic that has messages
        if !is_estimate {
            for topic in self.topics.iter().filter(|topic| !topics.contains_key(*topic)) {
                self.observers.emit(&Event::Depth { topic, stats: &TopicStats::default(), is_estimate });
            }
            self.topics.clear();
        }
        for (topic, stats) in topics {
            self.observers.emit(&Event::Depth { topic, stats, is_estimate });
        }
        self.topics.extend(topics.keys().cloned());
    }

    /// Looks at once and every `interval` (100 ms to 24 h, moved to the nearer bound) until `token` is cancelled.
    /// A failure is an [`Event::StorageUnavailable`] and nothing more.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn run(mut self, interval: Duration, token: CancellationToken) {
        let interval = interval.clamp(MIN_INTERVAL, MAX_LEASE);
        loop {
            let next = Instant::now() + interval;
            let look = async {
                // the observer knows
                let _ = self.look(interval).await;
                sleep_until(next).await;
            };
            tokio::select! {
                () = token.cancelled() => return,
                () = look => {}
            }
        }
    }
}

impl<O> fmt::Debug for DepthWatch<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DepthWatch").field("topics", &self.topics).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use outbox_core::MemoryRepository;

    use super::*;

    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<String>>>);

    impl Observer for Told {
        fn on(&self, event: &Event<'_>) {
            let told = match event {
                Event::Depth { topic, stats, is_estimate } => {
                    format!("{topic} {} {is_estimate}", stats.n_due)
                }
                Event::HeldBack { n_numbers, open_for, by } => {
                    format!("{n_numbers} for {open_for:?} by {by:?}")
                }
                Event::SlotLag { slot, n_retained, n_unconfirmed, is_active } => {
                    format!("{slot:?} {n_retained} {n_unconfirmed} {is_active}")
                }
                _ => return,
            };
            self.0.lock().expect("told").push(told);
        }
    }

    #[test]
    fn an_estimate_that_misses_a_topic_does_not_say_that_it_is_empty() {
        let told = Told::default();
        let mut watch = DepthWatch::new(MemoryRepository::new(), told.clone());
        let one = TopicStats { n_due: 1, ..TopicStats::default() };
        let stats = |topics: &[&str]| {
            Stats::new(topics.iter().map(|topic| ((*topic).to_owned(), one.clone())).collect())
        };
        watch.tell(&stats(&["a", "b"]));
        watch.tell(&stats(&["a"]).with_estimate(true));
        watch.tell(&stats(&["a"]));
        let expected = ["a 1 false", "b 1 false", "a 1 true", "b 0 false", "a 1 false"];
        assert_eq!(*told.0.lock().expect("told"), expected);
    }

    #[test]
    fn what_holds_back_is_told_until_it_is_over() {
        let told = Told::default();
        let mut watch = DepthWatch::new(MemoryRepository::new(), told.clone());
        let free = Stats::default();
        let mut held = Stats::default();
        held.held_back =
            Some(HeldBack { n_numbers: 3, by: "session 1".into(), open_for: Duration::from_secs(2) });
        for stats in [&free, &held, &held, &free, &free] {
            watch.tell(stats);
        }
        let expected =
            ["3 for 2s by Some(\"session 1\")", "3 for 2s by Some(\"session 1\")", "0 for 0ns by None"];
        assert_eq!(*told.0.lock().expect("told"), expected);
    }

    #[test]
    fn slot_is_told_until_it_is_gone() {
        let told = Told::default();
        let mut watch = DepthWatch::new(MemoryRepository::new(), told.clone());
        let (polled, mut fed) = (Stats::default(), Stats::default());
        fed.slot_lag = Some(SlotLag::new("s").with_bytes(20, 10).with_active(true));
        for stats in [&polled, &fed, &fed, &polled, &polled] {
            watch.tell(stats);
        }
        let expected = ["Some(\"s\") 20 10 true", "Some(\"s\") 20 10 true", "None 0 0 false"];
        assert_eq!(*told.0.lock().expect("told"), expected);
    }
}
