//! The transaction of a context: how it ends, and what cannot break it.

mod cancelled;
mod cut;
mod lost_commit;
mod traps;

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use outbox_core::{
    Context, Draft, Error, ErrorKind, MemoryRepository, Repository, Result, Transactions, Transactor,
};
use outbox_sea_orm::{SeaOrm, SeaOrmContext, transactor};
use sea_orm::{ConnectionTrait, TransactionTrait};

use crate::support::{Site, eventually, on_each};

/// Writes a business row and a message.
async fn place(site: &Site, cx: &Context, name: &str) -> Result<()> {
    write(cx, &site.business(name)).await?;
    site.outbox.enqueue(cx, Draft::new("placed", name.to_owned())).await.map(drop)
}

async fn write(cx: &Context, sql: &str) -> Result<()> {
    cx.connection()?.execute_unprepared(sql).await.expect("write");
    Ok(())
}

/// How many business rows and messages there are.
async fn placed(site: &Site) -> (i64, i64) {
    (site.count("business").await, site.count("outbox").await)
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.expect_err("must fail").kind()
}

async fn run_commits_on_ok(site: &Site) {
    let seven = transactor(&site.db).run(async |cx| place(site, cx, "a").await.map(|()| 7)).await;
    assert_eq!(seven.expect("committed"), 7);
    assert_eq!(placed(site).await, (1, 1));
}

async fn run_rolls_back_on_an_error(site: &Site) {
    let refused = || Error::new(ErrorKind::Other, "refused by the closure");
    let result: Result<()> = transactor(&site.db)
        .run(async |cx| {
            place(site, cx, "a").await?;
            Err(refused())
        })
        .await;
    assert_eq!(result.expect_err("the closure's error").operation(), "refused by the closure");
    assert_eq!(placed(site).await, (0, 0));
}

async fn run_rolls_back_on_a_panic(site: &Site) {
    let tx = transactor(&site.db);
    let run = tx.run(async |cx| {
        place(site, cx, "a").await.expect("placed");
        if site.count("business").await == 0 {
            panic!("on purpose");
        }
        Ok::<_, Error>(())
    });
    assert!(AssertUnwindSafe(run).catch_unwind().await.is_err());
    assert_eq!(placed(site).await, (0, 0));
    eventually("the transaction ends", async || !site.has_idle_transaction().await).await;
}

async fn run_rolls_back_when_it_is_dropped(site: &Site) {
    let tx = transactor(&site.db);
    let run = tx.run(async |cx| {
        place(site, cx, "a").await?;
        std::future::pending::<Result<()>>().await
    });
    let cut = tokio::time::timeout(std::time::Duration::from_millis(300), run).await;
    assert!(cut.is_err(), "the closure never returns");
    assert_eq!(placed(site).await, (0, 0));
    eventually("the transaction ends", async || !site.has_idle_transaction().await).await;
}

async fn a_clone_that_escapes_rolls_back_and_says_so(site: &Site) {
    let mut kept = None;
    let result = transactor(&site.db)
        .run(async |cx| {
            kept = Some(cx.clone());
            place(site, cx, "a").await
        })
        .await;
    assert_eq!(kind(result), ErrorKind::TransactionEscaped);
    drop(kept);
    eventually("the transaction ends", async || !site.has_idle_transaction().await).await;
    assert_eq!(placed(site).await, (0, 0));
    run_commits_on_ok(site).await;
}

async fn a_context_without_transaction_commits_nothing(site: &Site) {
    let result = site.outbox.enqueue(&Context::new(), Draft::new("t", "")).await;
    assert_eq!(kind(result), ErrorKind::NoTransaction);
    assert_eq!(kind(Context::new().connection().map(drop)), ErrorKind::NoTransaction);
    assert_eq!(site.count("outbox").await, 0);
}

async fn the_transaction_of_another_backend_is_refused(site: &Site) {
    let memory = MemoryRepository::new();
    let cx = memory.begin().await.expect("begin");
    assert_eq!(kind(site.outbox.enqueue(&cx, Draft::new("t", "")).await), ErrorKind::ForeignTransaction);
    let ours = SeaOrm::new(&site.db).begin().await.expect("begin");
    assert_eq!(kind(memory.enqueue(&ours, vec![Draft::new("t", "")]).await), ErrorKind::ForeignTransaction);
    assert_eq!(site.count("outbox").await, 0);
}

async fn the_transaction_of_another_database_system_is_refused(site: &Site) {
    let file = Site::sqlite().await;
    let cx = SeaOrm::new(&file.db).begin().await.expect("begin");
    assert_eq!(kind(site.outbox.enqueue(&cx, Draft::new("t", "")).await), ErrorKind::ForeignTransaction);
    let transaction = site.db.begin().await.expect("begin");
    let drafts = [Draft::new("t", "")];
    assert_eq!(kind(file.outbox.enqueue_in(&transaction, drafts).await), ErrorKind::ForeignTransaction);
}

async fn the_context_is_the_current_one_while_run_runs(site: &Site) {
    transactor(&site.db)
        .run(async |_| {
            place(site, &Context::current()?, "a").await?;
            let spawned = tokio::spawn(async { Context::current().map(drop) }).await.expect("joined");
            assert_eq!(kind(spawned), ErrorKind::NoTransaction, "a spawned task is on its own");
            Ok::<_, Error>(())
        })
        .await
        .expect("committed");
    assert_eq!(kind(Context::current().map(drop)), ErrorKind::NoTransaction);
    assert_eq!(placed(site).await, (1, 1));
}

async fn a_failed_savepoint_leaves_the_outer_transaction_fine(site: &Site) {
    transactor(&site.db)
        .run(async |cx| {
            place(site, cx, "outer").await?;
            let inner: Result<()> = cx
                .savepoint(async |cx| {
                    place(site, cx, "inner").await?;
                    let broken = cx.connection()?.execute_unprepared("INSERT INTO nowhere VALUES (1)").await;
                    Err(Error::new(ErrorKind::Other, "inner").with_source(broken.expect_err("broken")))
                })
                .await;
            assert_eq!(inner.expect_err("the closure's error").operation(), "inner");
            cx.savepoint(async |cx| place(site, cx, "second").await).await
        })
        .await
        .expect("committed");
    assert_eq!(placed(site).await, (2, 2));
    assert_eq!(site.count("business WHERE name = 'inner'").await, 0);
}

async fn a_failure_swallowed_in_a_savepoint_dooms_the_savepoint_only(site: &Site) {
    transactor(&site.db)
        .run(async |cx| {
            place(site, cx, "outer").await?;
            let inner = cx
                .savepoint(async |cx| {
                    place(site, cx, "inner").await?;
                    let _ = cx.connection()?.execute_unprepared("INSERT INTO nowhere VALUES (1)").await;
                    Ok::<_, Error>(())
                })
                .await;
            assert_eq!(kind(inner), ErrorKind::TransactionDoomed);
            place(site, cx, "later").await
        })
        .await
        .expect("committed");
    assert_eq!(placed(site).await, (2, 2));
}

async fn savepoints_nest(site: &Site) {
    transactor(&site.db)
        .run(async |cx| {
            cx.savepoint(async |cx| {
                place(site, cx, "one").await?;
                cx.savepoint(async |_| place(site, &Context::current()?, "two").await).await?;
                let undone: Result<()> = cx
                    .savepoint(async |cx| {
                        place(site, cx, "three").await?;
                        Err(Error::new(ErrorKind::Other, "undo"))
                    })
                    .await;
                assert!(undone.is_err());
                Ok::<_, Error>(())
            })
            .await
        })
        .await
        .expect("committed");
    assert_eq!(placed(site).await, (2, 2));
}

async fn no_statement_slips_past_an_open_savepoint(site: &Site) {
    transactor(&site.db)
        .run(async |cx| {
            let kept = cx.connection()?;
            cx.savepoint(async |_| {
                assert_eq!(kind(place(site, cx, "outer").await), ErrorKind::TransactionDoomed);
                let refused = kept.execute_unprepared(&site.business("kept")).await;
                assert!(refused.expect_err("refused").to_string().contains("only roll back"));
                Ok::<_, Error>(())
            })
            .await?;
            place(site, cx, "after").await
        })
        .await
        .expect("nothing was sent, so nothing is doomed");
    assert_eq!(placed(site).await, (1, 1));
}

async fn a_savepoint_whose_context_escapes_dooms_the_whole(site: &Site) {
    let mut kept = None;
    let result = transactor(&site.db)
        .run(async |cx| {
            place(site, cx, "outer").await?;
            let inner = cx
                .savepoint(async |cx| {
                    kept = Some(cx.clone());
                    place(site, cx, "inner").await
                })
                .await;
            assert_eq!(kind(inner), ErrorKind::TransactionEscaped);
            kept = None;
            Ok::<_, Error>(())
        })
        .await;
    assert_eq!(kind(result), ErrorKind::TransactionDoomed);
    assert_eq!(placed(site).await, (0, 0));
}

async fn a_transactor_of_the_table_itself_works_alike(site: &Site) {
    let tx = Transactor::over(site.outbox.clone());
    tx.run(async |cx| place(site, cx, "a").await).await.expect("committed");
    let tx = Transactor::over(site.inbox.clone());
    tx.run(async |cx| place(site, cx, "b").await).await.expect("committed");
    assert_eq!(placed(site).await, (2, 2));
}

async fn enqueue_in_shares_the_fate_of_the_callers_transaction(site: &Site) {
    for commit in [false, true] {
        let transaction = site.db.begin().await.expect("begin");
        transaction.execute_unprepared(&site.business("a")).await.expect("write");
        site.outbox.enqueue_in(&transaction, [Draft::new("t", "")]).await.expect("enqueue");
        let ended = if commit { transaction.commit().await } else { transaction.rollback().await };
        ended.expect("ended");
        assert_eq!(placed(site).await, (i64::from(commit), i64::from(commit)));
    }
}

/// As documented: above 1,000 drafts it is several statements, and nobody rolls back those before the one that fails.
async fn a_large_autocommit_is_stored_in_parts(site: &Site) {
    let outbox = site.sql_name("outbox");
    site.execute(&format!(
        "CREATE TRIGGER refuse BEFORE INSERT ON {outbox} WHEN NEW.topic = 'refused' BEGIN SELECT RAISE(ABORT, 'no'); END"
    ))
    .await;
    let drafts = |n, last| {
        let mut drafts: Vec<_> = (1..n).map(|_| Draft::new("t", "")).collect();
        drafts.push(Draft::new(last, ""));
        drafts
    };
    site.outbox.enqueue_autocommit(drafts(1_000, "refused")).await.expect_err("refused");
    assert_eq!(site.count("outbox").await, 0, "one statement");
    site.outbox.enqueue_autocommit(drafts(1_001, "refused")).await.expect_err("refused");
    assert_eq!(site.count("outbox").await, 1_000, "two statements");
}

on_each! {
    on_postgres { the_transaction_of_another_database_system_is_refused, a_failure_swallowed_in_a_savepoint_dooms_the_savepoint_only },
    on_mysql { the_transaction_of_another_database_system_is_refused },
    on_sqlite { a_large_autocommit_is_stored_in_parts } => {
        run_commits_on_ok,
        run_rolls_back_on_an_error,
        run_rolls_back_on_a_panic,
        run_rolls_back_when_it_is_dropped,
        a_clone_that_escapes_rolls_back_and_says_so,
        a_context_without_transaction_commits_nothing,
        the_transaction_of_another_backend_is_refused,
        the_context_is_the_current_one_while_run_runs,
        a_failed_savepoint_leaves_the_outer_transaction_fine,
        savepoints_nest,
        no_statement_slips_past_an_open_savepoint,
        a_savepoint_whose_context_escapes_dooms_the_whole,
        a_transactor_of_the_table_itself_works_alike,
        enqueue_in_shares_the_fate_of_the_callers_transaction,
    }
}
