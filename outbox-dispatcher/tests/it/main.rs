//! The dispatcher against the memory repository, most of it in paused time.

mod batches;
mod delivery;
mod failures;
mod leases;
mod limits;
mod observing;
mod order;
mod overlap;
mod schedules;
mod status;
mod stopping;
mod support;
#[cfg(feature = "tower")]
mod tower;
mod waiting;
