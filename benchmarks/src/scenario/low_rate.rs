//! Statements per message at fifty messages a second, the producer's own four included.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outbox_dispatcher::{Config, Event, Observer};
use serde_json::{Value, json};

use super::latency::{paced, until_quiet};
use crate::clock::nanos;
use crate::deliveries::Deliveries;
use crate::error::Result;
use crate::load::{TOPIC, stamped};
use crate::options::Options;
use crate::ours::{Ours, recording, start};
use crate::report::{Bound, Line, rounded};
use crate::side::Side;
use crate::site::{BENCH, Site};

const PER_SECOND: u64 = 50;

/// Claims that found something.
#[derive(Debug, Default)]
struct Finds(AtomicU64);

impl Observer for Finds {
    fn on(&self, event: &Event<'_>) {
        if let Event::Claimed { .. } = event {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

pub(crate) async fn run(site: &Site, options: &Options) -> Result<Line> {
    let postgres = site.postgres()?;
    let n_messages = options.n_messages(options.window(Duration::from_secs(20)).as_secs() * PER_SECOND);
    let ours = Ours::create(site).await?;
    let (deliveries, finds) = (Deliveries::default(), Arc::new(Finds::default()));
    let live = start(ours.outbox.clone(), recording(&deliveries), Config::default(), Arc::clone(&finds))?;
    until_quiet().await;
    postgres.forget_statements(BENCH).await?;
    paced(n_messages, PER_SECOND, async |number| {
        ours.enqueue_one(stamped(TOPIC, number, nanos())).await?;
        Ok(0)
    })
    .await?;
    deliveries.reach(n_messages).await?;
    let calls = postgres.calls(BENCH).await?;
    live.stop().await?;
    ours.remove().await?;
    Ok(line(site, n_messages, &calls, finds.0.load(Ordering::Relaxed)))
}

fn line(site: &Site, n_messages: u64, calls: &[(String, u64)], n_finds: u64) -> Line {
    let per_message = |part: Part| {
        let of_part = calls.iter().filter(|(text, _)| Part::of(text) == part);
        of_part.map(|(_, calls)| *calls).sum::<u64>() as f64 / n_messages as f64
    };
    let finding = n_finds as f64 / n_messages as f64;
    let (claims, looks) = (per_message(Part::Claim), per_message(Part::Look));
    // a claim that finds nothing is a step towards sleep, and so is its look
    let core = per_message(Part::Producer) + finding.min(claims) + per_message(Part::Settle);
    let queries: Vec<Value> = calls
        .iter()
        .map(|(text, calls)| {
            json!([Part::of(text).name(), rounded(*calls as f64 / n_messages as f64), head(text)])
        })
        .collect();
    Line::new("low_rate_statements", site.kind())
        .with("messages", n_messages)
        .with("per_second", PER_SECOND)
        .figure("producer", per_message(Part::Producer))
        .figure("claims", claims)
        .figure("claims_that_found", finding)
        .figure("looks", looks)
        .figure("settles", per_message(Part::Settle))
        .figure("sleeping", per_message(Part::Sleep))
        .figure("all", calls.iter().map(|(_, calls)| *calls).sum::<u64>() as f64 / n_messages as f64)
        .with("queries", queries)
        .exact_gate("statements per message, without going to sleep", core, Bound::AtMost(6.0))
}

/// What a statement is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Producer,
    Claim,
    Look,
    Settle,
    Sleep,
}

impl Part {
    /// By the words that only such a statement has.
    fn of(text: &str) -> Self {
        let has = |word: &str| text.contains(word);
        if has("BEGIN") || has("COMMIT") || has("INSERT INTO") {
            Self::Producer
        } else if has("DELETE FROM") {
            Self::Settle
        } else if has("UPDATE") && has("SKIP LOCKED") {
            Self::Claim
        } else if has("pg_sequence_last_value") {
            Self::Look
        } else {
            Self::Sleep
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Claim => "claim",
            Self::Look => "look",
            Self::Settle => "settle",
            Self::Sleep => "sleep",
        }
    }
}

fn head(text: &str) -> String {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("--"));
    code.flat_map(str::split_whitespace).take(12).collect::<Vec<_>>().join(" ")
}
