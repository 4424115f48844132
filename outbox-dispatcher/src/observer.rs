use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use outbox_core::{Error, MessageId, TopicStats};
use tracing::{debug, info, trace, warn};

use crate::Report;

/// What happened in a dispatcher, in a call of an [`Instrumented`](crate::Instrumented) repository or in the
/// table that a [`DepthWatch`](crate::DepthWatch) looks at. Never holds a payload or a header.
///
/// docs/observability.md has the table of all events: when they come, at which level [`TracingObserver`] writes
/// them, and which metrics are made of them.
///
/// Events about one message follow its settlement, so they say what is in the database;
/// [`Started`](Self::Started) and [`Handled`](Self::Handled) alone come before.
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
    /// A handler begins. Only for an observer that [times handlers](Observer::times_handlers).
    #[non_exhaustive]
    Started {
        /// The message.
        id: MessageId,
        /// Its topic.
        topic: &'a str,
        /// Which attempt it is.
        attempt: u32,
    },
    /// A handler has ended. Only for an observer that [times handlers](Observer::times_handlers).
    #[non_exhaustive]
    Handled {
        /// The message.
        id: MessageId,
        /// Its topic.
        topic: &'a str,
        /// Which attempt it was.
        attempt: u32,
        /// How it ended: `ok`, `failed`, `dead_letter`, `unavailable`, `timed_out`, `panicked`, `unrouted`, or
        /// `dropped` by a stop, by a lost lease, or with its run.
        outcome: &'static str,
        /// How long it ran.
        took: Duration,
        /// How long ago the message was enqueued: this host's clock compared with the database's, and zero
        /// where that would be negative. A delay asked for counts as well.
        age: Duration,
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
    /// Nothing is claimed for a while: of this topic where it has a limit or a batch handler, with those that share the
    /// limit; otherwise of all topics that have neither.
    #[non_exhaustive]
    Paused {
        /// Of the message whose handler said so.
        topic: &'a str,
        /// Until one message is tried.
        pause: Duration,
        /// The handler's error.
        error: &'a str,
        /// How many of these groups of topics pause now.
        n_paused: usize,
    },
    /// Claiming goes on.
    #[non_exhaustive]
    Resumed {
        /// Of the message that was tried.
        topic: &'a str,
        /// How many groups of topics pause still.
        n_paused: usize,
    },
    /// An operation of the repository fails.
    #[non_exhaustive]
    StorageUnavailable {
        /// `claim`, `settle`, `extend`, or `stats` for a [`DepthWatch`](crate::DepthWatch).
        operation: &'static str,
        /// The first error.
        error: &'a Error,
    },
    /// It works again.
    #[non_exhaustive]
    StorageRecovered {
        /// As for [`StorageUnavailable`](Self::StorageUnavailable).
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
    /// A call of an [`Instrumented`](crate::Instrumented) repository has ended.
    #[non_exhaustive]
    Called {
        /// The method: `enqueue`, `claim`, `settle`, `stats` …
        operation: &'static str,
        /// How long it took.
        took: Duration,
        /// How it ended.
        end: CallEnd<'a>,
    },
    /// Messages of one topic were stored through an [`Instrumented`](crate::Instrumented) repository, in a
    /// transaction that may still roll back.
    #[non_exhaustive]
    Enqueued {
        /// Their topic.
        topic: &'a str,
        /// How many.
        n_messages: usize,
    },
    /// What a [`DepthWatch`](crate::DepthWatch) has seen of one topic.
    #[non_exhaustive]
    Depth {
        /// The topic.
        topic: &'a str,
        /// Its counts; all zero once for a topic that has no message any more.
        stats: &'a TopicStats,
        /// Whether they are an estimate, see [`Stats`](outbox_core::Stats).
        is_estimate: bool,
    },
    /// A [`DepthWatch`](crate::DepthWatch) has seen that an open transaction keeps a group from reading on in its log; once more
    /// when none does any longer.
    #[non_exhaustive]
    HeldBack {
        /// How many numbers may not be read, see [`HeldBack`](outbox_core::HeldBack); 0 when it is over.
        n_numbers: u64,
        /// For how long the transaction has been open.
        open_for: Duration,
        /// Whose it is; `None` when it is over.
        by: Option<&'a str>,
    },
    /// A [`DepthWatch`](crate::DepthWatch) has seen how far the replication slot of a group that is fed from the WAL is behind the server; once
    /// more when no slot keeps WAL for the group any longer. The fields are those of [`SlotLag`](outbox_core::SlotLag).
    #[non_exhaustive]
    SlotLag {
        /// Its name; `None` when it is gone.
        slot: Option<&'a str>,
        /// How many bytes of WAL the server keeps for it.
        n_retained: u64,
        /// How many bytes of WAL were written since the place that the group has confirmed.
        n_unconfirmed: u64,
        /// Whether a process reads it.
        is_active: bool,
    },
}

impl Event<'_> {
    /// Every [`name`](Self::name).
    pub const NAMES: [&'static str; 23] = [
        "Claimed",
        "Started",
        "Handled",
        "Delivered",
        "Retried",
        "Dead",
        "Released",
        "LeaseLost",
        "Unconfirmed",
        "Paused",
        "Resumed",
        "StorageUnavailable",
        "StorageRecovered",
        "WakeupReady",
        "WakeupLost",
        "WakeupDeaf",
        "Stopping",
        "Stopped",
        "Called",
        "Enqueued",
        "Depth",
        "HeldBack",
        "SlotLag",
    ];

    /// The name of the variant.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Claimed { .. } => "Claimed",
            Self::Started { .. } => "Started",
            Self::Handled { .. } => "Handled",
            Self::Delivered { .. } => "Delivered",
            Self::Retried { .. } => "Retried",
            Self::Dead { .. } => "Dead",
            Self::Released { .. } => "Released",
            Self::LeaseLost { .. } => "LeaseLost",
            Self::Unconfirmed { .. } => "Unconfirmed",
            Self::Paused { .. } => "Paused",
            Self::Resumed { .. } => "Resumed",
            Self::StorageUnavailable { .. } => "StorageUnavailable",
            Self::StorageRecovered { .. } => "StorageRecovered",
            Self::WakeupReady { .. } => "WakeupReady",
            Self::WakeupLost { .. } => "WakeupLost",
            Self::WakeupDeaf => "WakeupDeaf",
            Self::Stopping => "Stopping",
            Self::Stopped { .. } => "Stopped",
            Self::Called { .. } => "Called",
            Self::Enqueued { .. } => "Enqueued",
            Self::Depth { .. } => "Depth",
            Self::HeldBack { .. } => "HeldBack",
            Self::SlotLag { .. } => "SlotLag",
        }
    }
}

/// How a call of a repository ended.
#[derive(Clone, Copy, Debug)]
pub enum CallEnd<'a> {
    /// It worked.
    Ok,
    /// It failed.
    Failed(&'a Error),
    /// The caller dropped it, for example because it took too long.
    Dropped,
}

impl CallEnd<'_> {
    /// `ok`, `dropped`, or the [name](outbox_core::ErrorKind::name) of the error's kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed(error) => error.kind().name(),
            Self::Dropped => "dropped",
        }
    }
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

    /// Whether to be told of [`Event::Started`] and [`Event::Handled`]. Not by default: it costs three readings of a clock for each
    /// message. Asked once, when the observer is handed over.
    fn times_handlers(&self) -> bool {
        false
    }
}

impl<O: Observer + ?Sized> Observer for Arc<O> {
    fn on(&self, event: &Event<'_>) {
        (**self).on(event);
    }

    fn times_handlers(&self) -> bool {
        (**self).times_handlers()
    }
}

/// Tells both, the first one first: `(TracingObserver, mine)`.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn on(&self, event: &Event<'_>) {
        self.0.on(event);
        self.1.on(event);
    }

    fn times_handlers(&self) -> bool {
        self.0.times_handlers() || self.1.times_handlers()
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
            | Event::Started { .. }
            | Event::Handled { .. }
            | Event::Delivered { .. }
            | Event::Retried { .. }
            | Event::Dead { .. }
            | Event::Released { .. }
            | Event::LeaseLost { .. }
            | Event::Unconfirmed { .. } => trace_message(event),
            Event::Called { .. }
            | Event::Enqueued { .. }
            | Event::Depth { .. }
            | Event::HeldBack { .. }
            | Event::SlotLag { .. } => {
                trace_storage(event);
            }
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
        Event::Started { id, topic, attempt } => trace!(%id, topic, attempt, "started"),
        Event::Handled { id, topic, attempt, outcome, took, age } => {
            trace!(%id, topic, attempt, outcome, ?took, ?age, "handled");
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

fn trace_storage(event: &Event<'_>) {
    match *event {
        Event::Called { operation, took, end: CallEnd::Ok } => trace!(operation, ?took, "called"),
        Event::Called { operation, took, end: CallEnd::Failed(error) } => {
            debug!(operation, ?took, %error, "call failed");
        }
        Event::Called { operation, took, end: CallEnd::Dropped } => debug!(operation, ?took, "call dropped"),
        Event::Enqueued { topic, n_messages } => trace!(topic, n_messages, "enqueued"),
        Event::Depth { topic, stats, is_estimate } => trace!(topic, is_estimate, ?stats, "depth"),
        Event::HeldBack { by: Some(by), n_numbers, open_for } => {
            debug!(n_numbers, ?open_for, by, "held back")
        }
        Event::HeldBack { by: None, .. } => debug!("not held back any longer"),
        Event::SlotLag { slot: Some(slot), n_retained, n_unconfirmed, is_active } => {
            trace!(slot, n_retained, n_unconfirmed, is_active, "slot lag");
        }
        Event::SlotLag { slot: None, .. } => debug!("no slot keeps WAL any longer"),
        _ => {}
    }
}

fn trace_state(event: &Event<'_>) {
    match *event {
        Event::Paused { topic, pause, error, .. } => {
            warn!(topic, ?pause, "paused: a handler's downstream is unavailable");
            debug!(topic, error, "paused");
        }
        Event::Resumed { topic, .. } => info!(topic, "resumed"),
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
pub(crate) struct Observers {
    observer: Arc<dyn Observer>,
    times_handlers: bool,
}

impl Observers {
    pub(crate) fn new(observer: impl Observer) -> Self {
        Self { times_handlers: observer.times_handlers(), observer: Arc::new(observer) }
    }

    pub(crate) fn emit(&self, event: &Event<'_>) {
        let _ = catch_unwind(AssertUnwindSafe(|| self.observer.on(event)));
    }

    pub(crate) fn times_handlers(&self) -> bool {
        self.times_handlers
    }
}
