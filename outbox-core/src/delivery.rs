use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as Task, Poll, Waker};
use std::time::Instant;

/// One run of a handler, seen from inside: until when it may last, and whether it is over.
///
/// Whoever runs handlers makes one for each run and puts it on the [`Context`](crate::Context); handlers ask
/// the context.
#[derive(Debug, Default)]
pub struct Delivery {
    deadline: Option<Instant>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_cancelled: bool,
    wakers: Vec<Waker>,
}

impl Delivery {
    /// A run that may last until `deadline`.
    pub fn new(deadline: Option<Instant>) -> Self {
        Self { deadline, state: Mutex::default() }
    }

    /// When the run is cut off.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Says that the run is over, for good.
    pub fn cancel(&self) {
        let wakers = {
            let mut state = self.state();
            state.is_cancelled = true;
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether the run is over.
    pub fn is_cancelled(&self) -> bool {
        self.state().is_cancelled
    }

    fn poll_cancelled(&self, waker: &Waker) -> Poll<()> {
        let mut state = self.state();
        if state.is_cancelled {
            return Poll::Ready(());
        }
        if !state.wakers.iter().any(|known| known.will_wake(waker)) {
            state.wakers.push(waker.clone());
        }
        Poll::Pending
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ready when a run is over.
pub(crate) struct Cancelled(pub(crate) Option<Arc<Delivery>>);

impl Future for Cancelled {
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<()> {
        match &self.0 {
            Some(delivery) => delivery.poll_cancelled(task.waker()),
            None => Poll::Pending,
        }
    }
}
