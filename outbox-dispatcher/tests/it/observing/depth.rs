//! How much waits, told at intervals; and what is told only to those who ask.

use std::sync::{Arc, Mutex};

use outbox_core::Draft;
use outbox_dispatcher::{CancellationToken, DepthWatch, Dispatcher, Event, Observer};

use crate::support::*;

/// Depths and ends of handlers as short texts.
#[derive(Clone, Default)]
struct Told {
    texts: Arc<Mutex<Vec<String>>>,
    times_handlers: bool,
}

impl Observer for Told {
    fn on(&self, event: &Event<'_>) {
        let text = match event {
            Event::Depth { topic, stats, .. } => {
                format!("{topic}: {} due, {} dead", stats.n_due, stats.n_dead)
            }
            Event::Handled { outcome, took, .. } => format!("{outcome} in {took:?}"),
            _ => return,
        };
        self.texts.lock().expect("told").push(text);
    }

    fn times_handlers(&self) -> bool {
        self.times_handlers
    }
}

impl Told {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.texts.lock().expect("told"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_topic_without_messages_is_told_once_more() {
    let (store, told) = (Store::new(), Told::default());
    store.enqueue(["a", "a", "b"].map(|topic| Draft::new(topic, ""))).await;
    let mut watch = DepthWatch::new(store.memory.clone(), told.clone());
    watch.look(seconds(1)).await.expect("memory");
    assert_eq!(told.take(), ["a: 2 due, 0 dead", "b: 1 due, 0 dead"]);
    let router = outbox_dispatcher::Router::new().on("b", async |_| Ok(()));
    assert_eq!(Dispatcher::new(store.clone(), router).drain_once().await.expect("drained").n_done, 1);
    watch.look(seconds(1)).await.expect("memory");
    assert_eq!(told.take(), ["b: 0 due, 0 dead", "a: 2 due, 0 dead"]);
    watch.look(seconds(1)).await.expect("memory");
    assert_eq!(told.take(), ["a: 2 due, 0 dead"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_looks_at_once_and_at_intervals_until_it_is_stopped() {
    let (store, told, token) = (Store::new(), Told::default(), CancellationToken::new());
    store.enqueue_n("t", 1).await;
    let watch = DepthWatch::new(store.memory.clone(), told.clone());
    let watching = tokio::spawn(watch.run(seconds(60), token.clone()));
    tokio::time::sleep(seconds(150)).await;
    assert_eq!(told.take().len(), 3);
    token.cancel();
    watching.await.expect("joined");
    assert_eq!(store.elapsed(), seconds(150), "a stop is prompt");
}

#[tokio::test(start_paused = true)]
async fn ends_of_handlers_are_told_to_those_who_ask() {
    for (times_handlers, expected) in [(false, &[][..]), (true, &["ok in 2s"])] {
        let (store, told) = (Store::new(), Told { times_handlers, ..Told::default() });
        store.enqueue_n("t", 1).await;
        let dispatcher = Dispatcher::new(store, Calls::new().taking(seconds(2)));
        let dispatcher = dispatcher.with_observer((outbox_dispatcher::TracingObserver, told.clone()));
        assert_eq!(dispatcher.drain_once().await.expect("drained").n_done, 1);
        assert_eq!(told.take(), expected);
    }
}
