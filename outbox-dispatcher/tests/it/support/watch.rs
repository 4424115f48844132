//! All that the suite's dispatchers log, all their spans and all labels of their metrics, watched for the secret
//! in every message's headers.

use std::sync::Once;

use outbox_dispatcher::Observer;
use outbox_testkit::secrets::Sentinel;
use tracing_subscriber::fmt::format::FmtSpan;

pub(crate) fn watch() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(FmtSpan::NEW | FmtSpan::CLOSE)
            .with_writer(|| Sentinel)
            .init();
        #[cfg(feature = "metrics")]
        metrics::set_global_recorder(Labels).expect("the only one");
    });
}

/// An observer whose labels are watched.
#[cfg(feature = "metrics")]
pub(crate) fn metrics() -> impl Observer {
    outbox_dispatcher::MetricsObserver::new("t")
}

#[cfg(not(feature = "metrics"))]
pub(crate) fn metrics() -> impl Observer {
    outbox_dispatcher::TracingObserver
}

/// Looks at the names of series and measures nothing.
#[cfg(feature = "metrics")]
#[derive(Debug)]
struct Labels;

#[cfg(feature = "metrics")]
impl metrics::Recorder for Labels {
    fn describe_counter(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}

    fn describe_gauge(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}

    fn describe_histogram(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}

    fn register_counter(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Counter {
        Sentinel.look(&key.to_string());
        metrics::Counter::noop()
    }

    fn register_gauge(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Gauge {
        Sentinel.look(&key.to_string());
        metrics::Gauge::noop()
    }

    fn register_histogram(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Histogram {
        Sentinel.look(&key.to_string());
        metrics::Histogram::noop()
    }
}
