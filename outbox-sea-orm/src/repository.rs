use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use outbox_core::{
    Claim, ClaimRequest, Context, DEDUP_RETENTION, Declaration, Draft, ErrorKind, Fairness, Lease, Limits,
    Maintained, Maintenance, MessageId, OnDead, PartitionInterval, Repository, Result, Retention, Settled,
    Settlement, TableName, Transactions,
};
use sea_orm::sea_query::Values;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, QueryResult, Statement};

use crate::context::{OpenTransaction, SeaOrm, SeaOrmContext, transactor};
use crate::dialect::Dialect;
use crate::error::from_db;
use crate::shield::Db;
use crate::sql::{FairSql, KeysSql, Kind, OrderedSql, OutboxSql};

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
    pub(crate) dedup_retention: Duration,
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
    pub(crate) fair: Option<Fair>,
    #[cfg(feature = "postgres")]
    pub(crate) partitioned: Option<crate::partitions::Partitioned>,
    #[cfg(feature = "postgres")]
    pub(crate) postgres: crate::postgres::Own,
    #[cfg(feature = "mysql")]
    pub(crate) mysql: crate::mysql::Own,
}

/// What an ordered table needs.
pub(crate) struct Ordered {
    pub(crate) sql: OrderedSql,
    pub(crate) keys: KeysSql,
    /// Whether a dead letter blocks its key.
    pub(crate) blocks: bool,
}

/// What a fair table needs that is not ordered: an ordered one takes turns by itself.
pub(crate) struct Fair {
    pub(crate) sql: FairSql,
    pub(crate) fairness: Fairness,
}

impl Table {
    pub(crate) fn new(backend: DbBackend, name: &TableName, declared: Declaration) -> Result<Self> {
        declared.validate()?;
        let dialect = Dialect::of(backend)?;
        if declared.partitioned.is_some() && declared.lanes().is_some() {
            return Err(outbox_core::Error::new(outbox_core::ErrorKind::Unsupported, "declare")
                .with_detail("a partitioned table does not take turns"));
        }
        if declared.partitioned.is_some() && !dialect.has_partitions() {
            return Err(outbox_core::Error::new(outbox_core::ErrorKind::Unsupported, "declare")
                .with_detail("partitioned tables are on PostgreSQL only"));
        }
        if declared.partitioned == Some(PartitionInterval::Minute) {
            return Err(outbox_core::Error::invalid(
                "partitioned",
                "at least an hour; only logs by the minute",
            ));
        }
        let ordered = |on_dead| Ordered {
            sql: OrderedSql::new(dialect, name),
            keys: KeysSql::new(dialect, name),
            blocks: on_dead == OnDead::Block,
        };
        Ok(Self {
            dialect,
            sql: OutboxSql::new(dialect, name),
            ordered: declared.ordered.map(ordered),
            #[cfg(feature = "postgres")]
            partitioned: declared
                .partitioned
                .map(|interval| crate::partitions::Partitioned::new(name, interval)),
            fair: declared
                .lanes()
                .map(|fairness| Fair { sql: FairSql::new(dialect, name), fairness: fairness.clone() }),
            declared,
            #[cfg(feature = "postgres")]
            postgres: crate::postgres::Own::new(dialect, name),
            #[cfg(feature = "mysql")]
            mysql: crate::mysql::Own::new(dialect, name),
        })
    }

    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    fn of_group(mut self, name: &TableName, log: &OutboxTable) -> Self {
        #[cfg(feature = "postgres")]
        if let Ok(log) = log.table() {
            self.postgres.share(&log.postgres);
        }
        #[cfg(feature = "sqlite")]
        if self.dialect == Dialect::Sqlite && self.ordered.is_some() {
            self.sql = self.sql.behind_log(self.dialect, name);
        }
        let _ = (name, log);
        self
    }

    /// Whether rows with a key keep their number whatever becomes of them.
    pub(crate) fn keeps_numbers(&self) -> bool {
        self.ordered.is_some()
    }

    /// Whether a redriven message draws a new number by a statement of its own: elsewhere the number is the claim order of all.
    #[cfg(feature = "mysql")]
    pub(crate) fn draws_numbers(&self) -> bool {
        self.dialect == Dialect::MySql && self.ordered.as_ref().is_some_and(|ordered| !ordered.blocks)
    }

    /// Whether nothing behind a dead letter is claimed.
    pub(crate) fn dead_blocks(&self) -> bool {
        self.ordered.as_ref().is_some_and(|ordered| ordered.blocks)
    }
}

impl OutboxTable {
    /// The table `name` in the database of `db`. No statement is sent.
    pub fn new(db: &DatabaseConnection, name: TableName) -> Self {
        let table = Arc::new(Table::new(db.get_database_backend(), &name, Declaration::new()));
        let declared = Declaration::new();
        Self {
            db: Db::new(db),
            name,
            limits: Limits::default(),
            retention: Retention::default(),
            dedup_retention: DEDUP_RETENTION,
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

    /// Declares that claims take turns between keys or tenants; see [`Declaration::fair`]. As with
    /// [`ordered`](Self::ordered), every service that uses the table must declare the same.
    #[must_use]
    pub fn fair(self, fairness: Fairness) -> Self {
        let declared = self.declared.clone().fair(fairness);
        self.declared(declared)
    }

    /// Declares the table partitioned, on PostgreSQL: what was delivered is [kept](Retention::Keep), in partitions of
    /// `interval`, which [`maintain`](Self::maintain) makes ahead and drops; see [`Declaration::partitioned`]. Dead
    /// letters have a partition of their own, and so have messages to be delivered, whose claims do not notice how much is
    /// kept.
    #[must_use]
    pub fn partitioned(self, interval: PartitionInterval) -> Self {
        let declared = self.declared.clone().partitioned(interval);
        self.declared(declared).with_retention(Retention::Keep)
    }

    /// Declares all at once. Impossible combinations are reported by every call that follows, before any statement.
    #[must_use]
    pub fn declared(mut self, declared: Declaration) -> Self {
        self.table = Arc::new(Table::new(self.db.get_database_backend(), &self.name, declared.clone()));
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

    /// Sets how long the deduplication keys of what this handle enqueues are honoured: more than zero, at most
    /// [`MAX_DELAY`](outbox_core::MAX_DELAY), by default [`DEDUP_RETENTION`]. Too short: a repeat that comes late, for
    /// example from a client that was offline, is stored again. Too long: the table of keys grows; about 200 bytes for
    /// each key until it is [pruned](outbox_core::Prune::dedup_keys).
    ///
    /// It is stored with each key when the key is taken: a change does not touch those that are there.
    #[must_use]
    pub fn with_dedup_retention(mut self, retention: Duration) -> Self {
        self.dedup_retention = retention;
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
    /// (on SQLite one for each 1,000), and before it another one for all deduplication keys, where there are any (on
    /// MySQL one for each).
    ///
    /// A statement that failed before in a [`DatabaseTransaction`](sea_orm::DatabaseTransaction) is not noticed
    /// by its `commit`, which then reports success although PostgreSQL has rolled back; the transaction of a
    /// [`Context`] reports it.
    ///
    /// Roll back after an error other than [`AlreadyEnqueued`](ErrorKind::AlreadyEnqueued), and after dropping this future: a
    /// deduplication key may be taken by then and its message not stored, and a commit would let later repeats name a message that
    /// never was. The transaction of a [`Context`] sees to that.
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
    /// that matters. Drafts with deduplication keys are stored in a transaction of their own: a key must not stay without
    /// its message.
    ///
    /// # Errors
    /// Those of [`Repository::enqueue`].
    pub async fn enqueue_autocommit(&self, drafts: impl Into<Vec<Draft>>) -> Result<Vec<MessageId>> {
        let drafts = drafts.into();
        if !crate::enqueue::has_keys(&drafts) {
            return crate::enqueue::enqueue(self, &self.db, drafts).await;
        }
        let enqueue = async |cx: &Context| match self.enqueue(cx, drafts).await {
            // what was new is stored all the same
            Err(error) if error.kind() == ErrorKind::AlreadyEnqueued => Ok(Err(error)),
            answer => answer.map(Ok),
        };
        transactor(&self.db).run(enqueue).await?
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
        let is_new =
            crate::schema::migrate(&self.db, table.dialect, Kind::Outbox, &self.name, &table.declared)
                .await?;
        if is_new && table.declared.partitioned.is_some() {
            self.maintain(Maintenance::new()).await?;
        }
        Ok(())
    }

    /// Makes the partitions of the time to come, then drops those whose time is over, with the delivered messages
    /// in them; a message that has not ended is in none of these. Call it at least once in an interval; `migrate` does so when it
    /// makes the table. Safe to call from several processes at once, and whatever the time zone of the session.
    ///
    /// What is delivered when no partition was made for it goes to one of its own, from which
    /// [`prune`](outbox_core::Operations::prune) removes it row by row. A time of which something is there has no
    /// partition; the next one has.
    ///
    /// Bounded: at most [`MAX_AHEAD`](outbox_core::MAX_AHEAD) partitions are made in one transaction and 100 dropped, each in one of
    /// its own. Both wait at most 2 s for whoever reads or writes delivered messages, and keep settlements from
    /// them meanwhile. One process at a time does so for a table; the others wait up to 30 s for their turn.
    ///
    /// # Errors
    /// [`Unsupported`](outbox_core::ErrorKind::Unsupported) for a table that has no partitions,
    /// [`InvalidInput`](outbox_core::ErrorKind::InvalidInput) that names the field,
    /// [`Timeout`](outbox_core::ErrorKind::Timeout), which is retryable, when somebody held the partitions,
    /// [`PermissionDenied`](outbox_core::ErrorKind::PermissionDenied) for a role that does not own the table. What was
    /// dropped before stays so.
    pub async fn maintain(&self, maintenance: Maintenance) -> Result<Maintained> {
        self.table()?;
        #[cfg(feature = "postgres")]
        return crate::partitions::maintain(self, &maintenance).await;
        #[cfg(not(feature = "postgres"))]
        {
            let _ = maintenance;
            Err(outbox_core::Error::new(outbox_core::ErrorKind::Unsupported, "maintain")
                .with_table(&self.name)
                .with_detail("the table has no partitions"))
        }
    }

    /// The table of a group of the log `other`: it uses its connections for claims and settlements, as well as its ways.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn of_group(mut self, other: &Self) -> Self {
        let table = Table::new(self.db.get_database_backend(), &self.name, self.declared.clone());
        self.table = Arc::new(table.map(|table| table.of_group(&self.name, other)));
        self.shared_pool = other.shared_pool;
        self.relaxed_commit = other.relaxed_commit;
        self
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

/// How often a statement is sent in all that meets rows which have just moved to another partition.
const MAX_MOVES: usize = 10;

/// A statement that changes rows fails on a partitioned table when one of them has left for another partition since its
/// snapshot: settled, died or redriven by somebody else. Sent again, it finds the row there or nowhere. For
/// autocommit statements: in a transaction nothing can follow a failure.
impl OutboxTable {
    pub(crate) async fn repeat_moved<T, F: Future<Output = Result<T>> + Send>(
        &self,
        send: impl Fn() -> F + Send,
    ) -> Result<T> {
        for _ in 1..MAX_MOVES {
            match send().await {
                Err(error)
                    if self.declared.partitioned.is_some()
                        && error.kind() == outbox_core::ErrorKind::Contention => {}
                answer => return answer,
            }
        }
        send().await
    }

    #[cfg(feature = "postgres")]
    pub(crate) async fn query_alone(
        &self,
        operation: &'static str,
        connection: &impl ConnectionTrait,
        sql: &str,
        values: Values,
    ) -> Result<Vec<QueryResult>> {
        if self.declared.partitioned.is_none() {
            return self.query(operation, connection, sql, values).await;
        }
        self.repeat_moved(|| self.query(operation, connection, sql, values.clone())).await
    }

    pub(crate) async fn execute_alone(
        &self,
        operation: &'static str,
        connection: &impl ConnectionTrait,
        sql: &str,
        values: Values,
    ) -> Result<u64> {
        if self.declared.partitioned.is_none() {
            return self.execute(operation, connection, sql, values).await;
        }
        self.repeat_moved(|| self.execute(operation, connection, sql, values.clone())).await
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
