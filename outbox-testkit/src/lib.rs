//! Test helpers for services that have an outbox, and all that a backend is tested with.
//!
//! # Testing a service
//! No feature is needed, and no crate beside the contract's:
//!
//! * [`assert_enqueued!`] and [`refute_enqueued!`] compare topic, key, payload, headers and delay with what is enqueued.
//! * [`Rehearsal`]: a transaction that is always rolled back and yet shows what was enqueued in it.
//! * [`drain`] runs a handler over what is due, without sleeping; [`Recorder`] remembers what a handler was given.
//! * [`MemoryRepository`](outbox_core::MemoryRepository), the reference, whose clock the test moves.
//!
//! ```toml
//! [dev-dependencies]
//! outbox-testkit = "0.1"
//! ```
//! A small service and its tests, on SeaORM and in memory: `examples/testing.rs`, compiled and run with the others.
//!
//! # Testing a backend
//! With the feature `conformance` (`containers` as well, for servers in containers):
//!
//! * [`conformance!`] makes a named test of every rule that a backend must keep; a [`Harness`] of some thirty lines
//!   says how to make an empty table and how to let time pass. The [`mod@cases`] can also be called by hand.
//! * [`model`] makes random sequences of calls on a backend and on the reference, and compares the answers;
//!   [`model_declared`] does so on ordered or fair tables.
//! * [`history`] checks an audit trail that a trigger wrote: a ground truth that is not our own code.
//! * [`faulty`] wraps a repository so that its calls fail by a seeded plan; [`proxy`] breaks PostgreSQL connections
//!   at a chosen message.
//! * [`server`] finds or starts a PostgreSQL, MySQL or MariaDB server.
//!
//! It depends on the contract (`outbox-core`) and on no database.
//!
//! ```ignore
//! struct MyBackend { repository: MyRepository, /* connection, schema, … */ }
//!
//! impl outbox_testkit::Harness for MyBackend { /* five methods */ }
//! impl outbox_testkit::OperationsHarness for MyBackend { /* one method */ }
//! impl outbox_testkit::ProcessedHarness for MyBackend { /* one method */ }
//!
//! outbox_testkit::conformance!(MyBackend: repository, operations, processed);
//!
//! #[test]
//! fn model() {
//!     outbox_testkit::model::<MyBackend>(16, 50);
//! }
//! ```
//! A backend that has only a [`Repository`](outbox_core::Repository) says `conformance!(MyBackend: repository)`; one that
//! has [`Inspect`](outbox_core::Inspect) adds `inspect`.
//!
//! # What the environment says
//! | variable | |
//! |---|---|
//! | `OUTBOX_TEST_REQUIRE` | backends, separated by commas, that must not be skipped: a missing server is a failure |
//! | `OUTBOX_TEST_SKIPPED` | a file to which a line is added for each case that is skipped |
//! | `OUTBOX_TEST_SEED` | repeats random cases and sequences |
//! | `OUTBOX_TEST_SEQUENCES` | the number of sequences of [`model`] |
//!
//! What is skipped is said on standard error, past the capturing of the test runner.
//!
//! # A whole backend, and the suite on it
//! This is `tests/it/toy.rs` of this crate, compiled and run with its other tests.
//! ```ignore
#![doc = include_str!("../tests/it/toy.rs")]
//! ```

#[cfg(feature = "conformance")]
pub mod cases;
#[cfg(feature = "conformance")]
mod conformance;
mod delivery;
mod expected;
#[cfg(feature = "conformance")]
pub mod faulty;
#[cfg(feature = "conformance")]
mod harness;
#[cfg(feature = "conformance")]
pub mod history;
#[cfg(feature = "conformance")]
mod model;
#[cfg(feature = "conformance")]
pub mod proxy;
#[cfg(feature = "conformance")]
mod random;
mod rehearsal;
#[cfg(feature = "conformance")]
pub mod secrets;
#[cfg(feature = "conformance")]
pub mod server;

#[cfg(feature = "conformance")]
pub use conformance::{Case, case_names};
pub use delivery::{Accepting, Delivery, Failure, Recorder, drain};
pub use expected::Expected;
#[cfg(feature = "conformance")]
pub use harness::{
    Capabilities, Corruption, DeclaredHarness, Harness, InspectHarness, OperationsHarness, ProcessedHarness,
    Skip,
};
#[cfg(feature = "conformance")]
pub use model::{find_declared_difference, find_difference, model, model_declared};
pub use rehearsal::Rehearsal;
