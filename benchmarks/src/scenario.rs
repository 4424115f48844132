//! Every scenario by its name.

mod drain;
mod enqueue;
mod heap_only;
mod held_snapshot;
pub(crate) mod idle;
mod late_commit;
mod latency;
mod low_rate;
mod neighbours;
mod part;
mod plans;
mod relaxed;
mod retries;
pub(crate) mod rss;
mod wakeup;

use neighbours::Neighbours;

use crate::error::Result;
use crate::options::Options;
use crate::report::Line;
use crate::site::{Kind, Site};

/// Every scenario, in the order in which `all` runs them, and whether SQLite has it too unless asked for.
pub(crate) const ALL: [(&str, bool); 22] = [
    ("enqueue_single", true),
    ("enqueue_batch", true),
    ("drain", true),
    ("drain_repository", true),
    ("latency", true),
    ("idle", true),
    ("low_rate_statements", false),
    ("wakeup_cost", false),
    ("wakeup_stress", false),
    ("heap_only", false),
    ("wal", false),
    ("held_snapshot", false),
    ("held_snapshot_stream", false),
    ("late_commit", false),
    ("relaxed_commit", false),
    ("retries", true),
    ("parked", false),
    ("unserved", false),
    ("dead", false),
    ("backlog", false),
    ("rss", false),
    ("plans", false),
];

/// Whether a scenario runs on a database.
pub(crate) fn runs_on(name: &str, kind: Kind) -> bool {
    ALL.iter().any(|(known, sqlite)| *known == name && (*sqlite || kind == Kind::Postgres))
}

/// Runs one scenario.
pub(crate) async fn run(name: &str, site: &Site, options: &Options) -> Result<Line> {
    match name {
        "enqueue_single" => enqueue::single(site, options).await,
        "enqueue_batch" => enqueue::batch(site, options).await,
        "drain" => drain::run(site, options).await,
        "drain_repository" => drain::repository(site, options).await,
        "latency" => latency::run(site, options).await,
        "idle" => idle::run(site, options).await,
        "low_rate_statements" => low_rate::run(site, options).await,
        "wakeup_cost" => wakeup::cost(site, options).await,
        "wakeup_stress" => wakeup::stress(site, options).await,
        "heap_only" => heap_only::run(site, options).await,
        "wal" => drain::wal(site, options).await,
        "held_snapshot" => held_snapshot::drain(site, options).await,
        "held_snapshot_stream" => held_snapshot::stream(site, options).await,
        "late_commit" => late_commit::run(site, options).await,
        "relaxed_commit" => relaxed::run(site, options).await,
        "retries" => retries::run(site, options).await,
        "parked" => neighbours::among(site, options, Neighbours::Parked).await,
        "unserved" => neighbours::among(site, options, Neighbours::Unserved).await,
        "dead" => neighbours::among(site, options, Neighbours::Dead).await,
        "backlog" => neighbours::backlog(site, options).await,
        "rss" => rss::run(site, options).await,
        "plans" => plans::run(site, options).await,
        _ => Err(format!("unknown scenario {name}").into()),
    }
}
