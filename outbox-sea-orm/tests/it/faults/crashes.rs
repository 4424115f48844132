//! Processes that are killed, and one that kills itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use outbox_core::{DeadLetterQuery, Draft, Operations};
use sea_orm::{ConnectionTrait, Statement};
use tokio::time::{sleep, timeout};

use super::{
    MAX_ATTEMPTS, POISON, Random, Worker, assert_nothing_is_lost, create_delivery, now, produce,
    wait_until_drained,
};
use crate::support::{Site, eventually, run_on_postgres, run_on_sqlite};

/// When a process was killed, by the clock of the database: the last moment at which it can have done anything.
type Kills = HashMap<i64, f64>;

/// One delivery of a message.
#[derive(Debug)]
struct Delivery {
    attempt: i32,
    at: f64,
    pid: i64,
}

/// The deliveries of each message in the order in which they happened.
async fn deliveries(site: &Site) -> HashMap<String, Vec<Delivery>> {
    let sql = format!("SELECT message_id, attempt, at, pid FROM {} ORDER BY at", site.sql_name("delivery"));
    let rows = site.db.query_all_raw(Statement::from_string(site.db.get_database_backend(), sql)).await;
    let mut deliveries: HashMap<String, Vec<Delivery>> = HashMap::new();
    for row in rows.expect("read") {
        let (id, attempt) = (row.try_get_by_index(0).expect("id"), row.try_get_by_index(1).expect("attempt"));
        let (at, pid) = (row.try_get_by_index(2).expect("time"), row.try_get_by_index(3).expect("pid"));
        deliveries.entry(id).or_default().push(Delivery { attempt, at, pid });
    }
    deliveries
}

/// A second delivery is right only when whoever made the first one was killed between the two. Returns how many
/// were made twice.
fn assert_kills_explain_duplicates(deliveries: &HashMap<String, Vec<Delivery>>, kills: &Kills) -> usize {
    let mut n_duplicates = 0;
    for (id, of_one) in deliveries {
        for pair in of_one.windows(2) {
            let [first, second] = pair else { continue };
            let killed = kills.get(&first.pid).copied();
            let is_explained = killed.is_some_and(|at| first.at <= at && at < second.at);
            assert!(is_explained, "{id}: {pair:?} without a kill in between ({killed:?})");
            assert!(first.attempt < second.attempt, "{id}: {pair:?}");
            n_duplicates += 1;
        }
        assert!(of_one.iter().all(|delivery| delivery.attempt <= MAX_ATTEMPTS as i32), "{id}: {of_one:?}");
    }
    n_duplicates
}

/// Kills `n` dispatchers one after the other, each at a random moment of its work.
async fn kill_dispatchers(site: &Site, random: &Random, n: usize) -> Kills {
    let mut kills = Kills::new();
    for _ in 0..n {
        let mut worker = Worker::start(site, "dispatch").await;
        sleep(random.millis(400)).await;
        kills.insert(worker.pid.into(), kill(site, &mut worker).await);
    }
    kills
}

/// Kills and waits until the server has noticed, so that nothing of the process is still on its way.
async fn kill(site: &Site, worker: &mut Worker) -> f64 {
    worker.kill().await;
    if site.is_postgres() {
        let own = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE";
        let sql = format!("{own} '{}_handlers' AND state = 'active'", site.schema());
        eventually("the server has noticed", async || site.value::<i64>(&sql).await == 0).await;
    }
    site.value(&format!("SELECT {}", now(site))).await
}

async fn killed_dispatchers_lose_nothing(site: &Site, n_kills: usize, n_at_once: usize) {
    create_delivery(site).await;
    let random = Random::start();
    let stop = AtomicBool::new(false);
    let killing = async {
        let kills = kill_side_by_side(site, &random, n_kills, n_at_once).await;
        stop.store(true, Relaxed);
        kills
    };
    let (kills, ()) = tokio::join!(killing, produce(site, &random, &stop));
    assert_eq!(kills.len(), n_kills);

    let mut last = Worker::start(site, "dispatch").await;
    wait_until_drained(site).await;
    last.kill().await;
    assert_nothing_is_lost(site).await;
    let deliveries = deliveries(site).await;
    let n_again = deliveries.values().flatten().filter(|delivery| delivery.attempt > 1).count();
    let n_duplicates = assert_kills_explain_duplicates(&deliveries, &kills);
    println!("{} messages, {n_kills} kills, {n_again} recovered, {n_duplicates} twice", deliveries.len());
    assert!(n_again > 0, "no kill has met a message");
}

async fn kill_side_by_side(site: &Site, random: &Random, n_kills: usize, n_at_once: usize) -> Kills {
    let loops = (0..n_at_once).map(|_| kill_dispatchers(site, random, n_kills / n_at_once));
    futures_util::future::join_all(loops).await.into_iter().flatten().collect()
}

/// One message that kills its process, in the middle of a thousand that do not.
async fn a_poison_message_kills_no_neighbour(site: &Site) {
    create_delivery(site).await;
    let draft = |n| if n == 500 { Draft::new("t", POISON) } else { Draft::new("t", "") };
    let drafts: Vec<Draft> = (0..=1_000).map(draft).collect();
    let poison = drafts[500].id;
    for draft in drafts.iter().filter(|draft| draft.id != poison) {
        site.execute(&site.business(&draft.id.to_string())).await;
    }
    site.outbox.enqueue_autocommit(drafts).await.expect("enqueue");
    let n_crashes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let supervising = supervise(site, &n_crashes);
    tokio::select! {
        () = supervising => {}
        () = wait_until_drained(site) => {}
    }
    assert_eq!(n_crashes.load(Relaxed), MAX_ATTEMPTS as usize, "it was handed out as often as allowed");
    let letters = site.outbox.dead_letters(DeadLetterQuery::new(10)).await.expect("list").letters;
    let [letter] = &letters[..] else { panic!("neighbours died: {letters:?}") };
    assert_eq!((letter.message.id, letter.message.attempt), (poison, MAX_ATTEMPTS));
    assert_eq!(letter.error, "lease expired in attempt 5");
    site.execute(&format!("DELETE FROM {} WHERE state = 2", site.sql_name("outbox"))).await;
    assert_nothing_is_lost(site).await;
    assert_eq!(deliveries(site).await.len(), 1_000);
}

/// Starts a dispatcher again each time that it has ended.
async fn supervise(site: &Site, n_crashes: &std::sync::atomic::AtomicUsize) {
    loop {
        let mut worker = Worker::start(site, "dispatch").await;
        let e = worker.process.wait().await.expect("ended");
        eprintln!("{e:?} ready {} leased {} dead {}", site.count("outbox WHERE state=0 AND lease IS NULL").await,  site.count("outbox WHERE lease IS NOT NULL").await, site.count("outbox WHERE state=2").await);
        n_crashes.fetch_add(1, Relaxed);
    }
}

async fn a_producer_killed_before_its_commit_leaves_neither_row(site: &Site) {
    for _ in 0..5 {
        let mut worker = Worker::start(site, "hold").await;
        worker.kill().await;
        eventually("the transaction ends", async || !site.has_idle_transaction().await).await;
        assert_eq!((site.count("business").await, site.count("outbox").await), (0, 0));
    }
}

async fn a_killed_producer_leaves_both_rows_or_none(site: &Site) {
    let random = Random::start();
    for _ in 0..20 {
        let mut worker = Worker::start(site, "produce").await;
        sleep(random.millis(150)).await;
        worker.kill().await;
    }
    eventually("the transactions end", async || !site.has_idle_transaction().await).await;
    let text = if site.is_postgres() { "id::text" } else { "lower(hex(id))" };
    let (business, outbox) = (site.sql_name("business"), site.sql_name("outbox"));
    let name = if site.is_postgres() { "name" } else { "replace(name, '-', '')" };
    let half = format!(
        "SELECT (SELECT count(*) FROM {business} WHERE {name} NOT IN (SELECT {text} FROM {outbox})) \
              + (SELECT count(*) FROM {outbox} WHERE {text} NOT IN (SELECT {name} FROM {business}))"
    );
    assert_eq!(site.value::<i64>(&half).await, 0);
    assert!(site.count("business").await > 20, "the test has tested nothing");
}

const LIMIT: Duration = Duration::from_secs(180);

mod postgres {
    use super::{LIMIT, run_on_postgres, timeout};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn fifty_killed_dispatchers_lose_nothing() {
        let test = run_on_postgres(async |site| super::killed_dispatchers_lose_nothing(site, 50, 2).await);
        timeout(LIMIT, test).await.expect("in time");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_poison_message_kills_no_neighbour() {
        timeout(LIMIT, run_on_postgres(super::a_poison_message_kills_no_neighbour)).await.expect("in time");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_producer_killed_before_its_commit_leaves_neither_row() {
        run_on_postgres(super::a_producer_killed_before_its_commit_leaves_neither_row).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_killed_producer_leaves_both_rows_or_none() {
        run_on_postgres(super::a_killed_producer_leaves_both_rows_or_none).await;
    }
}

mod sqlite {
    use super::{LIMIT, run_on_sqlite, timeout};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn killed_processes_on_one_file_lose_nothing() {
        let test = run_on_sqlite(async |site| super::killed_dispatchers_lose_nothing(site, 10, 2).await);
        timeout(LIMIT, test).await.expect("in time");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_poison_message_kills_no_neighbour() {
        timeout(LIMIT, run_on_sqlite(super::a_poison_message_kills_no_neighbour)).await.expect("in time");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_producer_killed_before_its_commit_leaves_neither_row() {
        run_on_sqlite(super::a_producer_killed_before_its_commit_leaves_neither_row).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_killed_producer_leaves_both_rows_or_none() {
        run_on_sqlite(super::a_killed_producer_leaves_both_rows_or_none).await;
    }
}
