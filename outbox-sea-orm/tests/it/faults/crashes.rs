//! Processes that are killed, and one that kills itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use outbox_core::Draft;
use sea_orm::{ConnectionTrait, Statement};
use tokio::time::{sleep, timeout};

use super::{
    MAX_ATTEMPTS, POISON, Random, Worker, assert_nothing_is_dead, assert_nothing_is_lost, create_delivery,
    dead_letters, now, produce, wait_until_drained,
};
use crate::support::{Site, eventually, mysql_sessions, run_on_sqlite};

/// Something that happened to a message: a claim or a delivery by a process, or its death by nobody.
#[derive(Clone, Debug)]
struct Event {
    at: f64,
    pid: i64,
    attempt: i32,
}

/// The events of each message in the order in which they happened.
type History = HashMap<String, Vec<Event>>;

/// When each process was killed, by the clock of the database: a moment before and one when all of it had ended.
type Kills = HashMap<i64, (f64, f64)>;

/// `sql` returns the message, the time, the process and the attempt.
async fn history(site: &Site, sql: &str) -> History {
    let rows = site.db.query_all_raw(Statement::from_string(site.db.get_database_backend(), sql)).await;
    let mut history = History::new();
    for row in rows.expect("read") {
        let (id, at) = (row.try_get_by_index(0).expect("id"), row.try_get_by_index(1).expect("time"));
        let (pid, attempt) =
            (row.try_get_by_index(2).expect("pid"), row.try_get_by_index(3).expect("attempt"));
        history.entry(id).or_default().push(Event { at, pid, attempt });
    }
    for events in history.values_mut() {
        events.sort_by(|one, other| one.at.total_cmp(&other.at));
    }
    history
}

/// Whatever follows a claim or a delivery is right only when the process that made it was killed in between.
/// Returns how many events there are of that kind.
fn assert_kills_explain_it(what: &str, history: &History, kills: &Kills) -> usize {
    let mut n = 0;
    for (id, events) in history {
        for pair in events.windows(2) {
            let [first, second] = pair else { continue };
            let kill = kills.get(&first.pid);
            let is_explained = kill.is_some_and(|(before, after)| first.at <= *after && *before < second.at);
            assert!(is_explained, "{what} of {id}: {pair:?} without a kill in between ({kill:?})");
            assert!(first.attempt < second.attempt, "{what} of {id}: {pair:?}");
            n += 1;
        }
        assert!(
            events.iter().all(|event| event.attempt <= MAX_ATTEMPTS as i32 + 1),
            "{what} of {id}: {events:?}"
        );
    }
    n
}

async fn deliveries(site: &Site) -> History {
    history(site, &format!("SELECT message_id, at, pid, attempt FROM {}", site.sql_name("delivery"))).await
}

/// As [`watch_claims`]; the process is the number behind the name of its user.
async fn watch_claims_on_mysql(site: &Site) {
    let (outbox, claimed) = (site.sql_name("outbox"), site.sql_name("claimed"));
    let trigger = site.sql_name("watch_claims");
    let id =
        "INSERT(INSERT(INSERT(INSERT(LOWER(HEX(NEW.id)), 9, 0, '-'), 14, 0, '-'), 19, 0, '-'), 24, 0, '-')";
    site.execute(&format!(
        "CREATE TABLE {claimed} (message_id CHAR(36), at DOUBLE, pid BIGINT, attempt INTEGER);
         CREATE TRIGGER {trigger} AFTER UPDATE ON {outbox} FOR EACH ROW
           INSERT INTO {claimed} SELECT {id}, {},
             SUBSTRING_INDEX(SUBSTRING_INDEX(USER(), '@', 1), '_', -1),
             NEW.attempts + (NEW.state = 2)
             FROM DUAL WHERE NEW.state = 2 OR NEW.lease IS NOT NULL AND NOT NEW.lease <=> OLD.lease",
        now(site)
    ))
    .await;
}

/// Makes the server itself write down who claims what, and what dies.
async fn watch_claims(site: &Site) {
    if site.is_mysql() {
        return watch_claims_on_mysql(site).await;
    }
    let (outbox, claimed) = (site.sql_name("outbox"), site.sql_name("claimed"));
    let function = site.sql_name("watch_claims");
    site.execute(&format!(
        "CREATE TABLE {claimed} (message_id text, at float8, pid bigint, attempt integer);
         CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
           INSERT INTO {claimed} VALUES (NEW.id::text, extract(epoch FROM clock_timestamp()),
             substring(current_setting('application_name') FROM '^t_[0-9a-f]+_([0-9]+)$')::bigint,
             NEW.attempts + (NEW.state / 2));
           RETURN NULL;
         END$$;
         CREATE TRIGGER watch_claims AFTER UPDATE ON {outbox} FOR EACH ROW
           WHEN (NEW.state = 2 OR NEW.lease IS DISTINCT FROM OLD.lease AND NEW.lease IS NOT NULL)
           EXECUTE FUNCTION {function}()"
    ))
    .await;
}

/// Whoever claims a message for the second time, or buries it, needs a kill as an excuse, each time.
async fn assert_kills_explain_claims(site: &Site, kills: &Kills) {
    let sql = format!("SELECT message_id, at, pid, attempt FROM {}", site.sql_name("claimed"));
    let claims = history(site, &sql).await;
    assert!(assert_kills_explain_it("claims", &claims, kills) > 0, "no kill has met a claim");
    for letter in dead_letters(site).await {
        let n_claims = claims[&letter.message.id.to_string()].len() - 1;
        assert_eq!(n_claims, MAX_ATTEMPTS as usize, "{letter:?} had fewer attempts");
    }
}

/// Kills `n` dispatchers one after the other, each at a random moment of its work.
async fn kill_dispatchers(site: &Site, random: &Random, n: usize) -> Kills {
    let mut kills = Kills::new();
    for _ in 0..n {
        let mut worker = Worker::start(site, "dispatch").await;
        sleep(random.millis(800)).await;
        kills.insert(worker.pid.into(), kill(site, &mut worker).await);
    }
    kills
}

/// Kills and waits until the server has noticed, so that nothing of the process is still on its way.
async fn kill(site: &Site, worker: &mut Worker) -> (f64, f64) {
    let now = format!("SELECT {}", now(site));
    let before = site.value(&now).await;
    worker.kill().await;
    if !site.is_sqlite() {
        let (sessions, name) = match site.is_mysql() {
            true => (mysql_sessions(&site.db).await, "DB"),
            false => ("pg_stat_activity", "application_name"),
        };
        let own = format!("'{}_{}%'", site.schema(), worker.pid);
        let sql = format!("SELECT count(*) FROM {sessions} WHERE {name} LIKE {own}");
        eventually("the server has noticed", async || site.value::<i64>(&sql).await == 0).await;
    }
    (before, site.value(&now).await)
}

async fn killed_dispatchers_lose_nothing(site: &Site, n_kills: usize, n_at_once: usize) {
    create_delivery(site).await;
    if !site.is_sqlite() {
        watch_claims(site).await;
    }
    let random = Random::start();
    let stop = AtomicBool::new(false);
    let killing = async {
        let kills = kill_side_by_side(site, &random, n_kills, n_at_once).await;
        stop.store(true, Relaxed);
        kills
    };
    let producing = futures_util::future::join_all((0..3).map(|_| produce(site, &random, &stop)));
    let (kills, _) = tokio::join!(killing, producing);
    assert_eq!(kills.len(), n_kills);

    let mut last = Worker::start(site, "dispatch").await;
    wait_until_drained(site).await;
    last.kill().await;
    assert_nothing_is_lost(site).await;
    let deliveries = deliveries(site).await;
    let n_again = deliveries.values().flatten().filter(|delivery| delivery.attempt > 1).count();
    let n_duplicates = assert_kills_explain_it("deliveries", &deliveries, &kills);
    println!("{} messages, {n_kills} kills, {n_again} recovered, {n_duplicates} twice", deliveries.len());
    assert!(n_again > 0, "no kill has met a message");
    if site.is_sqlite() {
        assert_nothing_is_dead(site).await;
    } else {
        assert_kills_explain_claims(site, &kills).await;
    }
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
    let letters = dead_letters(site).await;
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
        worker.process.wait().await.expect("ended");
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

macro_rules! crashes_on {
    ($database:ident with $run:ident) => {
        mod $database {
            use super::{LIMIT, timeout};
            use crate::support::$run;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn fifty_killed_dispatchers_lose_nothing() {
                let test = $run(async |site| super::killed_dispatchers_lose_nothing(site, 50, 2).await);
                timeout(LIMIT, test).await.expect("in time");
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_poison_message_kills_no_neighbour() {
                timeout(LIMIT, $run(super::a_poison_message_kills_no_neighbour)).await.expect("in time");
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_producer_killed_before_its_commit_leaves_neither_row() {
                $run(super::a_producer_killed_before_its_commit_leaves_neither_row).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_killed_producer_leaves_both_rows_or_none() {
                $run(super::a_killed_producer_leaves_both_rows_or_none).await;
            }
        }
    };
}

crashes_on! { postgres with run_on_postgres }
crashes_on! { mysql with run_on_mysql }

mod sqlite {
    use super::{LIMIT, run_on_sqlite, timeout};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn killed_processes_on_one_file_lose_nothing() {
        let test = run_on_sqlite(async |site| super::killed_dispatchers_lose_nothing(site, 16, 2).await);
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
