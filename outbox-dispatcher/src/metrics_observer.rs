use std::fmt;
use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Label, SharedString, Unit};

use crate::metric::{Id, Kind, Labels, METRICS, Metric, measure};
use crate::series::Series;
use crate::{Event, Observer};

/// Counts and measures events with the recorder of the [`metrics`] facade: the table is in
/// docs/observability.md. Labels are table, topic, outcome, operation and kind of an error; never a key or an
/// id. More than 200 topics share one label.
///
/// A cheap handle: give clones to the dispatcher, to [`Instrumented`](crate::Instrumented) and to
/// [`DepthWatch`](crate::DepthWatch). Install the recorder before the first event; it is asked once for each
/// series. Give it [`SECONDS_BUCKETS`](crate::SECONDS_BUCKETS) for the names that end in `_seconds` and
/// [`ATTEMPT_BUCKETS`](crate::ATTEMPT_BUCKETS) for `outbox_attempts`.
///
/// # Examples
/// ```
/// use outbox_core::MemoryRepository;
/// use outbox_dispatcher::{Dispatcher, Instrumented, MetricsObserver, Router, TracingObserver};
/// # fn example(outbox: MemoryRepository, router: Router) {
/// let metrics = MetricsObserver::new("orders.outbox");
/// let outbox = Instrumented::new(outbox).with_observer(metrics.clone());
/// let dispatcher = Dispatcher::new(outbox, router).with_observer((TracingObserver, metrics));
/// # }
/// ```
#[derive(Clone)]
pub struct MetricsObserver(Arc<Inner>);

struct Inner {
    table: SharedString,
    names: Vec<SharedString>,
    series: Series<Handle>,
}

enum Handle {
    Counter(Counter),
    Gauge(Gauge),
    UpDown(Gauge),
    Histogram(Histogram),
}

impl MetricsObserver {
    /// For one table; its name is a label of every series.
    pub fn new(table: impl fmt::Display) -> Self {
        let names: Vec<SharedString> = METRICS.iter().map(|metric| metric.prometheus_name().into()).collect();
        METRICS.iter().zip(&names).for_each(|(metric, name)| describe(metric, name.clone()));
        Self(Arc::new(Inner { table: table.to_string().into(), names, series: Series::new() }))
    }
}

fn describe(metric: &Metric, name: SharedString) {
    let unit = match metric.unit {
        "s" => Unit::Seconds,
        _ => Unit::Count,
    };
    match metric.kind {
        Kind::Counter => metrics::describe_counter!(name, unit, metric.description),
        Kind::Gauge | Kind::UpDown => metrics::describe_gauge!(name, unit, metric.description),
        Kind::Histogram => metrics::describe_histogram!(name, unit, metric.description),
    }
}

impl Inner {
    fn handle(&self, id: Id, values: Labels<'_>) -> Handle {
        let Metric { kind, labels, .. } = id.metric();
        let name = self.names[id.index()].clone();
        let own = labels.iter().zip(values).map(|(label, value)| Label::new(*label, (*value).to_owned()));
        let labels: Vec<_> = [Label::new("table", self.table.clone())].into_iter().chain(own).collect();
        match kind {
            Kind::Counter => Handle::Counter(metrics::counter!(name, labels)),
            Kind::Gauge => Handle::Gauge(metrics::gauge!(name, labels)),
            Kind::UpDown => Handle::UpDown(metrics::gauge!(name, labels)),
            Kind::Histogram => Handle::Histogram(metrics::histogram!(name, labels)),
        }
    }
}

impl Handle {
    fn record(&self, value: f64) {
        match self {
            Self::Counter(counter) => counter.increment(value as u64),
            Self::Gauge(gauge) => gauge.set(value),
            Self::UpDown(gauge) => gauge.increment(value),
            Self::Histogram(histogram) => histogram.record(value),
        }
    }
}

impl Observer for MetricsObserver {
    fn on(&self, event: &Event<'_>) {
        let Self(inner) = self;
        measure(event, |id, labels, value| {
            let make = |labels: Labels<'_>| inner.handle(id, labels);
            inner.series.with(id, labels, make, |handle| handle.record(value));
        });
    }

    fn times_handlers(&self) -> bool {
        true
    }
}

impl fmt::Debug for MetricsObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsObserver").field("table", &self.0.table).finish_non_exhaustive()
    }
}
