use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use outbox_core::{Context, Error, ErrorKind, Result, Transactions, Transactor};
use sea_orm::prelude::async_trait::async_trait;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult, IsolationLevel,
    QueryResult, SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait,
};
use tokio::sync::Mutex;

use crate::error::from_commit;
use crate::shield;

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
/// On MySQL and MariaDB a transaction is READ COMMITTED as on PostgreSQL, not REPEATABLE READ, whose gap locks make
/// producers and consumers wait for each other and deadlock.
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
        let rolled_back = tokio::spawn(transaction.rollback()).await;
        rolled_back
            .map_err(|error| Error::new(ErrorKind::Unavailable, "rollback").with_source(error))?
            .map_err(|error| crate::error::from_db("rollback", &"the connection", error))
    }
}

fn options(backend: DbBackend) -> TransactionOptions {
    let mode = (backend == DbBackend::Sqlite).then_some(SqliteTransactionMode::Immediate);
    let isolation_level = (backend == DbBackend::MySql).then_some(IsolationLevel::ReadCommitted);
    TransactionOptions { sqlite_transaction_mode: mode, isolation_level, ..Default::default() }
}

/// Takes the transaction off the context; the last clone of the context must be this one.
fn take(cx: Context, operation: &'static str) -> Result<Transaction> {
    let transaction = cx.into_transaction::<Transaction>()?;
    Arc::try_unwrap(transaction).map_err(|_| Error::new(ErrorKind::TransactionEscaped, operation))
}

/// An open transaction that remembers whether one of its statements failed.
///
/// PostgreSQL answers the COMMIT of a failed transaction with a ROLLBACK, and SeaORM reports success. MySQL rolls a
/// transaction back when it deadlocks, and what is sent after that is committed by itself. This one refuses further
/// statements and makes the commit fail with [`TransactionDoomed`](ErrorKind::TransactionDoomed) instead. It has no
/// `begin` on purpose: use [`SeaOrmContext::savepoint`].
pub struct Transaction {
    inner: Arc<DatabaseTransaction>,
    /// What this is a savepoint of. It must not go while a statement of ours runs on its connection.
    outer: Option<Arc<DatabaseTransaction>>,
    /// Held by a shielded statement until it has ended.
    busy: Arc<Mutex<()>>,
    /// A statement failed: the server decides at commit whether the transaction has.
    failed: AtomicBool,
    /// A savepoint is open, or was cancelled, or the server has ended the transaction: nothing may be done on this
    /// level.
    blocked: AtomicBool,
}

impl Transaction {
    fn new(inner: DatabaseTransaction) -> Self {
        let (inner, busy) = (Arc::new(inner), Arc::default());
        Self { inner, outer: None, busy, failed: AtomicBool::new(false), blocked: AtomicBool::new(false) }
    }

    async fn commit(self) -> Result<()> {
        if self.blocked.load(SeqCst) || self.is_aborted().await {
            // the error of a failed rollback adds nothing: the transaction does not commit
            let _ = self.rollback().await;
            return Err(doomed("commit"));
        }
        self.into_inner("commit").await?.commit().await.map_err(from_commit)
    }

    async fn rollback(self) -> Result<(), DbErr> {
        let inner = self.into_inner("rollback").await.map_err(|error| DbErr::Custom(error.to_string()))?;
        inner.rollback().await
    }

    /// Waits for a statement whose caller was dropped.
    async fn into_inner(self, operation: &'static str) -> Result<DatabaseTransaction> {
        let Self { inner, busy, .. } = self;
        let _busy = busy.lock_owned().await;
        Arc::try_unwrap(inner).map_err(|_| Error::new(ErrorKind::TransactionEscaped, operation))
    }

    /// Runs a prepared statement, to its end where that is needed.
    async fn run<T: Send + 'static, F>(
        &self,
        call: impl FnOnce(Arc<DatabaseTransaction>) -> F,
    ) -> Result<T, DbErr>
    where
        F: Future<Output = Result<T, DbErr>> + Send + 'static,
    {
        self.check()?;
        let call = call(Arc::clone(&self.inner));
        let result = if shield::is_needed(self.get_database_backend()) {
            let (outer, busy) = (self.outer.clone(), Arc::clone(&self.busy).lock_owned().await);
            shield::shield(async move {
                let result = call.await;
                drop((outer, busy));
                result
            })
            .await
        } else {
            call.await
        };
        self.note(result)
    }

    /// Asks the server, and only when a statement has failed.
    async fn is_aborted(&self) -> bool {
        self.failed.load(SeqCst) && self.inner.execute_unprepared("SELECT 1").await.is_err()
    }

    fn usable(&self) -> Result<&Self> {
        if self.blocked.load(SeqCst) { Err(doomed("statement")) } else { Ok(self) }
    }

    fn note<T>(&self, result: Result<T, DbErr>) -> Result<T, DbErr> {
        if let Err(error) = &result {
            self.failed.store(true, SeqCst);
            if crate::error::ends_transaction(error) {
                self.blocked.store(true, SeqCst);
            }
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
        self.run(|inner| async move { inner.execute_raw(statement).await }).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.check()?;
        self.note(self.inner.execute_unprepared(sql).await)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.run(|inner| async move { inner.query_one_raw(statement).await }).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.run(|inner| async move { inner.query_all_raw(statement).await }).await
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
        let nested = Transaction { outer: Some(Arc::clone(&outer.inner)), ..Transaction::new(nested) };
        let cx = self.clone().with_transaction(Arc::new(nested));
        let result = cx.clone().scope(f(&cx)).await;
        let ended = end_savepoint(cx, result.is_ok()).await;
        if !matches!(&ended, Ended::Stuck(_)) {
            outer.blocked.store(false, SeqCst);
        }
        match ended {
            Ended::Doomed(error) | Ended::Stuck(error) if result.is_ok() => Err(error.into()),
            // what went wrong first says more
            _ => result,
        }
    }
}

enum Ended {
    /// Released or rolled back, as the closure said.
    Done,
    /// Rolled back, because a failure had been swallowed.
    Doomed(Error),
    /// Still open: the outer transaction cannot go on.
    Stuck(Error),
}

async fn end_savepoint(cx: Context, succeeded: bool) -> Ended {
    let is_doomed = cx.is_doomed();
    let nested = match take(cx, "savepoint") {
        Ok(nested) => nested,
        Err(error) => return Ended::Stuck(error),
    };
    let is_doomed = is_doomed || nested.blocked.load(SeqCst) || (succeeded && nested.is_aborted().await);
    let release = succeeded && !is_doomed;
    let nested = match nested.into_inner("savepoint").await {
        Ok(nested) => nested,
        Err(error) => return Ended::Stuck(error),
    };
    let ended = if release { nested.commit().await } else { nested.rollback().await };
    match ended {
        Err(error) => Ended::Stuck(crate::error::from_db("savepoint", &"the connection", error)),
        Ok(()) if succeeded && is_doomed => Ended::Doomed(doomed("savepoint")),
        Ok(()) => Ended::Done,
    }
}
