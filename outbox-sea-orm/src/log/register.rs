use std::time::{Duration, Instant};

use outbox_core::{Error, ErrorKind, MAX_DELAY, Result};
use sea_orm::sea_query::Values;
use sea_orm::{ConnectionTrait, QueryResult, Value};

use super::claim::horizon_of;
use super::{LogGroup, OutboxLog};
#[cfg(feature = "postgres")]
use crate::context::Transaction;
use crate::context::{SeaOrmContext, transactor};
use crate::dialect::Dialect;
use crate::error::from_db;
use crate::row::{column, duration};
use crate::sql::Kind;

/// How long a registration waits for transactions that have enqueued and are still open.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// Where a group begins to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// With the first message that is still in the log.
    Beginning,
    /// With the first message that was enqueued this long ago, by the database's clock; at most [`MAX_DELAY`].
    Ago(Duration),
    /// With what commits from now on.
    #[default]
    End,
}

/// A consumer group to be [registered](OutboxLog::register).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    name: String,
    topics: Option<Vec<String>>,
    start: Start,
}

impl Subscription {
    /// The group `name`: lower-case letters, digits and underscores. Every topic, from now on.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), topics: None, start: Start::End }
    }

    /// Wants these topics only; the group passes over others for good.
    #[must_use]
    pub fn with_topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.topics = Some(topics.into_iter().map(Into::into).collect());
        self
    }

    /// Sets where the group begins. It means nothing for a group that is registered already.
    #[must_use]
    pub fn with_start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    fn validate(&self) -> Result<()> {
        if self.topics.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid("topics", "must not be empty"));
        }
        match self.start {
            Start::Ago(age) if age > MAX_DELAY => {
                Err(Error::invalid("start", format_args!("{age:?}, must be at most {MAX_DELAY:?}")))
            }
            _ => Ok(()),
        }
    }

    fn topics(&self, dialect: Dialect) -> Value {
        match dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => crate::row::texts(self.topics.as_deref()),
            #[allow(unreachable_patterns, reason = "there may be no other")]
            _ => self.topics.as_ref().map(|topics| serde_json::json!(topics).to_string()).into(),
        }
    }
}

impl OutboxLog {
    /// Registers a group: makes a table of its own, and remembers where it begins. A group that is there keeps its position;
    /// its topics become those given here, for what it has not read yet.
    ///
    /// A start other than the beginning waits until the transactions that have enqueued and are still open have ended, up
    /// to 30 s. Nothing that commits after the call has returned is passed over.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) that names the field; [`Contention`](ErrorKind::Contention) when such a
    /// transaction does not end; those of [`migrate`](Self::migrate).
    pub async fn register(&self, subscription: Subscription) -> Result<LogGroup> {
        subscription.validate()?;
        let group = self.group(&subscription.name)?;
        if self.update_topics(&subscription).await? {
            return Ok(group);
        }
        let declared = self.own_declaration();
        crate::schema::migrate(&self.table.db, group.dialect, Kind::Outbox, group.table(), &declared).await?;
        let position = self.position(&group, subscription.start).await?;
        self.insert(&group, &subscription, position).await?;
        Ok(group)
    }

    /// Removes a group and what it has not delivered, dead letters included; and its replication slot, where it is fed from the WAL,
    /// as a role that may. Whether it was there.
    ///
    /// # Errors
    /// Those of the database; [`InvalidInput`](ErrorKind::InvalidInput) for an impossible name; [`Contention`](ErrorKind::Contention)
    /// that names the slot where it is left, because somebody still reads it: drop it with `pg_drop_replication_slot`.
    pub async fn unregister(&self, name: &str) -> Result<bool> {
        let group = self.group(name)?;
        let drop_group = crate::sql::drop_log_group(group.dialect, group.table());
        let [delete_group, delete_ranges] = [&group.sql.log_group_delete, &group.sql.log_ranges_delete];
        let (slot, n) = transactor(&self.table.db)
            .run(async |cx| {
                let connection = cx.connection()?;
                let values = || Values(vec![name.into()]);
                #[cfg(feature = "postgres")]
                let slot = self.slot(&group, connection).await?;
                #[cfg(not(feature = "postgres"))]
                let slot = None::<String>;
                let n = self.table.execute("unregister", connection, delete_group, values()).await?;
                self.table.execute("unregister", connection, delete_ranges, values()).await?;
                let dropped = connection.execute_unprepared(&drop_group).await;
                dropped.map_err(|error| from_db("unregister", self.name(), error))?;
                Ok((slot, n))
            })
            .await?;
        match slot {
            #[cfg(feature = "postgres")]
            Some(slot) => self.drop_slot(&group, &slot).await?,
            _ => {}
        }
        Ok(n > 0)
    }

    /// The replication slot of a group that is fed from the WAL.
    #[cfg(feature = "postgres")]
    async fn slot(&self, group: &LogGroup, connection: &Transaction) -> Result<Option<String>> {
        if group.dialect != Dialect::Postgres {
            return Ok(None);
        }
        let (sql, values) = (&group.postgres.log_group_slot, Values(vec![group.name().into()]));
        let rows = self.table.query("unregister", connection, sql, values).await?;
        rows.first().map_or(Ok(None), |row| column(row, 0))
    }

    /// Waits until whoever reads it has noticed that the group is gone.
    #[cfg(feature = "postgres")]
    async fn drop_slot(&self, group: &LogGroup, slot: &str) -> Result<()> {
        let started = Instant::now();
        let values = || Values(vec![slot.into()]);
        while started.elapsed() < PATIENCE {
            let rows = self
                .table
                .query("unregister", &self.table.db, &group.postgres.log_slot_drop, values())
                .await?;
            if rows.iter().all(|row| column(row, 0).is_ok_and(|is_active: bool| !is_active)) {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        let detail = format!("the group is gone and its slot {slot} is left: somebody reads it");
        Err(Error::new(ErrorKind::Contention, "unregister").with_table(self.name()).with_detail(detail))
    }

    /// The names of the registered groups, in order.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn groups(&self) -> Result<Vec<String>> {
        // any name, of one letter as the log's own may be long
        let sql = &self.group("g")?.sql.log_group_names;
        let rows = self.table.query("list groups", &self.table.db, sql, Values(Vec::new())).await?;
        rows.iter().map(|row| column(row, 0)).collect()
    }

    /// Whether the group is there.
    async fn update_topics(&self, subscription: &Subscription) -> Result<bool> {
        let group = self.group(&subscription.name)?;
        let values = Values(vec![group.name().into(), subscription.topics(group.dialect)]);
        let n = self.table.execute("register", &self.table.db, &group.sql.log_group_update, values).await?;
        Ok(n > 0)
    }

    async fn insert(&self, group: &LogGroup, subscription: &Subscription, position: i64) -> Result<()> {
        let ddl =
            crate::sql::create_log_group(group.dialect, self.name(), group.table(), group.order().is_some());
        transactor(&self.table.db)
            .run(async |cx| {
                let connection = cx.connection()?;
                let created = connection.execute_unprepared(&ddl).await;
                created.map_err(|error| from_db("register", self.name(), error))?;
                let values = vec![group.name().into(), subscription.topics(group.dialect), position.into()];
                self.table.execute("register", connection, &group.sql.log_group_insert, Values(values)).await
            })
            .await
            .map(drop)
    }

    /// The position to begin behind. Numbers up to the last one belong to transactions that have ended, once all that
    /// held the lock after it was read have ended.
    async fn position(&self, group: &LogGroup, start: Start) -> Result<i64> {
        let age = match start {
            Start::Beginning => return Ok(0),
            Start::Ago(age) => Some(duration(group.dialect, age)),
            Start::End => None,
        };
        let (last, mut open) = self.writers(group).await?;
        let started = Instant::now();
        while !open.is_empty() {
            if started.elapsed() > PATIENCE {
                let detail = format!("{} transactions have enqueued and are still open", open.len());
                return Err(Error::new(ErrorKind::Contention, "register")
                    .with_table(self.name())
                    .with_detail(detail));
            }
            tokio::time::sleep(PAUSE).await;
            let (_, now_open) = self.writers(group).await?;
            open.retain(|writer| now_open.contains(writer));
        }
        let values = Values(vec![last.into(), age.into()]);
        let row = self.row(&group.sql.log_group_position, values).await?;
        column(&row, 0)
    }

    async fn writers(&self, group: &LogGroup) -> Result<(i64, Vec<String>)> {
        let row = self.row(&group.sql.log_horizon, horizon_of(group, &[])).await?;
        let open = match group.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => column(&row, 1)?,
            // nobody writes while this looks at what is committed
            #[allow(unreachable_patterns, reason = "there may be no other")]
            _ => Vec::new(),
        };
        Ok((column(&row, 0)?, open))
    }

    async fn row(&self, sql: &str, values: Values) -> Result<QueryResult> {
        let rows = self.table.query("register", &self.table.db, sql, values).await?;
        rows.into_iter().next().ok_or_else(|| Error::new(ErrorKind::Other, "register"))
    }
}
