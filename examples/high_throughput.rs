//! A log that several groups read at once, each by two dispatchers: how fast, and that nothing is lost or comes twice.
//!
//! `DATABASE_URL=postgres://… cargo run --release --example high_throughput -- 1000000`; without a number 20,000 messages. Without
//! the variable there is nothing to show.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use outbox_core::{Draft, HandlerResult, Message, Operations, PartitionInterval, TableName};
use outbox_dispatcher::{CancellationToken, Config, Dispatcher, Router};
use outbox_examples::AnyError;
use outbox_sea_orm::{LogGroup, OutboxLog, Subscription};
use sea_orm::{ConnectionTrait, Database};
use tokio::task::JoinSet;

const GROUPS: [&str; 3] = ["billing", "search", "audit"];
const N_DISPATCHERS: usize = 2;
const N_PRODUCERS: usize = 4;
const BATCH: usize = 1_000;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let Ok(url) = std::env::var("DATABASE_URL") else {
        println!("set DATABASE_URL to a PostgreSQL to see how fast a log is");
        return Ok(());
    };
    let n_messages = std::env::args().nth(1).map_or(Ok(20_000), |n| n.parse())?;
    let db = Database::connect(url).await?;
    let schema = format!("high_throughput_{}", uuid::Uuid::new_v4().simple());
    let name = TableName::parse(&format!("{schema}.log"))?;
    let log = OutboxLog::new(&db, name).partitioned(PartitionInterval::Day);
    log.migrate().await?;

    let (token, begun) = (CancellationToken::new(), Instant::now());
    let (mut consumers, mut dispatchers) = (Vec::new(), JoinSet::new());
    for group in GROUPS {
        let consumer = Consumer::new(n_messages);
        let group = log.register(Subscription::new(group)).await?;
        for _ in 0..N_DISPATCHERS {
            let config = Config::default().with_batch(BATCH);
            let dispatcher = Dispatcher::new(group.clone(), consumer.router()).with_config(config)?;
            dispatchers.spawn(dispatcher.run(token.clone()));
        }
        consumers.push((group, consumer));
    }
    produce(&log, n_messages).await?;
    println!("enqueued {n_messages} messages: {:.0} a second", rate(n_messages, begun));
    while consumers.iter().any(|(_, consumer)| consumer.n_handled.load(SeqCst) < n_messages) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let n_delivered = n_messages * GROUPS.len();
    println!(
        "delivered each to {} groups: {:.0} deliveries a second",
        GROUPS.len(),
        rate(n_delivered, begun)
    );
    token.cancel();
    while let Some(report) = dispatchers.join_next().await {
        assert_eq!(report??.n_unsettled, 0);
    }
    for (group, consumer) in &consumers {
        check(group, consumer).await?;
    }
    println!("every group had every message once, and nothing is left");
    db.execute_unprepared(&format!("DROP SCHEMA {schema} CASCADE")).await?;
    Ok(())
}

/// What a group's handlers have had.
#[derive(Clone)]
struct Consumer {
    n_handled: Arc<AtomicUsize>,
    n_times: Arc<Vec<AtomicU8>>,
}

impl Consumer {
    fn new(n_messages: usize) -> Self {
        let n_times = (0..n_messages).map(|_| AtomicU8::new(0)).collect();
        Self { n_handled: Arc::default(), n_times: Arc::new(n_times) }
    }

    fn router(&self) -> Router {
        let consumer = self.clone();
        Router::new().on("measured", async move |message: Message| consumer.handle(&message))
    }

    fn handle(&self, message: &Message) -> HandlerResult {
        let number: usize = message.json()?;
        self.n_times[number].fetch_add(1, SeqCst);
        self.n_handled.fetch_add(1, SeqCst);
        Ok(())
    }
}

/// Several producers at once, a batch in each transaction.
async fn produce(log: &OutboxLog, n_messages: usize) -> Result<(), AnyError> {
    let (mut producers, next) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..N_PRODUCERS {
        let (log, next) = (log.clone(), Arc::clone(&next));
        producers.spawn(async move {
            loop {
                let first = next.fetch_add(BATCH, SeqCst);
                if first >= n_messages {
                    return Ok::<_, outbox_core::Error>(());
                }
                let numbers = first..n_messages.min(first + BATCH);
                let drafts: Result<Vec<Draft>, _> =
                    numbers.map(|number| Draft::json("measured", &number)).collect();
                log.enqueue_autocommit(drafts?).await?;
            }
        });
    }
    while let Some(done) = producers.join_next().await {
        done??;
    }
    Ok(())
}

async fn check(group: &LogGroup, consumer: &Consumer) -> Result<(), AnyError> {
    assert!(consumer.n_times.iter().all(|times| times.load(SeqCst) == 1), "{}", group.name());
    assert!(group.stats().await?.topics.is_empty(), "{}", group.name());
    Ok(())
}

fn rate(n: usize, begun: Instant) -> f64 {
    n as f64 / begun.elapsed().as_secs_f64()
}
