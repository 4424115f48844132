use std::future::{Future, pending};
use std::time::Duration;

use crate::Result;

/// Hints that there may be something to claim, so that an idle dispatcher need not poll often.
///
/// A hint is never needed for correctness: losing every one costs at most a polling interval.
pub trait Wakeup: Send + Sync {
    /// The listening side.
    type Listener: Listener + 'static;

    /// Starts to listen; `None` where the storage has no hints.
    ///
    /// # Errors
    /// Those of the storage; the dispatcher polls and tries again.
    fn listen(&self) -> impl Future<Output = Result<Option<Self::Listener>>> + Send;
}

impl<W: Wakeup> Wakeup for &W {
    type Listener = W::Listener;

    async fn listen(&self) -> Result<Option<Self::Listener>> {
        (**self).listen().await
    }
}

/// How a dispatcher that found nothing goes to sleep without missing a message.
///
/// ```text
/// loop {
///     claim, until a claim is empty          // and whenever it is not empty: stand_down()
///     match prepare() {
///         Look { after } => wait for `after` or hint(), whichever is first, then claim again
///         Sleep          => claim once more; if that is empty: wait for hint() or the polling interval
///     }
/// }
/// ```
/// Whatever is committed after the claim that follows `Sleep` has begun causes a hint.
pub trait Listener: Send {
    /// One step towards sleep.
    ///
    /// # Errors
    /// The listener is lost: drop it, claim at once, listen again.
    fn prepare(&mut self) -> impl Future<Output = Result<Readiness>> + Send;

    /// Waits for a hint. Hints that arrive meanwhile are kept, so one may come that has been acted upon.
    ///
    /// # Cancel safety
    /// Safe: a hint is never lost by dropping the future.
    ///
    /// # Errors
    /// The listener is lost: drop it, claim at once, listen again.
    fn hint(&mut self) -> impl Future<Output = Result<()>> + Send;

    /// There is work again: producers need not send hints until the next [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// The listener is lost: drop it, claim at once, listen again.
    fn stand_down(&mut self) -> impl Future<Output = Result<()>> + Send;

    /// Whether hints arrive at all, by a round trip: false when, for example, a pooler swallows them.
    ///
    /// # Errors
    /// The listener is lost: drop it, claim at once, listen again.
    fn probe(&mut self) -> impl Future<Output = Result<bool>> + Send;
}

/// The answer to [`Listener::prepare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// A transaction that gave no hint may still be open: claim again after this time, then prepare again.
    Look {
        /// How long to wait for it at the most.
        after: Duration,
    },
    /// From now on every commit gives a hint: claim once more, then sleep.
    Sleep,
}

/// The listener of a storage without hints; [`Wakeup::listen`] returns `None` there.
#[derive(Debug)]
pub enum NoListener {}

impl Listener for NoListener {
    async fn prepare(&mut self) -> Result<Readiness> {
        Ok(Readiness::Sleep)
    }

    async fn hint(&mut self) -> Result<()> {
        pending().await
    }

    async fn stand_down(&mut self) -> Result<()> {
        Ok(())
    }

    async fn probe(&mut self) -> Result<bool> {
        Ok(false)
    }
}
