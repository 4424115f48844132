//! Processes that are killed and paused while they read the slot.

use std::collections::HashSet;
use std::process::Stdio;

use outbox_core::{MessageId, Outcome};
use sea_orm::TransactionTrait;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

use super::{Fed, claim, claim_some, eventually, on, on_a_feed, settle};
use crate::support::{child, child_role};

/// Another process that claims, with one line for each of its steps.
struct Worker {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Runs the test `name`, which calls [`work`], with so many messages to a claim.
    fn start(fed: &Fed, name: &str, batch: usize) -> Self {
        let role = format!("{} {batch} {}", fed.schema, fed.url);
        let mut process =
            child(name, &role, &fed.url).stdout(Stdio::piped()).stdin(Stdio::piped()).spawn().expect("start");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        Self { process, lines }
    }

    /// Waits for a line that begins with this word, and returns the rest.
    async fn wait_for(&mut self, word: &str) -> String {
        loop {
            let line = self.lines.next_line().await.expect("read").expect("it runs");
            if let Some(rest) = line.strip_prefix(word) {
                return rest.trim().to_owned();
            }
        }
    }

    async fn ids(&mut self, word: &str) -> Vec<MessageId> {
        let line = self.wait_for(word).await;
        line.split_whitespace().map(|id| id.parse().expect("an id")).collect()
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

/// What a worker does: claims, says what, settles, says so, and begins again.
async fn work(role: &str) {
    let [schema, batch, url] = role.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{role}") };
    let fed = Fed::at(url, schema).await;
    let batch = batch.parse().expect("a number");
    loop {
        let claimed = claim(&fed.group, batch).await;
        if claimed.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            continue;
        }
        let ids: Vec<String> = claimed.iter().map(|claimed| claimed.message.id.to_string()).collect();
        println!("\nclaimed {}", ids.join(" "));
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        settle(&fed.group, &claimed, Outcome::Done).await;
        println!("\nsettled {}", ids.join(" "));
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
}

/// Runs `case` on a fed group, or as its worker.
fn run(name: &'static str, case: for<'a> fn(&'a Fed) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>) {
    match child_role() {
        Some(role) => tokio::runtime::Runtime::new().expect("a runtime").block_on(work(&role)),
        None => outbox_testkit::Case::<Fed>::new(name, case).run(),
    }
}

#[test]
fn killed_at_every_batch_boundary_loses_nothing() {
    const NAME: &str = "wal::crashes::killed_at_every_batch_boundary_loses_nothing";
    async fn case(fed: &Fed) {
        let txn = fed.db.begin().await.expect("begin");
        let drafts: Vec<_> = (0..5_000).map(|_| on("a")).collect();
        let ids = fed.log.enqueue_in(&txn, drafts).await.expect("enqueue");
        txn.commit().await.expect("commit");
        let (mut settled, mut lost) = (Vec::new(), Vec::new());
        for boundary in 0..5 {
            let mut worker = Worker::start(fed, NAME, 1_000);
            let claimed = worker.ids("claimed").await;
            assert!(!claimed.is_empty(), "boundary {boundary}");
            if boundary % 2 == 0 {
                lost.extend(claimed);
            } else {
                settled.extend(worker.ids("settled").await);
            }
            worker.kill().await;
        }
        fed.execute(&format!("UPDATE {}.log_ranges SET leased_until = now() - interval '1 s'", fed.schema))
            .await;
        let n_left = ids.len() - settled.len();
        let mut found = HashSet::new();
        eventually("everything is there", async || {
            let claimed = claim(&fed.group, 1_000).await;
            settle(&fed.group, &claimed, Outcome::Done).await;
            for claimed in claimed {
                assert!(found.insert(claimed.message.id), "twice");
            }
            (found.len() == n_left).then_some(())
        })
        .await;
        assert!(lost.iter().all(|id| found.contains(id)), "what was claimed and not settled comes again");
        assert!(settled.iter().all(|id| found.insert(*id)), "what was settled does not");
        assert_eq!(found, ids.into_iter().collect());
    }
    run(NAME, |fed| Box::pin(case(fed)));
}

#[test]
fn paused_process_takes_nothing_that_others_have_taken() {
    const NAME: &str = "wal::crashes::paused_process_takes_nothing_that_others_have_taken";
    async fn case(fed: &Fed) {
        let ids = fed.enqueue((0..100).map(|_| on("a"))).await;
        let mut worker = Worker::start(fed, NAME, 10);
        let first = worker.ids("claimed").await;
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
        assert_eq!(worker.ids("settled").await, first, "its lease still counts");
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
        let mut worker = Worker::start(fed, NAME, 1);
        worker.wait_for("settled").await;
        let before = resident(&worker);
        // compressed where it is stored, and not where it is sent
        fed.execute(&format!(
            "INSERT INTO {}.log (id, topic, payload) SELECT gen_random_uuid(), 'a', convert_to(repeat('x', 20000), 'UTF8')
               FROM generate_series(1, 15000)",
            fed.schema
        ))
        .await;
        for _ in 0..5 {
            worker.wait_for("settled").await;
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
