//! Half a second between INSERT and COMMIT while others commit at once: how long after its commit a late message
//! is delivered, without and with a foreign transaction that has written and stays open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sea_orm::TransactionTrait as _;
use sea_orm::sqlx::{PgConnection, raw_sql};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::latency::until_quiet;
use crate::clock::nanos;
use crate::deliveries::{Arrival, Deliveries, n_duplicates, since_commit};
use crate::error::{Error, Result};
use crate::load::{TOPIC, stamped};
use crate::options::Options;
use crate::ours::{Ours, full_batches, recording};
use crate::report::{Bound, Line, rounded};
use crate::side::Side;
use crate::site::{FOREIGN, Site};
use crate::stats::Latencies;

const LATE_BY: Duration = Duration::from_millis(500);
const N_LATE_TASKS: u64 = 20;
/// Transactions of the load, ten messages each.
const LOAD_PER_SECOND: u32 = 200;
const PER_TRANSACTION: u64 = 10;
/// Messages of the load have numbers from here on.
const LOAD: u64 = 1 << 32;

pub(crate) async fn run(site: &Site, options: &Options) -> Result<Line> {
    let window = options.window(Duration::from_secs(20));
    let alone = measure(site, window).await?;
    let foreign = Foreign::open(site).await?;
    let beside = measure(site, window).await?;
    foreign.close().await?;
    Ok(Line::new("late_commit", site.kind())
        .with("late_by_ms", LATE_BY.as_millis() as u64)
        .with("load_per_second", u64::from(LOAD_PER_SECOND) * PER_TRANSACTION)
        .with("alone", alone.json())
        .with("beside_a_foreign_writer", beside.json())
        .gate("p99 ms after the commit", alone.late.percentile(0.99), Bound::AtMost(200.0))
        .gate("the same beside a foreign writer", beside.late.percentile(0.99), Bound::AtMost(200.0)))
}

/// A transaction in another database that has written.
struct Foreign(PgConnection);

impl Foreign {
    async fn open(site: &Site) -> Result<Self> {
        let mut session = site.postgres()?.connect(FOREIGN).await?;
        // apart: what stands before BEGIN in one call would be part of the transaction
        raw_sql("CREATE TABLE foreign_table (n int)").execute(&mut session).await?;
        raw_sql("BEGIN; INSERT INTO foreign_table VALUES (1)").execute(&mut session).await?;
        Ok(Self(session))
    }

    async fn close(mut self) -> Result<()> {
        raw_sql("ROLLBACK").execute(&mut self.0).await?;
        raw_sql("DROP TABLE foreign_table").execute(&mut self.0).await?;
        Ok(())
    }
}

struct Measured {
    late: Latencies,
    load: Latencies,
    n_undelivered: u64,
    n_duplicates: usize,
}

impl Measured {
    fn json(&self) -> Value {
        let figures = |latencies: &Latencies| {
            json!({
                "messages": latencies.len(), "p50_ms": rounded(latencies.percentile(0.5)),
                "p99_ms": rounded(latencies.percentile(0.99)), "max_ms": rounded(latencies.max()),
            })
        };
        json!({
            "late": figures(&self.late), "load": figures(&self.load),
            "undelivered": self.n_undelivered, "duplicates": self.n_duplicates,
        })
    }
}

async fn measure(site: &Site, window: Duration) -> Result<Measured> {
    let ours = Ours::create(site).await?;
    let deliveries = Deliveries::default();
    let live = ours.start(recording(&deliveries), full_batches())?;
    until_quiet().await;
    let (late, load) = produce(&ours, window).await?;
    let n_sent = (late.len() + load.len()) as u64;
    // a lost one is a figure, not an error
    deliveries.reach_within(n_sent, Duration::from_secs(10)).await;
    live.stop().await?;
    ours.remove().await?;
    let arrivals = deliveries.arrivals();
    let (load_arrivals, late_arrivals): (Vec<Arrival>, _) =
        arrivals.iter().partition(|arrival| arrival.number >= LOAD);
    let load_arrivals: Vec<Arrival> =
        load_arrivals.iter().map(|arrival| Arrival { number: arrival.number - LOAD, ..*arrival }).collect();
    Ok(Measured {
        late: since_commit(&late_arrivals, &late),
        load: since_commit(&load_arrivals, &load),
        n_undelivered: n_sent - (arrivals.len() - n_duplicates(&arrivals)) as u64,
        n_duplicates: n_duplicates(&arrivals),
    })
}

/// Returns when the commits were sent, in the order of the numbers.
async fn produce(ours: &Ours, window: Duration) -> Result<(Vec<u64>, Vec<u64>)> {
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for task in 0..N_LATE_TASKS {
        let (ours, stop, next) = (ours.clone(), Arc::clone(&stop), Arc::clone(&next));
        tasks.spawn(async move {
            // not all at the same moment
            sleep(LATE_BY * u32::try_from(task)? / u32::try_from(N_LATE_TASKS)?).await;
            let mut commits = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                commits.push((number, commit_late(&ours, number).await?));
            }
            Ok::<_, Error>(commits)
        });
    }
    let load = produce_load(ours, window).await?;
    stop.store(true, Ordering::Relaxed);
    let mut late = vec![0; 0];
    while let Some(commits) = tasks.join_next().await {
        for (number, commit) in commits?? {
            let place = usize::try_from(number)?;
            late.resize(late.len().max(place + 1), 0);
            late[place] = commit;
        }
    }
    Ok((late, load))
}

async fn commit_late(ours: &Ours, number: u64) -> Result<u64> {
    let transaction = ours.db.begin().await?;
    ours.outbox.enqueue_in(&transaction, stamped(TOPIC, number, nanos())).await?;
    sleep(LATE_BY).await;
    let commit = nanos();
    transaction.commit().await?;
    Ok(commit)
}

async fn produce_load(ours: &Ours, window: Duration) -> Result<Vec<u64>> {
    let mut ticks = interval(Duration::from_secs(1) / LOAD_PER_SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut commits = Vec::new();
    for _ in 0..u64::from(LOAD_PER_SECOND) * window.as_secs() {
        ticks.tick().await;
        let first = LOAD + commits.len() as u64;
        let drafts: Vec<_> =
            (first..first + PER_TRANSACTION).map(|number| stamped(TOPIC, number, nanos())).collect();
        let transaction = ours.db.begin().await?;
        ours.outbox.enqueue_in(&transaction, drafts).await?;
        let commit = nanos();
        transaction.commit().await?;
        commits.extend([commit; PER_TRANSACTION as usize]);
    }
    Ok(commits)
}
