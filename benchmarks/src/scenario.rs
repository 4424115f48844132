//! Every scenario by its name.

mod at_rest;
mod dedup;
mod drain;
mod enqueue;
mod fair;
mod heap_only;
mod held_snapshot;
pub(crate) mod idle;
mod late_commit;
mod latency;
mod log;
mod log_load;
mod low_rate;
mod neighbours;
mod ordered;
mod part;
mod plans;
mod relaxed;
mod retries;
pub(crate) mod rss;
mod varied;
mod wakeup;
mod wal_feed;

use neighbours::Neighbours;

use crate::error::Result;
use crate::options::Options;
use crate::report::Line;
use crate::site::{Kind, Site};

/// Every scenario, in the order in which `all` runs them, and whether SQLite has it too unless asked for.
pub(crate) const ALL: [(&str, bool); 43] = [
    ("enqueue_single", true),
    ("enqueue_batch", true),
    ("dedup_single", false),
    ("dedup_batch", false),
    ("drain", true),
    ("drain_repository", true),
    ("latency", true),
    ("idle", true),
    ("low_rate_statements", false),
    ("wakeup_cost", false),
    ("wakeup_stress", false),
    ("heap_only", false),
    ("wal", false),
    ("at_rest", false),
    ("held_snapshot", false),
    ("held_snapshot_stream", false),
    ("late_commit", false),
    ("relaxed_commit", false),
    ("fair", true),
    ("fair_one_key", true),
    ("ordered", true),
    ("hot_key", true),
    ("retries", true),
    ("parked", false),
    ("unserved", false),
    ("dead", false),
    ("backlog", false),
    ("log_drain", false),
    ("log_queue", true),
    ("log_wal", false),
    ("log_enqueue", true),
    ("log_ordered", true),
    ("log_retries", true),
    ("log_groups", false),
    ("log_shared", false),
    ("log_shared_waiting", false),
    ("log_foreign", false),
    ("log_snapshot", false),
    ("log_retained", false),
    ("wal_feed", false),
    ("wal_latency", false),
    ("rss", false),
    ("plans", false),
];

/// Those of MySQL and MariaDB.
const ON_MYSQL: [&str; 13] = [
    "enqueue_single",
    "enqueue_batch",
    "dedup_single",
    "dedup_batch",
    "drain",
    "drain_repository",
    "latency",
    "idle",
    "fair",
    "fair_one_key",
    "ordered",
    "hot_key",
    "retries",
];

/// Whether a scenario runs on a database.
pub(crate) fn runs_on(name: &str, kind: Kind) -> bool {
    let sqlite = ALL.iter().find(|(known, _)| *known == name).map(|(_, sqlite)| *sqlite);
    match kind {
        Kind::Postgres => sqlite.is_some(),
        Kind::Sqlite => sqlite == Some(true),
        Kind::MySql => ON_MYSQL.contains(&name),
    }
}

/// Runs one scenario.
pub(crate) async fn run(name: &str, site: &Site, options: &Options) -> Result<Line> {
    match name {
        "enqueue_single" => enqueue::single(site, options).await,
        "enqueue_batch" => enqueue::batch(site, options).await,
        "dedup_single" => dedup::single(site, options).await,
        "dedup_batch" => dedup::batch(site, options).await,
        "drain" => drain::run(site, options).await,
        "drain_repository" => drain::repository(site, options).await,
        "latency" => latency::run(site, options).await,
        "idle" => idle::run(site, options).await,
        "low_rate_statements" => low_rate::run(site, options).await,
        "wakeup_cost" => wakeup::cost(site, options).await,
        "wakeup_stress" => wakeup::stress(site, options).await,
        "heap_only" => heap_only::run(site, options).await,
        "at_rest" => at_rest::run(site, options).await,
        "wal" => drain::wal(site, options).await,
        "held_snapshot" => held_snapshot::drain(site, options).await,
        "held_snapshot_stream" => held_snapshot::stream(site, options).await,
        "late_commit" => late_commit::run(site, options).await,
        "relaxed_commit" => relaxed::run(site, options).await,
        "fair" => fair::thousand_keys(site, options).await,
        "fair_one_key" => fair::one_key(site, options).await,
        "ordered" => ordered::many_keys(site, options).await,
        "hot_key" => ordered::hot_key(site, options).await,
        "retries" => retries::run(site, options).await,
        "parked" => neighbours::among(site, options, Neighbours::Parked).await,
        "unserved" => neighbours::among(site, options, Neighbours::Unserved).await,
        "dead" => neighbours::among(site, options, Neighbours::Dead).await,
        "backlog" => neighbours::backlog(site, options).await,
        "log_drain" => log::drain(site, options).await,
        "log_queue" => log_load::beside_queue(site, options).await,
        "log_wal" => log::wal(site, options).await,
        "log_enqueue" => log::enqueue(site, options).await,
        "log_ordered" => log_load::ordered(site, options).await,
        "log_retries" => retries::log(site, options).await,
        "log_groups" => log_load::groups(site, options).await,
        "log_shared" => log_load::shared(site, options).await,
        "log_shared_waiting" => log_load::shared_waiting(site, options).await,
        "log_foreign" => log_load::foreign(site, options).await,
        "log_snapshot" => log_load::snapshot(site, options).await,
        "log_retained" => log_load::retained(site, options).await,
        "wal_feed" => wal_feed::drain(options).await,
        "wal_latency" => wal_feed::latency(options).await,
        "rss" => rss::run(site, options).await,
        "plans" => plans::run(site, options).await,
        _ => Err(format!("unknown scenario {name}").into()),
    }
}
