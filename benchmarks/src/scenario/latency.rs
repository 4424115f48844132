//! From the begin of the enqueuing transaction to the handler at a low rate.

use std::time::Duration;

use sea_orm::TransactionTrait as _;
use sea_orm::sqlx::postgres::PgListener;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use crate::clock::nanos;
use crate::deliveries::{Arrival, Deliveries, n_duplicates, since_begin, since_commit};
use crate::error::{Error, Result};
use crate::floor::{Floor, MySqlFloor, PostgresFloor, SqliteFloor, mysql, postgres, sqlite};
use crate::load::{BATCH, TOPIC, stamped};
use crate::options::Options;
use crate::ours::{Ours, recording};
use crate::report::{Bound, Line, rounded};
use crate::side::Side;
use crate::site::{Kind, Site};
use crate::stats::{Latencies, median};
use outbox_dispatcher::Config;

const PER_SECOND: u64 = 50;
const CHANNEL: &str = "floor";

pub(crate) async fn run(site: &Site, options: &Options) -> Result<Line> {
    let window = options.window(Duration::from_secs(10));
    let n_messages = options.n_messages(window.as_secs() * PER_SECOND);
    let (mut floor, mut ours) = (Samples::default(), Samples::default());
    for round in 0..options.n_rounds {
        if round % 2 == 0 {
            floor.add(floor_round(site, n_messages).await?);
            ours.add(ours_round(site, n_messages).await?);
        } else {
            ours.add(ours_round(site, n_messages).await?);
            floor.add(floor_round(site, n_messages).await?);
        }
    }
    Ok(line(site, &floor, &ours))
}

fn line(site: &Site, floor: &Samples, ours: &Samples) -> Line {
    let ratio = ours.p50() / floor.p50();
    let strict = ours.p50() / floor.commit_p50();
    let line = Line::new("latency", site.kind())
        .with("per_second", PER_SECOND)
        .with("ours", ours.json())
        .with("floor", floor.json())
        .figure("p50_ratio_from_begin", ratio)
        .figure("p50_from_begin_to_floor_from_commit", strict);
    match site.kind() {
        Kind::Postgres => line.gate("p50 / floor, both from begin", ratio, Bound::AtMost(1.5)),
        Kind::Sqlite | Kind::MySql => line,
    }
}

/// The messages of one round, and when the commit of each was sent.
struct Sample {
    arrivals: Vec<Arrival>,
    commits: Vec<u64>,
}

/// All rounds of one side.
#[derive(Default)]
struct Samples {
    begin: Vec<Latencies>,
    commit: Vec<Latencies>,
    n_duplicates: usize,
}

impl Samples {
    fn add(&mut self, sample: Sample) {
        self.begin.push(since_begin(&sample.arrivals));
        self.commit.push(since_commit(&sample.arrivals, &sample.commits));
        self.n_duplicates += n_duplicates(&sample.arrivals);
    }

    fn p50(&self) -> f64 {
        p50(&self.begin)
    }

    fn commit_p50(&self) -> f64 {
        p50(&self.commit)
    }

    fn json(&self) -> Value {
        let pooled = Latencies::pooled(&self.begin);
        json!({
            "messages": pooled.len(), "duplicates": self.n_duplicates,
            "p50_ms": rounded(self.p50()), "p99_ms": rounded(pooled.percentile(0.99)),
            "p999_ms": rounded(pooled.percentile(0.999)), "max_ms": rounded(pooled.max()),
            "p50_from_commit_ms": rounded(self.commit_p50()),
        })
    }
}

/// The median of the rounds' medians.
fn p50(rounds: &[Latencies]) -> f64 {
    median(&rounds.iter().map(|round| round.percentile(0.5)).collect::<Vec<_>>())
}

/// Calls `send` so often a second; it returns when its commit was sent.
pub(crate) async fn paced(
    n_messages: u64,
    per_second: u64,
    mut send: impl AsyncFnMut(u64) -> Result<u64>,
) -> Result<Vec<u64>> {
    let mut ticks = interval(Duration::from_nanos(1_000_000_000 / per_second));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut commits = Vec::new();
    for number in 0..n_messages {
        ticks.tick().await;
        commits.push(send(number).await?);
    }
    Ok(commits)
}

async fn ours_round(site: &Site, n_messages: u64) -> Result<Sample> {
    let ours = Ours::create(site).await?;
    let deliveries = Deliveries::default();
    let live = ours.start(recording(&deliveries), Config::default())?;
    until_quiet().await;
    let commits = paced(n_messages, PER_SECOND, async |number| {
        let draft = stamped(TOPIC, number, nanos());
        let transaction = ours.db.begin().await?;
        ours.outbox.enqueue_in(&transaction, draft).await?;
        let commit = nanos();
        transaction.commit().await?;
        Ok(commit)
    })
    .await?;
    deliveries.reach(n_messages).await?;
    live.stop().await?;
    ours.remove().await?;
    Ok(Sample { arrivals: deliveries.arrivals(), commits })
}

/// A dispatcher that has just started has fallen asleep by then.
pub(crate) async fn until_quiet() {
    tokio::time::sleep(Duration::from_millis(1_500)).await;
}

async fn floor_round(site: &Site, n_messages: u64) -> Result<Sample> {
    let floor = Floor::create(site).await?;
    let sample = match &floor {
        Floor::Postgres(floor) => postgres_round(floor, n_messages).await?,
        Floor::Sqlite(floor) => sqlite_round(floor, n_messages).await?,
        Floor::MySql(floor) => mysql_round(floor, n_messages).await?,
    };
    floor.remove().await?;
    Ok(sample)
}

async fn postgres_round(floor: &PostgresFloor, n_messages: u64) -> Result<Sample> {
    floor.add_notify().await?;
    let mut listener = PgListener::connect_with(floor.pool()).await?;
    listener.listen(CHANNEL).await?;
    let mut consumer = floor.pool().acquire().await?;
    let consume = async {
        let (mut arrivals, mut mark) = (Vec::new(), 0);
        while (arrivals.len() as u64) < n_messages {
            listener.recv().await?;
            let token = Uuid::new_v4();
            let messages = postgres::claim(&mut consumer, BATCH, token, mark).await?;
            arrivals.extend(messages.iter().filter_map(|message| Arrival::of(&message.4)));
            mark = messages.last().map_or(mark, |last| last.0);
            let numbers = messages.iter().map(|message| message.0).collect();
            postgres::done(&mut consumer, numbers, token).await?;
        }
        Ok::<_, Error>(arrivals)
    };
    let mut producer = floor.pool().acquire().await?;
    let produce = paced(n_messages, PER_SECOND, async |number| {
        let draft = stamped(TOPIC, number, nanos());
        let mut transaction = sea_orm::sqlx::Connection::begin(&mut *producer).await?;
        postgres::insert_one(&mut transaction, &draft).await?;
        let commit = nanos();
        transaction.commit().await?;
        Ok(commit)
    });
    let (arrivals, commits) = tokio::try_join!(consume, produce)?;
    Ok(Sample { arrivals, commits })
}

/// SQLite has no notification: the producer of the floor calls the consumer itself.
async fn sqlite_round(floor: &SqliteFloor, n_messages: u64) -> Result<Sample> {
    let committed = Notify::new();
    let mut consumer = floor.consumer().acquire().await?;
    let consume = async {
        let (mut arrivals, mut mark) = (Vec::new(), 0);
        while (arrivals.len() as u64) < n_messages {
            committed.notified().await;
            let token = Uuid::new_v4();
            let messages = sqlite::claim(&mut consumer, BATCH, token, mark).await?;
            arrivals.extend(messages.iter().filter_map(|message| Arrival::of(&message.4)));
            mark = messages.last().map_or(mark, |last| last.0);
            let numbers: Vec<i64> = messages.iter().map(|message| message.0).collect();
            sqlite::done(&mut consumer, &numbers, token).await?;
        }
        Ok::<_, Error>(arrivals)
    };
    let produce = paced(n_messages, PER_SECOND, async |number| {
        let draft = stamped(TOPIC, number, nanos());
        let mut transaction = floor.producers().begin().await?;
        sqlite::insert_one(&mut transaction, &draft).await?;
        let commit = nanos();
        transaction.commit().await?;
        committed.notify_one();
        Ok(commit)
    });
    let (arrivals, commits) = tokio::try_join!(consume, produce)?;
    Ok(Sample { arrivals, commits })
}

/// Nor has MySQL.
async fn mysql_round(floor: &MySqlFloor, n_messages: u64) -> Result<Sample> {
    let committed = Notify::new();
    let mut consumer = floor.pool().acquire().await?;
    let consume = async {
        let (mut arrivals, mut mark) = (Vec::new(), 0);
        while (arrivals.len() as u64) < n_messages {
            committed.notified().await;
            let token = Uuid::new_v4();
            let messages = mysql::claim(&mut consumer, BATCH, token, mark).await?;
            arrivals.extend(messages.iter().filter_map(|message| Arrival::of(&message.4)));
            let (Some(first), Some(last)) = (messages.first(), messages.last()) else { continue };
            mark = last.0;
            mysql::done(&mut consumer, [first.0, mark], token).await?;
        }
        Ok::<_, Error>(arrivals)
    };
    let produce = paced(n_messages, PER_SECOND, async |number| {
        let draft = stamped(TOPIC, number, nanos());
        let mut transaction = floor.pool().begin().await?;
        mysql::insert_one(&mut transaction, &draft).await?;
        let commit = nanos();
        transaction.commit().await?;
        committed.notify_one();
        Ok(commit)
    });
    let (arrivals, commits) = tokio::try_join!(consume, produce)?;
    Ok(Sample { arrivals, commits })
}
