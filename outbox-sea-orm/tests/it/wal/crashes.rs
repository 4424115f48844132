//! Processes that are killed and paused while they read the slot.

use std::collections::HashSet;
use std::process::Stdio;
use std::time::Duration;

use outbox_core::{MessageId, Outcome};
use sea_orm::TransactionTrait;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::sleep;

use super::{Fed, assert_empty, claim, claim_some, eventually, on, on_a_feed, settle};
use crate::support::{child, child_role};

/// Another process that claims and settles as it is told.
struct Worker {
    process: Child,
    orders: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Runs the test `name`, which calls [`work`].
    fn start(fed: &Fed, name: &str) -> Self {
        let role = format!("{} {}", fed.schema, fed.url);
        let mut process =
            child(name, &role, &fed.url).stdout(Stdio::piped()).stdin(Stdio::piped()).spawn().expect("start");
        let orders = process.stdin.take().expect("piped");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        Self { process, orders, lines }
    }

    /// Tells it something and returns the messages of its answer.
    async fn ask(&mut self, order: &str) -> Vec<MessageId> {
        self.orders.write_all(format!("{order}\n").as_bytes()).await.expect("it runs");
        loop {
            let line = self.lines.next_line().await.expect("read").expect("it runs");
            if let Some(ids) = line.strip_prefix("messages ") {
                return ids.split_whitespace().map(|id| id.parse().expect("an id")).collect();
            }
        }
    }

    /// Claims so many, by as many claims as that takes.
    async fn claim(&mut self, n: usize) -> Vec<MessageId> {
        self.ask(&n.to_string()).await
    }

    /// Settles what it has claimed.
    async fn settle(&mut self) -> Vec<MessageId> {
        self.ask("settle").await
    }

    async fn signal(&self, signal: &str) {
        let pid = self.process.id().expect("it runs").to_string();
        let sent = tokio::process::Command::new("kill").args([signal, &pid]).status().await;
        assert!(sent.expect("kill").success());
    }

    async fn kill(mut self) {
        self.process.kill().await.expect("kill");
    }
}

/// What a worker does, until nobody tells it anything any more.
async fn work(role: &str) {
    let (schema, url) = role.split_once(' ').expect("a schema and a URL");
    let fed = Fed::at(url, schema).await;
    let mut held = Vec::new();
    for order in std::io::stdin().lines() {
        let done = match order.expect("read").parse::<usize>() {
            Ok(n) => {
                let n_before = held.len();
                while held.len() < n_before + n {
                    held.extend(claim_some(&fed.group, n_before + n - held.len()).await);
                }
                held[n_before..].to_vec()
            }
            Err(_) => {
                settle(&fed.group, &held, Outcome::Done).await;
                std::mem::take(&mut held)
            }
        };
        let ids: Vec<String> = done.iter().map(|claimed| claimed.message.id.to_string()).collect();
        println!("\nmessages {}", ids.join(" "));
    }
}

/// Runs `case` on a fed group, or as its worker.
fn run(name: &'static str, case: for<'a> fn(&'a Fed) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>) {
    match child_role() {
        Some(role) => tokio::runtime::Runtime::new().expect("a runtime").block_on(work(&role)),
        None => outbox_testkit::Case::<Fed>::new(name, case).run(),
    }
}

/// Claims so many, and returns when what was confirmed in between has come to the server: no more than is claimed.
async fn claim_and_outlive_a_confirmation(fed: &Fed, worker: &mut Worker, n: usize) -> Vec<MessageId> {
    let mut claimed = worker.claim(n / 2).await;
    // the first claim after a second confirms; the server hears of it within two
    sleep(Duration::from_millis(1_100)).await;
    claimed.extend(worker.claim(n - n / 2).await);
    let heard: String = fed.value("SELECT (clock_timestamp() + interval '2 s')::text").await;
    let pid: i32 = fed.of_slot("active_pid").await;
    let has_heard = format!("SELECT reply_time > '{heard}' FROM pg_stat_replication WHERE pid = {pid}");
    eventually("the server hears of it", async || fed.value::<bool>(&has_heard).await.then_some(())).await;
    let [confirmed, fed_to] =
        [fed.of_slot::<String>("confirmed_flush_lsn::text").await, fed.of_group("fed_lsn::text").await];
    assert_eq!(confirmed, fed_to);
    claimed
}

#[test]
fn killed_at_every_batch_boundary_loses_nothing() {
    const NAME: &str = "wal::crashes::killed_at_every_batch_boundary_loses_nothing";
    const BATCH: usize = 1_000;
    async fn case(fed: &Fed) {
        let txn = fed.db.begin().await.expect("begin");
        let drafts: Vec<_> = (0..5 * BATCH).map(|_| on("a")).collect();
        let ids = fed.log.enqueue_in(&txn, drafts).await.expect("enqueue");
        txn.commit().await.expect("commit");
        let (mut settled, mut lost) = (Vec::new(), Vec::new());
        let kills = [(true, true), (false, false), (true, false), (false, true), (false, false)];
        for (boundary, (is_confirmed, is_settled)) in kills.into_iter().enumerate() {
            let mut worker = Worker::start(fed, NAME);
            let claimed = match is_confirmed {
                true => claim_and_outlive_a_confirmation(fed, &mut worker, BATCH).await,
                false => worker.claim(BATCH).await,
            };
            assert_eq!(claimed, ids[boundary * BATCH..][..BATCH], "boundary {boundary}");
            if is_settled {
                assert_eq!(worker.settle().await, claimed);
                settled.extend(claimed);
            } else {
                lost.extend(claimed);
            }
            worker.kill().await;
        }
        fed.execute(&format!("UPDATE {}.log_ranges SET leased_until = now() - interval '1 s'", fed.schema))
            .await;
        let mut found = HashSet::new();
        eventually("everything is there", async || {
            let claimed = claim(&fed.group, BATCH).await;
            settle(&fed.group, &claimed, Outcome::Done).await;
            for claimed in claimed {
                assert!(found.insert(claimed.message.id), "twice");
            }
            (found.len() >= lost.len()).then_some(())
        })
        .await;
        assert_empty(&fed.group).await;
        assert_eq!(found, lost.into_iter().collect(), "what was claimed and not settled, and nothing else");
        assert_eq!(found.len() + settled.len(), ids.len());
    }
    run(NAME, |fed| Box::pin(case(fed)));
}

#[test]
fn paused_process_takes_nothing_that_others_have_taken() {
    const NAME: &str = "wal::crashes::paused_process_takes_nothing_that_others_have_taken";
    async fn case(fed: &Fed) {
        let ids = fed.enqueue((0..100).map(|_| on("a"))).await;
        let mut worker = Worker::start(fed, NAME);
        let first = worker.claim(10).await;
        worker.signal("-STOP").await;
        let pid: i32 = fed.of_slot("active_pid").await;
        fed.execute(&format!("SELECT pg_terminate_backend({pid})")).await;
        let mut taken: HashSet<MessageId> = HashSet::new();
        for _ in 0..5 {
            let claimed = claim_some(&fed.group, 10).await;
            taken.extend(claimed.iter().map(|claimed| claimed.message.id));
            settle(&fed.group, &claimed, Outcome::Done).await;
        }
        worker.signal("-CONT").await;
        assert_eq!(worker.settle().await, first, "its lease still counts");
        let mut all: HashSet<_> = taken.iter().chain(&first).copied().collect();
        assert_eq!(all.len(), first.len() + taken.len());
        eventually("everything is there", async || {
            for claimed in claim(&fed.group, 10).await {
                assert!(all.insert(claimed.message.id), "twice");
            }
            (all.len() == ids.len()).then_some(())
        })
        .await;
        worker.kill().await;
    }
    run(NAME, |fed| Box::pin(case(fed)));
}

#[test]
fn large_transaction_does_not_fill_the_memory() {
    const NAME: &str = "wal::crashes::large_transaction_does_not_fill_the_memory";
    async fn case(fed: &Fed) {
        fed.enqueue([on("a")]).await;
        let mut worker = Worker::start(fed, NAME);
        worker.claim(1).await;
        let before = resident(&worker);
        // compressed where it is stored, and not where it is sent
        fed.execute(&format!(
            "INSERT INTO {}.log (id, topic, payload) SELECT gen_random_uuid(), 'a', convert_to(repeat('x', 1000000), 'UTF8')
               FROM generate_series(1, 300)",
            fed.schema
        ))
        .await;
        for _ in 0..5 {
            worker.claim(1).await;
            // long enough to read all of it
            sleep(Duration::from_millis(600)).await;
            let grown = resident(&worker).saturating_sub(before);
            assert!(grown < 100 * 1024, "{grown} kB more for 300 MB");
        }
        worker.kill().await;
    }
    run(NAME, |fed| Box::pin(case(fed)));
}

/// In kB.
fn resident(worker: &Worker) -> u64 {
    let pid = worker.process.id().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

on_a_feed! { "crashes":
    async fn standby_takes_over_when_the_slot_is_free(fed: &Fed) {
        let second = fed.another();
        fed.enqueue([on("a")]).await;
        claim_some(&fed.group, 10).await;
        fed.enqueue((0..3).map(|_| on("a"))).await;
        let standing = second.claim_once().await;
        assert!(standing.messages.is_empty() && standing.next_due_in.is_some(), "{standing:?}");
        let first = fed.group.clone();
        eventually("the first one has them", async || (!claim(&first, 1).await.is_empty()).then_some(())).await;
        // its handle goes on to exist; its connection is ended, and whoever is first has the slot
        let pid: i32 = fed.of_slot("active_pid").await;
        fed.execute(&format!("SELECT pg_terminate_backend({pid})")).await;
        let mut n = 0;
        eventually("the second one has the rest", async || {
            n += claim(&second, 10).await.len();
            (n == 2).then_some(())
        })
        .await;
    }
}

trait ClaimOnce {
    async fn claim_once(&self) -> outbox_core::Claim;
}

impl ClaimOnce for outbox_sea_orm::LogGroup {
    async fn claim_once(&self) -> outbox_core::Claim {
        use outbox_core::Repository;
        self.claim(outbox_core::ClaimRequest::new(10, super::LEASE)).await.expect("claim")
    }
}
