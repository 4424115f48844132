//! Dispatchers on a fed group.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outbox_core::{MessageId, Operations, Result};
use outbox_dispatcher::{
    CancellationToken, Dispatcher, HandlerError, HandlerResult, Message, Report, Router,
};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::{Fed, LEASE, assert_empty, eventually, on, on_a_feed};
use crate::faults::config;

const DELAY: Duration = Duration::from_secs(1);

/// When each message was handled successfully.
#[derive(Default)]
struct Handled(Mutex<BTreeMap<MessageId, Vec<Instant>>>);

impl Handled {
    fn n(&self) -> usize {
        self.0.lock().expect("not poisoned").len()
    }

    async fn handle(&self, message: &Message) -> HandlerResult {
        // long enough for a dispatcher to be stopped in the middle of a transaction
        sleep(Duration::from_millis(5)).await;
        if message.topic == "fails" && message.attempt == 1 {
            return Err(HandlerError::from("once"));
        }
        self.0.lock().expect("not poisoned").entry(message.id).or_default().push(Instant::now());
        Ok(())
    }
}

/// A dispatcher with what a process of its own would know.
struct Running {
    token: CancellationToken,
    task: JoinHandle<Result<Report>>,
}

impl Running {
    fn start(fed: &Fed, handled: &Arc<Handled>) -> Self {
        let router = ["a", "fails", "late"].into_iter().fold(Router::new(), |router, topic| {
            let handled = Arc::clone(handled);
            router.on(topic, async move |message: Message| handled.handle(&message).await)
        });
        let dispatcher =
            Dispatcher::new(fed.another(), router).with_config(config().with_lease(LEASE)).expect("config");
        let token = CancellationToken::new();
        Self { task: tokio::spawn(dispatcher.run(token.clone())), token }
    }

    async fn stop(self) -> Report {
        self.token.cancel();
        self.task.await.expect("no panic").expect("a report")
    }
}

on_a_feed! { "dispatched":
    async fn second_dispatcher_goes_on_where_the_first_was_stopped(fed: &Fed) {
        let handled = Arc::<Handled>::default();
        let first = Running::start(fed, &handled);
        let started = Instant::now();
        let mut ids = fed.enqueue([on("late").delay(DELAY), on("fails")]).await;
        ids.extend(fed.enqueue((0..2_000).map(|_| on("a"))).await);
        eventually("the first is at work", async || (handled.n() > 50).then_some(())).await;
        let second = Running::start(fed, &handled);
        let report = first.stop().await;
        assert!(report.n_done > 50 && report.n_done < 2_000, "{report:?}");
        for _ in 0..30 {
            ids.extend(fed.enqueue((0..5).map(|_| on("a"))).await);
        }
        eventually("everything is handled", async || (handled.n() == ids.len()).then_some(())).await;
        eventually("everything is settled", async || {
            fed.group.stats().await.expect("stats").topics.is_empty().then_some(())
        })
        .await;
        assert!(fed.of_slot::<bool>("active").await, "the second reads the slot");
        assert_eq!(report.n_done + second.stop().await.n_done, ids.len() as u64);
        assert_empty(&fed.group).await;
        assert_eq!((fed.count("log_ranges").await, fed.count("log_group_billing").await), (0, 0));
        let handled = handled.0.lock().expect("not poisoned");
        assert!(handled.values().all(|times| times.len() == 1), "twice: {handled:?}");
        assert!(ids.iter().all(|id| handled.contains_key(id)), "lost");
        assert!(handled[&ids[0]][0] - started >= DELAY, "it was delayed");
    }
}
