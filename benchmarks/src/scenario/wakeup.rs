//! What the wake-up costs producers, and whether it ever misses a message.

use std::time::Duration;

use outbox_core::{
    Claim, ClaimRequest, Context, Draft, Lease, MessageId, NoListener, Repository, Settled, Settlement,
    Wakeup,
};
use outbox_dispatcher::{Config, TracingObserver};
use outbox_sea_orm::OutboxTable;
use rand::RngExt as _;
use sea_orm::{ConnectionTrait as _, TransactionTrait as _};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::latency::until_quiet;
use super::part::{Part, Profile};
use crate::clock::{Stopwatch, nanos};
use crate::deliveries::{Deliveries, n_duplicates, since_commit};
use crate::error::{Error, Result};
use crate::load::{BATCH, TOPIC, batches, split, stamped};
use crate::meter::{Meter, Usage};
use crate::options::Options;
use crate::ours::{Ours, counting, recording, start};
use crate::report::{Bound, Line, rounded};
use crate::side::{Round, Side, interleave};
use crate::site::Site;

const N_PRODUCERS: usize = 8;
/// What the polling of a dispatcher without hints has to do in a stream.
const POLL: Duration = Duration::from_millis(5);
/// Far longer than any wake-up takes, far shorter than the polling.
const LOST_AFTER: Duration = Duration::from_secs(1);
const POLLING_OFF: Duration = Duration::from_secs(3_600);
const MAX_BURST: u64 = 8;
const LONGEST_PAUSE_MS: f64 = 60.0;

/// A table that gives no hints.
struct Silent(OutboxTable);

impl Repository for Silent {
    async fn enqueue(&self, cx: &Context, drafts: Vec<Draft>) -> outbox_core::Result<Vec<MessageId>> {
        self.0.enqueue(cx, drafts).await
    }

    async fn claim(&self, request: ClaimRequest) -> outbox_core::Result<Claim> {
        self.0.claim(request).await
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> outbox_core::Result<Vec<Settled>> {
        self.0.settle(settlements).await
    }

    async fn extend(&self, leases: Vec<Lease>, by: Duration) -> outbox_core::Result<Vec<Settled>> {
        self.0.extend(leases, by).await
    }
}

impl Wakeup for Silent {
    type Listener = NoListener;

    async fn listen(&self) -> outbox_core::Result<Option<NoListener>> {
        Ok(None)
    }
}

/// Eight producers of single messages beside a live dispatcher, with the trigger and without.
pub(crate) async fn cost(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(30_000);
    let mut line =
        Line::new("wakeup_cost", site.kind()).with("messages", n_messages).with("producers", N_PRODUCERS);
    for (name, commit) in [("transaction", Commit::Own), ("autocommit", Commit::Auto)] {
        let mut profile = Profile::default();
        let (without, with) = interleave(
            site,
            options.n_rounds,
            async |round| rate(site, n_messages, commit, false, round).await,
            async |round| {
                Profile::begin(site).await?;
                let usage = rate(site, n_messages, commit, true, round).await?;
                profile = Profile::end(site).await?;
                Ok(usage)
            },
        )
        .await?;
        let cost = 1.0 - with.ratio_to(&without);
        let calls = |part: Part| (part.name(), profile.calls(part));
        let figures = json!({
            "with": with.json(), "without": without.json(), "cost": rounded(cost),
            "calls_with": Part::ALL.map(calls),
        });
        line = line.with(name, figures).gate(commit.gate(), cost, Bound::AtMost(0.1));
    }
    Ok(line)
}

#[derive(Clone, Copy)]
enum Commit {
    /// `BEGIN`, the message, `COMMIT`.
    Own,
    /// The message alone.
    Auto,
}

impl Commit {
    fn gate(self) -> &'static str {
        match self {
            Self::Own => "share of the enqueue rate",
            Self::Auto => "share of the enqueue rate, autocommit",
        }
    }

    async fn enqueue(self, ours: &Ours, draft: Draft) -> Result<()> {
        match self {
            Self::Own => {
                let transaction = ours.db.begin().await?;
                ours.outbox.enqueue_in(&transaction, draft).await?;
                transaction.commit().await?;
            }
            Self::Auto => {
                ours.outbox.enqueue_autocommit(draft).await?;
            }
        }
        Ok(())
    }
}

async fn rate(site: &Site, n_messages: u64, commit: Commit, wakes: bool, round: Round) -> Result<Usage> {
    let ours = Ours::create(site).await?;
    let deliveries = Deliveries::default();
    let config = Config::default().with_batch(BATCH).with_min_poll(POLL).with_max_poll(POLL);
    let live = if wakes {
        ours.start(counting(&deliveries), config)?
    } else {
        let disable = format!("ALTER TABLE {} DISABLE TRIGGER USER", ours.name());
        ours.db.execute_unprepared(&disable).await?;
        start(Silent(ours.outbox.clone()), counting(&deliveries), config, TracingObserver)?
    };
    until_quiet().await;
    let drafts = batches(TOPIC, n_messages, BATCH, Duration::ZERO).into_iter().flatten().collect();
    let parts = split(drafts, N_PRODUCERS);
    site.rest().await?;
    let meter = Meter::start(site, ours.file(), round.detailed).await?;
    enqueue_all(&ours, commit, parts).await?;
    let usage = meter.stop(n_messages).await?;
    deliveries.reach(n_messages).await?;
    live.stop().await?;
    ours.remove().await?;
    Ok(usage)
}

async fn enqueue_all(ours: &Ours, commit: Commit, parts: Vec<Vec<Draft>>) -> Result<()> {
    let mut tasks = JoinSet::new();
    for part in parts {
        let ours = ours.clone();
        tasks.spawn(async move {
            for draft in part {
                commit.enqueue(&ours, draft).await?;
            }
            Ok::<_, Error>(())
        });
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome??;
    }
    Ok(())
}

/// Bursts of one to eight messages while the dispatcher is anywhere on its way to sleep, with polling off: what
/// has not arrived a second after the burst was lost.
pub(crate) async fn stress(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(50_000);
    let ours = Ours::create(site).await?;
    let deliveries = Deliveries::default();
    let live = ours.start(recording(&deliveries), Config::default().with_poll_interval(POLLING_OFF))?;
    until_quiet().await;
    let watch = Stopwatch::start();
    let (mut commits, mut n_lost, mut n_bursts) = (Vec::new(), 0, 0_u64);
    while (commits.len() as u64) < n_messages {
        let size = rand::rng().random_range(1..=MAX_BURST).min(n_messages - commits.len() as u64);
        commits.extend(burst(&ours, commits.len() as u64, size).await?);
        n_bursts += 1;
        let n_sent = commits.len() as u64;
        if !deliveries.reach_within(n_sent, LOST_AFTER).await {
            n_lost += n_sent - deliveries.n();
            eprintln!("{} of {n_sent} delivered {LOST_AFTER:?} after the burst", deliveries.n());
            ours.outbox.enqueue_autocommit(stamped("nobody", 0, 0)).await?;
            deliveries.reach(n_sent).await?;
        }
        sleep(pause()).await;
    }
    let seconds = watch.elapsed().as_secs();
    live.stop().await?;
    ours.remove().await?;
    let arrivals = deliveries.arrivals();
    let latencies = since_commit(&arrivals, &commits);
    Ok(Line::new("wakeup_stress", site.kind())
        .with("messages", n_messages)
        .with("bursts", n_bursts)
        .with("seconds", seconds)
        .with("duplicates", n_duplicates(&arrivals))
        .figure("p50_ms", latencies.percentile(0.5))
        .figure("p99_ms", latencies.percentile(0.99))
        .figure("max_ms", latencies.max())
        .gate("lost wake-ups", n_lost as f64, Bound::AtMost(0.0)))
}

/// Commits so many messages at the same time, a third of them some milliseconds after the INSERT. Returns when
/// the commits were sent.
async fn burst(ours: &Ours, first: u64, size: u64) -> Result<Vec<u64>> {
    let mut tasks = JoinSet::new();
    for number in first..first + size {
        let ours = ours.clone();
        tasks.spawn(async move {
            let transaction = ours.db.begin().await?;
            ours.outbox.enqueue_in(&transaction, stamped(TOPIC, number, nanos())).await?;
            sleep(lateness()).await;
            let commit = nanos();
            transaction.commit().await?;
            Ok::<_, Error>((number, commit))
        });
    }
    let mut commits = Vec::new();
    while let Some(commit) = tasks.join_next().await {
        commits.push(commit??);
    }
    commits.sort_unstable();
    Ok(commits.into_iter().map(|(_, commit)| commit).collect())
}

/// Between INSERT and COMMIT.
fn lateness() -> Duration {
    let mut random = rand::rng();
    if random.random_ratio(1, 3) {
        Duration::from_micros(random.random_range(0..10_000))
    } else {
        Duration::ZERO
    }
}

/// As likely between 0.1 and 1 ms as between 1 and 10: no step towards sleep is left out.
fn pause() -> Duration {
    let exponent: f64 = rand::rng().random_range(0.0..1.0);
    Duration::from_secs_f64(1e-4 * (LONGEST_PAUSE_MS * 10.0).powf(exponent))
}
