//! The dispatcher against the memory repository, most of it in paused time.

mod delivery;
mod failures;
mod leases;
mod observing;
mod schedules;
mod stopping;
mod support;
mod waiting;
