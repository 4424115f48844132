//! A log that is restored from a dump which was made while it was written and read.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outbox_core::{
    ClaimRequest, Claimed, Claimer, Declaration, Draft, MessageId, OnDead, Operations, Outcome, Repository,
    Settlement, TableName,
};
use outbox_sea_orm::{LogGroup, OutboxLog, Start, Subscription};
use sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};
use tokio::time::sleep;

use super::promoted::{SETTLED, messages};
use crate::faults::Random;
use crate::support::{OwnDatabase, value};

const LEASE: Duration = Duration::from_secs(2);
const N_DUMPS: usize = 3;

fn log_in(db: &DatabaseConnection, declared: &Declaration) -> OutboxLog {
    OutboxLog::new(db, TableName::parse("l.log").expect("name")).declared(declared.clone())
}

async fn produce(log: OutboxLog, db: DatabaseConnection, random: Arc<Random>, ended: Arc<AtomicBool>) {
    while !ended.load(SeqCst) {
        let txn = db.begin().await.expect("begin");
        let draft = |_| Draft::new("t", "x").key(format!("{}", random.below(30)));
        let drafts: Vec<Draft> = (0..=random.below(8)).map(draft).collect();
        log.enqueue_in(&txn, drafts).await.expect("enqueue");
        sleep(random.millis(20)).await;
        let ended = if random.below(5) == 0 { txn.rollback().await } else { txn.commit().await };
        ended.expect("the end");
    }
}

/// What was ever settled for good.
type Done = Mutex<BTreeSet<MessageId>>;

async fn settle(group: &LogGroup, claimed: &[Claimed], random: &Random, done: &Done) {
    let outcome = || match random.below(12) {
        0 => Outcome::Dead { error: "no".into() },
        1 => Outcome::Retry { after: Duration::from_millis(50), error: "not yet".into() },
        _ => Outcome::Done,
    };
    let settlements: Vec<_> =
        claimed.iter().map(|claimed| Settlement::new(claimed.lease, outcome())).collect();
    let is_done = settlements.iter().filter(|settlement| settlement.outcome == Outcome::Done);
    done.lock().expect("done").extend(is_done.map(|settlement| settlement.lease.id));
    let _ = group.settle(settlements).await.expect("settle");
}

/// Delivers, with some failures, and leaves some claims open.
async fn deliver(group: LogGroup, random: Arc<Random>, ended: Arc<AtomicBool>, done: Arc<Done>) {
    let claimer = Claimer::new();
    while !ended.load(SeqCst) {
        let limit = 1 + random.below(20) as usize;
        let request = ClaimRequest::new(limit, LEASE).with_claimer(claimer.clone());
        let claimed = group.claim(request).await.expect("claim").messages;
        sleep(random.millis(10)).await;
        if random.below(10) > 0 {
            settle(&group, &claimed, &random, &done).await;
        }
    }
}

/// As an operator does it, with the programs of the server.
pub(crate) async fn dump_and_restore(from: &OwnDatabase, to: &OwnDatabase) {
    let db = from.connect(&[]).await;
    let folder: String = value(&db, "SELECT setting FROM pg_config WHERE name = 'BINDIR'").await;
    let port: String = value(&db, "SELECT current_setting('port')").await;
    let url = from.url();
    let (_, place) = url.split_once("://").expect("a URL");
    let password = place.split_once('@').and_then(|(user, _)| user.split_once(':')).expect("a password").1;
    let place = format!("--host=127.0.0.1 --port={port} --username=postgres");
    let (from, to) = (from.name(), to.name());
    let script = format!(
        "export PGPASSWORD={password}; {folder}/pg_dump {place} --file={to}.sql {from} && \
         {folder}/psql --no-psqlrc --quiet {place} --set=ON_ERROR_STOP=1 --file={to}.sql {to} >/dev/null && rm {to}.sql"
    );
    let run = format!("COPY (SELECT 1) TO PROGRAM '{script}'");
    let run = db.execute_unprepared(&run).await;
    assert!(
        run.is_ok(),
        "{}",
        run.map_or_else(|error| error.to_string().replace(password, "…"), |_| String::new())
    );
}

/// Delivers everything, dead letters included, and says what was delivered.
async fn drain(group: &LogGroup) -> Vec<MessageId> {
    let (claimer, mut delivered, mut n_quiet) = (Claimer::new(), Vec::new(), 0);
    while group.redrive_matching(Default::default(), 1_000).await.expect("redrive") > 0 {}
    while n_quiet < 100 {
        let request = ClaimRequest::new(50, LEASE).with_claimer(claimer.clone());
        let claimed = group.claim(request).await.expect("claim").messages;
        n_quiet = if claimed.is_empty() { n_quiet + 1 } else { 0 };
        let done = claimed.iter().map(|claimed| Settlement::new(claimed.lease, Outcome::Done)).collect();
        let _ = group.settle(done).await.expect("settle");
        delivered.extend(claimed.iter().map(|claimed| claimed.message.id));
        if claimed.is_empty() {
            sleep(LEASE / 50).await;
        }
    }
    delivered
}

/// In the restored log everything that the dump has and that was not settled is delivered, once, and nothing else.
async fn assert_goes_on(restored: &OwnDatabase, declared: &Declaration, done: &Done) {
    let db = restored.connect(&[]).await;
    let log = log_in(&db, declared);
    log.check().await.expect("a log");
    let position: i64 = value(&db, "SELECT position FROM l.log_groups").await;
    let sequence = "pg_sequence_last_value(pg_get_serial_sequence('l.log', 'seq')::regclass)";
    let last: i64 = value(&db, &format!("SELECT coalesce({sequence}, 0)")).await;
    assert!(position <= last, "{position} was read and {last} was handed out");
    let settled = messages(&db, SETTLED).await;
    assert!(settled.is_subset(&done.lock().expect("done")), "a claim that was open is lost");
    let new = log.enqueue_autocommit(Draft::new("t", "new")).await.expect("enqueue");
    let all = messages(&db, "SELECT id FROM l.log").await;
    let delivered = drain(&log.group("g").expect("name")).await;
    eprintln!("{} messages, {} of them settled", all.len(), settled.len());
    assert!(!settled.is_empty() && settled.len() + 1 < all.len(), "the dump was made at work");
    assert_eq!(delivered.len(), all.len() - settled.len());
    let delivered: BTreeSet<MessageId> = delivered.into_iter().collect();
    assert_eq!(delivered, &all - &settled);
    assert!(delivered.contains(&new[0]));
}

async fn dump_is_restored(declared: Declaration) {
    let Some(origin) = OwnDatabase::create().await else { return };
    let db = origin.connect(&[]).await;
    let log = log_in(&db, &declared);
    log.migrate().await.expect("migrate");
    log.register(Subscription::new("g").with_start(Start::Beginning)).await.expect("register");
    let (random, ended) = (Arc::new(Random::start()), Arc::new(AtomicBool::new(false)));
    let done = Arc::<Done>::default();
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(tokio::spawn(produce(log.clone(), db.clone(), Arc::clone(&random), Arc::clone(&ended))));
    }
    for _ in 0..2 {
        let group = log.group("g").expect("name");
        tasks.push(tokio::spawn(deliver(group, Arc::clone(&random), Arc::clone(&ended), Arc::clone(&done))));
    }
    let mut restored = Vec::new();
    for _ in 0..N_DUMPS {
        sleep(Duration::from_millis(500)).await;
        let database = OwnDatabase::create().await.expect("the server is there");
        dump_and_restore(&origin, &database).await;
        restored.push(database);
    }
    ended.store(true, SeqCst);
    for task in tasks {
        task.await.expect("no panic");
    }
    for database in restored {
        assert_goes_on(&database, &declared, &done).await;
        database.drop().await;
    }
    drop((log, db));
    origin.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dump_of_a_log_at_work_goes_on_where_it_was() {
    dump_is_restored(Declaration::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dump_of_an_ordered_log_at_work_goes_on_where_it_was() {
    dump_is_restored(Declaration::new().ordered(OnDead::Continue)).await;
}
