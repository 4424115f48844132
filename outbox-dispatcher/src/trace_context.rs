//! The W3C trace context in headers, and what OpenTelemetry makes of it.

use std::str::FromStr;

use opentelemetry::Context as OtelContext;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use outbox_core::Headers;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::TraceRelation;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// The headers `traceparent` and `tracestate` that carry the trace of `span` on: what
/// [`Instrumented`](crate::Instrumented) adds to messages, for drafts that are enqueued in another way.
/// `None` without a layer of tracing-opentelemetry, or outside of any span.
///
/// # Examples
/// ```
/// use outbox_core::Draft;
/// let mut draft = Draft::new("order.placed", "7");
/// draft.headers.extend(outbox_dispatcher::trace_headers(&tracing::Span::current()).unwrap_or_default());
/// ```
pub fn trace_headers(span: &Span) -> Option<Headers> {
    headers(span)
}

pub(crate) fn headers(span: &Span) -> Option<Headers> {
    if span.is_disabled() {
        return None;
    }
    let cx = span.context();
    let span = cx.span();
    let cx = span.span_context();
    cx.is_valid().then(|| write(cx))
}

/// Makes the trace that a message carries the parent of `span`, or links it.
pub(crate) fn relate(span: &Span, headers: &Headers, relation: TraceRelation) {
    let Some(remote) = read(headers) else { return };
    match relation {
        TraceRelation::Link => span.add_link(remote),
        TraceRelation::Parent => {
            // refused only without a layer of tracing-opentelemetry
            let _ = span.set_parent(OtelContext::new().with_remote_span_context(remote));
        }
    }
}

fn write(cx: &SpanContext) -> Headers {
    let parent = format!("00-{}-{}-{:02x}", cx.trace_id(), cx.span_id(), cx.trace_flags().to_u8() & 1);
    let state = cx.trace_state().header();
    let state = (!state.is_empty()).then(|| (TRACESTATE.to_owned(), state));
    [(TRACEPARENT.to_owned(), parent)].into_iter().chain(state).collect()
}

fn read(headers: &Headers) -> Option<SpanContext> {
    let (trace, span, flags) = read_parent(headers.get(TRACEPARENT)?)?;
    let state = headers.get(TRACESTATE).and_then(|state| TraceState::from_str(state).ok());
    let cx = SpanContext::new(trace, span, flags, true, state.unwrap_or_default());
    cx.is_valid().then_some(cx)
}

/// `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`, lower case; a later version may have more behind it.
fn read_parent(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let mut parts = text.split('-');
    let mut part = |length: usize| parts.next().filter(|part| part.len() == length && is_lower_hex(part));
    let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1;
    Some((TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?, TraceFlags::new(sampled)))
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn with(parent: &str, state: &str) -> Headers {
        Headers::from([(TRACEPARENT.into(), parent.into()), (TRACESTATE.into(), state.into())])
    }

    #[test]
    fn headers_come_back_as_they_were() {
        let headers = with(PARENT, "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE");
        let cx = read(&headers).expect("valid");
        assert!(cx.is_remote() && cx.is_sampled());
        assert_eq!(write(&cx), headers);
        let unsampled = with(&PARENT.replace("-01", "-00"), "");
        assert!(!read(&unsampled).expect("valid").is_sampled());
    }

    #[test]
    fn what_is_no_trace_context_is_left_out() {
        for parent in [
            "",
            "00",
            "S3CR3T",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert!(read(&with(parent, "")).is_none(), "{parent:?}");
        }
        assert!(read(&with(&PARENT.replacen("00", "01", 1), "")).is_some(), "a later version");
        let cx = read(&with(PARENT, "no state\u{1}")).expect("the state alone is left out");
        assert_eq!(cx.trace_state().header(), "");
    }
}
