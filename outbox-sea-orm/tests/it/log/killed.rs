//! Dispatchers of a log that are killed in the middle of a backlog.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use outbox_core::{Draft, MessageId, Operations, TableName};
use outbox_dispatcher::{CancellationToken, Dispatcher, HandlerResult, Message, Router};
use outbox_sea_orm::{OutboxLog, Subscription};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};
use tokio::process::{Child, ChildStdin};
use tokio::time::sleep;

use super::promoted::{SETTLED, messages};
use crate::faults::{config, end_with_the_parent};
use crate::support::{OwnDatabase, child, child_role, eventually, value};

const N_MESSAGES: usize = 2_000;
const N_KILLS: usize = 6;
/// How many deliveries a dispatcher makes before it is killed.
const N_ALIVE: i64 = 100;

fn log_in(db: &DatabaseConnection) -> OutboxLog {
    OutboxLog::new(db, TableName::parse("l.log").expect("name"))
}

/// A process that dispatches.
struct Worker {
    process: Child,
    /// Closed when we are gone.
    _leash: ChildStdin,
}

impl Worker {
    fn start(database: &OwnDatabase, test: &str, round: usize) -> Self {
        let url = format!("{}&application_name=worker", database.url());
        let mut command = child(test, &format!("{round} {url}"), &url);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("start");
        Self { _leash: process.stdin.take().expect("piped"), process }
    }

    /// Returns when nothing of it is on its way any more.
    async fn kill(mut self, db: &DatabaseConnection) {
        self.process.kill().await.expect("kill");
        let left = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'worker'";
        eventually("the server has noticed", async || value::<i64>(db, left).await == 0).await;
    }
}

/// What a worker does: notes each delivery.
async fn work(role: &str) {
    end_with_the_parent();
    let (round, url) = role.split_once(' ').expect("a round and a URL");
    let db = Database::connect(ConnectOptions::new(url)).await.expect("connect");
    let group = log_in(&db).group("g").expect("name");
    let insert = format!("INSERT INTO l.delivery VALUES ('$id', {round})");
    let handle = async move |message: Message| -> HandlerResult {
        // long enough to be met by a kill
        sleep(Duration::from_millis(15)).await;
        db.execute_unprepared(&insert.replace("$id", &message.id.to_string())).await?;
        Ok(())
    };
    let config = config().with_max_attempts(1_000);
    let dispatcher =
        Dispatcher::new(group, Router::new().on("t", handle)).with_config(config).expect("config");
    dispatcher.run(CancellationToken::new()).await.expect("never ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_dispatchers_lose_nothing() {
    const TEST: &str = "log::killed::killed_dispatchers_lose_nothing";
    if let Some(role) = child_role() {
        return work(&role).await;
    }
    let Some(database) = OwnDatabase::create().await else { return };
    let db = database.connect(&[]).await;
    let log = log_in(&db);
    log.migrate().await.expect("migrate");
    let group = log.register(Subscription::new("g")).await.expect("register");
    let tables = "CREATE TABLE l.delivery (id uuid, round int); CREATE TABLE l.settled (id uuid, round int)";
    db.execute_unprepared(tables).await.expect("create");
    let drafts: Vec<Draft> = (0..N_MESSAGES).map(|_| Draft::new("t", "")).collect();
    let ids: BTreeSet<MessageId> =
        log.enqueue_autocommit(drafts).await.expect("enqueue").into_iter().collect();
    let count = async |what: &str| value::<i64>(&db, &format!("SELECT count(*) FROM l.{what}")).await;
    let mut n_leased = 0;
    for round in 0..N_KILLS {
        let worker = Worker::start(&database, TEST, round);
        let delivered = format!("delivery WHERE round = {round}");
        eventually("it is at work", async || count(&delivered).await > N_ALIVE).await;
        worker.kill(&db).await;
        let note = format!("INSERT INTO l.settled SELECT id, {round} FROM ({SETTLED}) AS s");
        db.execute_unprepared(&note).await.expect("note");
        n_leased += count("log_ranges").await;
    }
    let last = Worker::start(&database, TEST, N_KILLS);
    eventually("nothing is left", async || group.stats().await.expect("stats").topics.is_empty()).await;
    last.kill(&db).await;
    assert_eq!(messages(&db, "SELECT id FROM l.delivery").await, ids);
    assert_eq!((count("log_ranges").await, count("log_group_g").await), (0, 0));
    assert!(n_leased > 0 && count("delivery").await > N_MESSAGES as i64, "no kill has met a message");
    let again = count("delivery AS d JOIN l.settled AS s ON s.id = d.id AND s.round < d.round").await;
    assert_eq!(again, 0, "what was settled does not come again");
    database.drop().await;
}
