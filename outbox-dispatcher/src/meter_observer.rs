use std::fmt;
use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, UpDownCounter};

use crate::metric::{Id, Kind, Labels, METRICS, Metric, measure};
use crate::series::Series;
use crate::{Event, Observer};

/// Counts and measures events with instruments of an OpenTelemetry [`Meter`]: the table is in
/// docs/observability.md. Attributes are table, topic, outcome, operation and kind of an error; never a key or
/// an id. More than 200 topics share one value.
///
/// A cheap handle: give clones to the dispatcher, to [`Instrumented`](crate::Instrumented) and to
/// [`DepthWatch`](crate::DepthWatch).
///
/// # Examples
/// ```
/// use outbox_core::MemoryRepository;
/// use outbox_dispatcher::{Dispatcher, Instrumented, MeterObserver, Router, TracingObserver};
/// # fn example(outbox: MemoryRepository, router: Router) {
/// let metrics = MeterObserver::new(&opentelemetry::global::meter("orders"), "orders.outbox");
/// let outbox = Instrumented::new(outbox).with_observer(metrics.clone());
/// let dispatcher = Dispatcher::new(outbox, router).with_observer((TracingObserver, metrics));
/// # }
/// ```
#[derive(Clone)]
pub struct MeterObserver(Arc<Inner>);

struct Inner {
    table: String,
    instruments: Vec<Instrument>,
    series: Series<Vec<KeyValue>>,
}

enum Instrument {
    Counter(Counter<u64>),
    Gauge(Gauge<f64>),
    UpDown(UpDownCounter<i64>),
    Histogram(Histogram<f64>),
}

impl MeterObserver {
    /// For one table; its name is an attribute of every measurement.
    pub fn new(meter: &Meter, table: impl fmt::Display) -> Self {
        let instruments = METRICS.iter().map(|metric| Instrument::new(meter, metric)).collect();
        Self(Arc::new(Inner { table: table.to_string(), instruments, series: Series::new() }))
    }
}

impl Instrument {
    fn new(meter: &Meter, metric: &Metric) -> Self {
        let Metric { name, kind, unit, description, .. } = *metric;
        match kind {
            Kind::Counter => {
                Self::Counter(meter.u64_counter(name).with_unit(unit).with_description(description).build())
            }
            Kind::Gauge => {
                Self::Gauge(meter.f64_gauge(name).with_unit(unit).with_description(description).build())
            }
            Kind::UpDown => {
                let counter = meter.i64_up_down_counter(name).with_unit(unit);
                Self::UpDown(counter.with_description(description).build())
            }
            Kind::Histogram => {
                let histogram = meter.f64_histogram(name).with_unit(unit).with_description(description);
                Self::Histogram(histogram.with_boundaries(metric.buckets().to_vec()).build())
            }
        }
    }

    fn record(&self, value: f64, attributes: &[KeyValue]) {
        match self {
            Self::Counter(counter) => counter.add(value as u64, attributes),
            Self::Gauge(gauge) => gauge.record(value, attributes),
            Self::UpDown(counter) => counter.add(value as i64, attributes),
            Self::Histogram(histogram) => histogram.record(value, attributes),
        }
    }
}

impl Inner {
    fn attributes(&self, id: Id, values: Labels<'_>) -> Vec<KeyValue> {
        let own = id.metric().labels.iter().zip(values);
        let own = own.map(|(label, value)| KeyValue::new(*label, (*value).to_owned()));
        [KeyValue::new("table", self.table.clone())].into_iter().chain(own).collect()
    }
}

impl Observer for MeterObserver {
    fn on(&self, event: &Event<'_>) {
        let Self(inner) = self;
        measure(event, |id, labels, value| {
            let make = |labels: Labels<'_>| inner.attributes(id, labels);
            let record = |attributes: &Vec<KeyValue>| inner.instruments[id.index()].record(value, attributes);
            inner.series.with(id, labels, make, record);
        });
    }

    fn times_handlers(&self) -> bool {
        true
    }
}

impl fmt::Debug for MeterObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeterObserver").field("table", &self.0.table).finish_non_exhaustive()
    }
}
