//! Counts the statements that this process sends, by listening to sqlx's own log. For SQLite, which keeps no
//! statistics; it costs a few microseconds a statement, so rates are never measured while it counts.
//!
//! `BEGIN`, `COMMIT` and `ROLLBACK` do not pass through that log on SQLite and are not in the count.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

static COUNTS: AtomicBool = AtomicBool::new(false);
static STATEMENTS: AtomicU64 = AtomicU64::new(0);

/// Installs the counter, which does not count yet.
pub(crate) fn install() {
    // fails only where somebody has installed another one, and nobody else is in this process
    let _ = tracing::subscriber::set_global_default(Counter);
}

/// Starts or stops to count.
pub(crate) fn count(on: bool) {
    COUNTS.store(on, Ordering::Relaxed);
}

/// Statements counted since the process began.
pub(crate) fn counted() -> u64 {
    STATEMENTS.load(Ordering::Relaxed)
}

struct Counter;

impl Subscriber for Counter {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.target() == "sqlx::query" { Interest::sometimes() } else { Interest::never() }
    }

    fn enabled(&self, _: &Metadata<'_>) -> bool {
        COUNTS.load(Ordering::Relaxed)
    }

    fn event(&self, _: &Event<'_>) {
        STATEMENTS.fetch_add(1, Ordering::Relaxed);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
