//! Tests on real databases.

mod conformance;
mod harness;
mod input;
mod schema;
mod support;
mod transactions;
mod wakeup;
mod secrets;
mod plans;
