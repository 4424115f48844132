//! A load generator: messages at a rate, with delays, failures and sizes, into any outbox table.

use std::ops::RangeInclusive;
use std::time::Duration;

use outbox_core::{Draft, HandlerError, Message, TableName};
use outbox_dispatcher::{Config, Router, TracingObserver};
use outbox_sea_orm::OutboxTable;
use rand::RngExt as _;
use sea_orm::{DatabaseConnection, TransactionTrait as _};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::args::Flags;
use crate::clock::Stopwatch;
use crate::deliveries::Deliveries;
use crate::error::Result;
use crate::load::draft;
use crate::ours::{connect, start};

/// How many attempts `consume` is to let fail.
const FAILURES: &str = "bench-failures";

/// What `produce` sends.
#[derive(Clone, Debug)]
struct Plan {
    count: u64,
    per_second: f64,
    batch: u64,
    tasks: u64,
    topics: Vec<String>,
    n_keys: u64,
    payload: RangeInclusive<usize>,
    delay: Duration,
    delay_share: f64,
    failure_share: f64,
    failures: u32,
    rollback_share: f64,
}

impl Plan {
    fn read(flags: &mut Flags) -> Result<Self> {
        Ok(Self {
            count: flags.get("count", 10_000)?,
            per_second: flags.get("rate", f64::INFINITY)?,
            batch: flags.get("batch", 1)?,
            tasks: flags.get("tasks", 8)?,
            topics: flags
                .get("topics", crate::load::TOPIC.to_owned())?
                .split(',')
                .map(str::to_owned)
                .collect(),
            n_keys: flags.get("keys", u64::MAX)?,
            payload: sizes(&flags.get("payload", "200".to_owned())?)?,
            delay: flags.duration("delay")?.unwrap_or(Duration::from_secs(10)),
            delay_share: flags.get("delay-share", 0.0)?,
            failure_share: flags.get("failure-share", 0.0)?,
            failures: flags.get("failures", 1)?,
            rollback_share: flags.get("rollback-share", 0.0)?,
        })
    }

    fn draft(&self, number: u64) -> Draft {
        let mut random = rand::rng();
        let topic = &self.topics[random.random_range(0..self.topics.len())];
        let mut draft = draft(topic, number, random.random_range(self.payload.clone()));
        if self.n_keys < u64::MAX {
            draft = draft.key(format_args!("key-{}", random.random_range(0..self.n_keys.max(1))));
        }
        if random.random_bool(self.delay_share) {
            draft = draft.delay(self.delay);
        }
        if random.random_bool(self.failure_share) {
            draft = draft.header(FAILURES, self.failures.to_string());
        }
        draft
    }
}

/// `200` or `100..2000`, inclusive.
fn sizes(text: &str) -> Result<RangeInclusive<usize>> {
    let (low, high) = text.split_once("..").unwrap_or((text, text));
    let sizes = low.parse()?..=high.parse()?;
    if sizes.is_empty() { Err(format!("--payload {text}: no size").into()) } else { Ok(sizes) }
}

async fn open(flags: &mut Flags) -> Result<(DatabaseConnection, OutboxTable)> {
    let url = flags.take("url")?.ok_or("--url is missing: postgres://… or sqlite://…")?;
    let name: String = flags.get("table", "outbox".to_owned())?;
    let db = connect(url).await?;
    let outbox = OutboxTable::new(&db, TableName::parse(&name)?);
    outbox.migrate().await?;
    Ok((db, outbox))
}

/// Produces and prints what was committed and how fast.
pub(crate) async fn run(mut flags: Flags) -> Result<()> {
    let plan = Plan::read(&mut flags)?;
    let (db, outbox) = open(&mut flags).await?;
    flags.finish()?;
    let watch = Stopwatch::start();
    let mut tasks = JoinSet::new();
    for task in 0..plan.tasks {
        tasks.spawn(produce(db.clone(), outbox.clone(), plan.clone(), task));
    }
    let (mut n_committed, mut n_rolled_back) = (0, 0);
    while let Some(counts) = tasks.join_next().await {
        let (committed, rolled_back) = counts??;
        n_committed += committed;
        n_rolled_back += rolled_back;
    }
    let seconds = watch.elapsed().as_secs_f64();
    let rate = (n_committed + n_rolled_back) as f64 / seconds;
    let line = json!({
        "produced": n_committed, "rolled_back": n_rolled_back, "seconds": seconds, "messages_per_second": rate,
    });
    println!("{line}");
    Ok(())
}

/// One task's share of the messages, evenly spread over the time.
async fn produce(db: DatabaseConnection, outbox: OutboxTable, plan: Plan, task: u64) -> Result<(u64, u64)> {
    let period = plan.batch as f64 * plan.tasks as f64 / plan.per_second;
    let mut ticks = interval(Duration::from_secs_f64(period).max(Duration::from_nanos(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut n_committed, mut n_rolled_back) = (0, 0);
    for first in (task * plan.batch..plan.count).step_by(usize::try_from(plan.tasks * plan.batch)?) {
        ticks.tick().await;
        let numbers = first..plan.count.min(first + plan.batch);
        let n_messages = numbers.end - numbers.start;
        let transaction = db.begin().await?;
        outbox.enqueue_in(&transaction, numbers.map(|number| plan.draft(number)).collect::<Vec<_>>()).await?;
        if rand::rng().random_bool(plan.rollback_share) {
            transaction.rollback().await?;
            n_rolled_back += n_messages;
        } else {
            transaction.commit().await?;
            n_committed += n_messages;
        }
    }
    Ok((n_committed, n_rolled_back))
}

/// Delivers what `produce` enqueued until interrupted or so many were delivered, failing as it was told to.
pub(crate) async fn consume(mut flags: Flags) -> Result<()> {
    let count: u64 = flags.get("count", u64::MAX)?;
    let topics: String = flags.get("topics", crate::load::TOPIC.to_owned())?;
    let config = Config::default()
        .with_batch(flags.get("batch", 1_000)?)
        .with_concurrency(flags.get("concurrency", 16)?);
    let (_db, outbox) = open(&mut flags).await?;
    flags.finish()?;
    let deliveries = Deliveries::default();
    let router = topics.split(',').fold(Router::new(), |router, topic| {
        let deliveries = deliveries.clone();
        router.on(topic, async move |message: Message| handle(&deliveries, &message))
    });
    let watch = Stopwatch::start();
    let live = start(outbox, router, config, TracingObserver)?;
    tokio::select! {
        reached = deliveries.reach_at_last(count) => reached,
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    let report = live.stop().await?;
    let seconds = watch.elapsed().as_secs_f64();
    let line = json!({
        "delivered": report.n_done, "retried": report.n_retried, "dead": report.n_dead, "lease_lost": report.n_lease_lost,
        "seconds": seconds, "messages_per_second": report.n_done as f64 / seconds,
    });
    println!("{line}");
    Ok(())
}

fn handle(deliveries: &Deliveries, message: &Message) -> Result<(), HandlerError> {
    let n_failures: u32 = message.header(FAILURES).and_then(|text| text.parse().ok()).unwrap_or(0);
    if message.attempt <= n_failures {
        return Err("told to fail".into());
    }
    deliveries.count();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_one_number_or_two() {
        assert_eq!(sizes("200").expect("one"), 200..=200);
        assert_eq!(sizes("1..9").expect("two"), 1..=9);
        assert!(sizes("9..1").is_err() && sizes("x").is_err());
    }

    #[test]
    fn shares_decide_what_a_draft_has() {
        let mut flags =
            Flags::parse(["--delay-share", "1", "--failure-share", "1", "--keys", "1"].map(str::to_owned))
                .expect("pairs");
        let draft = Plan::read(&mut flags).expect("a plan").draft(3);
        assert_eq!((draft.key.as_deref(), draft.delay), (Some("key-0"), Duration::from_secs(10)));
        assert_eq!(draft.headers.get(FAILURES).map(String::as_str), Some("1"));
    }
}
