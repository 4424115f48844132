//! What observers, recorders and exporters see.

mod depth;
mod instrumented;
#[cfg(any(feature = "metrics", feature = "opentelemetry"))]
mod measured;
mod secrets;
mod spans;
