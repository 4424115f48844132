//! The cases: one rule each, named after it.
//!
//! [`conformance!`](crate::conformance!) makes a test of each; call one yourself to look at it alone.

pub mod claim;
pub mod claimer;
pub mod dedup;
pub mod enqueue;
pub mod extend;
pub mod fair;
pub mod input;
pub mod inspect;
pub mod operations;
pub mod ordered;
pub mod processed;
pub mod recovery;
pub mod retention;
pub mod settle;
pub mod transaction;
pub mod wakeup;

pub(crate) mod steps;

use crate::harness::say_skipped;

/// Says that a case asserts less than its name because the backend lacks a capability.
pub(crate) fn lacks<H: crate::Harness>(case: &str, capability: &str) {
    say_skipped(&format!("{case} on {}: needs the capability {capability}", H::NAME));
}
