//! The metrics, and which events they are made of: the same for every adapter.

use outbox_core::TopicStats;

use crate::Event;

/// Upper bounds in seconds for the histograms of durations: those of OpenTelemetry for the operations of a
/// messaging client, and longer ones for messages that wait.
pub const SECONDS_BUCKETS: [f64; 19] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
    3_600.0, 21_600.0,
];
/// Upper bounds for the histogram of attempts.
pub const ATTEMPT_BUCKETS: [f64; 8] = [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    /// A gauge that is told what to add.
    UpDown,
    Gauge,
    Histogram,
}

impl Kind {
    /// As the page has it.
    #[cfg(test)]
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::UpDown | Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric. Every series has the label `table` beside its own.
#[derive(Debug)]
pub(crate) struct Metric {
    /// As OpenTelemetry writes it.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// In UCUM; braces are an annotation.
    pub(crate) unit: &'static str,
    pub(crate) labels: &'static [&'static str],
    pub(crate) description: &'static str,
}

impl Metric {
    /// As Prometheus writes it; OpenTelemetry's exporters make the same of name and unit.
    #[cfg(any(feature = "metrics", test))]
    pub(crate) fn prometheus_name(&self) -> String {
        let name = self.name.replace('.', "_");
        match (self.kind, self.unit) {
            (Kind::Counter, _) => name + "_total",
            (_, "s") => name + "_seconds",
            (_, "By") => name + "_bytes",
            _ => name,
        }
    }

    #[cfg(feature = "opentelemetry")]
    pub(crate) fn buckets(&self) -> &'static [f64] {
        match self.unit {
            "s" => &SECONDS_BUCKETS,
            _ => &ATTEMPT_BUCKETS,
        }
    }
}

macro_rules! metrics {
    ($($id:ident $name:literal $kind:ident $unit:literal [$($label:literal)*] $description:literal)*) => {
        /// Names a metric of [`METRICS`] by its place.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Id {
            $($id),*
        }

        pub(crate) const METRICS: &[Metric] = &[$(Metric {
            name: $name,
            kind: Kind::$kind,
            unit: $unit,
            labels: &[$($label),*],
            description: $description,
        }),*];
    };
}

metrics! {
    Enqueued "outbox.enqueued" Counter "{message}" ["topic"]
        "messages stored, in transactions that may still roll back"
    Claims "outbox.claims" Counter "{claim}" ["outcome"]
        "claims that found something: fresh messages, or recovered ones of expired leases"
    Claimed "outbox.claimed" Counter "{message}" ["outcome"]
        "messages handed out by claims"
    ClaimDead "outbox.claim.dead" Counter "{message}" []
        "messages that a claim made dead instead of handing them out"
    Settled "outbox.settled" Counter "{message}" ["topic" "outcome"]
        "what became of claimed messages"
    Attempts "outbox.attempts" Histogram "{attempt}" ["topic" "outcome"]
        "the attempt in which a message was delivered or died"
    Handling "outbox.handling" UpDown "{message}" ["topic"]
        "messages that handlers are working on"
    HandlerDuration "outbox.handler.duration" Histogram "s" ["topic" "outcome"]
        "how long handlers ran"
    Latency "outbox.latency" Histogram "s" ["topic"]
        "from the enqueue to the end of the handler that succeeded"
    Pauses "outbox.pauses" Counter "{pause}" []
        "pauses because a handler's downstream was unavailable"
    Paused "outbox.paused" Gauge "" []
        "groups of topics whose claiming pauses; those without a limit and a batch handler are one"
    StorageFailures "outbox.storage.failures" Counter "{failure}" ["operation" "error"]
        "times that an operation of the dispatcher began to fail"
    StorageUnavailable "outbox.storage.unavailable" Gauge "" ["operation"]
        "1 while an operation of the dispatcher fails"
    WakeupReady "outbox.wakeup.ready" Gauge "" []
        "1 while hints arrive, 0 while the dispatcher polls instead"
    WakeupLosses "outbox.wakeup.losses" Counter "{loss}" ["outcome"]
        "times that the listener was lost or turned out to be deaf"
    Unsettled "outbox.unsettled" Counter "{message}" []
        "messages still held when a run ended: delivered again when their leases have expired"
    CallDuration "outbox.call.duration" Histogram "s" ["operation" "outcome"]
        "how long calls of the storage took"
    Depth "outbox.depth" Gauge "{message}" ["topic" "state"]
        "messages in the table by what they wait for"
    OldestAge "outbox.oldest.age" Gauge "s" ["topic"]
        "for how long the longest-due message has been due"
    HighestAttempt "outbox.highest.attempt" Gauge "{attempt}" ["topic"]
        "the highest attempt among the messages that are not dead"
    HeldBack "outbox.held.back" Gauge "{message}" []
        "how many messages at most a group of a log may not read because of an open transaction"
    HeldBackAge "outbox.held.back.age" Gauge "s" []
        "for how long that transaction has been open"
    SlotRetained "outbox.slot.retained" Gauge "By" []
        "WAL that the server keeps for the slot of a group fed from it"
    SlotLag "outbox.slot.lag" Gauge "By" []
        "WAL written since the place that this group has confirmed"
    SlotActive "outbox.slot.active" Gauge "" []
        "1 while a process reads the slot"
}

impl Id {
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    pub(crate) fn metric(self) -> &'static Metric {
        &METRICS[self.index()]
    }
}

/// The values of a metric's labels, in their order.
pub(crate) type Labels<'a> = &'a [&'a str];

/// Says to `record` what an event measures. A counter is told what to add, a gauge where it stands, unless it goes
/// up and down: only sums are right whatever the order in which workers tell.
pub(crate) fn measure(event: &Event<'_>, mut record: impl FnMut(Id, Labels<'_>, f64)) {
    match *event {
        Event::Claimed { n_messages, n_dead, recovered } => {
            let outcome = if recovered { "recovered" } else { "fresh" };
            record(Id::Claims, &[outcome], 1.0);
            record(Id::Claimed, &[outcome], n_messages as f64);
            record(Id::ClaimDead, &[], n_dead as f64);
        }
        Event::Started { topic, .. } => record(Id::Handling, &[topic], 1.0),
        Event::Handled { topic, outcome, took, age, .. } => {
            record(Id::Handling, &[topic], -1.0);
            record(Id::HandlerDuration, &[topic, outcome], took.as_secs_f64());
            if outcome == "ok" {
                record(Id::Latency, &[topic], age.as_secs_f64());
            }
        }
        Event::Delivered { topic, attempt, .. } => {
            record(Id::Settled, &[topic, "delivered"], 1.0);
            record(Id::Attempts, &[topic, "delivered"], attempt.into());
        }
        Event::Retried { topic, .. } => record(Id::Settled, &[topic, "retried"], 1.0),
        Event::Dead { topic, attempt, .. } => {
            record(Id::Settled, &[topic, "dead"], 1.0);
            record(Id::Attempts, &[topic, "dead"], attempt.into());
        }
        Event::Released { topic, .. } => record(Id::Settled, &[topic, "released"], 1.0),
        Event::LeaseLost { topic, .. } => record(Id::Settled, &[topic, "lease_lost"], 1.0),
        Event::Unconfirmed { topic, .. } => record(Id::Settled, &[topic, "unconfirmed"], 1.0),
        Event::Called { operation, took, end } => {
            record(Id::CallDuration, &[operation, end.name()], took.as_secs_f64());
        }
        Event::Enqueued { topic, n_messages } => record(Id::Enqueued, &[topic], n_messages as f64),
        Event::Depth { topic, stats, .. } => measure_depth(topic, stats, record),
        Event::HeldBack { n_numbers, open_for, .. } => {
            record(Id::HeldBack, &[], n_numbers as f64);
            record(Id::HeldBackAge, &[], open_for.as_secs_f64());
        }
        Event::SlotLag { n_retained, n_unconfirmed, is_active, .. } => {
            record(Id::SlotRetained, &[], n_retained as f64);
            record(Id::SlotLag, &[], n_unconfirmed as f64);
            record(Id::SlotActive, &[], u8::from(is_active).into());
        }
        _ => measure_state(event, record),
    }
}

fn measure_depth(topic: &str, stats: &TopicStats, mut record: impl FnMut(Id, Labels<'_>, f64)) {
    for (state, n_messages) in [
        ("pending", stats.n_pending),
        ("due", stats.n_due),
        ("retrying", stats.n_retrying),
        ("claimed", stats.n_claimed),
        ("dead", stats.n_dead),
        ("done", stats.n_done),
    ] {
        record(Id::Depth, &[topic, state], n_messages as f64);
    }
    record(Id::OldestAge, &[topic], stats.oldest_due.unwrap_or_default().as_secs_f64());
    record(Id::HighestAttempt, &[topic], stats.highest_attempt.into());
}

fn measure_state(event: &Event<'_>, mut record: impl FnMut(Id, Labels<'_>, f64)) {
    match *event {
        Event::Paused { n_paused, .. } => {
            record(Id::Pauses, &[], 1.0);
            record(Id::Paused, &[], n_paused as f64);
        }
        Event::Resumed { n_paused, .. } => record(Id::Paused, &[], n_paused as f64),
        Event::StorageUnavailable { operation, error } => {
            record(Id::StorageFailures, &[operation, error.kind().name()], 1.0);
            record(Id::StorageUnavailable, &[operation], 1.0);
        }
        Event::StorageRecovered { operation } => record(Id::StorageUnavailable, &[operation], 0.0),
        Event::WakeupReady { .. } => record(Id::WakeupReady, &[], 1.0),
        Event::WakeupLost { .. } => {
            record(Id::WakeupLosses, &["lost"], 1.0);
            record(Id::WakeupReady, &[], 0.0);
        }
        Event::WakeupDeaf => {
            record(Id::WakeupLosses, &["deaf"], 1.0);
            record(Id::WakeupReady, &[], 0.0);
        }
        Event::Stopped { report } => {
            record(Id::Unsettled, &[], report.n_unsettled as f64);
            record(Id::Paused, &[], 0.0);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
