//! The memory of a dispatcher process: this program runs itself as a child that only drains.

use std::env;
use std::process::Stdio;
use std::time::Duration;

use outbox_core::TableName;
use outbox_dispatcher::TracingObserver;
use outbox_sea_orm::OutboxTable;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::interval;

use crate::args::Flags;
use crate::deliveries::Deliveries;
use crate::error::Result;
use crate::options::Options;
use crate::ours::{Ours, connect, counting, full_batches, start};
use crate::proc;
use crate::report::{Bound, Line, rounded};
use crate::side::{Side, fill};
use crate::site::Site;

/// The URL holds a password and does not belong on a command line.
const URL: &str = "OUTBOX_BENCH_CHILD_URL";
const BETWEEN_SAMPLES: Duration = Duration::from_millis(10);
const TENTHS: u64 = 10;

pub(crate) async fn run(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(2_000_000);
    let ours = Ours::create(site).await?;
    fill(&ours, n_messages).await?;
    site.rest().await?;
    let figures = child(&ours, n_messages).await?;
    ours.remove().await?;
    let growth = figures["growth"].as_f64().unwrap_or(f64::NAN);
    Ok(Line::new("rss", site.kind()).with("messages", n_messages).with("child", figures).gate(
        "resident memory, last tenth / first",
        1.0 + growth,
        Bound::AtMost(1.1),
    ))
}

async fn child(ours: &Ours, n_messages: u64) -> Result<Value> {
    let table = ours.name().to_string();
    let child = Command::new(env::current_exe()?)
        .args(["rss-child", "--table", &table, "--messages", &n_messages.to_string()])
        .env(URL, ours.url())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        return Err(format!("the child ended with {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The child: drains a table that is there and prints what memory it had.
pub(crate) async fn drain_as_child(mut flags: Flags) -> Result<()> {
    let name: String = flags.take("table")?.ok_or("--table is missing")?;
    let n_messages = flags.take("messages")?.ok_or("--messages is missing")?;
    flags.finish()?;
    let db = connect(env::var(URL)?).await?;
    let outbox = OutboxTable::new(&db, TableName::parse(&name)?);
    let deliveries = Deliveries::default();
    let live = start(outbox, counting(&deliveries), full_batches(), TracingObserver)?;
    let samples = sample(&deliveries, n_messages).await;
    live.stop().await?;
    println!("{}", summary(&samples, n_messages));
    Ok(())
}

/// How many had been delivered, and the KiB at that moment, from the first delivery on.
async fn sample(deliveries: &Deliveries, n_messages: u64) -> Vec<(u64, u64)> {
    let mut samples = Vec::new();
    let mut ticks = interval(BETWEEN_SAMPLES);
    while deliveries.n() < n_messages {
        ticks.tick().await;
        let n_delivered = deliveries.n();
        if n_delivered > 0 {
            samples.push((n_delivered, proc::resident_kib()));
        }
    }
    samples
}

fn summary(samples: &[(u64, u64)], n_messages: u64) -> Value {
    let tenth = |tenth: u64| {
        let bounds = n_messages * tenth / TENTHS..n_messages * (tenth + 1) / TENTHS;
        mean(samples.iter().filter(|(n, _)| bounds.contains(n)).map(|(_, kib)| *kib))
    };
    let (first, last) = (tenth(0), tenth(TENTHS - 1));
    let tenths: Vec<Value> = (0..TENTHS).map(|index| rounded(tenth(index))).collect();
    let max = samples.iter().map(|(_, kib)| *kib).max();
    json!({
        "first_tenth_kib": rounded(first), "last_tenth_kib": rounded(last), "max_kib": max,
        "tenths_kib": tenths, "samples": samples.len(), "growth": last / first - 1.0,
    })
}

fn mean(values: impl Iterator<Item = u64>) -> f64 {
    let (sum, n) = values.fold((0, 0), |(sum, n), value| (sum + value, n + 1));
    sum as f64 / f64::from(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_compares_the_tenths() {
        let samples: Vec<(u64, u64)> = (0..100).map(|n| (n, 1_000 + n)).collect();
        let summary = summary(&samples, 100);
        assert_eq!((&summary["first_tenth_kib"], &summary["last_tenth_kib"]), (&json!(1_005), &json!(1_095)));
        assert_eq!(summary["max_kib"], json!(1_099));
    }
}
