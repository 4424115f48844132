//! The server goes away, as a whole or one session after the other.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use outbox_core::Draft;
use outbox_dispatcher::CancellationToken;
use outbox_testkit::server::{Server, Settings, StopMode, private};
use tokio::time::{sleep, timeout};

use super::{
    Random, assert_nothing_is_dead, assert_nothing_is_lost, config, create_delivery, dispatch, produce,
    wait_until_drained,
};
use crate::support::{PATIENCE, Pool, Site, eventually, on_mysql, on_postgres};

async fn stop_and_restart(server: &Server, mode: StopMode, down: Duration) {
    server.stop(mode).await.expect("stop");
    sleep(down).await;
    server.restart().await.expect("restart");
}

/// PostgreSQL ends all sessions and recovers by itself when one of its processes was killed.
async fn kill_a_session(site: &Site) {
    wait_until_reachable(site).await;
    if site.is_mysql() {
        return;
    }
    let pid: i32 = site.value("SELECT pg_backend_pid()").await;
    // by the server itself: in a container the number means another process than here
    let kill = format!("COPY (SELECT 1) TO PROGRAM 'kill -KILL {pid}'");
    // this session ends with all others, before or after its answer
    if let Err(error) = sea_orm::ConnectionTrait::execute_unprepared(&site.db, &kill).await {
        assert!(!error.to_string().contains("program"), "{error}");
    }
}

/// A session of ours stands guard: the dispatcher is asleep and waits for a hint.
async fn wait_until_asleep(site: &Site) {
    let sql = format!(
        "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid \
         WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND a.application_name = '{}'",
        site.schema()
    );
    eventually("the dispatcher sleeps", async || site.value::<i64>(&sql).await > 0).await;
}

/// The pools of the test itself have broken connections too.
async fn wait_until_reachable(site: &Site) {
    let reachable = async || outbox_core::Operations::ping(&site.outbox).await.is_ok();
    eventually("the server answers", reachable).await;
    eventually("the pool is well", async || {
        use sea_orm::ConnectionTrait;
        site.db.execute_unprepared("SELECT 1").await.is_ok()
    })
    .await;
}

async fn work_through_restarts(server: &Server, site: &Site) {
    create_delivery(site).await;
    let token = CancellationToken::new();
    // where there are hints, the polling interval is an hour: what comes in an idle time is found by its hint
    let config =
        if site.is_postgres() { config().with_poll_interval(Duration::from_secs(3_600)) } else { config() };
    let running = dispatch(site, config, token.clone()).await;
    let random = Random::start();
    let stop = AtomicBool::new(false);
    let restarting = async {
        for mode in [StopMode::Immediate, StopMode::Fast] {
            sleep(Duration::from_millis(700)).await;
            stop_and_restart(server, mode, Duration::from_millis(500)).await;
        }
        sleep(Duration::from_millis(700)).await;
        kill_a_session(site).await;
        sleep(Duration::from_secs(1)).await;
        stop.store(true, Relaxed);
    };
    tokio::join!(restarting, produce(site, &random, &stop), produce(site, &random, &stop));
    wait_until_reachable(site).await;
    wait_until_drained(site).await;
    assert_nothing_is_lost(site).await;
    assert_nothing_is_dead(site).await;
    the_wakeup_works(site).await;
    token.cancel();
    let report = timeout(PATIENCE, running).await.expect("it stops").expect("joined").expect("a report");
    println!("{report:?}");
    assert_eq!(report.n_unsettled, 0);
}

async fn the_wakeup_works(site: &Site) {
    if site.is_postgres() {
        wait_until_asleep(site).await;
    }
    let before = site.count("delivery").await;
    for n in 1..=3 {
        site.outbox.enqueue_autocommit([Draft::new("t", "")]).await.expect("enqueue");
        eventually("a hint wakes it", async || site.count("delivery").await == before + n).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_loses_nothing_on_postgres() {
    let Ok(server) = private(Settings::for_tests()).await else { return };
    let site = Site::at(server.url(), &[]).await;
    work_through_restarts(&server, &site).await;
}

async fn terminated_sessions_lose_nothing(site: &Site) {
    create_delivery(site).await;
    let observer = site.connect(Pool { suffix: "_observer", ..Pool::of(1) }).await;
    let token = CancellationToken::new();
    let running = dispatch(site, config(), token.clone()).await;
    let random = Random::start();
    let stop = AtomicBool::new(false);
    let terminating = async {
        for _ in 0..80 {
            sleep(Duration::from_millis(50)).await;
            // one of the producers or the dispatcher
            site.end_one_session(&observer).await;
        }
        stop.store(true, Relaxed);
    };
    tokio::join!(terminating, produce(site, &random, &stop), produce(site, &random, &stop));
    wait_until_reachable(site).await;
    wait_until_drained(site).await;
    assert_nothing_is_lost(site).await;
    assert_nothing_is_dead(site).await;
    the_wakeup_works(site).await;
    token.cancel();
    let report = timeout(PATIENCE, running).await.expect("it stops").expect("joined").expect("a report");
    println!("{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_loses_nothing_on_mysql() {
    // a commit is a commit although the server is killed
    let durable = Settings::for_mysql_tests().with("innodb_flush_log_at_trx_commit", "1");
    let Ok(server) = private(durable).await else { return };
    let site = Site::mysql_at(server.url()).await;
    work_through_restarts(&server, &site).await;
}

on_postgres! { terminated_sessions_lose_nothing }
on_mysql! { terminated_sessions_lose_nothing }
