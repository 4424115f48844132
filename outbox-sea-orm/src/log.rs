//! The log: an append-only table on PostgreSQL, read by any number of consumer groups.

mod claim;
mod group;
mod operations;
mod partitions;
mod range;
mod reader;
mod register;
mod settle;

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

pub use group::LogGroup;
pub use register::{Start, Subscription};

/// One append-only log: messages are stored once and delivered to every consumer group. A cheap handle; clones share its
/// connections. PostgreSQL only.
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
/// An id that is enqueued twice is not noticed: it is delivered twice.
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

    /// Declares that the log has partitions of `interval` by the time of the enqueue, which [`maintain`](Self::maintain)
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
    /// the group's own table, which is an ordered outbox table. A redriven message comes after what waits there of its key.
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
    /// [`Unsupported`](ErrorKind::Unsupported) on another database than PostgreSQL.
    pub fn ddl(&self) -> Result<String> {
        let dialect = self.require_postgres()?;
        Ok(crate::sql::create(Kind::Log, dialect, self.name(), &self.declared))
    }

    /// Creates the log and its schema where they are missing. Safe to call from several processes at once.
    ///
    /// # Errors
    /// Those of [`OutboxTable::migrate`]; [`Unsupported`](ErrorKind::Unsupported) on another database than PostgreSQL.
    pub async fn migrate(&self) -> Result<()> {
        let dialect = self.require_postgres()?;
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
    /// enqueued, and producers wait as long behind it.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for a log that is not declared partitioned,
    /// [`InvalidInput`](ErrorKind::InvalidInput) that names the field, [`Timeout`](ErrorKind::Timeout), which is
    /// retryable, when somebody held the log, [`PermissionDenied`](ErrorKind::PermissionDenied) for a role that does
    /// not own it. What was dropped before stays so.
    pub async fn maintain(&self, maintenance: Maintenance) -> Result<Maintained> {
        self.require_postgres()?;
        partitions::maintain(self, &maintenance).await
    }

    /// Whether the log is there, complete and of the right version.
    ///
    /// # Errors
    /// [`Schema`](ErrorKind::Schema), whose text names what is missing and what to do.
    pub async fn check(&self) -> Result<()> {
        let dialect = self.require_postgres()?;
        crate::schema::check(&self.table.db, dialect, Kind::Log, self.name(), &self.declared).await
    }

    /// The group `name`, which must have been [registered](Self::register). No statement is sent.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) where no table can be named after it: what is not lower-case letters, digits and
    /// underscores, or is too long.
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

    fn require_postgres(&self) -> Result<Dialect> {
        self.declared.validate()?;
        if self.declared.lanes().is_some() {
            return Err(Error::new(ErrorKind::Unsupported, "declare")
                .with_table(self.name())
                .with_detail("a log does not take turns"));
        }
        match self.table.table()?.dialect {
            Dialect::Postgres => Ok(Dialect::Postgres),
            #[allow(unreachable_patterns, reason = "there may be no other")]
            _ => Err(Error::new(ErrorKind::Unsupported, "connect")
                .with_table(self.name())
                .with_detail("logs are on PostgreSQL only")),
        }
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
