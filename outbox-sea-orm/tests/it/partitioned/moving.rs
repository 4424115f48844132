//! Rows that leave for another partition while somebody else is about to change them.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Mutex;

use futures_util::future::join_all;
use outbox_core::{Claimer, Lease, Result, Settled, Settlement, Unblocked};
use sea_orm::{ConnectionTrait, TransactionTrait};
use tokio::time::timeout;

use super::*;
use crate::support::PATIENCE;

/// Lets `call` wait for the row of a transaction that then moves it, and returns what it answers.
async fn while_a_row_moves<T: Send + 'static>(
    site: &Site,
    change: &str,
    call: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let mover = site.db.begin().await.expect("begin");
    let sql = format!("UPDATE {} SET {change}", site.sql_name("parts"));
    mover.execute_unprepared(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let call = tokio::spawn(call);
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '{}%' AND wait_event_type = 'Lock'",
        site.schema()
    );
    eventually("it waits", async || site.value::<i64>(&waiting).await > 0).await;
    mover.commit().await.expect("commit");
    timeout(PATIENCE, call).await.expect("in time").expect("joined")
}

/// A claimed message, alone in the table.
async fn claimed(site: &Site, table: &OutboxTable) -> Lease {
    site.execute(&format!("DELETE FROM {}", site.sql_name("parts"))).await;
    enqueue(table, 1).await;
    claim(table, 1).await[0].lease
}

const DONE: &str = "state = 3, done_at = now(), lease = NULL";

async fn a_settlement_of_a_row_that_moves_is_lost_and_no_error(site: &Site) {
    let table = parts(site, PartitionInterval::Day).await;
    let outcomes = [
        Outcome::Done,
        Outcome::Release,
        Outcome::Retry { after: HOUR, error: "no".into() },
        Outcome::Dead { error: "no".into() },
    ];
    for outcome in outcomes {
        let settlement = Settlement::new(claimed(site, &table).await, outcome);
        let table = table.clone();
        let call = async move { table.settle(vec![settlement]).await };
        assert_eq!(while_a_row_moves(site, DONE, call).await.expect("settle"), [Settled::LeaseLost]);
    }
    let lease = claimed(site, &table).await;
    let extended = {
        let table = table.clone();
        while_a_row_moves(site, DONE, async move { table.extend(vec![lease], HOUR).await }).await
    };
    assert_eq!(extended.expect("extend"), [Settled::LeaseLost]);
}

/// One call settles many: what has not moved is settled.
async fn the_rest_of_a_batch_is_settled(site: &Site) {
    let table = parts(site, PartitionInterval::Day).await;
    enqueue(&table, 3).await;
    let leases: Vec<Lease> = claim(&table, 3).await.iter().map(|claimed| claimed.lease).collect();
    let change = format!(
        "{DONE} WHERE lease = '{}' AND seq = (SELECT min(seq) FROM {})",
        leases[0].token,
        site.sql_name("parts")
    );
    let settlements = leases.iter().map(|lease| Settlement::new(*lease, Outcome::Done)).collect();
    let call = {
        let table = table.clone();
        async move { table.settle(settlements).await }
    };
    let settled = while_a_row_moves(site, &change, call).await.expect("settle");
    assert_eq!(settled, [Settled::LeaseLost, Settled::Applied, Settled::Applied]);
    assert_eq!(n_done(&table).await, 3);
}

async fn an_operator_who_comes_second_finds_nothing(site: &Site) {
    let table = parts(site, PartitionInterval::Day).await;
    let redriven = "state = 0, dead_at = NULL";
    let id = end(&table, 1, Outcome::Dead { error: "no".into() }).await[0];
    let own = table.clone();
    let answer = while_a_row_moves(site, redriven, async move { own.redrive(vec![id]).await }).await;
    assert_eq!(answer.expect("redrive"), [Moved::NotDead]);
    site.execute(&format!("UPDATE {} SET state = 2, dead_at = now()", site.sql_name("parts"))).await;
    let own = table.clone();
    let answer = while_a_row_moves(site, redriven, async move { own.discard(vec![id]).await }).await;
    assert_eq!(answer.expect("discard"), [Moved::NotDead]);
    assert_eq!(claim(&table, 10).await.len(), 1, "it was redriven");
}

async fn an_operator_who_comes_second_frees_no_key(site: &Site) {
    let table = ordered_parts(site).await;
    let head = table.enqueue_autocommit(Draft::new("t", "").key("k")).await.expect("enqueue")[0];
    for action in ["skip", "release"] {
        site.execute(&format!("UPDATE {} SET state = 2, dead_at = now()", site.sql_name("parts"))).await;
        let own = table.clone();
        let call = async move {
            match action {
                "skip" => own.skip_head("k".into(), head).await,
                _ => own.release_head("k".into(), head).await,
            }
        };
        let answer = while_a_row_moves(site, "state = 0, dead_at = NULL", call).await;
        assert_eq!(answer.expect(action), Unblocked::NotBlocking);
    }
    assert_eq!(claim(&table, 10).await.len(), 1, "it was redriven");
}

/// Claims skip what others hold, and what they see may be settled by the time they lock it.
async fn claims_and_settlements_run_side_by_side(site: &Site) {
    const N: usize = 6_000;
    let table = parts(site, PartitionInterval::Day).await;
    enqueue(&table, N).await;
    let delivered = Mutex::new(BTreeMap::<MessageId, usize>::new());
    let dispatch = async |limit: usize, outcome: Outcome| {
        let claimer = Claimer::new();
        let mut n_empty = 0;
        while n_empty < 5 {
            let request = ClaimRequest::new(limit, LEASE).with_max_attempts(3).with_claimer(claimer.clone());
            let claim = table.claim(request).await.expect("claim");
            n_empty = if claim.is_empty() { n_empty + 1 } else { 0 };
            let outcomes = [outcome.clone(), Outcome::Done, Outcome::Done];
            let settlements = claim.messages.iter().zip(outcomes.iter().cycle());
            let settlements =
                settlements.map(|(claimed, outcome)| Settlement::new(claimed.lease, outcome.clone()));
            let settled = table.settle(settlements.collect()).await.expect("settle");
            assert!(settled.iter().all(|settled| *settled == Settled::Applied));
            let mut delivered = delivered.lock().expect("lock");
            claim.messages.iter().for_each(|claimed| *delivered.entry(claimed.message.id).or_default() += 1);
        }
    };
    let failing = Outcome::Retry { after: Duration::ZERO, error: "no".into() };
    let prune = async || {
        for _ in 0..40 {
            table.redrive_matching(DeadLetterFilter::default(), 100).await.expect("redrive");
            table.prune(outbox_core::Prune::done(Duration::ZERO).with_limit(50)).await.expect("prune");
        }
    };
    let dead = Outcome::Dead { error: "no".into() };
    let loops = [(1, Outcome::Done), (7, failing.clone()), (100, dead), (300, Outcome::Done), (300, failing)];
    tokio::join!(join_all(loops.map(|(limit, outcome)| dispatch(limit, outcome))), prune());
    // what was redriven at last
    dispatch(1_000, Outcome::Done).await;
    let total = table.stats().await.expect("stats").total();
    assert_eq!((total.n_pending, total.n_claimed), (0, 0));
    assert_eq!(delivered.lock().expect("lock").len(), N);
}

on_postgres! {
    a_settlement_of_a_row_that_moves_is_lost_and_no_error, the_rest_of_a_batch_is_settled,
    an_operator_who_comes_second_finds_nothing, an_operator_who_comes_second_frees_no_key, claims_and_settlements_run_side_by_side
}
