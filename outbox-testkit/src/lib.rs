//! Conformance suite, fault injection and test servers for outbox backends.

pub mod cases;
mod conformance;
pub mod faulty;
mod harness;
pub mod history;
mod model;
pub mod proxy;
mod random;
pub mod server;

pub use conformance::Case;
pub use harness::{Capabilities, Corruption, Harness, OperationsHarness, ProcessedHarness, Skip};
pub use model::{find_difference, model};
