//! Tests on real databases.

mod conformance;
mod harness;
mod support;
mod transactions;
