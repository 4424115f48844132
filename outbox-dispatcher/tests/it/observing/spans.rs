//! Spans around enqueueing and handling, and the trace that goes from one to the other.

use outbox_core::{Context, Draft, MemoryRepository, Repository, Transactor};
use outbox_dispatcher::{Dispatcher, Instrumented, Message, Router, handler_fn};
use tracing::Level;
use tracing::subscriber::DefaultGuard;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Only what is at this level or above, for this test.
fn log_from(level: Level) -> DefaultGuard {
    let subscriber = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::sink).finish();
    tracing::subscriber::set_default(subscriber)
}

async fn enqueue(outbox: &impl Repository, memory: &MemoryRepository, cx: Context, draft: Draft) {
    let tx = Transactor::over(memory);
    let traced = tx.run(async |open| {
        let headers = cx.headers().iter();
        let cx = headers.fold(open.clone(), |cx, (name, value)| cx.with_header(name, value));
        outbox.enqueue(&cx, vec![draft]).await
    });
    traced.await.expect("enqueue");
}

#[tokio::test(start_paused = true)]
async fn a_trace_that_the_caller_has_set_travels_to_the_handler_and_on() {
    let _log = log_from(Level::INFO);
    let memory = MemoryRepository::new();
    let outbox = Instrumented::new(memory.clone());
    let cx = Context::new().with_header("traceparent", PARENT).with_header("tracestate", "a=b");
    enqueue(&outbox, &memory, cx, Draft::new("first", "").header("authorization", "x")).await;
    let next = memory.clone();
    let first = handler_fn(async move |cx: Context, _: Message| {
        enqueue(&next, &next, cx, Draft::new("second", "")).await;
        Ok(())
    });
    let second = handler_fn(async |cx: Context, message: Message| {
        assert_eq!(message.header("traceparent"), Some(PARENT));
        assert_eq!(message.header("tracestate"), Some("a=b"));
        assert_eq!(message.headers.len(), 2, "of a context, nothing but its trace travels");
        assert_eq!(cx.headers(), &message.headers);
        Ok(())
    });
    let router = Router::new().route("first", first).route("second", second);
    assert_eq!(Dispatcher::new(outbox, router).drain_once().await.expect("drained").n_done, 2);
}

#[tokio::test(start_paused = true)]
async fn spans_are_made_only_where_somebody_is_interested() {
    for (level, expected) in [(Level::INFO, false), (Level::DEBUG, true)] {
        let _log = log_from(level);
        let memory = MemoryRepository::new();
        let outbox = Instrumented::new(memory.clone());
        let is_there = || tracing::Span::current().metadata().is_some_and(|meta| meta.name() != "test");
        let draft = Draft::new("t", "");
        let enqueue = async |memory: &MemoryRepository, drafts| {
            assert_eq!(is_there(), expected, "enqueue at {level}");
            Transactor::over(memory).run(async |cx| memory.enqueue(cx, drafts).await).await
        };
        outbox.enqueue_with(draft, enqueue).await.expect("enqueue");
        let router = Router::new().on("t", async move |_: Message| {
            assert_eq!(is_there(), expected, "process at {level}");
            Ok(())
        });
        assert_eq!(Dispatcher::new(outbox, router).drain_once().await.expect("drained").n_done, 1);
    }
}

#[cfg(feature = "opentelemetry")]
mod opentelemetry {
    use std::collections::BTreeMap;

    use ::opentelemetry::trace::{SpanId, SpanKind, Status, TracerProvider};
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
    use outbox_dispatcher::{Config, HandlerResult, HandlerResultExt, TraceRelation, trace_headers};
    use tracing::level_filters::LevelFilter;
    use tracing::{Instrument, Span, info_span};
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Exports the spans of this test.
    struct Traces {
        exporter: InMemorySpanExporter,
        _provider: SdkTracerProvider,
        _subscriber: DefaultGuard,
    }

    impl Traces {
        fn from(level: LevelFilter) -> Self {
            let exporter = InMemorySpanExporter::default();
            let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
            let layer =
                tracing_opentelemetry::layer().with_tracer(provider.tracer("test")).with_filter(level);
            let subscriber = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
            Self { exporter, _provider: provider, _subscriber: subscriber }
        }

        /// The finished spans by name; no two may have the same.
        fn spans(&self) -> BTreeMap<String, SpanData> {
            let spans = self.exporter.get_finished_spans().expect("in memory");
            let n = spans.len();
            let spans: BTreeMap<_, _> = spans.into_iter().map(|span| (span.name.to_string(), span)).collect();
            assert_eq!(spans.len(), n, "{:?}", spans.keys());
            spans
        }
    }

    /// Enqueues in a span `request`; the handler enqueues again with the context that it got.
    async fn two_hops(relation: TraceRelation) {
        let memory = MemoryRepository::new();
        let outbox = Instrumented::new(memory.clone());
        let request = info_span!("request");
        enqueue(&outbox, &memory, Context::new(), Draft::new("first", "")).instrument(request).await;
        let next = memory.clone();
        let first = handler_fn(async move |cx: Context, _: Message| {
            enqueue(&next, &next, cx, Draft::new("second", "")).instrument(info_span!("inside")).await;
            Ok(())
        });
        let router = Router::new().route("first", first).on("second", async |_: Message| Ok(()));
        let dispatcher = Dispatcher::new(outbox, router);
        let dispatcher = dispatcher.with_config(Config::default().with_trace(relation)).expect("config");
        assert_eq!(dispatcher.drain_once().await.expect("drained").n_done, 2);
    }

    fn trace_of(span: &SpanData) -> ::opentelemetry::trace::TraceId {
        span.span_context.trace_id()
    }

    #[tokio::test(start_paused = true)]
    async fn one_trace_goes_from_the_request_through_every_handler() {
        let traces = Traces::from(LevelFilter::DEBUG);
        two_hops(TraceRelation::Parent).await;
        let spans = traces.spans();
        let parent = |name: &str| {
            let id = spans[name].parent_span_id;
            spans.values().find(|span| span.span_context.span_id() == id).map(|span| span.name.to_string())
        };
        assert_eq!(spans["request"].parent_span_id, SpanId::INVALID);
        assert_eq!(parent("enqueue first").as_deref(), Some("request"));
        assert_eq!(parent("process first").as_deref(), Some("enqueue first"));
        assert_eq!(parent("inside").as_deref(), Some("process first"));
        assert_eq!(parent("process second").as_deref(), Some("process first"), "by the handler's context");
        assert!(spans["process first"].parent_span_is_remote);
        assert!(spans.values().all(|span| trace_of(span) == trace_of(&spans["request"])));
        assert!(spans.values().all(|span| span.links.is_empty()));
    }

    #[tokio::test(start_paused = true)]
    async fn or_each_handler_is_a_trace_of_its_own_with_a_link() {
        let traces = Traces::from(LevelFilter::DEBUG);
        two_hops(TraceRelation::Link).await;
        let spans = traces.spans();
        for (from, to) in [("enqueue first", "process first"), ("process first", "process second")] {
            let (from, to) = (&spans[from], &spans[to]);
            assert_eq!(to.parent_span_id, SpanId::INVALID);
            assert_ne!(trace_of(from), trace_of(to));
            let [link] = &to.links[..] else { panic!("{:?}", to.links) };
            assert_eq!(link.span_context.span_id(), from.span_context.span_id());
            assert_eq!(link.span_context.trace_id(), trace_of(from));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn spans_are_named_as_the_conventions_say_and_hold_nothing_else() {
        let traces = Traces::from(LevelFilter::DEBUG);
        let memory = MemoryRepository::new();
        let outbox = Instrumented::new(memory.clone());
        let draft = Draft::new("t", "S3CR3T").header("authorization", "S3CR3T").key("S3CR3T");
        let id = draft.id.to_string();
        enqueue(&outbox, &memory, Context::new(), draft).await;
        let router = Router::new().on("t", async |_: Message| Ok(()));
        assert_eq!(Dispatcher::new(outbox, router).drain_once().await.expect("drained").n_done, 1);
        let spans = traces.spans();
        let (enqueue, process) = (&spans["enqueue t"], &spans["process t"]);
        assert_eq!((&enqueue.span_kind, &process.span_kind), (&SpanKind::Producer, &SpanKind::Consumer));
        let ours = |span: &SpanData| -> Vec<String> {
            let ours = |key: &&::opentelemetry::KeyValue| {
                ["messaging.", "outbox.", "error."].iter().any(|start| key.key.as_str().starts_with(start))
            };
            let mut pairs: Vec<_> = span
                .attributes
                .iter()
                .filter(ours)
                .map(|pair| format!("{}={}", pair.key, pair.value))
                .collect();
            pairs.sort_unstable();
            pairs
        };
        let common = |operation: &str, kind: &str| {
            [
                "messaging.destination.name=t".to_owned(),
                format!("messaging.message.id={id}"),
                format!("messaging.operation.name={operation}"),
                format!("messaging.operation.type={kind}"),
                "messaging.system=outbox".to_owned(),
            ]
        };
        assert_eq!(ours(enqueue), common("enqueue", "send"));
        assert_eq!(
            ours(process),
            [&common("process", "process")[..], &["outbox.attempt=1".to_owned()]].concat()
        );
        assert!(!format!("{spans:?}").contains("S3CR3T"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_says_how_many_and_a_failure_of_which_kind() {
        let traces = Traces::from(LevelFilter::DEBUG);
        let memory = MemoryRepository::new();
        let outbox = Instrumented::new(memory.clone());
        let drafts = ["fails", "dies", "panics"].map(|topic| Draft::new(topic, ""));
        let tx = Transactor::over(&memory);
        tx.run(async |cx| outbox.enqueue(cx, drafts).await).await.expect("enqueue");
        let refused = tx.run(async |cx| outbox.enqueue(cx, Draft::new("x", vec![0; 2_000_000])).await).await;
        refused.expect_err("too large");
        let fails = async |_: Message| -> HandlerResult { Err("S3CR3T")? };
        let dies = async |_: Message| -> HandlerResult { Err("S3CR3T").dead_letter() };
        let panics = async |_: Message| -> HandlerResult { panic!("S3CR3T") };
        let router = Router::new().on("fails", fails).on("dies", dies).on("panics", panics);
        let config = Config::default().with_max_attempts(1);
        let dispatcher = Dispatcher::new(outbox, router).with_config(config).expect("config");
        assert_eq!(dispatcher.drain_once().await.expect("drained").n_dead, 3);
        let spans = traces.spans();
        let value = |name: &str, key: &str| {
            let attributes = &spans[name].attributes;
            attributes.iter().find(|pair| pair.key.as_str() == key).map(|pair| pair.value.to_string())
        };
        assert_eq!(value("enqueue", "messaging.batch.message_count").as_deref(), Some("3"));
        for (name, kind) in [
            ("process fails", "failed"),
            ("process dies", "dead_letter"),
            ("process panics", "panicked"),
            ("enqueue x", "invalid_input"),
        ] {
            assert_eq!(value(name, "error.type").as_deref(), Some(kind));
            assert_eq!(spans[name].status, Status::error(""), "{name}");
        }
        assert!(!format!("{spans:?}").contains("S3CR3T"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_linked_to_each_of_its_producers() {
        let traces = Traces::from(LevelFilter::DEBUG);
        let memory = MemoryRepository::new();
        let outbox = Instrumented::new(memory.clone());
        for n in 1..=2 {
            let request = tracing::debug_span!("request", otel.name = format!("request {n}"));
            let drafts = [Draft::new("t", ""), Draft::new("other", "")];
            let tx = Transactor::over(&memory);
            let sent = tx.run(async |cx| outbox.enqueue(cx, drafts).await).instrument(request);
            sent.await.expect("enqueue");
        }
        let router = Router::new().on_batch("t", 10, async |_: Vec<Message>| Ok(()));
        assert_eq!(Dispatcher::new(outbox, router).drain_once().await.expect("drained").n_done, 2);
        let spans = traces.exporter.get_finished_spans().expect("in memory");
        let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
        let [process] = named("process t")[..] else { panic!("{spans:?}") };
        let linked: Vec<_> = process.links.iter().map(|link| link.span_context.span_id()).collect();
        let producers: Vec<_> = named("enqueue").iter().map(|span| span.span_context.span_id()).collect();
        assert_eq!(linked, producers);
        assert_eq!((producers.len(), process.parent_span_id), (2, SpanId::INVALID));
        let count =
            process.attributes.iter().find(|pair| pair.key.as_str() == "messaging.batch.message_count");
        assert_eq!(count.map(|pair| pair.value.to_string()).as_deref(), Some("2"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_draft_carries_stays_and_a_filtered_span_gives_way_to_the_current_one() {
        let traces = Traces::from(LevelFilter::INFO);
        let memory = MemoryRepository::new();
        let outbox = Instrumented::new(memory.clone());
        let request = info_span!("request");
        let own = Draft::new("own", "").header("traceparent", PARENT);
        let sent = async {
            let cx = Context::new().with_header("traceparent", PARENT);
            enqueue(&outbox, &memory, cx, Draft::new("t", "")).await;
            enqueue(&outbox, &memory, Context::new(), own).await;
            trace_headers(&Span::current()).expect("in a span")
        };
        let headers = sent.instrument(request).await;
        let expected = headers["traceparent"].clone();
        let router = Router::new()
            .on("t", async move |message: Message| {
                assert_eq!(message.header("traceparent"), Some(&*expected), "not what the context says");
                Ok(())
            })
            .on("own", async |message: Message| {
                assert_eq!(message.header("traceparent"), Some(PARENT));
                Ok(())
            });
        assert_eq!(Dispatcher::new(outbox, router).drain_once().await.expect("drained").n_done, 2);
        assert_eq!(traces.spans().len(), 1);
        assert!(trace_headers(&Span::none()).is_none());
    }
}
