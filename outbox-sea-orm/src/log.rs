//! The log: an append-only table on PostgreSQL, read by any number of consumer groups.

mod claim;
mod group;
mod operations;
mod range;
mod reader;
mod register;
mod settle;

use std::fmt;

use outbox_core::{
    Context, Declaration, Draft, Error, ErrorKind, Limits, MessageId, Result, TableName, refuse_dedup_keys,
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
}

impl OutboxLog {
    /// The log `name` in the database of `db`. No statement is sent.
    pub fn new(db: &DatabaseConnection, name: TableName) -> Self {
        Self { table: OutboxTable::new(db, name) }
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
        Ok(crate::sql::create(Kind::Log, dialect, self.name(), &Declaration::new()))
    }

    /// Creates the log and its schema where they are missing. Safe to call from several processes at once.
    ///
    /// # Errors
    /// Those of [`OutboxTable::migrate`]; [`Unsupported`](ErrorKind::Unsupported) on another database than PostgreSQL.
    pub async fn migrate(&self) -> Result<()> {
        let dialect = self.require_postgres()?;
        crate::schema::migrate(&self.table.db, dialect, Kind::Log, self.name(), &Declaration::new())
            .await
            .map(drop)
    }

    /// Whether the log is there, complete and of the right version.
    ///
    /// # Errors
    /// [`Schema`](ErrorKind::Schema), whose text names what is missing and what to do.
    pub async fn check(&self) -> Result<()> {
        let dialect = self.require_postgres()?;
        crate::schema::check(&self.table.db, dialect, Kind::Log, self.name(), &Declaration::new()).await
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

    fn require_postgres(&self) -> Result<Dialect> {
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
