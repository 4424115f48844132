//! The wrapper changes nothing and tells everything.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use outbox_core::{
    ClaimRequest, Draft, ErrorKind, MemoryRepository, Operations, Repository, Retention, Transactor,
};
use outbox_dispatcher::{Dispatcher, Event, Instrumented, Observer};
use outbox_testkit::{Capabilities, Harness, OperationsHarness, ProcessedHarness, Skip, conformance};
use tokio::time::timeout;

use crate::support::*;

/// The reference in the wrapper.
struct Wrapped {
    memory: MemoryRepository,
    wrapped: Instrumented<MemoryRepository>,
}

impl Harness for Wrapped {
    const NAME: &'static str = "instrumented memory";
    type Repository = Instrumented<MemoryRepository>;

    async fn start() -> Result<Self, Skip> {
        let memory = MemoryRepository::new();
        Ok(Self { wrapped: Instrumented::new(memory.clone()), memory })
    }

    fn repository(&self) -> &Instrumented<MemoryRepository> {
        &self.wrapped
    }

    async fn advance(&self, by: Duration) {
        self.memory.advance(by);
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all().with_corrupt_rows(false)
    }
}

impl OperationsHarness for Wrapped {
    type Operations = Instrumented<MemoryRepository>;

    fn operations(&self) -> &Instrumented<MemoryRepository> {
        &self.wrapped
    }

    fn keeping(&self) -> Option<Instrumented<MemoryRepository>> {
        Some(Instrumented::new(self.memory.clone().with_retention(Retention::Keep)))
    }
}

impl ProcessedHarness for Wrapped {
    type Processed = Instrumented<MemoryRepository>;

    fn processed(&self) -> &Instrumented<MemoryRepository> {
        &self.wrapped
    }
}

conformance!(Wrapped: repository, operations, processed, inspect);

/// The calls and what was enqueued, as short texts.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<String>>>);

impl Observer for Calls {
    fn on(&self, event: &Event<'_>) {
        let text = match event {
            Event::Called { operation, took, end, .. } => format!("{operation} {} {took:?}", end.name()),
            Event::Enqueued { topic, n_messages, .. } => format!("{n_messages} on {topic}"),
            _ => return,
        };
        self.0.lock().expect("calls").push(text);
    }
}

impl Calls {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("calls"))
    }
}

fn wrapped(store: &Store) -> (Instrumented<Store>, Calls) {
    let calls = Calls::default();
    (Instrumented::new(store.clone()).with_observer(calls.clone()), calls)
}

fn request() -> ClaimRequest {
    ClaimRequest::new(10, seconds(30))
}

#[tokio::test(start_paused = true)]
async fn each_call_is_told_with_its_duration_and_its_end() {
    let store = Store::new();
    let (outbox, calls) = wrapped(&store);
    store.state().latency = milliseconds(7);
    outbox.claim(request()).await.expect("claim");
    store.state().failing.insert("claim", ErrorKind::Contention);
    outbox.claim(request()).await.expect_err("claim");
    store.state().hangs.insert("extend", 1);
    timeout(seconds(2), outbox.extend(vec![], seconds(9))).await.expect_err("hangs");
    let told = ["claim ok 7ms", "claim contention 7ms", "extend dropped 2s"];
    assert_eq!(calls.take(), told);
    assert_eq!(outbox.get_ref().n_calls("claim"), 2);
    assert_eq!(outbox.into_inner().n_calls("extend"), 1);
}

#[tokio::test(start_paused = true)]
async fn enqueueing_is_told_by_topic_in_any_form() {
    let (memory, calls) = (MemoryRepository::new(), Calls::default());
    let outbox = Instrumented::new(memory).with_observer(calls.clone());
    let tx = Transactor::over(&outbox);
    let ids = tx
        .run(async |cx| {
            outbox.enqueue(cx, Draft::new("one", "")).await?;
            let drafts = ["a", "a", "b"].map(|topic| Draft::new(topic, ""));
            outbox.enqueue_with(drafts, async |memory, drafts| memory.enqueue(cx, drafts).await).await
        })
        .await
        .expect("committed");
    assert_eq!(ids.len(), 3);
    let told =
        ["begin ok 0ns", "enqueue ok 0ns", "1 on one", "enqueue ok 0ns", "2 on a", "1 on b", "commit ok 0ns"];
    assert_eq!(calls.take(), told);
    let refused = tx.run(async |cx| outbox.enqueue(cx, Draft::new("", "")).await).await;
    assert_eq!(refused.expect_err("no topic").kind(), ErrorKind::InvalidInput);
    assert_eq!(calls.take(), ["begin ok 0ns", "enqueue invalid_input 0ns", "rollback ok 0ns"]);
    assert_eq!(outbox.stats().await.expect("stats").total().n_pending, 4);
}

#[tokio::test(start_paused = true)]
async fn a_dispatcher_works_on_it_with_hints() {
    let (store, seen) = (Store::new().with_hints(), crate::support::Calls::new());
    let (outbox, calls) = wrapped(&store);
    let token = outbox_dispatcher::CancellationToken::new();
    let running = tokio::spawn(Dispatcher::new(outbox, seen.answering(fine)).run(token.clone()));
    until(|| store.n_calls("probe") > 0).await;
    store.enqueue_n("t", 3).await;
    until(|| seen.n() == 3).await;
    token.cancel();
    assert_eq!(running.await.expect("joined").expect("report").n_done, 3);
    let calls = calls.take().join("\n");
    assert!(["listen ok", "claim ok", "settle ok"].iter().all(|call| calls.contains(call)), "{calls}");
}
