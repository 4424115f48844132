//! Five messages in a hundred fail once.

use std::time::Duration;

use outbox_core::{Backoff, Jitter, Message};
use outbox_dispatcher::{Config, Router};

use super::log::OurLog;
use super::neighbours::against;
use crate::deliveries::Deliveries;
use crate::error::Result;
use crate::load::TOPIC;
use crate::meter::{Meter, Usage};
use crate::options::Options;
use crate::ours::{Live, Ours, full_batches};
use crate::report::Line;
use crate::side::{Round, Side, drained, fill, interleave};
use crate::site::Site;

const ONE_IN: u128 = 20;
/// Short against the run, so that the rate is not that of waiting.
const DELAY: Duration = Duration::from_millis(100);

pub(crate) async fn run(site: &Site, options: &Options) -> Result<Line> {
    let start = |ours: &Ours, router, config| ours.start(router, config);
    failing("retries", site, options, start).await
}

/// The same of a log, where what fails goes through the group's own table.
pub(crate) async fn log(site: &Site, options: &Options) -> Result<Line> {
    failing("log_retries", site, options, OurLog::start_first).await
}

async fn failing<S: Side>(
    scenario: &str,
    site: &Site,
    options: &Options,
    start: impl Fn(&S, Router, Config) -> Result<Live>,
) -> Result<Line> {
    let n_messages = options.n_messages(200_000);
    let (without, with) = interleave(
        site,
        options.n_rounds.min(3),
        async |round| drained::<S>(site, n_messages, round).await,
        async |round| drained_with_failures(site, n_messages, round, &start).await,
    )
    .await?;
    let line = Line::new(scenario, site.kind())
        .with("messages", n_messages)
        .with("failing_once", 1.0 / ONE_IN as f64)
        .with("delay_ms", DELAY.as_millis() as u64);
    Ok(against(line, &without, &with))
}

async fn drained_with_failures<S: Side>(
    site: &Site,
    n_messages: u64,
    round: Round,
    start: impl Fn(&S, Router, Config) -> Result<Live>,
) -> Result<Usage> {
    let side = S::create(site).await?;
    fill(&side, n_messages).await?;
    site.rest().await?;
    let deliveries = Deliveries::default();
    let backoff = Backoff::default().with_base(DELAY).with_jitter(Jitter::None);
    let meter = Meter::start(site, side.file(), round.detailed).await?;
    let live = start(&side, failing_once(&deliveries), full_batches().with_backoff(backoff))?;
    deliveries.reach(n_messages).await?;
    let report = live.stop().await?;
    let usage = meter.stop(n_messages).await?;
    side.remove().await?;
    if report.n_done != n_messages || report.n_retried == 0 {
        return Err(format!("{n_messages} messages with retries: {report:?}").into());
    }
    Ok(usage)
}

/// Counts successes.
fn failing_once(deliveries: &Deliveries) -> Router {
    let deliveries = deliveries.clone();
    Router::new().on(TOPIC, async move |message: Message| {
        if message.attempt == 1 && message.id.as_u128().is_multiple_of(ONE_IN) {
            Err("not now")?;
        }
        deliveries.count();
        Ok(())
    })
}
