//! Spans around what moves a message, named as OpenTelemetry's conventions for messaging have it. None is made
//! unless a subscriber is interested in level debug of this module.

use outbox_core::{Context, Draft, Headers, Message};
use tracing::field::Empty;
use tracing::{Span, debug_span};

use crate::TraceRelation;

const SYSTEM: &str = "outbox";

/// A producer's span, around a call that enqueues.
pub(crate) fn enqueue(drafts: &[Draft]) -> Span {
    let topic = common_topic(drafts);
    let one = match drafts {
        [draft] => Some(draft),
        _ => None,
    };
    debug_span!(
        "enqueue",
        otel.name = topic.map(|topic| format!("enqueue {topic}")),
        otel.kind = "producer",
        otel.status_code = Empty,
        messaging.system = SYSTEM,
        messaging.operation.name = "enqueue",
        "messaging.operation.type" = "send",
        messaging.destination.name = topic,
        messaging.message.id = one.map(|draft| tracing::field::display(draft.id)),
        messaging.batch.message_count = one.is_none().then_some(drafts.len()),
        "error.type" = Empty,
    )
}

fn common_topic(drafts: &[Draft]) -> Option<&str> {
    let (first, rest) = drafts.split_first()?;
    rest.iter().all(|draft| draft.topic == first.topic).then_some(&first.topic)
}

/// A consumer's span, around a handler.
pub(crate) fn process(message: &Message, relation: TraceRelation) -> Span {
    let span = consumer(Some(&message.topic), Some(message), None);
    relate(&span, &message.headers, relation);
    span
}

/// A consumer's span, around a batch handler: a trace of its own, with a link to each producer's span.
pub(crate) fn process_batch(messages: &[Message]) -> Span {
    let topic = messages.first().map(|message| &*message.topic);
    let span = consumer(topic, None, Some(messages.len()));
    messages.iter().for_each(|message| relate(&span, &message.headers, TraceRelation::Link));
    span
}

/// Of one message, or of so many.
fn consumer(topic: Option<&str>, one: Option<&Message>, n_messages: Option<usize>) -> Span {
    debug_span!(
        parent: None,
        "process",
        otel.name = topic.map(|topic| format!("process {topic}")),
        otel.kind = "consumer",
        otel.status_code = Empty,
        messaging.system = SYSTEM,
        messaging.operation.name = "process",
        "messaging.operation.type" = "process",
        messaging.destination.name = topic,
        messaging.message.id = one.map(|message| tracing::field::display(message.id)),
        messaging.batch.message_count = n_messages,
        outbox.attempt = one.map(|message| message.attempt),
        "error.type" = Empty,
    )
}

/// Says how a span ended; `ok` needs no word. Never a text of an error, which may quote a payload.
pub(crate) fn end(span: &Span, outcome: &'static str) {
    if outcome != "ok" && !span.is_disabled() {
        span.record("error.type", outcome);
        span.record("otel.status_code", "ERROR");
    }
}

#[cfg(feature = "opentelemetry")]
fn relate(span: &Span, headers: &Headers, relation: TraceRelation) {
    if !span.is_disabled() {
        crate::trace_context::relate(span, headers, relation);
    }
}

#[cfg(not(feature = "opentelemetry"))]
fn relate(_: &Span, _: &Headers, _: TraceRelation) {}

/// The context of a handler: it carries the trace of `span` on, or that of the message.
pub(crate) fn handler_context(span: &Span, headers: &Headers) -> Context {
    Context::with_trace_of(own_headers(span).as_ref().unwrap_or(headers))
}

/// Gives drafts the trace of `span`, or, where it is not exported, of the current one, unless they have one of
/// their own. Without any, the storage gives them what the caller has set on the context.
pub(crate) fn add_trace(span: &Span, drafts: &mut [Draft]) {
    let Some(headers) = own_headers(span).or_else(|| own_headers(&Span::current())) else { return };
    let cx = Context::with_trace_of(&headers);
    drafts.iter_mut().for_each(|draft| cx.add_trace_headers(&mut draft.headers));
}

/// The headers that carry the trace of `span`.
#[cfg(feature = "opentelemetry")]
fn own_headers(span: &Span) -> Option<Headers> {
    crate::trace_context::headers(span)
}

#[cfg(not(feature = "opentelemetry"))]
fn own_headers(_: &Span) -> Option<Headers> {
    None
}
