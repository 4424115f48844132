//! Tests on real databases.

mod conformance;
mod dedup;
mod doctor;
mod failover;
mod fair;
mod faults;
mod harness;
mod horizon;
mod input;
mod log;
mod mysql;
mod operations;
mod ordered;
mod pair;
mod partitioned;
mod plans;
mod pooler;
mod roles;
mod schema;
mod schemas;
mod secrets;
mod support;
mod transactions;
mod versions;
mod wakeup;
mod wal;
