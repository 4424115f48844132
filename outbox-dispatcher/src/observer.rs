use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use outbox_core::{Error, MessageId};
use tracing::{debug, info, trace, warn};

use crate::Report;

/// What happened in a dispatcher. Never holds a payload or a header.
///
/// | event | when | level of [`TracingObserver`] |
/// |---|---|---|
/// | `Claimed` | a claim took messages, or made some dead | debug; warn when it made some dead |
/// | `Delivered` | the handler succeeded and the message was removed | trace |
/// | `Retried` | the attempt failed; the message is due again later | debug, with the error |
/// | `Dead` | out of attempts or beyond help | warn; the error at debug |
/// | `Released` | given back, no attempt counted | debug |
/// | `LeaseLost` | the lease had run out, or the message was removed; a handler still at it was dropped | warn |
/// | `Unconfirmed` | settled at the second try, the first had most likely worked | debug |
/// | `Paused` | a handler said that its downstream is unavailable | warn; the error at debug |
/// | `Resumed` | a message was tried again and the downstream answered | info |
/// | `StorageUnavailable` | an operation fails; once until it works again | warn |
/// | `StorageRecovered` | it works again | info |
/// | `WakeupReady` | hints arrive, as a round trip has shown | debug; info after a loss |
/// | `WakeupLost` | the listener is lost; polling until it is back | warn |
/// | `WakeupDeaf` | listening works but no hint arrives, for example through a transaction pooler | warn |
/// | `Stopping` | the stop signal arrived | info |
/// | `Stopped` | the end of the run | info; warn when messages stay unsettled |
///
/// Events about one message follow its settlement, so they say what is in the database.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A claim that found something.
    #[non_exhaustive]
    Claimed {
        /// Handed out.
        n_messages: usize,
        /// Made dead by the claim.
        n_dead: usize,
        /// Whether they come from expired leases.
        recovered: bool,
    },
    /// Delivered and removed.
    #[non_exhaustive]
    Delivered {
        /// The message.
        id: MessageId,
        /// Its topic.
        topic: &'a str,
        /// Which attempt it was.
        attempt: u32,
    },
    /// Failed and due again later.
    #[non_exhaustive]
    Retried {
        /// The message.
        id: MessageId,
        /// Its topic.
        topic: &'a str,
        /// Which attempt it was.
        attempt: u32,
        /// The delay.
        after: Duration,
        /// The handler's error, as it was stored.
        error: &'a str,
    },
    /// Made a dead letter.
    #[non_exhaustive]
    Dead {
        /// The message.
        id: MessageId,
        /// Its topic.
        topic: &'a str,
        /// Which attempt it was.
        attempt: u32,
        /// The handler's error, as it was stored.
        error: &'a str,
    },
    /// Given back.
    #[non_exhaustive]
    Released {
        /// The message.
        id: MessageId,
        /// Its topic.
        topic: &'a str,
    },
    /// Somebody else may deliver this message as well, or has removed it.
    #[non_exhaustive]
    LeaseLost {
        /// The message.
        id: MessageId,
        /// Its topic.
        topic: &'a str,
        /// Which attempt it was.
        attempt: u32,
    },
    /// The second try to settle found the lease gone.
    #[non_exhaustive]
    Unconfirmed {
        /// The message.
        id: MessageId,
        /// Its topic.
        topic: &'a str,
        /// Which attempt it was.
        attempt: u32,
    },
    /// Nothing is claimed for a while.
    #[non_exhaustive]
    Paused {
        /// Until one message is tried.
        pause: Duration,
        /// The handler's error.
        error: &'a str,
    },
    /// Claiming goes on.
    Resumed,
    /// An operation of the repository fails.
    #[non_exhaustive]
    StorageUnavailable {
        /// `claim`, `settle` or `extend`.
        operation: &'static str,
        /// The first error.
        error: &'a Error,
    },
    /// It works again.
    #[non_exhaustive]
    StorageRecovered {
        /// `claim`, `settle` or `extend`.
        operation: &'static str,
    },
    /// Hints arrive.
    #[non_exhaustive]
    WakeupReady {
        /// Whether they had been lost before.
        again: bool,
    },
    /// The listener is lost.
    #[non_exhaustive]
    WakeupLost {
        /// Why.
        error: &'a Error,
    },
    /// No hint arrives.
    WakeupDeaf,
    /// The stop signal arrived.
    Stopping,
    /// The end of the run.
    #[non_exhaustive]
    Stopped {
        /// Its numbers.
        report: &'a Report,
    },
}

/// Is told what happens in a dispatcher. Called on the dispatcher's own tasks: return quickly.
///
/// # Examples
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use outbox_dispatcher::{Event, Observer};
/// #[derive(Default)]
/// struct Deaths(AtomicU64);
/// impl Observer for Deaths {
///     fn on(&self, event: &Event<'_>) {
///         if let Event::Dead { .. } = event {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
/// ```
pub trait Observer: Send + Sync + 'static {
    /// Something happened. A panic in here is ignored.
    fn on(&self, event: &Event<'_>);
}

impl<O: Observer + ?Sized> Observer for Arc<O> {
    fn on(&self, event: &Event<'_>) {
        (**self).on(event);
    }
}

/// Tells both, the first one first: `(TracingObserver, mine)`.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn on(&self, event: &Event<'_>) {
        self.0.on(event);
        self.1.on(event);
    }
}

/// Writes every event with [`tracing`]: the default observer. What handlers' errors say goes to level debug
/// only, since it may quote what they worked on.
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingObserver;

impl Observer for TracingObserver {
    fn on(&self, event: &Event<'_>) {
        match *event {
            Event::Claimed { .. }
            | Event::Delivered { .. }
            | Event::Retried { .. }
            | Event::Dead { .. }
            | Event::Released { .. }
            | Event::LeaseLost { .. }
            | Event::Unconfirmed { .. } => trace_message(event),
            _ => trace_state(event),
        }
    }
}

fn trace_message(event: &Event<'_>) {
    match *event {
        Event::Claimed { n_messages, n_dead, recovered } => {
            debug!(n_messages, recovered, "claimed");
            if n_dead > 0 {
                warn!(n_dead, "made dead by the claim: out of attempts or undecodable");
            }
        }
        Event::Delivered { id, topic, attempt } => trace!(%id, topic, attempt, "delivered"),
        Event::Retried { id, topic, attempt, after, error } => {
            debug!(%id, topic, attempt, ?after, error, "failed, due again");
        }
        Event::Dead { id, topic, attempt, error } => {
            warn!(%id, topic, attempt, "dead letter");
            debug!(%id, error, "dead letter");
        }
        Event::Released { id, topic } => debug!(%id, topic, "released"),
        Event::LeaseLost { id, topic, attempt } => warn!(%id, topic, attempt, "lease lost"),
        Event::Unconfirmed { id, topic, attempt } => debug!(%id, topic, attempt, "settled at a second try"),
        _ => {}
    }
}

fn trace_state(event: &Event<'_>) {
    match *event {
        Event::Paused { pause, error } => {
            warn!(?pause, "paused: a handler's downstream is unavailable");
            debug!(error, "paused");
        }
        Event::Resumed => info!("resumed"),
        Event::StorageUnavailable { operation, error } => {
            warn!(operation, %error, "the storage fails, trying again");
        }
        Event::StorageRecovered { operation } => info!(operation, "the storage works again"),
        Event::WakeupReady { again: true } => info!("hints arrive again"),
        Event::WakeupReady { again: false } => debug!("hints arrive"),
        Event::WakeupLost { error } => warn!(%error, "the listener is lost, polling"),
        Event::WakeupDeaf => {
            warn!("no hint arrives, polling: does the listener go through a transaction pooler?")
        }
        Event::Stopping => info!("stopping"),
        Event::Stopped { report } if report.n_unsettled > 0 => warn!(?report, "stopped"),
        Event::Stopped { report } => info!(?report, "stopped"),
        _ => {}
    }
}

/// The observer behind a guard: its panics end here.
#[derive(Clone)]
pub(crate) struct Observers(Arc<dyn Observer>);

impl Observers {
    pub(crate) fn new(observer: impl Observer) -> Self {
        Self(Arc::new(observer))
    }

    pub(crate) fn emit(&self, event: &Event<'_>) {
        let _ = catch_unwind(AssertUnwindSafe(|| self.0.on(event)));
    }
}
