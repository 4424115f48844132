//! What a Prometheus and a tracing backend get to see of an outbox, printed at the end.
//!
//! `cargo run --example observability`

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::{SpanId, TracerProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use outbox_core::{Context, Draft, TableName};
use outbox_dispatcher::{
    ATTEMPT_BUCKETS, DepthWatch, Dispatcher, Instrumented, Message, MetricsObserver, Router, SECONDS_BUCKETS,
    TracingObserver,
};
use outbox_examples::{AnyError, Scratch, orders};
use outbox_sea_orm::{OutboxTable, transactor};
use sea_orm::{DatabaseConnection, TransactionTrait};
use tracing::level_filters::LevelFilter;
use tracing::{Instrument, info, info_span};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Install the recorder before the first event. A service uses `install` instead, which also opens a port.
fn prometheus() -> Result<PrometheusHandle, AnyError> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full("outbox_attempts".into()), &ATTEMPT_BUCKETS)?;
    Ok(builder.install_recorder()?)
}

/// A log of what matters, and spans for an exporter. A service gives the provider an OTLP exporter.
fn tracing(exporter: InMemorySpanExporter) -> SdkTracerProvider {
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter).build();
    let spans = Targets::new()
        .with_default(LevelFilter::INFO)
        .with_target("outbox_dispatcher::span", LevelFilter::DEBUG);
    let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("shop")).with_filter(spans);
    let log = tracing_subscriber::fmt::layer().with_filter(LevelFilter::INFO);
    tracing_subscriber::registry().with(traces).with(log).init();
    provider
}

/// A web request that places two orders, one in a transaction of SeaORM's own.
async fn request(db: &DatabaseConnection, outbox: &Instrumented<OutboxTable>) -> Result<(), AnyError> {
    let place = async |cx: &Context| {
        let order = orders::place(cx, "lamp").await?;
        outbox.enqueue(cx, Draft::json("order.placed", &order.id)?).await?;
        Ok::<_, AnyError>(())
    };
    transactor(db).run(place).await?;

    let txn = db.begin().await?;
    let order = orders::insert(&txn, "desk").await?;
    let draft = Draft::json("order.placed", &order.id)?;
    outbox.enqueue_with(draft, async |table, drafts| table.enqueue_in(&txn, drafts).await).await?;
    txn.commit().await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let metrics = prometheus()?;
    let exporter = InMemorySpanExporter::default();
    let _provider = tracing(exporter.clone());
    let scratch = Scratch::new()?;
    let db = scratch.connect().await?;
    orders::create_table(&db).await?;
    let table = OutboxTable::new(&db, TableName::parse("shop.outbox")?);
    table.migrate().await?;

    let observer = (TracingObserver, MetricsObserver::new(table.name()));
    let outbox = Instrumented::new(table).with_observer(observer.clone());
    request(&db, &outbox).instrument(info_span!("POST /orders")).await?;
    let mut watch = DepthWatch::new(outbox.clone(), observer.clone()); // a service spawns `watch.run(…)`
    watch.look(Duration::from_secs(5)).await?;

    let router = Router::new().on("order.placed", async |message: Message| {
        info!("order {} goes out", message.json::<i64>()?);
        Ok(())
    });
    let report = Dispatcher::new(outbox, router).with_observer(observer).drain_once().await?;
    assert_eq!(report.n_done, 2);

    show_spans(&exporter.get_finished_spans()?);
    show_metrics(&metrics.render());
    Ok(())
}

/// Each below the one that it is a part of.
fn show_spans(spans: &[SpanData]) {
    println!("\nspans");
    show_below(SpanId::INVALID, 1, spans);
    let n_handled = spans.iter().filter(|span| span.name == "process order.placed").count();
    let trace = spans[0].span_context.trace_id();
    assert!(n_handled == 2 && spans.iter().all(|span| span.span_context.trace_id() == trace));
}

fn show_below(parent: SpanId, depth: usize, spans: &[SpanData]) {
    for span in spans.iter().filter(|span| span.parent_span_id == parent) {
        println!("{:indent$}{} ({:?})", "", span.name, span.span_kind, indent = 2 * depth);
        show_below(span.span_context.span_id(), depth + 1, spans);
    }
}

fn show_metrics(text: &str) {
    println!("\nmetrics, buckets left out");
    let lines = text.lines().filter(|line| line.starts_with("outbox_") && !line.contains("_bucket"));
    lines.for_each(|line| println!("  {line}"));
    for line in [
        r#"outbox_settled_total{table="shop.outbox",topic="order.placed",outcome="delivered"} 2"#,
        r#"outbox_depth{table="shop.outbox",topic="order.placed",state="due"} 2"#,
        r#"outbox_latency_seconds_count{table="shop.outbox",topic="order.placed"} 2"#,
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is missing");
    }
}
