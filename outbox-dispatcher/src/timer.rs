//! How long a handler took and how old its message was: measured only, nothing is decided by it.

use std::time::{Duration, SystemTime};

use outbox_core::{Message, MessageId};
use tokio::time::Instant;

use crate::Event;
use crate::observer::Observers;

/// Running while a handler runs.
pub(crate) struct Timer {
    id: MessageId,
    attempt: u32,
    enqueued: SystemTime,
    started: Instant,
}

impl Timer {
    /// Tells the observer.
    pub(crate) fn start(observers: &Observers, message: &Message) -> Self {
        let Message { id, ref topic, attempt, created_at, .. } = *message;
        observers.emit(&Event::Started { id, topic, attempt });
        Self { id, attempt, enqueued: created_at.into(), started: Instant::now() }
    }

    /// Tells the observer.
    pub(crate) fn stop(self, observers: &Observers, topic: &str, outcome: &'static str) {
        let Self { id, attempt, enqueued, started } = self;
        let (took, age) = (started.elapsed(), age(enqueued));
        observers.emit(&Event::Handled { id, topic, attempt, outcome, took, age });
    }
}

#[allow(clippy::disallowed_methods, reason = "shown to an observer, decides nothing")]
fn age(enqueued: SystemTime) -> Duration {
    SystemTime::now().duration_since(enqueued).unwrap_or_default()
}
