//! Conformance suite, fault injection and test servers for outbox backends.

pub mod cases;
mod conformance;
mod harness;
mod random;
pub mod server;

pub use conformance::Case;
pub use harness::{Capabilities, Corruption, Harness, OperationsHarness, ProcessedHarness, Skip};
