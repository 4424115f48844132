use std::collections::HashSet;
use std::fmt;

use outbox_core::{Context, Enqueued, Inspect, MAX_BATCH, MessageId, Result, Transactions};

/// A transaction that is always rolled back and yet shows what was enqueued in it: a fixture for tests that share a
/// database and leave nothing behind.
///
/// Give [`context`](Self::context) to the code under test. Code that takes a SeaORM connection gets it from the
/// context (`cx.connection()?`), code that begins a transaction of its own gets SeaORM's (`cx.transaction_raw()?`,
/// where `begin` is a savepoint). Then [`assert_enqueued!`](crate::assert_enqueued!) with the rehearsal. It shows only
/// what was not in the table when it began.
///
/// Code that insists on a connection pool commits what it does: give it a database of its own (SQLite in memory)
/// and look at the outbox itself.
///
/// # Cancel safety
/// Dropped without [`end`](Self::end), also by a panic of the test, it rolls back as well.
///
/// # Examples
/// ```
/// use outbox_core::{Context, Draft, MemoryRepository, Repository, Result};
/// use outbox_testkit::{Rehearsal, assert_enqueued, refute_enqueued};
///
/// async fn place_order(cx: &Context, outbox: &MemoryRepository) -> Result<()> {
///     outbox.enqueue(cx, vec![Draft::new("order.placed", "7")]).await?;
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let outbox = MemoryRepository::new();
/// let rehearsal = Rehearsal::begin(&outbox).await?;
/// place_order(rehearsal.context(), &outbox).await?;
/// assert_enqueued!(rehearsal, topic = "order.placed", payload = "7");
/// rehearsal.end().await?;
/// refute_enqueued!(outbox);
/// # Ok(()) }
/// ```
pub struct Rehearsal<B> {
    outbox: B,
    cx: Context,
    before: HashSet<MessageId>,
}

impl<B: Transactions + Inspect> Rehearsal<B> {
    /// Begins the transaction.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn begin(outbox: B) -> Result<Self> {
        let cx = outbox.begin().await?;
        let before = outbox.enqueued(&cx, MAX_BATCH).await?;
        Ok(Self { outbox, cx, before: before.into_iter().map(|one| one.message.id).collect() })
    }

    /// The context with the transaction.
    pub fn context(&self) -> &Context {
        &self.cx
    }

    /// Rolls back now, instead of soon after it was dropped.
    ///
    /// # Errors
    /// Those of the storage, and [`TransactionEscaped`](outbox_core::ErrorKind::TransactionEscaped) when a clone of
    /// the context is still alive; nothing is committed in any case.
    pub async fn end(self) -> Result<()> {
        self.outbox.rollback(self.cx).await
    }
}

/// What the transaction has enqueued.
impl<B: Transactions + Inspect> Inspect for Rehearsal<B> {
    async fn enqueued(&self, _: &Context, limit: usize) -> Result<Vec<Enqueued>> {
        let mut all = self.outbox.enqueued(&self.cx, limit).await?;
        all.retain(|one| !self.before.contains(&one.message.id));
        Ok(all)
    }
}

impl<B> fmt::Debug for Rehearsal<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rehearsal").field("cx", &self.cx).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use outbox_core::{Draft, MemoryRepository, Repository};

    use super::*;
    use crate::{assert_enqueued, refute_enqueued};

    async fn enqueue(outbox: &MemoryRepository, cx: &Context, topic: &str) {
        outbox.enqueue(cx, vec![Draft::new(topic, "")]).await.expect("enqueue");
    }

    #[tokio::test]
    async fn it_shows_its_own_messages_only_and_leaves_nothing() {
        let outbox = MemoryRepository::new();
        let cx = outbox.begin().await.expect("begin");
        enqueue(&outbox, &cx, "before").await;
        outbox.commit(cx).await.expect("commit");
        let rehearsal = Rehearsal::begin(&outbox).await.expect("begin");
        refute_enqueued!(rehearsal);
        enqueue(&outbox, rehearsal.context(), "own").await;
        let own = assert_enqueued!(rehearsal);
        assert_eq!(own.iter().map(|message| &*message.topic).collect::<Vec<_>>(), ["own"]);
        refute_enqueued!(outbox, topic = "own");
        rehearsal.end().await.expect("end");
        assert_eq!(assert_enqueued!(outbox).len(), 1);
    }

    #[tokio::test]
    async fn dropped_it_rolls_back() {
        let outbox = MemoryRepository::new();
        let rehearsal = Rehearsal::begin(outbox.clone()).await.expect("begin");
        enqueue(&outbox, rehearsal.context(), "own").await;
        drop(rehearsal);
        refute_enqueued!(outbox);
    }
}
