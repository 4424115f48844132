//! What handlers report: how many messages came, and when.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outbox_core::Message;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::clock::nanos;
use crate::error::Result;
use crate::load::stamp;
use crate::stats::Latencies;

/// Longer than any scenario waits for a delivery.
const PATIENCE: Duration = Duration::from_secs(900);

/// A cheap handle that every handler gets a clone of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deliveries(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    n: AtomicU64,
    target: AtomicU64,
    reached: Notify,
    arrivals: Mutex<Vec<Arrival>>,
}

/// One delivered message, times in nanoseconds of [`nanos`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) number: u64,
    pub(crate) began: u64,
    pub(crate) arrived: u64,
}

impl Arrival {
    /// From the stamp in a payload, now.
    pub(crate) fn of(payload: &[u8]) -> Option<Self> {
        let arrived = nanos();
        stamp(payload).map(|(began, number)| Self { number, began, arrived })
    }
}

impl Deliveries {
    /// One more.
    pub(crate) fn count(&self) {
        let n = self.0.n.fetch_add(1, Ordering::AcqRel) + 1;
        if n == self.0.target.load(Ordering::Acquire) {
            self.0.reached.notify_one();
        }
    }

    /// One more, with its stamp.
    pub(crate) fn record(&self, message: &Message) {
        if let Some(arrival) = Arrival::of(&message.payload) {
            self.0.arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
        }
        self.count();
    }

    pub(crate) fn n(&self) -> u64 {
        self.0.n.load(Ordering::Acquire)
    }

    /// Waits until so many have come.
    pub(crate) async fn reach(&self, target: u64) -> Result<()> {
        if self.reach_within(target, PATIENCE).await {
            return Ok(());
        }
        Err(format!("{} of {target} messages delivered after {PATIENCE:?}", self.n()).into())
    }

    /// The same for as long as it takes.
    pub(crate) async fn reach_at_last(&self, target: u64) {
        while !self.reach_within(target, PATIENCE).await {}
    }

    /// The same with less patience; says whether they came.
    pub(crate) async fn reach_within(&self, target: u64, patience: Duration) -> bool {
        self.0.target.store(target, Ordering::Release);
        let all = async {
            while self.n() < target {
                self.0.reached.notified().await;
            }
        };
        timeout(patience, all).await.is_ok()
    }

    /// What was recorded.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.0.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// From the begin of the enqueuing transactions to the handlers.
pub(crate) fn since_begin(arrivals: &[Arrival]) -> Latencies {
    Latencies::new(arrivals.iter().map(|arrival| between(arrival.began, arrival.arrived)))
}

/// From the commits, whose times stand in the order of the messages' numbers, to the handlers.
pub(crate) fn since_commit(arrivals: &[Arrival], commits: &[u64]) -> Latencies {
    let samples = arrivals.iter().filter_map(|arrival| {
        let commit = commits.get(usize::try_from(arrival.number).ok()?)?;
        Some(between(*commit, arrival.arrived))
    });
    Latencies::new(samples)
}

/// Messages that came more than once.
pub(crate) fn n_duplicates(arrivals: &[Arrival]) -> usize {
    let numbers: HashSet<u64> = arrivals.iter().map(|arrival| arrival.number).collect();
    arrivals.len() - numbers.len()
}

fn between(earlier: u64, later: u64) -> Duration {
    Duration::from_nanos(later.saturating_sub(earlier))
}
