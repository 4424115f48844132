use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use outbox_core::{MAX_LEASE, Operations, Result, TopicStats};
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
}

impl<O: Operations> DepthWatch<O> {
    /// Looks at one table.
    pub fn new(operations: O, observer: impl Observer) -> Self {
        let observers = Observers::new(observer);
        let health = Health::new("stats", observers.clone());
        Self { operations, observers, health, topics: BTreeSet::new() }
    }

    /// Looks once: an [`Event::Depth`] for each topic that has a message or had one at the last look. What is in
    /// the way for longer than `limit` is an error.
    ///
    /// # Errors
    /// Those of [`Operations::stats`]; [`Timeout`](outbox_core::ErrorKind::Timeout).
    pub async fn look(&mut self, limit: Duration) -> Result<()> {
        let stats = self.health.watch(limit, self.operations.stats()).await?;
        for topic in std::mem::take(&mut self.topics) {
            if !stats.topics.contains_key(&topic) {
                self.observers.emit(&Event::Depth { topic: &topic, stats: &TopicStats::default() });
            }
        }
        for (topic, stats) in &stats.topics {
            self.observers.emit(&Event::Depth { topic, stats });
        }
        self.topics = stats.topics.into_keys().collect();
        Ok(())
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
