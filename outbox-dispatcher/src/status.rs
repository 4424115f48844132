use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::{Event, Observer};

/// How a dispatcher is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// It claims and delivers, or waits for messages.
    Working,
    /// A handler's downstream is unavailable; it tries again by itself.
    Paused,
    /// The storage fails; it tries again by itself.
    StorageUnavailable,
    /// The stop signal arrived.
    Stopping,
    /// The run has ended, by the stop signal, by a panic, or because its future was dropped.
    Ended,
}

impl State {
    /// For a liveness endpoint: false when nothing is delivered any more unless the process is restarted. A
    /// dispatcher that cannot reach its storage is alive: a restart would not help it.
    pub fn is_live(self) -> bool {
        self != Self::Ended
    }

    /// For a readiness endpoint: false while the storage fails and from the stop signal on.
    pub fn is_ready(self) -> bool {
        matches!(self, Self::Working | Self::Paused)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Working => "working",
            Self::Paused => "paused: a handler's downstream is unavailable",
            Self::StorageUnavailable => "the storage is unavailable",
            Self::Stopping => "stopping",
            Self::Ended => "ended",
        })
    }
}

/// Tells the [`State`] of the dispatcher that its observer was given to. Clones tell the same.
///
/// # Examples
/// ```
/// use outbox_core::MemoryRepository;
/// use outbox_dispatcher::{Dispatcher, Router, Status, TracingObserver};
/// let (observer, status) = Status::new();
/// let dispatcher =
///     Dispatcher::new(MemoryRepository::new(), Router::new()).with_observer((TracingObserver, observer));
/// assert!(status.state().is_live() && status.state().is_ready());
/// drop(dispatcher);
/// assert!(!status.state().is_live());
/// ```
#[derive(Clone, Debug)]
pub struct Status {
    seen: Arc<Mutex<Seen>>,
    alive: Weak<()>,
}

/// The observer behind a [`Status`]. For one dispatcher.
#[derive(Debug)]
pub struct StatusObserver {
    seen: Arc<Mutex<Seen>>,
    _alive: Arc<()>,
}

#[derive(Debug, Default)]
struct Seen {
    failing: BTreeSet<&'static str>,
    is_paused: bool,
    is_stopping: bool,
    has_stopped: bool,
}

impl Status {
    /// An observer to give to a dispatcher, and what tells its state.
    #[allow(clippy::new_ret_no_self, reason = "both halves are needed")]
    pub fn new() -> (StatusObserver, Self) {
        let (seen, alive) = (Arc::<Mutex<Seen>>::default(), Arc::new(()));
        let status = Self { seen: Arc::clone(&seen), alive: Arc::downgrade(&alive) };
        (StatusObserver { seen, _alive: alive }, status)
    }

    /// How the dispatcher is now.
    pub fn state(&self) -> State {
        let seen = lock(&self.seen);
        match *seen {
            _ if seen.has_stopped || self.alive.strong_count() == 0 => State::Ended,
            Seen { is_stopping: true, .. } => State::Stopping,
            _ if !seen.failing.is_empty() => State::StorageUnavailable,
            Seen { is_paused: true, .. } => State::Paused,
            _ => State::Working,
        }
    }
}

impl Observer for StatusObserver {
    fn on(&self, event: &Event<'_>) {
        let mut seen = lock(&self.seen);
        match *event {
            Event::StorageUnavailable { operation, .. } => drop(seen.failing.insert(operation)),
            Event::StorageRecovered { operation } => drop(seen.failing.remove(operation)),
            Event::Paused { n_paused, .. } | Event::Resumed { n_paused, .. } => seen.is_paused = n_paused > 0,
            Event::Stopping => seen.is_stopping = true,
            Event::Stopped { .. } => seen.has_stopped = true,
            _ => {}
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
