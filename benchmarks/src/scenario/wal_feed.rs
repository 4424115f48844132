//! A group that is fed from the WAL, beside one that reads the same by number. On a server of their own: with
//! `wal_level = logical` everybody writes more, and the WAL of the other scenarios is a gate.

use std::time::Duration;

use outbox_dispatcher::Config;
use sea_orm::TransactionTrait;
use serde_json::{Value, json};

use super::latency::{paced, until_quiet};
use super::log::OurLog;
use crate::clock::nanos;
use crate::deliveries::{Deliveries, n_duplicates, since_commit};
use crate::error::Result;
use crate::load::{BATCH, TOPIC, stamped};
use crate::meter::Usage;
use crate::options::Options;
use crate::ours::recording;
use crate::report::{Bound, Line, rounded};
use crate::side::{Round, Side, drained, interleave, refill_and_drain};
use crate::site::Site;
use crate::stats::Latencies;

const PER_SECOND: u64 = 100;

async fn fed(site: &Site) -> Result<OurLog> {
    let mut side = OurLog::create(site).await?;
    side.start_feed().await?;
    Ok(side)
}

/// Without full-page images, as in `log_wal`.
pub(crate) async fn drain(options: &Options) -> Result<Line> {
    let site = &Site::open_logical().await?;
    site.postgres()?.full_page_writes(false).await?;
    let n_messages = options.n_messages(200_000);
    let (by_number, fed) = interleave(
        site,
        options.n_rounds,
        async |round| drained::<OurLog>(site, n_messages, round).await,
        async |round| drained_fed(site, n_messages, round).await,
    )
    .await?;
    Ok(Line::new("wal_feed", site.kind())
        .with("messages", n_messages)
        .with("batch", BATCH)
        .with("full_page_writes", "off")
        .with("fed", fed.json())
        .with("by_number", by_number.json())
        .gate("rate / rate by number", fed.ratio_to(&by_number), Bound::AtLeast(0.5))
        .gate("client CPU, µs a message", fed.median(Usage::client_cpu), Bound::AtMost(5.0))
        .exact_gate(
            "WAL bytes per drained message",
            fed.median(Usage::wal_bytes_per_message),
            Bound::AtMost(5.0),
        ))
}

async fn drained_fed(site: &Site, n_messages: u64, round: Round) -> Result<Usage> {
    let side = fed(site).await?;
    let usage = refill_and_drain(site, &side, n_messages, round).await?;
    side.remove().await?;
    Ok(usage)
}

/// From the commit to the handler.
pub(crate) async fn latency(options: &Options) -> Result<Line> {
    let site = &Site::open_logical().await?;
    let window = options.window(Duration::from_secs(10));
    let n_messages = options.n_messages(window.as_secs() * PER_SECOND);
    let (mut of_fed, mut by_number) = (Samples::default(), Samples::default());
    for _ in 0..options.n_rounds {
        by_number.add_round(OurLog::create(site).await?, n_messages).await?;
        of_fed.add_round(fed(site).await?, n_messages).await?;
    }
    let latencies = of_fed.pooled();
    Ok(Line::new("wal_latency", site.kind())
        .with("per_second", PER_SECOND)
        .with("fed", of_fed.json())
        .with("by_number", by_number.json())
        .gate("p50 from commit, ms", latencies.percentile(0.5), Bound::AtMost(3.0))
        .gate("p99 from commit, ms", latencies.percentile(0.99), Bound::AtMost(15.0)))
}

/// All rounds of one side.
#[derive(Default)]
struct Samples {
    rounds: Vec<Latencies>,
    n_duplicates: usize,
}

impl Samples {
    /// Enqueues at a steady rate to a dispatcher that had nothing to do.
    async fn add_round(&mut self, side: OurLog, n_messages: u64) -> Result<()> {
        let deliveries = Deliveries::default();
        let live = side.start_each(|| recording(&deliveries), &Config::default())?;
        until_quiet().await;
        let commits = paced(n_messages, PER_SECOND, async |number| {
            let transaction = side.db().begin().await?;
            side.log().enqueue_in(&transaction, [stamped(TOPIC, number, nanos())]).await?;
            let commit = nanos();
            transaction.commit().await?;
            Ok(commit)
        })
        .await?;
        deliveries.reach(n_messages).await?;
        for live in live {
            live.stop().await?;
        }
        side.remove().await?;
        self.rounds.push(since_commit(&deliveries.arrivals(), &commits));
        self.n_duplicates += n_duplicates(&deliveries.arrivals());
        Ok(())
    }

    fn pooled(&self) -> Latencies {
        Latencies::pooled(&self.rounds)
    }

    fn json(&self) -> Value {
        let pooled = self.pooled();
        json!({
            "messages": pooled.len(), "duplicates": self.n_duplicates,
            "p50_ms": rounded(pooled.percentile(0.5)), "p99_ms": rounded(pooled.percentile(0.99)),
            "p999_ms": rounded(pooled.percentile(0.999)), "max_ms": rounded(pooled.max()),
        })
    }
}
