use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use outbox_core::{
    Claim, ClaimRequest, Context, Draft, Lease, MessageId, OnDead, Repository, Result, Settled, Settlement,
    TableName, Transactions, Wakeup,
};
use tokio::sync::Mutex;

use super::OutboxLog;
use super::last_claim::LastClaim;
use super::reader::Reader;
use crate::dialect::Dialect;
use crate::repository::OutboxTable;
use crate::sql::LogSql;
#[cfg(feature = "postgres")]
use crate::sql::PostgresLogSql;
#[cfg(feature = "sqlite")]
use crate::sql::SqliteLogSql;
#[cfg(feature = "postgres")]
use crate::wakeup::TableListener;

/// One consumer group of a log: [`Repository`], [`Operations`](outbox_core::Operations), [`Wakeup`] and [`Transactions`], so that
/// dispatchers run on it as on an [`OutboxTable`]. A cheap handle; clones share what this process knows of the log.
///
/// A claim leases a range of the log. What becomes of its messages other than done — a retry, a release, a dead letter, an
/// expired lease, a delay — makes a message of the group's own table, an outbox table, where everything goes on as in a
/// queue. Dead letters, history and retention are those of that table.
///
/// # How it differs from a queue
/// * A message that became claimable again may come before others that were enqueued earlier.
/// * Several dispatchers that serve different topics of one group make messages of the group's own table of all that a
///   claim finds and does not serve: give each of them a group.
/// * There is no order per key, unless the log is [declared](OutboxLog::ordered) so.
#[derive(Clone)]
pub struct LogGroup {
    pub(super) log: OutboxLog,
    /// What did not simply succeed.
    pub(super) own: OutboxTable,
    pub(super) name: Arc<str>,
    pub(super) dialect: Dialect,
    pub(super) sql: Arc<LogSql>,
    #[cfg(feature = "postgres")]
    pub(super) postgres: Arc<PostgresLogSql>,
    #[cfg(feature = "sqlite")]
    pub(super) sqlite: Arc<SqliteLogSql>,
    pub(super) reader: Arc<Mutex<Reader>>,
    pub(super) last_claim: Arc<LastClaim>,
    #[cfg(feature = "wal")]
    pub(super) feed: Option<Arc<super::feed::Feed>>,
}

impl LogGroup {
    pub(super) fn new(log: &OutboxLog, name: &str) -> Result<Self> {
        let dialect = log.require_logs()?;
        let own = OutboxTable::new(&log.table.db, log.group_table(name)?).declared(log.own_declaration());
        Ok(Self {
            dialect,
            sql: Arc::new(LogSql::of(dialect, log.name(), own.name())),
            #[cfg(feature = "postgres")]
            postgres: Arc::new(PostgresLogSql::of(dialect, log.name(), own.name())),
            #[cfg(feature = "sqlite")]
            sqlite: Arc::new(SqliteLogSql::of(dialect, log.name(), own.name())),
            own: own.of_group(&log.table),
            log: log.clone(),
            name: name.into(),
            reader: Arc::default(),
            last_claim: Arc::default(),
            #[cfg(feature = "wal")]
            feed: None,
        })
    }

    /// The name of the group.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a dead letter means to its key, where the log is ordered.
    pub(super) fn order(&self) -> Option<OnDead> {
        self.log.declared.ordered
    }

    /// Whether it can be fed from the WAL.
    pub(super) fn has_feed(&self) -> bool {
        #[cfg(feature = "wal")]
        return self.feed.is_some();
        #[cfg(not(feature = "wal"))]
        return false;
    }

    /// The table of what did not simply succeed: an outbox table.
    pub fn table(&self) -> &TableName {
        self.own.name()
    }
}

impl fmt::Debug for LogGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogGroup")
            .field("log", self.log.name())
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Repository for LogGroup {
    async fn enqueue(&self, cx: &Context, drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        self.log.enqueue(cx, drafts).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claim> {
        request.validate()?;
        super::claim::claim(self, request).await
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        super::settle::settle(self, settlements).await
    }

    async fn extend(&self, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        super::settle::extend(self, leases, by).await
    }
}

impl Transactions for LogGroup {
    async fn begin(&self) -> Result<Context> {
        self.log.table.begin().await
    }

    async fn commit(&self, cx: Context) -> Result<()> {
        self.log.table.commit(cx).await
    }

    async fn rollback(&self, cx: Context) -> Result<()> {
        self.log.table.rollback(cx).await
    }
}

#[cfg(feature = "postgres")]
impl Wakeup for LogGroup {
    type Listener = TableListener;

    /// One connection for the log and the group's own table; see [`OutboxTable`]. None on SQLite.
    async fn listen(&self) -> Result<Option<TableListener>> {
        if !self.log.table.can_listen() {
            return Ok(None);
        }
        let listener =
            TableListener::connect(self.log.table.clone(), self.postgres.log_writers.clone()).await?;
        #[cfg(feature = "wal")]
        if let Some(feed) = &self.feed {
            return Ok(Some(listener.with_arrivals(feed.arrivals())));
        }
        Ok(Some(listener))
    }
}

#[cfg(not(feature = "postgres"))]
impl Wakeup for LogGroup {
    type Listener = outbox_core::NoListener;

    async fn listen(&self) -> Result<Option<Self::Listener>> {
        Ok(None)
    }
}
