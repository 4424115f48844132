//! What a log has on SQLite alone.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use outbox_core::{
    ClaimRequest, Claimer, Declaration, Draft, ErrorKind, Maintenance, MessageId, OnDead, Operations,
    Outcome, PartitionInterval, Repository, Settlement, Symptom, TableName,
};
use outbox_sea_orm::{LogGroup, OutboxLog, Start, Subscription, WalFeed, transactor};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinSet;

use super::{Log, open_file};
use crate::faults::{Random, end_with_the_parent};
use crate::support::{LEASE, Site, cancel_at, child_role, eventually, on_mysql, on_sqlite, settle_all};

const DAY: Duration = Duration::from_secs(86_400);

async fn log() -> Log {
    Log::on_sqlite(Declaration::new()).await
}

async fn enqueue(log: &Log, n: usize) -> Vec<MessageId> {
    let drafts: Vec<Draft> = (0..n).map(|_| Draft::new("t", "x")).collect();
    log.log.enqueue_autocommit(drafts).await.expect("enqueue")
}

fn request(limit: usize) -> ClaimRequest {
    ClaimRequest::new(limit, LEASE).with_max_attempts(1_000)
}

/// Delivers what is there, in the order of the claims.
async fn drain(group: &LogGroup) -> Vec<MessageId> {
    let mut ids = Vec::new();
    loop {
        let claim = group.claim(request(100)).await.expect("claim");
        if claim.messages.is_empty() {
            return ids;
        }
        settle_all(group, &claim, Outcome::Done).await;
        ids.extend(claim.messages.iter().map(|claimed| claimed.message.id));
    }
}

/// Only SQLite and PostgreSQL have logs, and only PostgreSQL partitions them: no call gets as far as a statement.
async fn assert_refused(log: &OutboxLog, what: &str) {
    for error in [
        log.ddl().expect_err("ddl"),
        log.migrate().await.expect_err("migrate"),
        log.check().await.expect_err("check"),
        log.group("a").expect_err("group"),
        log.register(Subscription::new("a")).await.expect_err("register"),
        log.maintain(Maintenance::new()).await.expect_err("maintain"),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
}

async fn partitions_of_a_log_are_refused(site: &Site) {
    let log = OutboxLog::new(&site.db, site.name("log")).partitioned(PartitionInterval::Day);
    assert_refused(&log, "partitioned logs are on PostgreSQL only").await;
}

async fn feeds_are_refused(site: &Site) {
    let log = OutboxLog::new(&site.db, site.name("log"));
    log.migrate().await.expect("migrate");
    let group = log.register(Subscription::new("a")).await.expect("register").with_feed(WalFeed::new());
    let refused = [
        group.start_feed().await,
        group.stop_feed().await,
        group.resync().await,
        group.claim(ClaimRequest::new(1, Duration::from_secs(1))).await.map(drop),
    ];
    for error in refused.map(|result| result.expect_err("refused")) {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("only PostgreSQL feeds groups from its WAL"), "{error}");
    }
}

async fn logs_are_refused(site: &Site) {
    assert_refused(&OutboxLog::new(&site.db, site.name("log")), "logs are on PostgreSQL and SQLite only")
        .await;
}

async fn what_a_log_was_made_as_is_compared(site: &Site) {
    let plain = OutboxLog::new(&site.db, site.name("log"));
    let missing = plain.check().await.expect_err("nothing is there").to_string();
    assert!(missing.contains("the table is not there"), "{missing}");
    site.execute(&plain.ddl().expect("ddl")).await;
    plain.migrate().await.expect("once more");
    let group = plain.register(Subscription::new("a")).await.expect("register");
    group.check().await.expect("check");
    let found = group.doctor(Duration::ZERO).await.expect("doctor");
    // the tests do without the disk
    assert!(found.iter().all(|finding| finding.symptom == Symptom::Durability), "{found:?}");
    let ordered = plain.clone().ordered(OnDead::Block);
    let differs = ordered.migrate().await.expect_err("differs").to_string();
    assert!(differs.contains("but the table was made plain"), "{differs}");
    site.execute("ALTER TABLE t_log DROP COLUMN headers").await;
    let drifted = group.check().await.expect_err("drifted").to_string();
    assert!(drifted.contains("column headers is missing"), "{drifted}");
}

async fn several_make_one_log(site: &Site) {
    let mut making = JoinSet::new();
    for n in 0..8 {
        let log = OutboxLog::new(&site.db, site.name("log"));
        making.spawn(async move {
            log.migrate().await.expect("migrate");
            log.register(Subscription::new(format!("g{}", n % 3))).await.expect("register");
        });
    }
    making.join_all().await;
    let log = OutboxLog::new(&site.db, site.name("log"));
    assert_eq!(log.groups().await.expect("groups"), ["g0", "g1", "g2"]);
}

on_sqlite! { partitions_of_a_log_are_refused, feeds_are_refused, what_a_log_was_made_as_is_compared, several_make_one_log }
on_mysql! { logs_are_refused }

/// What was removed with the highest numbers does not hide what comes next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_are_never_drawn_twice() {
    let log = log().await;
    for _ in 0..3 {
        let ids = enqueue(&log, 10).await;
        assert_eq!(drain(&log.group).await, ids);
        log.advance(DAY).await;
        let maintained = log.log.maintain(Maintenance::new().drop_after(DAY / 2)).await.expect("maintain");
        assert_eq!((maintained.n_removed, log.count("log").await), (10, 0));
    }
    let late = log.register(Subscription::new("late").with_start(Start::End)).await;
    let ids = enqueue(&log, 3).await;
    assert_eq!(drain(&late).await, ids);
}

/// Numbers of a transaction that is rolled back are drawn by the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_rolled_back_is_never_read() {
    let log = log().await;
    let mut expected = Vec::new();
    for _ in 0..10 {
        let transactor = transactor(&log.db);
        let failed = transactor.run(async |cx| {
            log.log.enqueue(cx, vec![Draft::new("t", "x"), Draft::new("t", "x")]).await?;
            Err::<(), _>(outbox_core::Error::new(ErrorKind::Other, "changed my mind"))
        });
        failed.await.expect_err("rolled back");
        expected.extend(enqueue(&log, 1).await);
        assert_eq!(log.group.claim(request(1)).await.expect("claim").messages.len(), 1);
    }
    log.advance(LEASE).await;
    assert_eq!(drain(&log.group).await.into_iter().collect::<BTreeSet<_>>(), expected.into_iter().collect());
}

/// Transactions of any size, some of which roll back, beside loops of two handles: what commits is delivered once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_commits_is_delivered_once() {
    let log = Arc::new(log().await);
    let random = Arc::new(Random::start());
    let ended = Arc::new(AtomicBool::new(false));
    let mut delivering = JoinSet::new();
    for _ in 0..2 {
        let (group, ended) = (log.log.group("billing").expect("a name"), Arc::clone(&ended));
        delivering.spawn(async move {
            let (claimer, mut ids) = (Claimer::new(), Vec::new());
            loop {
                let is_last = ended.load(SeqCst);
                let claim = group.claim(request(7).with_claimer(claimer.clone())).await.expect("claim");
                settle_all(&group, &claim, Outcome::Done).await;
                ids.extend(claim.messages.iter().map(|claimed| claimed.message.id));
                if is_last && claim.messages.is_empty() {
                    return ids;
                }
            }
        });
    }
    let mut producing = JoinSet::new();
    for _ in 0..3 {
        let (log, random) = (Arc::clone(&log), Arc::clone(&random));
        producing.spawn(async move {
            let mut committed = Vec::new();
            for _ in 0..60 {
                committed.extend(produce(&log, &random).await);
            }
            committed
        });
    }
    let committed = producing.join_all().await.concat();
    ended.store(true, SeqCst);
    let delivered = delivering.join_all().await.concat();
    assert_eq!(delivered.len(), committed.len());
    assert_eq!(BTreeSet::from_iter(delivered), BTreeSet::from_iter(committed));
    assert_eq!((log.count("log_ranges").await, log.count("log_group_billing").await), (0, 0));
}

/// One transaction, every fifth of which rolls back; what it has committed.
async fn produce(log: &Log, random: &Random) -> Vec<MessageId> {
    let (n, fails) = (1 + random.below(12), random.below(5) == 0);
    let drafts = (0..n).map(|_| Draft::new("t", "x")).collect::<Vec<_>>();
    let transactor = transactor(&log.db);
    let done = transactor.run(async |cx| {
        let ids = log.log.enqueue(cx, drafts).await?;
        if fails { Err(outbox_core::Error::new(ErrorKind::Other, "changed my mind")) } else { Ok(ids) }
    });
    done.await.unwrap_or_default()
}

/// Two named messages of the beginning are not all of a range.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_beginning_of_a_range_is_not_all_of_it() {
    let log = log().await;
    let ids = enqueue(&log, 5).await;
    let claimed = log.group.claim(request(5)).await.expect("claim").messages;
    let settle = async |n: std::ops::Range<usize>| {
        let call = claimed[n].iter().map(|claimed| Settlement::new(claimed.lease, Outcome::Done)).collect();
        log.group.settle(call).await.expect("settle")
    };
    assert_eq!(settle(0..2).await, [outbox_core::Settled::Applied; 2]);
    assert_eq!(log.group.stats().await.expect("stats").total().n_claimed, 3);
    log.advance(LEASE).await;
    let recovered = log.group.claim(request(10)).await.expect("claim");
    assert_eq!(recovered.messages.iter().map(|claimed| claimed.message.id).collect::<Vec<_>>(), ids[2..]);
}

/// A claim or a settlement that is dropped at any of its steps has happened or has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_calls_leave_nothing_half_done() {
    for ordered in [false, true] {
        let declared =
            if ordered { Declaration::new().ordered(OnDead::Continue) } else { Declaration::new() };
        let log = Log::on_sqlite(declared).await;
        let drafts: Vec<_> = (0..400).map(|n| Draft::new("t", "x").key(format!("{}", n % 40))).collect();
        let ids = log.log.enqueue_autocommit(drafts).await.expect("enqueue");
        let mut delivered = BTreeSet::new();
        for k in 1..40 {
            let _ = cancel_at(k, log.group.claim(request(5))).await;
            let claim = log.group.claim(request(5)).await.expect("claim");
            let outcome = if k % 2 == 0 { Outcome::Done } else { Outcome::Release };
            let call = claim
                .messages
                .iter()
                .map(|claimed| Settlement::new(claimed.lease, outcome.clone()))
                .collect();
            let settled = cancel_at(k, log.group.settle(call)).await;
            if settled.is_some() && k % 2 == 0 {
                delivered.extend(claim.messages.iter().map(|claimed| claimed.message.id));
            }
            log.advance(LEASE).await;
        }
        log.advance(LEASE).await;
        let rest: BTreeSet<MessageId> = drain(&log.group).await.into_iter().collect();
        assert!(rest.is_disjoint(&delivered), "delivered again");
        let left = log.count("log_ranges").await + log.count("log_group_billing").await;
        assert_eq!(left, 0, "ordered: {ordered}");
        assert!(ids.len() - rest.len() - delivered.len() < 200, "a dropped settlement may have been done");
    }
}

/// Numbers that the own table of an ordered group draws are none that the log draws later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redriven_message_comes_after_its_key_and_in_nobodys_place() {
    let log = Log::on_sqlite(Declaration::new().ordered(OnDead::Continue)).await;
    let enqueue = async |n: usize| {
        let drafts: Vec<_> = (0..n).map(|_| Draft::new("t", "x").key("a")).collect();
        log.log.enqueue_autocommit(drafts).await.expect("enqueue")
    };
    let first = enqueue(1).await;
    let claim = log.group.claim(request(1)).await.expect("claim");
    settle_all(&log.group, &claim, Outcome::Dead { error: "no".into() }).await;
    assert_eq!(log.group.redrive(first.clone()).await.expect("redrive"), [outbox_core::Moved::Applied]);
    let behind = enqueue(3).await;
    let all = drain(&log.group).await;
    assert_eq!(all.len(), 4);
    assert_eq!(all.into_iter().filter(|id| *id != first[0]).collect::<Vec<_>>(), behind);
}

/// What is old enough leaves when every group has read and settled it; who keeps it is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_every_group_has_read_is_removed() {
    let log = log().await;
    let shipping = log.register(Subscription::new("shipping")).await;
    enqueue(&log, 30).await;
    log.advance(2 * DAY).await;
    enqueue(&log, 5).await;
    let aged = || Maintenance::new().drop_after(DAY);
    let maintain = async |maintenance| {
        let maintained = log.log.maintain(maintenance).await.expect("maintain");
        assert!(maintained.created.is_empty() && maintained.dropped.is_empty() && maintained.held.is_empty());
        (maintained.n_removed, maintained.held_by)
    };
    let named = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    assert_eq!(maintain(aged()).await, (0, named(&["billing", "shipping"])));
    assert_eq!(drain(&log.group).await.len(), 35);
    assert_eq!(maintain(aged()).await, (0, named(&["shipping"])));
    let first = shipping.claim(request(10)).await.expect("claim");
    assert_eq!(drain(&shipping).await.len(), 25);
    assert_eq!(maintain(aged()).await, (0, named(&["shipping"])), "it has claimed the first ones");
    let dead = Outcome::Dead { error: "no".into() };
    settle_all(&shipping, &first, dead).await;
    assert_eq!(maintain(Maintenance::new()).await, (0, Vec::new()), "no age");
    assert_eq!(maintain(aged().dry_run()).await, (30, Vec::new()));
    assert_eq!(log.count("log").await, 35);
    assert_eq!(maintain(aged()).await, (30, Vec::new()));
    assert_eq!(log.count("log").await, 5, "the others are not old enough");
    assert_eq!(shipping.redrive_matching(Default::default(), 100).await.expect("redrive"), 10);
    assert_eq!(drain(&shipping).await.len(), 10, "what is dead needs the log no more");
    let endless = Maintenance::new().drop_after(Duration::MAX);
    let error = log.log.maintain(endless).await.expect_err("refused");
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("drop_after"), "{error}");
}

/// A long log leaves in steps, as much of it as one call may remove.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_log_is_removed_in_bounded_calls() {
    let log = log().await;
    assert!(log.log.unregister("billing").await.expect("unregister"));
    log.execute(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100500)
         INSERT INTO t_log (id, topic, payload, created_at) SELECT randomblob(16), 't', '', 0 FROM n",
    )
    .await;
    let aged = || Maintenance::new().drop_after(DAY);
    let maintain = async |maintenance| log.log.maintain(maintenance).await.expect("maintain").n_removed;
    assert_eq!(maintain(aged().dry_run()).await, 100_000);
    assert_eq!(maintain(aged()).await, 100_000);
    assert_eq!(log.number("SELECT min(seq) FROM t_log").await, 100_001, "the oldest first");
    assert_eq!(maintain(aged()).await, 500);
    assert_eq!(maintain(aged()).await, 0);
}

/// Processes that share a group on one file, some of which are killed: what was committed is delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_processes_lose_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let log = Log::create(open_file(folder.path(), 4).await, "t".to_owned(), Declaration::new(), None).await;
    log.execute("CREATE TABLE delivered (id BLOB NOT NULL)").await;
    let random = Random::start();
    let mut committed = Vec::new();
    let n_delivered = async || log.number("SELECT count(DISTINCT id) FROM delivered").await as usize;
    let mut others = vec![Other::start(folder.path()).await];
    for _ in 0..4 {
        let mut victim = Other::start(folder.path()).await;
        let before = n_delivered().await;
        for _ in 0..10 {
            committed.extend(produce(&log, &random).await);
        }
        eventually("something is delivered", async || {
            n_delivered().await > before + 10 || n_delivered().await == committed.len()
        })
        .await;
        victim.0.kill().await.expect("kill");
        for _ in 0..5 {
            committed.extend(produce(&log, &random).await);
        }
    }
    others.push(Other::start(folder.path()).await);
    eventually("everything is delivered", async || n_delivered().await == committed.len()).await;
    eventually("nothing is left", async || {
        log.count("log_ranges").await + log.count("log_group_billing").await == 0
    })
    .await;
    assert!(committed.len() > 100, "the test has tested nothing");
    let total = log.group.stats().await.expect("stats").total();
    assert_eq!((total.n_pending, total.n_claimed, total.n_dead), (0, 0, 0));
}

/// A process of ours that delivers.
struct Other(tokio::process::Child);

impl Other {
    async fn start(folder: &std::path::Path) -> Self {
        let mut command = crate::support::child("log::sqlite::child", &folder.display().to_string(), "");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().expect("start");
        let mut lines = BufReader::new(process.stdout.take().expect("stdout")).lines();
        while let Some(line) = lines.next_line().await.expect("a line") {
            if line.ends_with("at work") {
                return Self(process);
            }
        }
        panic!("the child has ended");
    }
}

/// What [`Other`] does; no test of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(folder) = child_role() else { return };
    end_with_the_parent();
    let db = open_file(folder.as_ref(), 2).await;
    let log = OutboxLog::new(&db, TableName::parse("t.log").expect("name"));
    let (group, claimer) = (log.group("billing").expect("a name"), Claimer::new());
    println!("at work");
    loop {
        let request = ClaimRequest::new(5, Duration::from_secs(2)).with_claimer(claimer.clone());
        let claim = group.claim(request).await.expect("claim");
        let mut settlements = Vec::new();
        for claimed in &claim.messages {
            deliver(&db, claimed.message.id).await;
            // in parts, and some of it by way of the group's own table
            let is_late = claimed.message.fence == 1 && claimed.message.id.as_u128() % 7 == 0;
            let outcome = if is_late { Outcome::Release } else { Outcome::Done };
            settlements.push(Settlement::new(claimed.lease, outcome));
            if settlements.len() == 2 {
                group.settle(std::mem::take(&mut settlements)).await.expect("settle");
            }
        }
        group.settle(settlements).await.expect("settle");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn deliver(db: &DatabaseConnection, id: MessageId) {
    let sql = "INSERT INTO delivered (id) VALUES (?1)";
    let delivered = db.execute_raw(Statement::from_sql_and_values(DbBackend::Sqlite, sql, [id.into()]));
    delivered.await.expect("delivered");
}
