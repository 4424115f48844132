//! The log: an append-only table on PostgreSQL or SQLite, read by any number of consumer groups.

mod claim;
#[cfg(feature = "wal")]
mod feed;
mod group;
mod last_claim;
mod operations;
#[cfg(feature = "postgres")]
mod partitions;
#[cfg(feature = "postgres")]
mod postgres;
mod range;
#[cfg(feature = "postgres")]
mod read;
mod reader;
mod register;
mod settle;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::fmt;

use outbox_core::{
    Context, Declaration, Draft, Error, ErrorKind, Limits, Maintained, Maintenance, MessageId, OnDead,
    PartitionInterval, Result, TableName, refuse_dedup_keys,
};
use sea_orm::DatabaseConnection;

use crate::context::OpenTransaction;
use crate::dialect::Dialect;
use crate::repository::OutboxTable;
use crate::sql::Kind;

#[cfg(feature = "wal")]
pub use feed::WalFeed;
pub use group::LogGroup;
pub use register::{Start, Subscription};

/// One append-only log: messages are stored once and delivered to every consumer group. A cheap handle; clones share its
/// connections. On PostgreSQL and SQLite.
///
/// Enqueue here as on an [`OutboxTable`]; deliver with a dispatcher over a [`LogGroup`].
///
/// # Guarantees
/// * What a transaction has enqueued reaches every group registered before it committed, if and only if it commits, however
///   late it commits: a group reads up to the number below which nothing can appear any more.
/// * A transaction that has nothing to do with the log holds no group back. One that has enqueued and stays open holds
///   back what was enqueued after it, for as long as it is open.
/// * A delivered message writes no row; what fails, waits, or is dead is kept in a table of the group's own, with its
///   payload, so that nothing in the log is needed by it.
///
/// An id that is enqueued twice is not noticed: it is delivered twice. But while one message waits or is dead in a group's own
/// table, no other with its id goes there: what fails or is delayed of it is taken for the same.
///
/// # Dialects
/// On SQLite, where one transaction writes at a time, a group reads all that is committed, and nothing holds it back. The log is
/// one table there: it cannot be [partitioned](Self::partitioned), and [`maintain`](Self::maintain) removes what is old row by
/// row. There is no wake-up, and the log, its groups and their tables are in one file.
///
/// # Examples
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # async fn example(db: sea_orm::DatabaseConnection) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use outbox_core::{Draft, TableName};
/// use outbox_sea_orm::{OutboxLog, Start, Subscription};
/// use sea_orm::TransactionTrait;
///
/// let log = OutboxLog::new(&db, TableName::parse("orders.log")?);
/// log.migrate().await?;
/// log.register(Subscription::new("billing").with_topics(["order.placed"]).with_start(Start::Beginning)).await?;
///
/// let txn = db.begin().await?;
/// log.enqueue_in(&txn, [Draft::json("order.placed", &7)?]).await?;
/// txn.commit().await?;
///
/// let billing = log.group("billing")?; // a repository for a dispatcher
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct OutboxLog {
    /// The same columns that an enqueue writes, the same connections and the same wake-up.
    pub(crate) table: OutboxTable,
    declared: Declaration,
}

impl OutboxLog {
    /// The log `name` in the database of `db`. No statement is sent.
    pub fn new(db: &DatabaseConnection, name: TableName) -> Self {
        Self { table: OutboxTable::new(db, name), declared: Declaration::new() }
    }

    /// Declares that the log has partitions of `interval` by the time of the enqueue (PostgreSQL only), which [`maintain`](Self::maintain)
    /// makes ahead and drops. Every service that uses the log must declare the same: `migrate` and `ddl` mark the log with
    /// it, and `check` and `migrate` name a difference.
    ///
    /// Too short: every claim looks into every partition. Too long: what all groups have read stays for that long.
    #[must_use]
    pub fn partitioned(self, interval: PartitionInterval) -> Self {
        let declared = self.declared.clone().partitioned(interval);
        self.declared(declared)
    }

    /// Declares the log ordered: each group delivers messages of one key strictly in the order in which they were enqueued, whatever
    /// topics they have of those that it wants; see [`Declaration::ordered`]. As with [`partitioned`](Self::partitioned),
    /// every service that uses the log must declare the same.
    ///
    /// While a message of a key waits, is dead, or is claimed and another one follows, what is read of the key is copied to
    /// the group's own table, which is an ordered outbox table. A redriven message comes after what waits there of its key. So a
    /// claim of a loop waits up to 50 ms until what the same handle or a clone of it has claimed before is settled.
    #[must_use]
    pub fn ordered(self, on_dead: OnDead) -> Self {
        let declared = self.declared.clone().ordered(on_dead);
        self.declared(declared)
    }

    /// Declares all at once. What a log cannot be is reported by every call that needs the declaration, before any statement.
    #[must_use]
    pub fn declared(mut self, declared: Declaration) -> Self {
        self.declared = declared;
        self
    }

    /// Sets the bounds of this log's messages.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.table = self.table.with_limits(limits);
        self
    }

    /// See [`OutboxTable::with_shared_pool`].
    #[must_use]
    pub fn with_shared_pool(mut self) -> Self {
        self.table = self.table.with_shared_pool();
        self
    }

    /// See [`OutboxTable::with_relaxed_commit`].
    #[must_use]
    pub fn with_relaxed_commit(mut self) -> Self {
        self.table = self.table.with_relaxed_commit();
        self
    }

    /// The name of the log.
    pub fn name(&self) -> &TableName {
        self.table.name()
    }

    /// Stores messages in the transaction on `cx`; see [`OutboxTable::enqueue`].
    ///
    /// # Errors
    /// Those of [`Repository::enqueue`](outbox_core::Repository::enqueue); [`Unsupported`](ErrorKind::Unsupported) for a draft
    /// with a deduplication key.
    pub async fn enqueue(&self, cx: &Context, drafts: impl Into<Vec<Draft>>) -> Result<Vec<MessageId>> {
        self.table.enqueue(cx, without_keys(drafts)?).await
    }

    /// Stores messages in a transaction that the caller has begun; see [`OutboxTable::enqueue_in`].
    ///
    /// # Errors
    /// Those of [`Repository::enqueue`](outbox_core::Repository::enqueue).
    pub async fn enqueue_in(
        &self,
        transaction: &impl OpenTransaction,
        drafts: impl Into<Vec<Draft>>,
    ) -> Result<Vec<MessageId>> {
        self.table.enqueue_in(transaction, without_keys(drafts)?).await
    }

    /// Stores messages without a transaction; see [`OutboxTable::enqueue_autocommit`].
    ///
    /// # Errors
    /// Those of [`Repository::enqueue`](outbox_core::Repository::enqueue).
    pub async fn enqueue_autocommit(&self, drafts: impl Into<Vec<Draft>>) -> Result<Vec<MessageId>> {
        self.table.enqueue_autocommit(without_keys(drafts)?).await
    }

    /// The DDL that creates the log, without its groups.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) on another database than PostgreSQL and SQLite, and for a declaration that the database
    /// cannot have.
    pub fn ddl(&self) -> Result<String> {
        let dialect = self.require_logs()?;
        Ok(crate::sql::create(Kind::Log, dialect, self.name(), &self.declared))
    }

    /// Creates the log and its schema where they are missing. Safe to call from several processes at once.
    ///
    /// # Errors
    /// Those of [`OutboxTable::migrate`] and [`ddl`](Self::ddl).
    pub async fn migrate(&self) -> Result<()> {
        let dialect = self.require_logs()?;
        let is_new =
            crate::schema::migrate(&self.table.db, dialect, Kind::Log, self.name(), &self.declared).await?;
        if is_new && self.declared.partitioned.is_some() {
            self.maintain(Maintenance::new()).await?;
        }
        Ok(())
    }

    /// Makes the partitions of the time to come, then drops those whose time is over and that no group needs any more. Call
    /// it at least once in an interval; `migrate` does so when it makes the log. Safe to call from every dispatcher at once, and
    /// whatever the time zone of the session.
    ///
    /// A partition is dropped when it ended longer ago than `drop_after`, every registered group
    /// has read all of it, and none has a claim in it that is not settled. Otherwise it stays, and
    /// [`held`](Maintained::held) says which groups need it. What a group has set aside as failed, delayed or dead is in a table of
    /// its own and needs no partition. Before any group is registered, only the age counts.
    ///
    /// What is enqueued when no partition was made for it goes to a default partition, so that a late run makes no producer
    /// fail. A time of which something is there gets no partition; the next one does. With an age, up to 10,000 such messages that no
    /// group needs are removed one by one.
    ///
    /// Bounded: at most [`MAX_AHEAD`](outbox_core::MAX_AHEAD) partitions are made ahead in one transaction, which keeps claims waiting
    /// meanwhile but no producer, and 100 dropped, each in a transaction of its own. To drop one, or to make that of the
    /// current interval where it is missing, the log is locked: that waits at most 500 ms for transactions that have
    /// enqueued, and producers wait as long behind it. One process at a time does so for a log; the others wait up to
    /// 30 s for their turn.
    ///
    /// On SQLite, which has no partitions, an age removes the messages that were enqueued longer ago, that every group has read, and that
    /// none has claimed and not settled: up to 100,000 of the oldest, 1,000 in a statement, for which producers wait. Call
    /// again while [`n_removed`](Maintained::n_removed) is that many; [`held_by`](Maintained::held_by) names the groups that keep what is old
    /// enough. The file does not shrink; its room is used again.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for a log on PostgreSQL that is not declared partitioned,
    /// [`InvalidInput`](ErrorKind::InvalidInput) that names the field, [`Timeout`](ErrorKind::Timeout), which is
    /// retryable, when somebody held the log, [`PermissionDenied`](ErrorKind::PermissionDenied) for a role that does
    /// not own it. What was dropped before stays so.
    pub async fn maintain(&self, maintenance: Maintenance) -> Result<Maintained> {
        match self.require_logs()? {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => partitions::maintain(self, &maintenance).await,
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => sqlite::maintain(self, &maintenance).await,
            // refused before
            #[cfg(feature = "mysql")]
            Dialect::MySql => Ok(Maintained::default()),
        }
    }

    /// Whether the log is there, complete and of the right version.
    ///
    /// # Errors
    /// [`Schema`](ErrorKind::Schema), whose text names what is missing and what to do.
    pub async fn check(&self) -> Result<()> {
        let dialect = self.require_logs()?;
        crate::schema::check(&self.table.db, dialect, Kind::Log, self.name(), &self.declared).await
    }

    /// The group `name`, which must have been [registered](Self::register). No statement is sent.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) where no table can be named after it: what is not lower-case letters, digits and
    /// underscores, or is too long; [`Unsupported`](ErrorKind::Unsupported) as for [`ddl`](Self::ddl).
    pub fn group(&self, name: &str) -> Result<LogGroup> {
        LogGroup::new(self, name)
    }

    /// The table of a group's own.
    pub(crate) fn group_table(&self, group: &str) -> Result<TableName> {
        if group.is_empty() {
            return Err(Error::invalid("group", "must not be empty"));
        }
        let name = TableName::parse(&format!("{}_group_{group}", self.name()));
        name.map_err(|error| Error::invalid("group", error))
    }

    /// What a group's own table is declared.
    fn own_declaration(&self) -> Declaration {
        self.declared.ordered.map_or_else(Declaration::new, |on_dead| Declaration::new().ordered(on_dead))
    }

    /// Refuses a declaration that no log can have here.
    fn require_logs(&self) -> Result<Dialect> {
        self.declared.validate()?;
        let dialect = self.table.table()?.dialect;
        let refused =
            |what| Error::new(ErrorKind::Unsupported, "declare").with_table(self.name()).with_detail(what);
        if !dialect.has_logs() {
            return Err(refused("logs are on PostgreSQL and SQLite only"));
        }
        if self.declared.lanes().is_some() {
            return Err(refused("a log does not take turns"));
        }
        if self.declared.partitioned.is_some() && !dialect.has_partitions() {
            return Err(refused("partitioned logs are on PostgreSQL only"));
        }
        Ok(dialect)
    }
}

impl fmt::Debug for OutboxLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxLog").field("name", self.name()).finish_non_exhaustive()
    }
}

/// A log remembers no deduplication keys.
fn without_keys(drafts: impl Into<Vec<Draft>>) -> Result<Vec<Draft>> {
    let drafts = drafts.into();
    refuse_dedup_keys(&drafts)?;
    Ok(drafts)
}
