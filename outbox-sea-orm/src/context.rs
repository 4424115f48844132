use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use outbox_core::{Context, Error, ErrorKind, Result, Transactions, Transactor};
use sea_orm::prelude::async_trait::async_trait;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult, QueryResult,
    SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait,
};

use crate::error::from_commit;

/// Runs closures in a transaction of `db` that travels on the context; short for
/// `Transactor::over(SeaOrm::new(db))`.
///
/// # Examples
/// ```
/// # #[cfg(feature = "sqlite")]
/// # async fn example(db: sea_orm::DatabaseConnection) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use outbox_sea_orm::{SeaOrmContext, transactor};
/// use sea_orm::ConnectionTrait;
/// transactor(&db)
///     .run(async |cx| {
///         cx.connection()?.execute_unprepared("INSERT INTO orders VALUES (7)").await?;
///         Ok(())
///     })
///     .await
/// # }
/// ```
pub fn transactor(db: &DatabaseConnection) -> Transactor<SeaOrm> {
    Transactor::over(SeaOrm::new(db))
}

/// A SeaORM connection that puts its transactions on a [`Context`].
///
/// # Cancel safety
/// Dropping `begin`, `commit` or `rollback` is safe although it is not in SeaORM itself: each runs in a task of
/// its own, which ends what it began. On SQLite a transaction takes the write lock when it begins, because
/// one that reads first and writes later fails at once when another has written between.
#[derive(Clone)]
pub struct SeaOrm(DatabaseConnection);

impl SeaOrm {
    /// Over `db`.
    pub fn new(db: &DatabaseConnection) -> Self {
        Self(db.clone())
    }
}

impl fmt::Debug for SeaOrm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeaOrm")
    }
}

impl Transactions for SeaOrm {
    async fn begin(&self) -> Result<Context> {
        let db = self.0.clone();
        let options = options(db.get_database_backend());
        let begun = tokio::spawn(async move { db.begin_with_options(options).await }).await;
        let transaction = begun
            .map_err(|error| Error::new(ErrorKind::Unavailable, "begin").with_source(error))?
            .map_err(|error| crate::error::from_db("begin", &"the connection", error))?;
        Ok(Context::new().with_transaction(Arc::new(Transaction::new(transaction))))
    }

    async fn commit(&self, cx: Context) -> Result<()> {
        let transaction = take(cx, "commit")?;
        let committed = tokio::spawn(transaction.commit()).await;
        committed.map_err(|error| Error::new(ErrorKind::CommitUnknown, "commit").with_source(error))?
    }

    async fn rollback(&self, cx: Context) -> Result<()> {
        let transaction = take(cx, "rollback")?;
        let rolled_back = tokio::spawn(transaction.inner.rollback()).await;
        rolled_back
            .map_err(|error| Error::new(ErrorKind::Unavailable, "rollback").with_source(error))?
            .map_err(|error| crate::error::from_db("rollback", &"the connection", error))
    }
}

fn options(backend: DbBackend) -> TransactionOptions {
    let mode = (backend == DbBackend::Sqlite).then_some(SqliteTransactionMode::Immediate);
    TransactionOptions { sqlite_transaction_mode: mode, ..Default::default() }
}

/// Takes the transaction off the context; the last clone of the context must be this one.
fn take(cx: Context, operation: &'static str) -> Result<Transaction> {
    let transaction = cx.into_transaction::<Transaction>()?;
    Arc::try_unwrap(transaction).map_err(|_| Error::new(ErrorKind::TransactionEscaped, operation))
}

/// An open transaction that remembers whether one of its statements failed.
///
/// PostgreSQL answers the COMMIT of a failed transaction with a ROLLBACK, and SeaORM reports success. This one
/// makes the commit fail with [`TransactionDoomed`](ErrorKind::TransactionDoomed) instead. It has no `begin`
/// on purpose: use [`SeaOrmContext::savepoint`].
pub struct Transaction {
    inner: DatabaseTransaction,
    /// A statement failed: the server decides at commit whether the transaction has.
    failed: AtomicBool,
    /// A savepoint is open, or was cancelled: nothing may be done on this level.
    blocked: AtomicBool,
}

impl Transaction {
    fn new(inner: DatabaseTransaction) -> Self {
        Self { inner, failed: AtomicBool::new(false), blocked: AtomicBool::new(false) }
    }

    async fn commit(self) -> Result<()> {
        if self.blocked.load(SeqCst) || self.is_aborted().await {
            // the error of a failed rollback adds nothing: the transaction does not commit
            let _ = self.inner.rollback().await;
            return Err(doomed("commit"));
        }
        self.inner.commit().await.map_err(from_commit)
    }

    /// Asks the server, and only when a statement has failed.
    async fn is_aborted(&self) -> bool {
        self.failed.load(SeqCst) && self.inner.execute_unprepared("SELECT 1").await.is_err()
    }

    fn usable(&self) -> Result<&Self> {
        if self.blocked.load(SeqCst) { Err(doomed("statement")) } else { Ok(self) }
    }

    fn note<T>(&self, result: Result<T, DbErr>) -> Result<T, DbErr> {
        if result.is_err() {
            self.failed.store(true, SeqCst);
        }
        result
    }

    fn check(&self) -> Result<(), DbErr> {
        self.usable().map(|_| ()).map_err(|error| DbErr::Custom(error.to_string()))
    }
}

fn doomed(operation: &'static str) -> Error {
    Error::new(ErrorKind::TransactionDoomed, operation)
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("failed", &self.failed)
            .field("blocked", &self.blocked)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl ConnectionTrait for Transaction {
    fn get_database_backend(&self) -> DbBackend {
        self.inner.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.check()?;
        self.note(self.inner.execute_raw(statement).await)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.check()?;
        self.note(self.inner.execute_unprepared(sql).await)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.check()?;
        self.note(self.inner.query_one_raw(statement).await)
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.check()?;
        self.note(self.inner.query_all_raw(statement).await)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for sea_orm::DatabaseTransaction {}
    impl Sealed for super::Transaction {}
}

/// A transaction that is open: SeaORM's own or the one of a context. A plain connection is not one, so that
/// nothing is committed by itself by mistake.
pub trait OpenTransaction: ConnectionTrait + sealed::Sealed {}

impl OpenTransaction for DatabaseTransaction {}
impl OpenTransaction for Transaction {}

/// SeaORM's side of a [`Context`].
pub trait SeaOrmContext {
    /// The transaction as a SeaORM connection: `order.insert(cx.connection()?)`.
    ///
    /// # Errors
    /// [`NoTransaction`](ErrorKind::NoTransaction), [`ForeignTransaction`](ErrorKind::ForeignTransaction), and
    /// [`TransactionDoomed`](ErrorKind::TransactionDoomed) while a savepoint is open or after one was cancelled.
    fn connection(&self) -> Result<&Transaction>;

    /// SeaORM's own transaction, for an API that insists on one. A statement that fails there is not noticed
    /// at commit.
    ///
    /// # Errors
    /// Those of [`connection`](Self::connection).
    fn transaction_raw(&self) -> Result<&DatabaseTransaction>;

    /// Runs `f` in a savepoint: releases it on `Ok`, rolls back to it on `Err`. The outer transaction goes on
    /// in both cases.
    ///
    /// # Errors
    /// The error of `f`; [`TransactionDoomed`](ErrorKind::TransactionDoomed) when a failed statement was
    /// swallowed in `f`.
    ///
    /// # Cancel safety
    /// Dropping the future dooms the whole transaction: its commit fails and everything is rolled back.
    fn savepoint<T, E, F>(&self, f: F) -> impl Future<Output = Result<T, E>>
    where
        F: AsyncFnOnce(&Context) -> Result<T, E>,
        E: From<Error>;
}

impl SeaOrmContext for Context {
    fn connection(&self) -> Result<&Transaction> {
        self.transaction::<Transaction>()?.usable()
    }

    fn transaction_raw(&self) -> Result<&DatabaseTransaction> {
        Ok(&self.connection()?.inner)
    }

    async fn savepoint<T, E, F>(&self, f: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&Context) -> Result<T, E>,
        E: From<Error>,
    {
        let outer = self.connection()?;
        // until the savepoint has ended nothing may happen on the outer level; dropped on the way, it stays so
        outer.blocked.store(true, SeqCst);
        let nested = outer
            .inner
            .begin()
            .await
            .map_err(|error| crate::error::from_db("savepoint", &"the connection", error))?;
        let cx = self.clone().with_transaction(Arc::new(Transaction::new(nested)));
        let result = cx.clone().scope(f(&cx)).await;
        let ended = end_savepoint(cx, result).await;
        if !matches!(&ended, Ended::Stuck(_)) {
            outer.blocked.store(false, SeqCst);
        }
        match ended {
            Ended::Done(result) => result,
            Ended::Doomed(error) | Ended::Stuck(error) => Err(error.into()),
        }
    }
}

enum Ended<R> {
    /// Released or rolled back, as the closure said.
    Done(R),
    /// Rolled back, because a failure had been swallowed.
    Doomed(Error),
    /// Still open: the outer transaction cannot go on.
    Stuck(Error),
}

async fn end_savepoint<T, E>(cx: Context, result: Result<T, E>) -> Ended<Result<T, E>> {
    let is_doomed = cx.is_doomed();
    let nested = match take(cx, "savepoint") {
        Ok(nested) => nested,
        Err(error) => return Ended::Stuck(error),
    };
    let is_doomed = is_doomed || nested.blocked.load(SeqCst) || (result.is_ok() && nested.is_aborted().await);
    let release = result.is_ok() && !is_doomed;
    let ended = if release { nested.inner.commit().await } else { nested.inner.rollback().await };
    match ended {
        Err(error) => Ended::Stuck(crate::error::from_db("savepoint", &"the connection", error)),
        Ok(()) if result.is_ok() && is_doomed => Ended::Doomed(doomed("savepoint")),
        Ok(()) => Ended::Done(result),
    }
}
