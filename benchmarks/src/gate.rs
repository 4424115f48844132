//! The gates that noise cannot move, quickly: for CI.

use std::time::Duration;

use crate::args::Flags;
use crate::error::{Error, Result};
use crate::options::Options;
use crate::report::{Gate, Line, table};
use crate::scenario::{self, idle};
use crate::site::{Kind, Site};

/// A dispatcher polls every ten seconds and looks for expired leases every thirty: less than a minute would be
/// a matter of luck.
const IDLE_WINDOW: Duration = Duration::from_secs(60);
/// What is run and with how many messages.
const SCENARIOS: [(&str, u64); 9] = [
    ("enqueue_single", 2_000),
    ("enqueue_batch", 50_000),
    ("drain", 200_000),
    ("wal", 100_000),
    ("heap_only", 100_000),
    ("low_rate_statements", 500),
    ("ordered", 100_000),
    ("plans", 20_000),
    ("log_wal", 100_000),
];

/// Runs them and says whether all pass.
pub(crate) async fn run(mut flags: Flags) -> Result<bool> {
    let options = Options::read(&mut flags)?.with_rounds(1);
    flags.finish()?;
    let site = Site::open(Kind::Postgres).await?;
    let idle = idle::Idle::start(&site).await?;
    let (mut gates, idle) = tokio::try_join!(others(&site, &options), idle.measure(&site, IDLE_WINDOW))?;
    gates.extend(idle::line(&site, &idle).print());
    gates.retain(Gate::is_exact);
    Ok(table(&gates))
}

async fn others(site: &Site, options: &Options) -> Result<Vec<Gate>, Error> {
    let mut gates = Vec::new();
    for (name, n_messages) in SCENARIOS {
        let options = options.clone().with_messages(n_messages);
        gates.extend(scenario::run(name, site, &options).await.map(Line::print)?);
    }
    Ok(gates)
}
