use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use outbox_core::{
    Claim, ClaimRequest, Context, Declaration, Draft, Fairness, Lease, Limits, MessageId, OnDead, Repository,
    Result, Retention, Settled, Settlement, TableName, Transactions,
};
use sea_orm::sea_query::Values;
use sea_orm::{ConnectionTrait, DatabaseConnection, QueryResult, Statement};

use crate::context::{OpenTransaction, SeaOrm, SeaOrmContext};
use crate::dialect::Dialect;
use crate::error::from_db;
use crate::shield::Db;
use crate::sql::{Kind, OrderedSql, OutboxSql};

/// One outbox table: [`Repository`], [`Operations`](outbox_core::Operations), [`Wakeup`](outbox_core::Wakeup) and
/// [`Transactions`] on SeaORM. A cheap handle; clones share its connections.
///
/// # Dialects
/// On PostgreSQL, claims, settlements and the wake-up use up to five connections of their own, opened when they are
/// first needed with the options of the given pool: they need settings that a producer's connection must not
/// have, and a busy producer cannot starve a dispatcher. Behind a transaction pooler call
/// [`with_shared_pool`](Self::with_shared_pool). On SQLite everything uses the given pool, and `orders.outbox` is
/// the table `orders_outbox`.
///
/// On MySQL and MariaDB, claims and settlements use up to four connections of their own, under READ COMMITTED. A claim
/// takes two statements there, one that leases and one that reads: dropped or failing in between, it is as if its
/// answer was lost, and its messages come back when their leases have expired.
#[derive(Clone)]
pub struct OutboxTable {
    pub(crate) db: Db,
    pub(crate) name: TableName,
    pub(crate) limits: Limits,
    pub(crate) retention: Retention,
    declared: Declaration,
    table: Arc<Result<Table>>,
    shared_pool: bool,
    relaxed_commit: bool,
}

/// What is computed once for a table.
pub(crate) struct Table {
    pub(crate) dialect: Dialect,
    pub(crate) declared: Declaration,
    pub(crate) sql: OutboxSql,
    pub(crate) ordered: Option<Ordered>,
    #[cfg(feature = "postgres")]
    pub(crate) postgres: crate::postgres::Own,
    #[cfg(feature = "mysql")]
    pub(crate) mysql: crate::mysql::Own,
}

/// What an ordered table needs.
pub(crate) struct Ordered {
    pub(crate) sql: OrderedSql,
    /// Whether a dead letter blocks its key.
    pub(crate) blocks: bool,
}

impl Table {
    fn new(db: &DatabaseConnection, name: &TableName, declared: Declaration) -> Result<Self> {
        declared.validate()?;
        if declared.fair.is_some() && declared.ordered.is_none() {
            let detail = "only an ordered table takes turns";
            return Err(
                outbox_core::Error::new(outbox_core::ErrorKind::Unsupported, "declare").with_detail(detail)
            );
        }
        let dialect = Dialect::of(db.get_database_backend())?;
        #[cfg(feature = "mysql")]
        if dialect == Dialect::MySql && !declared.is_plain() {
            return Err(outbox_core::Error::new(outbox_core::ErrorKind::Unsupported, "declare")
                .with_detail("ordered tables are on PostgreSQL and SQLite only"));
        }
        let ordered =
            |on_dead| Ordered { sql: OrderedSql::new(dialect, name), blocks: on_dead == OnDead::Block };
        Ok(Self {
            dialect,
            sql: OutboxSql::new(dialect, name),
            ordered: declared.ordered.map(ordered),
            declared,
            #[cfg(feature = "postgres")]
            postgres: crate::postgres::Own::new(dialect, name),
            #[cfg(feature = "mysql")]
            mysql: crate::mysql::Own::new(dialect, name),
        })
    }

    /// Whether rows with a key keep their number whatever becomes of them.
    pub(crate) fn keeps_numbers(&self) -> bool {
        self.ordered.is_some()
    }

    /// Whether nothing behind a dead letter is claimed.
    pub(crate) fn dead_blocks(&self) -> bool {
        self.ordered.as_ref().is_some_and(|ordered| ordered.blocks)
    }
}

impl OutboxTable {
    /// The table `name` in the database of `db`. No statement is sent.
    pub fn new(db: &DatabaseConnection, name: TableName) -> Self {
        let table = Arc::new(Table::new(db, &name, Declaration::new()));
        let declared = Declaration::new();
        Self {
            db: Db::new(db),
            name,
            limits: Limits::default(),
            retention: Retention::default(),
            declared,
            table,
            shared_pool: false,
            relaxed_commit: false,
        }
    }

    /// Declares the table ordered: messages of one key are delivered strictly in the order in which they were enqueued;
    /// see [`Declaration::ordered`]. Every service that uses the table must declare the same: `migrate` and `ddl` mark
    /// the table with it, and `check` and `migrate` name a difference.
    #[must_use]
    pub fn ordered(self, on_dead: OnDead) -> Self {
        let declared = self.declared.clone().ordered(on_dead);
        self.declared(declared)
    }

    /// Declares that claims take turns between keys or tenants; see [`Declaration::fair`].
    #[must_use]
    pub fn fair(self, fairness: Fairness) -> Self {
        let declared = self.declared.clone().fair(fairness);
        self.declared(declared)
    }

    /// Declares all at once. Impossible combinations are reported by every call that follows, before any statement.
    #[must_use]
    pub fn declared(mut self, declared: Declaration) -> Self {
        self.table = Arc::new(Table::new(&self.db, &self.name, declared.clone()));
        self.declared = declared;
        self
    }

    /// Sets the bounds of this table's messages.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets what becomes of delivered messages; by default they are deleted. Declare it wherever this table's messages
    /// are settled.
    #[must_use]
    pub fn with_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Claims and settles over the given pool, and does without the wake-up: for a PostgreSQL behind a
    /// transaction pooler, where settings and locks of a session would reach somebody else's.
    #[must_use]
    pub fn with_shared_pool(mut self) -> Self {
        self.shared_pool = true;
        self
    }

    /// Does not wait until claims, settlements and extensions are on PostgreSQL's disk (`synchronous_commit = off` on the
    /// connections of its own; none with [`with_shared_pool`](Self::with_shared_pool), none on other databases).
    ///
    /// Nothing is lost: a message whose enqueue has committed stays. When the server, not this process, crashes, the
    /// claims and settlements of its last moments (three times `wal_writer_delay`, 0.6 s by default) may be undone: their
    /// messages are delivered again, an attempt or a dead letter of that time is forgotten. Enqueueing is not affected.
    /// docs/storage.md has the gain.
    #[must_use]
    pub fn with_relaxed_commit(mut self) -> Self {
        self.relaxed_commit = true;
        self
    }

    /// The name of the table.
    pub fn name(&self) -> &TableName {
        &self.name
    }

    /// Stores messages in the transaction on `cx`; see [`Repository::enqueue`].
    ///
    /// # Errors
    /// Those of [`Repository::enqueue`].
    pub async fn enqueue(&self, cx: &Context, drafts: impl Into<Vec<Draft>>) -> Result<Vec<MessageId>> {
        let mut drafts = drafts.into();
        for draft in &mut drafts {
            cx.add_trace_headers(&mut draft.headers);
        }
        let connection = cx.connection()?;
        self.require_same_backend(connection)?;
        crate::enqueue::enqueue(self, connection, drafts).await
    }

    /// Stores messages in a transaction that the caller has begun. One statement whatever the number of drafts
    /// (on SQLite one for each 1,000).
    ///
    /// A statement that failed before in a [`DatabaseTransaction`](sea_orm::DatabaseTransaction) is not noticed
    /// by its `commit`, which then reports success although PostgreSQL has rolled back; the transaction of a
    /// [`Context`] reports it.
    ///
    /// # Errors
    /// Those of [`Repository::enqueue`].
    pub async fn enqueue_in(
        &self,
        transaction: &impl OpenTransaction,
        drafts: impl Into<Vec<Draft>>,
    ) -> Result<Vec<MessageId>> {
        self.require_same_backend(transaction)?;
        crate::enqueue::enqueue(self, transaction, drafts.into()).await
    }

    /// Stores messages without a transaction: they are committed even if what the caller does next fails. For
    /// messages that stand for nothing else in the database.
    ///
    /// All or nothing up to 128 MiB of payloads on PostgreSQL and 1,000 drafts on SQLite. A larger call is several
    /// statements, each committed by itself: one that fails leaves those before it stored. Use a transaction where
    /// that matters.
    ///
    /// # Errors
    /// Those of [`Repository::enqueue`].
    pub async fn enqueue_autocommit(&self, drafts: impl Into<Vec<Draft>>) -> Result<Vec<MessageId>> {
        crate::enqueue::enqueue(self, &self.db, drafts.into()).await
    }

    /// The DDL that creates this table on this database, in a schema that is there: only
    /// [`migrate`](Self::migrate) creates a missing one.
    ///
    /// # Errors
    /// [`Unsupported`](outbox_core::ErrorKind::Unsupported) for a database that this build does not know.
    pub fn ddl(&self) -> Result<String> {
        let table = self.table()?;
        Ok(crate::sql::create(Kind::Outbox, table.dialect, &self.name, &table.declared))
    }

    /// Creates the table and, on PostgreSQL, the schema where it is missing; or upgrades the table, or finds with
    /// one read of the catalog that there is nothing to do. Safe to call from several processes at once.
    ///
    /// # Errors
    /// [`Schema`](outbox_core::ErrorKind::Schema) when a table of that name is there and is not ours, or is of a
    /// newer version, or was declared otherwise; [`PermissionDenied`](outbox_core::ErrorKind::PermissionDenied).
    pub async fn migrate(&self) -> Result<()> {
        let table = self.table()?;
        crate::schema::migrate(&self.db, table.dialect, Kind::Outbox, &self.name, &table.declared).await
    }

    pub(crate) fn table(&self) -> Result<&Table> {
        self.table
            .as_ref()
            .as_ref()
            .map_err(|error| outbox_core::Error::new(error.kind(), "connect").with_detail(error.to_string()))
    }

    /// The connection for claims, settlements and extensions.
    pub(crate) fn hot(&self) -> Result<&Db> {
        #[cfg(feature = "postgres")]
        if let Some(own) = self.table()?.postgres.connection(self)? {
            return Ok(own);
        }
        #[cfg(feature = "mysql")]
        if let Some(own) = self.table()?.mysql.connection(self) {
            return Ok(own);
        }
        Ok(&self.db)
    }

    #[cfg(any(feature = "postgres", feature = "mysql"))]
    pub(crate) fn has_shared_pool(&self) -> bool {
        self.shared_pool
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn has_relaxed_commit(&self) -> bool {
        self.relaxed_commit
    }

    pub(crate) fn require_same_backend(&self, connection: &impl ConnectionTrait) -> Result<()> {
        if connection.get_database_backend() == self.db.get_database_backend() {
            return Ok(());
        }
        Err(outbox_core::Error::new(outbox_core::ErrorKind::ForeignTransaction, "enqueue")
            .with_table(&self.name))
    }

    /// Sends a statement that returns rows.
    pub(crate) async fn query(
        &self,
        operation: &'static str,
        connection: &impl ConnectionTrait,
        sql: &str,
        values: Values,
    ) -> Result<Vec<QueryResult>> {
        let statement = Statement {
            sql: sql.to_owned(),
            values: Some(values),
            db_backend: connection.get_database_backend(),
        };
        connection.query_all_raw(statement).await.map_err(|error| from_db(operation, &self.name, error))
    }

    /// Sends a statement that returns a number of rows.
    pub(crate) async fn execute(
        &self,
        operation: &'static str,
        connection: &impl ConnectionTrait,
        sql: &str,
        values: Values,
    ) -> Result<u64> {
        let statement = Statement {
            sql: sql.to_owned(),
            values: Some(values),
            db_backend: connection.get_database_backend(),
        };
        let result = connection.execute_raw(statement).await;
        result.map(|result| result.rows_affected()).map_err(|error| from_db(operation, &self.name, error))
    }
}

impl fmt::Debug for OutboxTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxTable").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Repository for OutboxTable {
    async fn enqueue(&self, cx: &Context, drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        Self::enqueue(self, cx, drafts).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claim> {
        request.validate()?;
        match self.table()?.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => crate::postgres::claim(self, request).await,
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => crate::sqlite::claim(self, request).await,
            #[cfg(feature = "mysql")]
            Dialect::MySql => crate::mysql::claim(self, request).await,
        }
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        crate::settle::settle(self, settlements).await
    }

    async fn extend(&self, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        crate::settle::extend(self, leases, by).await
    }
}

impl Transactions for OutboxTable {
    async fn begin(&self) -> Result<Context> {
        SeaOrm::new(&self.db).begin().await
    }

    async fn commit(&self, cx: Context) -> Result<()> {
        SeaOrm::new(&self.db).commit(cx).await
    }

    async fn rollback(&self, cx: Context) -> Result<()> {
        SeaOrm::new(&self.db).rollback(cx).await
    }
}
