//! Processes that are killed and servers that go away, while producers and dispatchers are at work.
//!
//! Ground truth is the table `business`: each producer's transaction writes a row there and a message of the same
//! name. What handlers did is in the table `delivery`.

mod crashes;
mod server;

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use outbox_core::{
    Backoff, Context, DeadLetter, DeadLetterQuery, Draft, Error, ErrorKind, Jitter, Operations, Result,
};
use outbox_dispatcher::{CancellationToken, Config, Dispatcher, HandlerResult, Message, Report, Router};
use outbox_sea_orm::{SeaOrmContext, transactor};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::ChildStdin;
use tokio::task::JoinHandle;

use crate::support::{Pool, Site, child_role};

const MAX_ATTEMPTS: u32 = 5;
const SHORT_LEASE: Duration = Duration::from_secs(1);
/// The payload that ends the process of whoever handles it.
const POISON: &str = "poison";

/// Reproducible with `OUTBOX_TEST_SEED`.
pub(crate) struct Random(AtomicU64);

impl Random {
    pub(crate) fn start() -> Self {
        let given = std::env::var("OUTBOX_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        println!("OUTBOX_TEST_SEED={seed}");
        Self(AtomicU64::new(seed))
    }

    /// Below `bound`; SplitMix64.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    pub(crate) fn millis(&self, bound: u64) -> Duration {
        Duration::from_micros(self.below(bound * 1_000))
    }
}

pub(crate) fn config() -> Config {
    let backoff = Backoff::default().with_base(Duration::from_millis(100)).with_jitter(Jitter::None);
    Config::default()
        .with_lease(SHORT_LEASE)
        .with_max_attempts(MAX_ATTEMPTS)
        .with_concurrency(8)
        .with_batch(20)
        .with_max_poll(Duration::from_millis(100))
        .with_poll_interval(Duration::from_secs(1))
        .with_operation_timeout(Duration::from_secs(5))
        .with_backoff(backoff)
}

/// Seconds since 1970 by the clock of the database.
fn now(site: &Site) -> &'static str {
    if site.is_postgres() {
        "extract(epoch FROM clock_timestamp())::float8"
    } else if site.is_mysql() {
        "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6)"
    } else {
        "(julianday('now') - 2440587.5) * 86400.0"
    }
}

async fn create_delivery(site: &Site) {
    let table = site.sql_name("delivery");
    let real = if site.is_postgres() { "float8" } else { "DOUBLE" };
    site.execute(&format!(
        "CREATE TABLE {table} (message_id TEXT NOT NULL, attempt INTEGER NOT NULL, at {real} NOT NULL, pid BIGINT NOT NULL)"
    ))
    .await;
}

/// The handler of all of them: notes the delivery.
async fn deliver(db: &DatabaseConnection, insert: &str, message: &Message) -> HandlerResult {
    if message.payload == POISON {
        std::process::abort();
    }
    // long enough to be met by a kill
    tokio::time::sleep(Duration::from_millis(5)).await;
    let (id, attempt, pid) = (message.id, message.attempt, std::process::id());
    let sql = insert.replace("$id", &id.to_string()).replace("$attempt", &attempt.to_string());
    db.execute_unprepared(&sql.replace("$pid", &pid.to_string())).await?;
    Ok(())
}

/// Delivers until the token is cancelled; handlers have a pool of their own.
async fn dispatch(site: &Site, config: Config, token: CancellationToken) -> JoinHandle<Result<Report>> {
    let suffix = format!("_{}_handlers", std::process::id());
    let db = site.connect(Pool { suffix: &suffix, ..Pool::of(8) }).await;
    let insert =
        format!("INSERT INTO {} VALUES ('$id', $attempt, {}, $pid)", site.sql_name("delivery"), now(site));
    let router = Router::new().on("t", async move |message: Message| deliver(&db, &insert, &message).await);
    let dispatcher = Dispatcher::new(site.outbox.clone(), router).with_config(config).expect("config");
    tokio::spawn(dispatcher.run(token))
}

/// Writes a business row and its message.
async fn write_both(site: &Site, cx: &Context) -> Result<()> {
    let draft = Draft::new("t", "");
    let insert = site.business(&draft.id.to_string());
    let written = cx.connection()?.execute_unprepared(&insert).await;
    written.map_err(|error| Error::new(ErrorKind::Unavailable, "write").with_source(error))?;
    site.outbox.enqueue(cx, draft).await.map(drop)
}

/// Writes both until it is stopped; some of it is rolled back, some fails because the server is gone.
async fn produce(site: &Site, random: &Random, stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        let roll_back = random.below(10) == 0;
        let result = transactor(&site.db)
            .run(async |cx| {
                write_both(site, cx).await?;
                if roll_back { Err(Error::new(ErrorKind::Other, "roll back")) } else { Ok(()) }
            })
            .await;
        let pause = if result.is_ok() { 5 } else { 20 };
        tokio::time::sleep(random.millis(pause)).await;
    }
}

/// Until nothing waits for a delivery any more.
async fn wait_until_drained(site: &Site) {
    let drained = async {
        while site.count("outbox WHERE state <> 2").await > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, drained).await.expect("messages are stuck");
}

/// What was committed was delivered, unless it is dead, and nothing else was.
async fn assert_nothing_is_lost(site: &Site) {
    let (business, delivery) = (site.sql_name("business"), site.sql_name("delivery"));
    let dead: Vec<String> =
        dead_letters(site).await.iter().map(|letter| format!("'{}'", letter.message.id)).collect();
    let dead = if dead.is_empty() { "''".to_owned() } else { dead.join(", ") };
    let lost =
        format!("business WHERE name NOT IN (SELECT message_id FROM {delivery}) AND name NOT IN ({dead})");
    assert_eq!(site.count(&lost).await, 0, "lost");
    let phantom = format!("delivery WHERE message_id NOT IN (SELECT name FROM {business})");
    assert_eq!(site.count(&phantom).await, 0, "never committed");
    assert_eq!(site.count("outbox WHERE state <> 2").await, 0, "left");
    assert!(site.count("business").await > 20, "the test has tested nothing");
}

async fn assert_nothing_is_dead(site: &Site) {
    let letters = dead_letters(site).await;
    assert!(letters.is_empty(), "dead: {letters:?}");
}

async fn dead_letters(site: &Site) -> Vec<DeadLetter> {
    site.outbox.dead_letters(DeadLetterQuery::new(1_000)).await.expect("list").letters
}

/// A process of ours at work at the same place.
struct Worker {
    process: tokio::process::Child,
    pid: u32,
    /// Closed when we are gone; `wait` of the process would close it too early.
    _leash: Option<ChildStdin>,
}

impl Worker {
    /// Returns when the process says that it is at work.
    async fn start(site: &Site, task: &str) -> Self {
        let url = if site.is_sqlite() { String::new() } else { site.url() };
        let mut command = crate::support::child("faults::child", &format!("{task} {}", site.place()), &url);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().expect("start");
        let mut lines = BufReader::new(process.stdout.take().expect("stdout")).lines();
        while let Some(line) = lines.next_line().await.expect("a line") {
            if line.ends_with("at work") {
                let pid = process.id().expect("alive");
                return Self { pid, _leash: process.stdin.take(), process };
            }
        }
        panic!("the child has ended");
    }

    async fn kill(&mut self) {
        // it may have ended by itself
        let _ = self.process.start_kill();
        self.process.wait().await.expect("ended");
    }
}

/// What the processes of [`Worker`] do; no test of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(role) = child_role() else { return };
    let (task, place) = role.split_once(' ').expect("a task and a place");
    end_with_the_parent();
    let site = Site::reopen(place).await;
    match task {
        "dispatch" => {
            let running = dispatch(&site, config(), CancellationToken::new()).await;
            println!("at work");
            let _ = running.await;
        }
        "produce" => {
            println!("at work");
            produce(&site, &Random::start(), &AtomicBool::new(false)).await;
        }
        "hold" => hold(&site).await,
        _ => panic!("unknown task {task}"),
    }
}

/// Stays between the writes and the commit.
async fn hold(site: &Site) {
    let tx = transactor(&site.db);
    let held = tx.run(async |cx| {
        write_both(site, cx).await?;
        println!("at work");
        std::future::pending::<Result<()>>().await
    });
    held.await.expect("never ends");
}

/// The parent holds the other end of the standard input.
pub(crate) fn end_with_the_parent() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(1);
    });
}
