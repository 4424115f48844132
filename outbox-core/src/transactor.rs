use std::future::Future;

use crate::{Context, Error, ErrorKind, Result};

/// A backend that can put a transaction on a context and end it.
///
/// # Cancel safety
/// Each call must be safe to drop: a dropped `begin` leaves no open transaction behind, a dropped `commit`
/// or `rollback` still ends the transaction.
pub trait Transactions: Send + Sync {
    /// Opens a transaction and puts it on a new context.
    ///
    /// # Errors
    /// Those of the storage.
    fn begin(&self) -> impl Future<Output = Result<Context>> + Send;

    /// Commits the transaction on the context.
    ///
    /// # Errors
    /// [`TransactionEscaped`](crate::ErrorKind::TransactionEscaped) when a clone of the context is still
    /// alive; [`TransactionDoomed`](crate::ErrorKind::TransactionDoomed) when a statement failed before;
    /// [`CommitUnknown`](crate::ErrorKind::CommitUnknown) when the answer was lost.
    fn commit(&self, cx: Context) -> impl Future<Output = Result<()>> + Send;

    /// Rolls the transaction on the context back.
    ///
    /// # Errors
    /// Those of the storage; the transaction does not commit in any case.
    fn rollback(&self, cx: Context) -> impl Future<Output = Result<()>> + Send;
}

impl<B: Transactions> Transactions for &B {
    async fn begin(&self) -> Result<Context> {
        (**self).begin().await
    }

    async fn commit(&self, cx: Context) -> Result<()> {
        (**self).commit(cx).await
    }

    async fn rollback(&self, cx: Context) -> Result<()> {
        (**self).rollback(cx).await
    }
}

/// Runs closures in a transaction that travels on the context.
#[derive(Clone, Debug)]
pub struct Transactor<B>(B);

impl<B: Transactions> Transactor<B> {
    /// Over a backend.
    pub fn over(backend: B) -> Self {
        Self(backend)
    }

    /// The backend.
    pub fn get_ref(&self) -> &B {
        &self.0
    }

    /// Runs `f` in a new transaction: commits when it returns `Ok`, rolls back when it returns `Err`, panics
    /// or is dropped. The context is also the current one ([`Context::current`]) while `f` runs.
    ///
    /// The error type must be known: let this be the tail of a function without `?`, or end the closure
    /// with `Ok::<_, MyError>(())`.
    ///
    /// # Errors
    /// The error of `f`, or that of [`Transactions::begin`] or [`Transactions::commit`];
    /// [`TransactionDoomed`](ErrorKind::TransactionDoomed) after [`Context::doom`].
    ///
    /// # Cancel safety
    /// Safe at every await: a future that is dropped before the commit has begun changes nothing; one that
    /// is dropped during the commit commits.
    ///
    /// # Examples
    /// ```
    /// # use outbox_core::{Draft, Error, MemoryRepository, Repository, Transactor};
    /// # async fn example(outbox: MemoryRepository) -> Result<(), Error> {
    /// let tx = Transactor::over(outbox.clone());
    /// tx.run(async |cx| {
    ///     outbox.enqueue(cx, vec![Draft::new("order.placed", "7")]).await?;
    ///     Ok(())
    /// })
    /// .await
    /// # }
    /// ```
    pub async fn run<T, E, F>(&self, f: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&Context) -> Result<T, E>,
        E: From<Error>,
    {
        let cx = self.0.begin().await?;
        match cx.clone().scope(f(&cx)).await {
            Ok(_) if cx.is_doomed() => {
                // the transaction does not commit in any case
                let _ = self.0.rollback(cx).await;
                Err(Error::new(ErrorKind::TransactionDoomed, "commit").into())
            }
            Ok(value) => {
                self.0.commit(cx).await?;
                Ok(value)
            }
            Err(error) => {
                // the caller's error says more than a failed rollback, which cannot commit anything
                let _ = self.0.rollback(cx).await;
                Err(error)
            }
        }
    }
}
