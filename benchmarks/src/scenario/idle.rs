//! What a dispatcher without work costs.

use std::time::Duration;

use outbox_dispatcher::Config;
use serde_json::json;
use tokio::time::sleep;

use crate::deliveries::Deliveries;
use crate::error::Result;
use crate::options::Options;
use crate::ours::{Ours, counting};
use crate::report::{Bound, Line, rounded};
use crate::side::Side;
use crate::site::{FOREIGN, Kind, Site};
use crate::{proc, statements};

/// By then a dispatcher that has just started is asleep; the going to sleep is counted apart.
const FALLING_ASLEEP: Duration = Duration::from_secs(3);
const MINUTE: Duration = Duration::from_secs(60);
const GATE: Bound = Bound::AtMost(10.0);

pub(crate) async fn run(site: &Site, options: &Options) -> Result<Line> {
    let window = options.window(MINUTE);
    let idle = Idle::start(site).await?;
    let figures = idle.measure(site, window).await?;
    Ok(line(site, &figures))
}

/// A dispatcher with nothing to do. On PostgreSQL in a database of its own, so that other scenarios may run
/// meanwhile.
pub(crate) struct Idle {
    ours: Ours,
    live: crate::ours::Live,
}

/// Statements of a window.
pub(crate) struct Figures {
    window: Duration,
    per_minute: f64,
    first_seconds: u64,
    cpu: Duration,
}

impl Idle {
    pub(crate) async fn start(site: &Site) -> Result<Self> {
        let ours = Ours::create_at(site, FOREIGN).await?;
        statements::count(site.kind() == Kind::Sqlite);
        let live = ours.start(counting(&Deliveries::default()), Config::default())?;
        Ok(Self { ours, live })
    }

    pub(crate) async fn measure(self, site: &Site, window: Duration) -> Result<Figures> {
        let start = count(site).await?;
        sleep(FALLING_ASLEEP).await;
        let (before, cpu) = (count(site).await?, proc::own_cpu());
        sleep(window).await;
        let (after, cpu) = (count(site).await?, proc::own_cpu().saturating_sub(cpu));
        statements::count(false);
        self.live.stop().await?;
        self.ours.remove().await?;
        let per_minute = (after - before) as f64 * MINUTE.as_secs_f64() / window.as_secs_f64();
        Ok(Figures { window, per_minute, first_seconds: before - start, cpu })
    }
}

async fn count(site: &Site) -> Result<u64> {
    match site {
        Site::Postgres(site) => site.statements(FOREIGN).await,
        Site::Sqlite(_) => Ok(statements::counted()),
        Site::MySql(site) => Ok(site.counters().await?.statements),
    }
}

pub(crate) fn line(site: &Site, figures: &Figures) -> Line {
    let line = Line::new("idle", site.kind())
        .with("window_seconds", figures.window.as_secs())
        .figure("statements_per_minute", figures.per_minute)
        .with(
            "falling_asleep",
            json!({ "seconds": FALLING_ASLEEP.as_secs(), "statements": figures.first_seconds }),
        )
        .with("client_cpu_ms_per_minute", rounded(per_minute_ms(figures)));
    match site.kind() {
        Kind::Postgres => line.exact_gate("statements per idle minute", figures.per_minute, GATE),
        Kind::Sqlite | Kind::MySql => line,
    }
}

fn per_minute_ms(figures: &Figures) -> f64 {
    figures.cpu.as_secs_f64() * 1e3 * MINUTE.as_secs_f64() / figures.window.as_secs_f64()
}
