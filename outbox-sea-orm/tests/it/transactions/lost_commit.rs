//! COMMIT was sent and its answer was lost.

use outbox_core::{Draft, Error, ErrorKind, Result};
use outbox_sea_orm::{SeaOrmContext, transactor};
use outbox_testkit::proxy::Cut;
use outbox_testkit::server::{Settings, private};
use sea_orm::ConnectionTrait;
use uuid::Uuid;

use super::{kind, place, placed};
use crate::support::{Pool, Site, eventually, on_postgres};

/// Ends the session of ours that waits for `event`.
async fn terminate_waiting_for(site: &Site, event: &str) {
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
         WHERE application_name = '{}' AND wait_event = '{event}'",
        site.schema()
    );
    let watch = site.connect(Pool::of(1)).await;
    eventually("the commit waits", async || crate::support::value::<i64>(&watch, &sql).await > 0).await;
}

/// Makes every commit that has added a business row sleep, before it has happened.
async fn delay_commits(site: &Site) {
    let (function, table) = (site.sql_name("nap"), site.sql_name("business"));
    site.execute(&format!(
        "CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS \
         $$BEGIN PERFORM pg_sleep(60); RETURN NULL; END$$; \
         CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION {function}()"
    ))
    .await;
}

async fn a_lost_answer_before_the_commit_is_unknown(site: &Site) {
    delay_commits(site).await;
    let tx = transactor(&site.db);
    let run = tx.run(async |cx| place(site, cx, "a").await);
    let (result, ()) = tokio::join!(run, terminate_waiting_for(site, "PgSleep"));
    let error = result.expect_err("lost");
    assert_eq!(error.kind(), ErrorKind::CommitUnknown);
    assert!(!error.is_retryable(), "repeating could do the work twice");
    assert_eq!(placed(site).await, (0, 0));
}

/// Commits that wait for a standby that does not exist: they have happened, and the answer never comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_after_the_commit_is_unknown_on_postgres() {
    let settings =
        Settings::for_tests().with("synchronous_standby_names", "nobody").with("synchronous_commit", "local");
    let Ok(server) = private(settings).await else { return };
    let site = Site::at(server.url(), &[]).await;
    let id = Uuid::now_v7();
    let (result, ()) = tokio::join!(commit_and_wait(&site, id), terminate_waiting_for(&site, "SyncRep"));
    assert_eq!(kind(result), ErrorKind::CommitUnknown);
    assert_eq!(placed(&site).await, (1, 1), "it has committed all the same");

    let again =
        transactor(&site.db).run(async |cx| site.outbox.enqueue(cx, Draft::new("t", "").id(id)).await).await;
    assert_eq!(kind(again), ErrorKind::AlreadyEnqueued, "the id tells that it had committed");
}

async fn commit_and_wait(site: &Site, id: Uuid) -> Result<()> {
    transactor(&site.db)
        .run(async |cx| {
            let connection = cx.connection()?;
            for sql in ["SET LOCAL synchronous_commit = on".to_owned(), site.business("a")] {
                connection.execute_unprepared(&sql).await.expect("write");
            }
            site.outbox.enqueue(cx, Draft::new("t", "").id(id)).await?;
            Ok::<_, Error>(())
        })
        .await
}

/// The answer is lost on the way from the server (`After`), or COMMIT on the way to it (`Before`).
async fn lose_a_commit(site: Option<Site>, cut: Cut) {
    let Some(site) = site else { return };
    let (proxy, db) = site.through_proxy().await;
    let id = Uuid::now_v7();
    let commit = async || {
        transactor(&db).run(async |cx| site.outbox.enqueue(cx, Draft::new("t", "").id(id)).await).await
    };
    proxy.cut_on_commit(cut);
    assert_eq!(kind(commit().await), ErrorKind::CommitUnknown);
    assert_eq!(proxy.n_cuts(), 1);

    let is_there = cut == Cut::After;
    eventually("the server has noticed", async || !site.has_idle_transaction().await).await;
    assert_eq!(site.count("outbox").await, i64::from(is_there));
    let again = commit().await;
    if is_there {
        assert_eq!(kind(again), ErrorKind::AlreadyEnqueued);
    } else {
        assert_eq!(again.expect("stored"), [id]);
    }
    assert_eq!(site.count("outbox").await, 1, "a retry with the same id is safe");
    site.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_was_cut_off_is_unknown_on_postgres() {
    lose_a_commit(Site::postgres().await, Cut::After).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_was_cut_off_is_unknown_on_postgres() {
    lose_a_commit(Site::postgres().await, Cut::Before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_was_cut_off_is_unknown_on_mysql() {
    lose_a_commit(Site::mysql().await, Cut::After).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_was_cut_off_is_unknown_on_mysql() {
    lose_a_commit(Site::mysql().await, Cut::Before).await;
}

async fn an_error_that_commit_itself_reports_is_known(site: &Site) {
    let table = site.sql_name("business");
    site.execute(&format!("ALTER TABLE {table} ADD UNIQUE (name) DEFERRABLE INITIALLY DEFERRED")).await;
    let result = transactor(&site.db)
        .run(async |cx| {
            place(site, cx, "twice").await?;
            place(site, cx, "twice").await
        })
        .await;
    assert_eq!(kind(result), ErrorKind::Other, "it is decided that it did not commit");
    assert_eq!(placed(site).await, (0, 0));
}

on_postgres! {
    a_lost_answer_before_the_commit_is_unknown,
    an_error_that_commit_itself_reports_is_known,
}
