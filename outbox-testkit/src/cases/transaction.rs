//! A message exists if and only if the caller's transaction commits.

use std::future::pending;

use outbox_core::{
    Context, Error, ErrorKind, MemoryRepository, Repository, Settled, Transactions, Transactor,
};
use tokio::sync::Notify;

use super::lacks;
use super::steps::{Steps, draft, drafts, kind, soon, sorted};
use crate::Harness;

/// A transaction that rolls back leaves no message.
pub async fn rolled_back_message_never_exists(h: &impl Harness) {
    let cx = h.begin().await;
    h.enqueue_in(&cx, drafts(3)).await;
    h.roll_back(cx).await;
    h.assert_nothing_to_claim().await;
    let id = h.enqueue_one().await;
    assert_eq!(h.drain().await, [id]);
}

/// A context that is dropped with its transaction open leaves no message.
pub async fn dropped_transaction_rolls_back(h: &impl Harness) {
    let cx = h.begin().await;
    h.enqueue_in(&cx, draft()).await;
    drop(cx);
    h.assert_nothing_to_claim().await;
    let id = h.enqueue_one().await;
    assert_eq!(h.drain().await, [id]);
}

/// A message is not handed out before its transaction has committed.
pub async fn open_transaction_is_not_visible<H: Harness>(h: &H) {
    let cx = h.begin().await;
    let id = h.enqueue_in(&cx, draft()).await[0];
    if h.capabilities().concurrent_writers {
        h.assert_nothing_to_claim().await;
    } else {
        lacks::<H>("transaction::open_transaction_is_not_visible", "concurrent_writers");
    }
    h.commit(cx).await;
    assert_eq!(h.drain().await, [id]);
}

/// Messages of several calls in one transaction come or go together.
pub async fn calls_of_one_transaction_commit_together(h: &impl Harness) {
    let cx = h.begin().await;
    let first = h.enqueue_in(&cx, draft()).await[0];
    let second = h.enqueue_in(&cx, draft()).await[0];
    h.commit(cx).await;
    assert_eq!(h.drain().await, [first, second]);
}

/// Without a transaction on the context nothing is stored.
pub async fn context_without_a_transaction_is_refused(h: &impl Harness) {
    let answer = h.repository().enqueue(&Context::new(), vec![draft()]).await;
    assert_eq!(kind(answer), ErrorKind::NoTransaction);
    assert_eq!(kind(h.repository().commit(Context::new()).await), ErrorKind::NoTransaction);
    h.assert_nothing_to_claim().await;
}

/// A transaction of another backend is refused, and not mistaken for one's own.
pub async fn foreign_transaction_is_refused(h: &impl Harness) {
    let foreign = MemoryRepository::new().begin().await.expect("begin");
    assert_eq!(kind(h.repository().enqueue(&foreign, vec![draft()]).await), ErrorKind::ForeignTransaction);
    assert_eq!(kind(h.repository().commit(foreign).await), ErrorKind::ForeignTransaction);
    h.assert_nothing_to_claim().await;
}

/// A clone of the context that outlives the transaction makes the commit fail loudly and roll back.
pub async fn escaped_context_rolls_back(h: &impl Harness) {
    let cx = h.begin().await;
    h.enqueue_in(&cx, draft()).await;
    let escaped = cx.clone();
    assert_eq!(kind(h.repository().commit(cx).await), ErrorKind::TransactionEscaped);
    drop(escaped);
    h.assert_nothing_to_claim().await;
    let id = h.enqueue_one().await;
    assert_eq!(h.drain().await, [id]);
}

/// A closure that fails rolls back; its error comes back as it is.
pub async fn failing_closure_rolls_back(h: &impl Harness) {
    let answer: Result<(), Error> = Transactor::over(h.repository())
        .run(async |cx| {
            h.enqueue_in(cx, draft()).await;
            Err(Error::new(ErrorKind::Conflict, "test"))
        })
        .await;
    assert_eq!(kind(answer), ErrorKind::Conflict);
    h.assert_nothing_to_claim().await;
}

/// A closure that succeeds commits.
pub async fn finished_closure_commits(h: &impl Harness) {
    let ids = Transactor::over(h.repository())
        .run(async |cx| h.repository().enqueue(cx, drafts(2)).await)
        .await
        .expect("committed");
    assert_eq!(sorted(h.drain().await), sorted(ids));
}

/// A closure that is dropped at an await, as when a web client goes away, rolls back, and what is
/// acknowledged afterwards is stored.
pub async fn cancelled_closure_rolls_back(h: &impl Harness) {
    let enqueued = Notify::new();
    let transactor = Transactor::over(h.repository());
    let cancelled = transactor.run(async |cx| {
        h.enqueue_in(cx, draft()).await;
        enqueued.notify_one();
        pending::<Result<(), Error>>().await
    });
    tokio::select! {
        _ = cancelled => unreachable!("the closure waits for ever"),
        () = soon("the enqueue", enqueued.notified()) => {}
    }
    let id = h.enqueue_one().await;
    assert_eq!(h.drain().await, [id]);
}

/// Settling by other hands goes on while a transaction is open, and does not see its messages.
pub async fn open_transaction_blocks_no_delivery<H: Harness>(h: &H) {
    if !h.capabilities().concurrent_writers {
        return lacks::<H>("transaction::open_transaction_blocks_no_delivery", "concurrent_writers");
    }
    if !h.capabilities().overtaking {
        return open_transaction_blocks_no_settlement(h).await;
    }
    let delivered = h.enqueue_one().await;
    let cx = h.begin().await;
    let waiting = h.enqueue_in(&cx, draft()).await[0];
    let claimed = h.claim_one().await;
    assert_eq!(claimed.message.id, delivered);
    assert_eq!(h.extend(&[claimed.lease], super::steps::HOUR).await, [Settled::Applied]);
    h.finish_all(&[claimed]).await;
    h.commit(cx).await;
    assert_eq!(h.drain().await, [waiting]);
}

/// What holds where nothing overtakes an open transaction.
async fn open_transaction_blocks_no_settlement<H: Harness>(h: &H) {
    lacks::<H>("transaction::open_transaction_blocks_no_delivery", "overtaking");
    h.enqueue_one().await;
    let claimed = h.claim_one().await;
    let cx = h.begin().await;
    let waiting = h.enqueue_in(&cx, draft()).await[0];
    assert_eq!(h.extend(&[claimed.lease], super::steps::HOUR).await, [Settled::Applied]);
    h.finish_all(&[claimed]).await;
    h.commit(cx).await;
    assert_eq!(h.drain().await, [waiting]);
}
