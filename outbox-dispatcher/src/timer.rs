//! How long a handler took and how old its message was: measured only, nothing is decided by it.

use std::time::{Duration, SystemTime};

use outbox_core::{Message, MessageId};
use tokio::time::Instant;

use crate::Event;
use crate::decision::Ending;
use crate::observer::Observers;

/// Running while a handler runs. Whoever drops it instead of stopping it has dropped the handler.
pub(crate) struct Timer<'a> {
    observers: &'a Observers,
    topic: &'a str,
    id: MessageId,
    attempt: u32,
    enqueued: SystemTime,
    started: Instant,
    outcome: &'static str,
}

impl<'a> Timer<'a> {
    /// Tells the observer.
    pub(crate) fn start(observers: &'a Observers, topic: &'a str, message: &Message) -> Self {
        let Message { id, attempt, created_at, .. } = *message;
        observers.emit(&Event::Started { id, topic, attempt });
        let (enqueued, started, outcome) = (created_at.into(), Instant::now(), Ending::Abandoned.name());
        Self { observers, topic, id, attempt, enqueued, started, outcome }
    }

    pub(crate) fn stop(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Timer<'_> {
    /// Tells the observer.
    fn drop(&mut self) {
        let Self { observers, topic, id, attempt, enqueued, started, outcome } = *self;
        let (took, age) = (started.elapsed(), age(enqueued));
        observers.emit(&Event::Handled { id, topic, attempt, outcome, took, age });
    }
}

#[allow(clippy::disallowed_methods, reason = "shown to an observer, decides nothing")]
fn age(enqueued: SystemTime) -> Duration {
    SystemTime::now().duration_since(enqueued).unwrap_or_default()
}
