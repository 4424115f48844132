//! Tests on real databases.

mod conformance;
mod harness;
mod support;
mod transactions;
mod schema;
mod wakeup;
