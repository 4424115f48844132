//! Retries of a failing storage: when to try again, and one event per change.

use std::future::Future;
use std::time::Duration;

use outbox_core::{Backoff, Error, ErrorKind, Result};
use tokio::time::timeout;

use crate::Event;
use crate::observer::Observers;

/// Whether one operation of the repository works.
pub(crate) struct Health {
    operation: &'static str,
    observers: Observers,
    n_failures: u32,
}

impl Health {
    pub(crate) fn new(operation: &'static str, observers: Observers) -> Self {
        Self { operation, observers, n_failures: 0 }
    }

    /// Runs the operation with a time-out and keeps the score.
    pub(crate) async fn watch<T>(
        &mut self,
        limit: Duration,
        operation: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let result = within(limit, self.operation, operation).await;
        self.note(&result);
        result
    }

    /// Keeps the score of one that was run elsewhere.
    pub(crate) fn note<T>(&mut self, result: &Result<T>) {
        match result {
            Ok(_) => self.works(),
            Err(error) => self.fails(error),
        }
    }

    fn works(&mut self) {
        if std::mem::take(&mut self.n_failures) > 0 {
            self.observers.emit(&Event::StorageRecovered { operation: self.operation });
        }
    }

    fn fails(&mut self, error: &Error) {
        self.n_failures = self.n_failures.saturating_add(1);
        if self.n_failures == 1 {
            self.observers.emit(&Event::StorageUnavailable { operation: self.operation, error });
        }
    }

    /// How long to wait after a failure.
    pub(crate) fn delay(&self) -> Duration {
        storage_backoff().delay(self.n_failures, rand::random())
    }
}

/// Between attempts to reach the storage.
pub(crate) fn storage_backoff() -> Backoff {
    Backoff::default().with_base(Duration::from_millis(100)).with_cap(Duration::from_secs(10))
}

/// `future`, or [`ErrorKind::Timeout`].
pub(crate) async fn within<T>(
    limit: Duration,
    operation: &'static str,
    future: impl Future<Output = Result<T>>,
) -> Result<T> {
    let timed_out =
        |_| Error::new(ErrorKind::Timeout, operation).with_detail(format!("no answer in {limit:?}"));
    timeout(limit, future).await.map_err(timed_out).flatten()
}
