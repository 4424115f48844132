use std::future::Future;
use std::time::Duration;

use crate::{Context, MAX_BATCH, Message, Result};

/// Reads waiting messages without claiming them: for tests, and to look at a backlog.
pub trait Inspect: Send + Sync {
    /// The last `limit` messages that wait to be delivered (due, delayed, waiting for a retry, or claimed), in
    /// the order of their numbers. With a transaction on `cx`: as that transaction sees them, what it has
    /// enqueued itself included; without one: what is committed. Reads the whole table.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a limit outside 1 to [`MAX_BATCH`];
    /// [`ForeignTransaction`](crate::ErrorKind::ForeignTransaction) for a transaction of another backend.
    fn enqueued(&self, cx: &Context, limit: usize) -> impl Future<Output = Result<Vec<Enqueued>>> + Send;
}

impl<R: Inspect> Inspect for &R {
    async fn enqueued(&self, cx: &Context, limit: usize) -> Result<Vec<Enqueued>> {
        (**self).enqueued(cx, limit).await
    }
}

/// A message that waits to be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enqueued {
    /// The message with the attempts counted so far. One that cannot be decoded is shown without what could
    /// not be.
    pub message: Message,
    /// From its enqueue to when it becomes due; zero where it waits for no time. A backend may count from the
    /// begin of the transaction that enqueued it.
    pub delay: Duration,
}

/// Checks the limit of a listing. Backends call it before any statement.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput).
pub fn validate_limit(limit: usize) -> Result<()> {
    if !(1..=MAX_BATCH).contains(&limit) {
        return Err(crate::Error::invalid("limit", format_args!("{limit}, must be 1 to {MAX_BATCH}")));
    }
    Ok(())
}
