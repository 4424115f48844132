//! Tests on real databases.

mod conformance;
mod doctor;
mod faults;
mod harness;
mod input;
mod mysql;
mod operations;
mod ordered;
mod plans;
mod roles;
mod schema;
mod secrets;
mod support;
mod transactions;
mod wakeup;
