//! Tests on real databases.

mod conformance;
mod harness;
