//! Conformance suite, fault injection and test servers for outbox backends.
//!
//! * [`conformance!`] makes a named test of every rule that a backend must keep; a [`Harness`] of some thirty lines
//!   says how to make an empty table and how to let time pass. The [`mod@cases`] can also be called by hand.
//! * [`model`] makes random sequences of calls on a backend and on the reference, and compares the answers.
//! * [`history`] checks an audit trail that a trigger wrote: a ground truth that is not our own code.
//! * [`faulty`] wraps a repository so that its calls fail by a seeded plan; [`proxy`] breaks PostgreSQL connections
//!   at a chosen message.
//! * [`server`] finds or starts a PostgreSQL server.
//!
//! It depends on the contract (`outbox-core`) and on no database.
//!
//! # Testing a backend
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
//! A backend that has only a [`Repository`](outbox_core::Repository) says `conformance!(MyBackend: repository)`.
//!
//! # What the environment says
//! | variable | |
//! |---|---|
//! | `OUTBOX_TEST_REQUIRE` | backends, separated by commas, that must not be skipped: a missing server is a failure |
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
