//! Each trap of the plain library, and that the transaction of a context does not fall into it.

use std::collections::BTreeSet;

use outbox_core::{Context, Draft, Error, ErrorKind, Result, Transactions};
use outbox_sea_orm::{SeaOrm, SeaOrmContext, transactor};
use sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};

use super::{kind, place, placed, write};
use crate::support::{Pool, Site, cancel_at, eventually, on_mysql, on_postgres, on_sqlite};

const BROKEN: &str = "INSERT INTO nowhere VALUES (1)";
/// How often a future is dropped at each of its awaits: an answer that is there already is no await.
const ROUNDS: usize = 12;
/// The plain library falls into its traps in most rounds; this many would be a sign that it is cured.
const MAX_ROUNDS: usize = 200;

async fn plain_reports_a_commit_that_was_a_rollback(site: &Site) {
    let transaction = site.db.begin().await.expect("begin");
    transaction.execute_unprepared(&site.business("a")).await.expect("write");
    let _ = transaction.execute_unprepared(BROKEN).await;
    transaction.commit().await.expect("the plain library says that it committed");
    assert_eq!(site.count("business").await, 0, "and the row is not there");
}

async fn a_swallowed_failure_fails_the_commit(site: &Site) {
    let result = transactor(&site.db)
        .run(async |cx| {
            place(site, cx, "a").await?;
            let _ = cx.connection()?.execute_unprepared(BROKEN).await;
            Ok::<_, Error>(())
        })
        .await;
    assert_eq!(kind(result), ErrorKind::TransactionDoomed);
    assert_eq!(placed(site).await, (0, 0));
}

async fn a_failure_that_aborts_nothing_fails_nothing(site: &Site) {
    let result = transactor(&site.db)
        .run(async |cx| {
            place(site, cx, "a").await?;
            let _ = cx.connection()?.execute_unprepared(BROKEN).await;
            Ok::<_, Error>(())
        })
        .await;
    result.expect("SQLite and MySQL go on after a failed statement");
    assert_eq!(placed(site).await, (1, 1));
}

async fn plain_loses_what_stood_before_a_cancelled_savepoint(site: &Site) {
    for round in 0..MAX_ROUNDS {
        for k in 1..10 {
            let (earlier, later) = (format!("earlier {round} {k}"), format!("later {round} {k}"));
            let transaction = site.db.begin().await.expect("begin");
            transaction.execute_unprepared(&site.business(&earlier)).await.expect("write");
            if cancel_at(k, transaction.begin()).await.is_some() {
                break;
            }
            transaction.execute_unprepared(&site.business(&later)).await.expect("write");
            transaction.commit().await.expect("the plain library says that it committed");
            let names: Vec<String> =
                site.values(&format!("SELECT name FROM {}", site.sql_name("business"))).await;
            if names.contains(&later) && !names.contains(&earlier) {
                return;
            }
        }
    }
    panic!("the trap is gone: is the savepoint of our own still needed?");
}

async fn a_cancelled_savepoint_dooms_the_transaction(site: &Site) {
    let mut n_cancelled = 0;
    let mut n_committed = 0;
    for round in 0..MAX_ROUNDS {
        if round >= ROUNDS && n_cancelled > 0 {
            break;
        }
        for k in 1.. {
            let cx = SeaOrm::new(&site.db).begin().await.expect("begin");
            place(site, &cx, "earlier").await.expect("place");
            let savepoint = cx.savepoint(async |cx| place(site, cx, "inner").await);
            if let Some(released) = cancel_at(k, savepoint).await {
                released.expect("released");
                SeaOrm::new(&site.db).commit(cx).await.expect("committed");
                n_committed += 2;
                break;
            }
            n_cancelled += 1;
            assert_eq!(kind(write(&cx, &site.business("later")).await), ErrorKind::TransactionDoomed);
            assert_eq!(kind(SeaOrm::new(&site.db).commit(cx).await), ErrorKind::TransactionDoomed, "k = {k}");
            assert_eq!(placed(site).await, (n_committed, n_committed), "k = {k}");
        }
    }
    assert!(n_cancelled > 0, "nothing was cancelled");
    eventually("no transaction is left open", async || !site.has_idle_transaction().await).await;
}

async fn a_doomed_savepoint_takes_only_itself_along(site: &Site) {
    let committed = transactor(&site.db)
        .run(async |cx| {
            place(site, cx, "outer").await?;
            let doomed = async |cx: &Context| {
                place(site, cx, "inner").await?;
                cx.doom();
                Ok(())
            };
            assert_eq!(kind(cx.savepoint(doomed).await), ErrorKind::TransactionDoomed);
            Ok::<_, Error>(())
        })
        .await;
    committed.expect("committed");
    assert_eq!(placed(site).await, (1, 1));
}

/// Lets the server end the transaction on `cx` because it deadlocks with another one.
async fn deadlock(site: &Site, cx: &Context) {
    let business = site.sql_name("business");
    let update = |name: &str| format!("UPDATE {business} SET name = '{name}' WHERE name = '{name}'");
    let [one, other] = ["one", "other"].map(update);
    let rival = site.db.begin().await.expect("begin");
    // the server ends the transaction that has changed less
    rival.execute_unprepared(&site.business("weight")).await.expect("write");
    rival.execute_unprepared(&one).await.expect("lock");
    let connection = cx.connection().expect("open");
    connection.execute_unprepared(&other).await.expect("lock");
    let (lost, won) = tokio::join!(connection.execute_unprepared(&one), rival.execute_unprepared(&other));
    won.expect("the other one goes on");
    lost.expect_err("ended");
    rival.rollback().await.expect("rollback");
}

async fn prepare_deadlock(site: &Site) {
    let business = site.sql_name("business");
    site.execute(&format!("ALTER TABLE {business} ADD KEY (name(32))")).await;
    for name in ["one", "other"] {
        site.execute(&site.business(name)).await;
    }
}

async fn a_swallowed_deadlock_fails_the_commit(site: &Site) {
    prepare_deadlock(site).await;
    let result = transactor(&site.db)
        .run(async |cx| {
            deadlock(site, cx).await;
            // it would be committed by itself
            assert_eq!(kind(place(site, cx, "later").await), ErrorKind::TransactionDoomed);
            Ok::<_, Error>(())
        })
        .await;
    assert_eq!(kind(result), ErrorKind::TransactionDoomed);
    assert_eq!(placed(site).await, (2, 0));
}

async fn a_deadlock_in_a_savepoint_dooms_the_whole(site: &Site) {
    prepare_deadlock(site).await;
    let result = transactor(&site.db)
        .run(async |cx| {
            let inner: Result<()> = cx
                .savepoint(async |cx| {
                    deadlock(site, cx).await;
                    Err(Error::new(ErrorKind::Other, "of the closure"))
                })
                .await;
            assert_eq!(inner.expect_err("failed").operation(), "of the closure");
            assert_eq!(kind(place(site, cx, "later").await), ErrorKind::TransactionDoomed);
            Ok::<_, Error>(())
        })
        .await;
    assert_eq!(kind(result), ErrorKind::TransactionDoomed);
    assert_eq!(placed(site).await, (2, 0));
}

/// Rows that were acknowledged to the caller.
#[derive(Default)]
struct Acknowledged {
    names: BTreeSet<String>,
    n_cancelled: usize,
}

impl Acknowledged {
    /// Four rows, each by itself, on every connection of the pool.
    async fn write(&mut self, site: &Site, pool: &DatabaseConnection, round: usize, k: usize) {
        for n in 0..4 {
            let name = format!("acknowledged {round} {k} {n}");
            if pool.execute_unprepared(&site.business(&name)).await.is_ok() {
                self.names.insert(name);
            }
        }
    }

    /// Those that are not there, as another session sees it.
    async fn missing(&self, site: &Site) -> usize {
        let names: Vec<String> =
            site.values(&format!("SELECT name FROM {}", site.sql_name("business"))).await;
        let found = names.into_iter().collect();
        self.names.difference(&found).count()
    }
}

async fn plain_loses_acknowledged_writes_after_a_cancelled_begin(site: &Site) {
    let mut acknowledged = Acknowledged::default();
    for round in 0..MAX_ROUNDS {
        let pool = site.connect(Pool::of(2)).await;
        for k in 1..20 {
            let begin = async {
                let transaction = pool.begin().await.expect("begin");
                transaction.execute_unprepared(&site.business("inside")).await.expect("write");
                transaction.commit().await.expect("commit");
            };
            if cancel_at(k, begin).await.is_some() {
                break;
            }
            acknowledged.n_cancelled += 1;
            acknowledged.write(site, &pool, round, k).await;
        }
        if round >= 10 && acknowledged.missing(site).await > 0 {
            return;
        }
    }
    panic!(
        "the trap is gone, {} were cancelled: is the spawned begin still needed?",
        acknowledged.n_cancelled
    );
}

async fn nothing_acknowledged_is_lost(site: &Site, savepoint: bool) {
    let mut acknowledged = Acknowledged::default();
    let mut n_finished = 0;
    for round in 0..MAX_ROUNDS {
        if round >= ROUNDS && acknowledged.n_cancelled >= ROUNDS {
            break;
        }
        let pool = site.connect(Pool::of(2)).await;
        for k in 1.. {
            let name = format!("inside {round} {k}");
            if let Some(result) = cancel_at(k, run(site, &pool, &name, savepoint)).await {
                result.expect("committed");
                n_finished += 1;
                break;
            }
            acknowledged.n_cancelled += 1;
            acknowledged.write(site, &pool, round, k).await;
        }
    }
    assert!(acknowledged.n_cancelled >= ROUNDS, "only {} were cancelled", acknowledged.n_cancelled);
    assert_eq!(acknowledged.missing(site).await, 0, "of {}", acknowledged.names.len());
    eventually("no transaction is left open", async || !site.has_idle_transaction().await).await;
    assert_eq!(site.value::<i64>(&half_transactions(site)).await, 0);
    assert!(site.count("outbox").await >= n_finished);
}

/// A business row and a message, in a savepoint or not.
async fn run(site: &Site, pool: &DatabaseConnection, name: &str, savepoint: bool) -> Result<()> {
    transactor(pool)
        .run(async |cx| {
            write(cx, &site.business(name)).await?;
            let draft = Draft::new("inside", name.to_owned());
            if savepoint {
                cx.savepoint(async |cx| site.outbox.enqueue(cx, draft).await.map(drop)).await
            } else {
                site.outbox.enqueue(cx, draft).await.map(drop)
            }
        })
        .await
}

/// Counts business rows without a message, and messages without a business row.
fn half_transactions(site: &Site) -> String {
    let (business, outbox) = (site.sql_name("business"), site.sql_name("outbox"));
    format!(
        "SELECT (SELECT count(*) FROM {business} WHERE name LIKE 'inside %') \
              - (SELECT count(*) FROM {outbox} WHERE topic = 'inside')"
    )
}

async fn a_cancelled_run_loses_nothing_that_was_acknowledged(site: &Site) {
    nothing_acknowledged_is_lost(site, false).await;
}

async fn a_cancelled_run_with_a_savepoint_loses_nothing_either(site: &Site) {
    nothing_acknowledged_is_lost(site, true).await;
}

on_postgres! {
    plain_reports_a_commit_that_was_a_rollback,
    a_swallowed_failure_fails_the_commit,
    plain_loses_what_stood_before_a_cancelled_savepoint,
    a_cancelled_savepoint_dooms_the_transaction,
    a_doomed_savepoint_takes_only_itself_along,
    plain_loses_acknowledged_writes_after_a_cancelled_begin,
    a_cancelled_run_loses_nothing_that_was_acknowledged,
    a_cancelled_run_with_a_savepoint_loses_nothing_either,
}

on_mysql! {
    a_failure_that_aborts_nothing_fails_nothing,
    a_swallowed_deadlock_fails_the_commit,
    a_deadlock_in_a_savepoint_dooms_the_whole,
    a_cancelled_savepoint_dooms_the_transaction,
    a_cancelled_run_loses_nothing_that_was_acknowledged,
    a_cancelled_run_with_a_savepoint_loses_nothing_either,
}

on_sqlite! {
    a_failure_that_aborts_nothing_fails_nothing,
    a_cancelled_savepoint_dooms_the_transaction,
    a_doomed_savepoint_takes_only_itself_along,
    a_cancelled_run_loses_nothing_that_was_acknowledged,
    a_cancelled_run_with_a_savepoint_loses_nothing_either,
}
