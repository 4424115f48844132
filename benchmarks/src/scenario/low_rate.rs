//! Statements per message at fifty messages a second, the producer's own four included.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outbox_dispatcher::{Config, Event, Observer};

use super::latency::{paced, until_quiet};
use super::part::{Part, Profile};
use crate::clock::nanos;
use crate::deliveries::Deliveries;
use crate::error::Result;
use crate::load::{TOPIC, stamped};
use crate::options::Options;
use crate::ours::{Ours, recording, start};
use crate::report::{Bound, Line};
use crate::side::Side;
use crate::site::Site;

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
    let n_messages = options.n_messages(options.window(Duration::from_secs(20)).as_secs() * PER_SECOND);
    let ours = Ours::create(site).await?;
    let (deliveries, finds) = (Deliveries::default(), Arc::new(Finds::default()));
    let live = start(ours.outbox.clone(), recording(&deliveries), Config::default(), Arc::clone(&finds))?;
    until_quiet().await;
    Profile::begin(site).await?;
    paced(n_messages, PER_SECOND, async |number| {
        ours.enqueue_one(stamped(TOPIC, number, nanos())).await?;
        Ok(0)
    })
    .await?;
    deliveries.reach(n_messages).await?;
    let profile = Profile::end(site).await?;
    live.stop().await?;
    ours.remove().await?;
    Ok(line(site, n_messages, &profile, finds.0.load(Ordering::Relaxed)))
}

fn line(site: &Site, n_messages: u64, profile: &Profile, n_finds: u64) -> Line {
    let per_message = |part| profile.calls(part) as f64 / n_messages as f64;
    let all: f64 = Part::ALL.map(per_message).iter().sum();
    // a claim that finds nothing is a step towards sleep
    let n_empty = profile.calls(Part::Claim).saturating_sub(n_finds);
    let sleeping = per_message(Part::Sleep) + n_empty as f64 / n_messages as f64;
    let own = all - per_message(Part::Producer) - sleeping;
    // looks go by time, one a second, and not by messages
    let without_looks = all - sleeping - per_message(Part::Look);
    Line::new("low_rate_statements", site.kind())
        .with("messages", n_messages)
        .with("per_second", PER_SECOND)
        .figure("producer", per_message(Part::Producer))
        .figure("claims", per_message(Part::Claim))
        .figure("looks", per_message(Part::Look))
        .figure("settles", per_message(Part::Settle))
        .figure("sleeping", sleeping)
        .figure("enqueue_claim_settle", own + 1.0)
        .with("statements", profile.per_message(n_messages))
        .exact_gate(
            "statements per message, without looks and going to sleep",
            without_looks,
            Bound::AtMost(6.05),
        )
}
