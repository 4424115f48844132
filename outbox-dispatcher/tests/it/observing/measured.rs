//! A run in which everything happens, as a recorder of each kind has it at the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use outbox_core::{Draft, ErrorKind, HandlerResultExt, Transactor};
use outbox_dispatcher::{
    CancellationToken, DepthWatch, Dispatcher, Event, HandlerResult, Instrumented, Limit, Message, Observer,
    Router,
};
use tokio::time::sleep;

use crate::support::*;

/// What became of one series.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Seen {
    /// Of a histogram; 0 for the others.
    n: u64,
    /// The value of a counter or a gauge, or the sum of a histogram.
    value: f64,
}

/// By name without a unit, and label values in their order: `settled orders t delivered`.
type All = BTreeMap<String, Seen>;

async fn answer(message: Message) -> HandlerResult {
    match (&*message.payload, message.attempt) {
        (b"second", 1) => Err("not yet")?,
        (b"fatal", _) => Err("never").dead_letter()?,
        (b"panics", _) => panic!("on purpose"),
        (b"hangs", _) => sleep(seconds(1_000)).await,
        _ => {}
    }
    Ok(())
}

/// Five messages of topic `t`, of which two are delivered; one of topic `away`, whose downstream is away at
/// first; a claim that fails once.
async fn everything_happens(observer: impl Observer + Clone) {
    let store = Store::new();
    let outbox = Instrumented::new(store.clone()).with_observer(observer.clone());
    let drafts = ["first", "second", "fatal", "panics", "hangs"].map(|payload| Draft::new("t", payload));
    let enqueued = Transactor::over(store.memory.clone())
        .run(async |cx| outbox.enqueue(cx, drafts).await)
        .await
        .expect("enqueue");
    assert_eq!(enqueued.len(), 5);
    let is_back = store.clone();
    let router = Router::new().on("t", answer).on("away", async move |_: Message| {
        match is_back.elapsed() < seconds(60) {
            true => Err("away").unavailable()?,
            false => Ok(()),
        }
    });
    let token = CancellationToken::new();
    let dispatcher = Dispatcher::new(outbox, router).with_observer(observer.clone());
    let dispatcher = dispatcher
        .with_config(config().with_max_attempts(2).with_handler_timeout(seconds(10)))
        .expect("config");
    let running = tokio::spawn(dispatcher.run(token.clone()));
    until_async(async || store.dead().await.len() == 3).await;
    store.state().failing.insert("claim", ErrorKind::Unavailable);
    let n_claims = store.n_calls("claim");
    until(|| store.n_calls("claim") > n_claims + 1).await;
    store.state().failing.clear();
    store.enqueue([Draft::new("away", "")]).await;
    until_async(async || store.n_left().await == 0).await;
    let mut watch = DepthWatch::new(store.memory.clone(), observer);
    watch.look(seconds(1)).await.expect("memory");
    token.cancel();
    running.await.expect("joined").expect("report");
}

#[track_caller]
fn assert_everything_is_seen(all: &All) {
    let seen = |key: &str| *all.get(key).unwrap_or_else(|| panic!("no {key} in {all:#?}"));
    for (key, value) in [
        ("enqueued orders t", 5.0),
        ("settled orders t delivered", 2.0),
        ("settled orders t retried", 3.0),
        ("settled orders t dead", 3.0),
        ("settled orders away delivered", 1.0),
        ("handling orders t", 0.0),
        ("handling orders away", 0.0),
        ("claim_dead orders", 0.0),
        ("paused orders", 0.0),
        ("storage_failures orders claim unavailable", 1.0),
        ("storage_unavailable orders claim", 0.0),
        ("unsettled orders", 0.0),
        ("depth orders t dead", 3.0),
        ("depth orders t due", 0.0),
        ("depth orders t pending", 0.0),
        ("oldest_age orders t", 0.0),
        ("highest_attempt orders t", 0.0),
    ] {
        assert_eq!(seen(key), Seen { n: 0, value }, "{key}");
    }
    for (key, n, value) in [
        ("attempts orders t delivered", 2, 3.0),
        ("attempts orders t dead", 3, 5.0),
        ("attempts orders away delivered", 1, 1.0),
        ("handler_duration orders t failed", 1, 0.0),
        ("handler_duration orders t dead_letter", 1, 0.0),
        ("handler_duration orders t panicked", 2, 0.0),
        ("call_duration orders enqueue ok", 1, 0.0),
    ] {
        assert_eq!(seen(key), Seen { n, value }, "{key}");
    }
    assert_eq!(seen("handler_duration orders t timed_out").n, 2);
    assert!((20.0..20.1).contains(&seen("handler_duration orders t timed_out").value));
    assert_eq!((seen("latency orders t").n, seen("latency orders away").n), (2, 1));
    assert!(seen("pauses orders").value >= 1.0);
    assert_eq!(seen("pauses orders").value, seen("settled orders away released").value);
    assert_eq!(seen("handler_duration orders away unavailable").n as f64, seen("pauses orders").value);
    assert!(seen("call_duration orders claim unavailable").n >= 1);
    assert!(seen("call_duration orders claim ok").n as f64 > seen("claims orders fresh").value);
    assert!(seen("claimed orders fresh").value >= 9.0);
    assert!(seen("call_duration orders settle ok").n > 0);
}

/// Counts what handlers work on as an adapter does.
#[derive(Clone, Default)]
struct Working(Arc<AtomicI64>);

impl Observer for Working {
    fn on(&self, event: &Event<'_>) {
        match event {
            Event::Started { topic: "t", .. } => _ = self.0.fetch_add(1, Ordering::SeqCst),
            Event::Handled { topic: "t", .. } => _ = self.0.fetch_sub(1, Ordering::SeqCst),
            _ => {}
        }
    }

    fn times_handlers(&self) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn handlers_at_work_are_told_of_however_they_end() {
    let (store, working, token) = (Store::new(), Working::default(), CancellationToken::new());
    store.enqueue_n("t", 10).await;
    let router = Calls::new().taking(seconds(100));
    let dispatcher = Dispatcher::new(store.clone(), router).with_observer(working.clone());
    let config = config().with_concurrency(4).with_drain_timeout(seconds(1));
    let running = tokio::spawn(dispatcher.with_config(config).expect("config").run(token.clone()));
    until(|| working.0.load(Ordering::SeqCst) == 4).await;
    token.cancel();
    assert_eq!(running.await.expect("joined").expect("report").n_done, 0);
    assert_eq!(working.0.load(Ordering::SeqCst), 0, "a handler that is dropped has ended");
}

#[tokio::test(start_paused = true)]
async fn handlers_that_are_dropped_with_their_run_have_ended() {
    let (store, working) = (Store::new(), Working::default());
    store.enqueue_n("t", 10).await;
    let router = Calls::new().taking(seconds(100));
    let dispatcher = Dispatcher::new(store.clone(), router).with_observer(working.clone());
    let config = config().with_concurrency(4);
    let dispatcher = dispatcher.with_config(config).expect("config");
    let running = tokio::spawn(dispatcher.run(CancellationToken::new()));
    until(|| working.0.load(Ordering::SeqCst) == 4).await;
    running.abort();
    until(|| working.0.load(Ordering::SeqCst) == 0).await;
}

/// Is slow to take in that `a` goes on, and notes how many lanes pause.
#[derive(Clone, Default)]
struct Pausing(Arc<Mutex<Vec<(String, usize)>>>);

impl Observer for Pausing {
    fn on(&self, event: &Event<'_>) {
        let Event::Resumed { topic, n_paused, .. } = *event else { return };
        if topic == "a" {
            A_GOES_ON.store(true, Ordering::SeqCst);
            std::thread::sleep(milliseconds(200));
        }
        self.0.lock().expect("pauses").push((topic.to_owned(), n_paused));
    }
}

static A_GOES_ON: AtomicBool = AtomicBool::new(false);

/// Away at first; then `b` keeps its thread until the observer is being told that `a` has answered.
async fn away_at_first(message: Message, has_been_away: Arc<AtomicBool>) -> HandlerResult {
    if !has_been_away.swap(true, Ordering::SeqCst) {
        return Err("away").unavailable()?;
    }
    for _ in 0..5_000 {
        if message.topic == "a" || A_GOES_ON.load(Ordering::SeqCst) {
            break;
        }
        std::thread::sleep(milliseconds(1));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_last_number_of_pausing_lanes_holds() {
    let (store, pausing) = (Store::new(), Pausing::default());
    store.enqueue([Draft::new("a", ""), Draft::new("b", "")]).await;
    let (a, b) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let router = Router::new()
        .on("a", async move |message: Message| away_at_first(message, a).await)
        .on("b", async move |message: Message| away_at_first(message, b).await);
    let mut config = config().with_limit(Limit::new(["b"]).with_concurrency(1));
    config.pause.base = milliseconds(10);
    let dispatcher = Dispatcher::new(store.clone(), router).with_observer(pausing.clone());
    let token = CancellationToken::new();
    let running = tokio::spawn(dispatcher.with_config(config).expect("config").run(token.clone()));
    until(|| pausing.0.lock().expect("pauses").len() == 2).await;
    token.cancel();
    running.await.expect("joined").expect("report");
    assert_eq!(*pausing.0.lock().expect("pauses"), [("a".to_owned(), 1), ("b".to_owned(), 0)]);
}

#[cfg(feature = "metrics")]
#[tokio::test(start_paused = true)]
async fn the_metrics_facade_has_everything() {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};
    use outbox_dispatcher::MetricsObserver;

    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _installed = metrics::set_default_local_recorder(&recorder);
    everything_happens(MetricsObserver::new("orders")).await;
    let mut all = All::new();
    for (key, unit, description, value) in snapshotter.snapshot().into_vec() {
        let (_, key) = key.into_parts();
        assert!(unit.is_some() && description.is_some(), "{key} is not described");
        assert_eq!(key.labels().next().expect("a label").key(), "table");
        let name = key.name().strip_prefix("outbox_").expect("our prefix");
        let name = name.trim_end_matches("_total").trim_end_matches("_seconds");
        let labels: Vec<_> = key.labels().map(|label| label.value()).collect();
        let seen = match value {
            DebugValue::Counter(value) => Seen { n: 0, value: value as f64 },
            DebugValue::Gauge(value) => Seen { n: 0, value: value.0 },
            DebugValue::Histogram(values) => {
                Seen { n: values.len() as u64, value: values.iter().map(|value| value.0).sum() }
            }
        };
        all.insert(format!("{name} {}", labels.join(" ")), seen);
    }
    assert_everything_is_seen(&all);
}

#[cfg(feature = "opentelemetry")]
mod meter {
    use opentelemetry::KeyValue;
    use opentelemetry::metrics::MeterProvider;
    use opentelemetry_sdk::metrics::data::{AggregatedMetrics, Metric, MetricData};
    use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};
    use outbox_dispatcher::MeterObserver;

    use super::*;

    /// The label values in the order of the names in the documentation, of which `table` comes first.
    fn key<'a>(name: &str, attributes: impl Iterator<Item = &'a KeyValue>) -> String {
        const ORDER: [&str; 6] = ["table", "topic", "operation", "outcome", "error", "state"];
        let mut attributes: Vec<_> = attributes.collect();
        attributes.sort_by_key(|pair| ORDER.iter().position(|name| *name == pair.key.as_str()));
        let values: Vec<_> = attributes.iter().map(|pair| pair.value.as_str().into_owned()).collect();
        let name = name.strip_prefix("outbox.").expect("our prefix").replace('.', "_");
        format!("{name} {}", values.join(" "))
    }

    fn read(metric: &Metric, all: &mut All) {
        match metric.data() {
            AggregatedMetrics::U64(MetricData::Sum(sum)) => all.extend(sum.data_points().map(|point| {
                (key(metric.name(), point.attributes()), Seen { n: 0, value: point.value() as f64 })
            })),
            AggregatedMetrics::I64(MetricData::Sum(sum)) => all.extend(sum.data_points().map(|point| {
                (key(metric.name(), point.attributes()), Seen { n: 0, value: point.value() as f64 })
            })),
            AggregatedMetrics::F64(MetricData::Gauge(gauge)) => {
                all.extend(gauge.data_points().map(|point| {
                    (key(metric.name(), point.attributes()), Seen { n: 0, value: point.value() })
                }))
            }
            AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                all.extend(histogram.data_points().map(|point| {
                    assert!(point.bounds().next().is_some_and(|bound| bound <= 1.0), "{}", metric.name());
                    let seen = Seen { n: point.count(), value: point.sum() };
                    (key(metric.name(), point.attributes()), seen)
                }))
            }
            other => panic!("{}: {other:?}", metric.name()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_opentelemetry_meter_has_everything() {
        let exporter = InMemoryMetricExporter::default();
        let provider = SdkMeterProvider::builder()
            .with_reader(PeriodicReader::builder(exporter.clone()).build())
            .build();
        everything_happens(MeterObserver::new(&provider.meter("test"), "orders")).await;
        provider.force_flush().expect("flushed");
        let mut all = All::new();
        let exported = exporter.get_finished_metrics().expect("in memory");
        let last = exported.last().expect("one export");
        let metrics = last.scope_metrics().flat_map(|scope| scope.metrics());
        metrics.for_each(|metric| read(metric, &mut all));
        assert_everything_is_seen(&all);
    }
}
