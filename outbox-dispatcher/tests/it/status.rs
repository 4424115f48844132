//! What a health endpoint is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use outbox_core::{Draft, ErrorKind};
use outbox_dispatcher::{CancellationToken, Dispatcher, HandlerError, State, Status};

use crate::support::*;

/// A dispatcher, its state, and how to stop it.
fn running(store: &Store, calls: &Calls) -> (tokio::task::JoinHandle<()>, Status, CancellationToken) {
    let token = CancellationToken::new();
    let (observer, status) = Status::new();
    let n_refusals = Arc::new(AtomicU32::new(2));
    let router = calls.answering(move |message| match &message.payload[..] {
        b"down" if n_refusals.fetch_sub(1, Ordering::Relaxed) > 0 => Err(HandlerError::unavailable("down")),
        _ => Ok(()),
    });
    let run = Dispatcher::new(store.clone(), router).with_observer(observer).run(token.clone());
    let task = tokio::spawn(async move {
        run.await.expect("report");
    });
    (task, status, token)
}

#[tokio::test(start_paused = true)]
async fn the_state_follows_storage_and_stop_signal() {
    let (store, calls) = (Store::new(), Calls::new());
    let (task, status, token) = running(&store, &calls);
    assert_eq!(status.state(), State::Working);
    for operation in ["claim", "settle"] {
        store.enqueue_n("t", 1).await;
        store.state().failing.insert(operation, ErrorKind::Unavailable);
        until(|| status.state() == State::StorageUnavailable).await;
        assert!(status.state().is_live() && !status.state().is_ready());
        store.state().failing.clear();
        until(|| status.state() == State::Working).await;
    }
    store.enqueue([Draft::new("t", "down")]).await;
    until(|| status.state() == State::Paused).await;
    assert!(status.state().is_live() && status.state().is_ready());
    until(|| status.state() == State::Working).await;
    token.cancel();
    task.await.expect("no panic");
    assert_eq!(status.state(), State::Ended);
    assert!(!status.state().is_live() && !status.state().is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_dropped_is_not_alive() {
    let (task, status, _token) = running(&Store::new(), &Calls::new());
    until(|| status.state() == State::Working).await;
    task.abort();
    until(|| !status.state().is_live()).await;
}
