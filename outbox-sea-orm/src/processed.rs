use std::fmt;
use std::time::Duration;

use outbox_core::{
    Context, Declaration, Mark, Marked, MessageId, Processed, ProcessedStore, Result, TableName, Transactions,
};
use sea_orm::sea_query::Values;
use sea_orm::{ConnectionTrait, DatabaseConnection, ExecResult, QueryResult, Statement};

use crate::context::{SeaOrm, SeaOrmContext};
use crate::dialect::Dialect;
use crate::error::from_db;
use crate::row::{column, duration, time};
use crate::shield::Db;
use crate::sql::{InboxSql, Kind};

/// One inbox table: [`ProcessedStore`] and [`Transactions`] on SeaORM. A cheap handle.
#[derive(Clone)]
pub struct ProcessedTable {
    db: Db,
    name: TableName,
}

impl ProcessedTable {
    /// The table `name` in the database of `db`. No statement is sent.
    pub fn new(db: &DatabaseConnection, name: TableName) -> Self {
        Self { db: Db::new(db), name }
    }

    /// The DDL that creates this table on this database, in a schema that is there.
    ///
    /// # Errors
    /// [`Unsupported`](outbox_core::ErrorKind::Unsupported) for a database that this build does not know.
    pub fn ddl(&self) -> Result<String> {
        Ok(crate::sql::create(Kind::Inbox, self.dialect()?, &self.name, &Declaration::new()))
    }

    /// Creates or upgrades the table; see [`OutboxTable::migrate`](crate::OutboxTable::migrate).
    ///
    /// # Errors
    /// Those of [`OutboxTable::migrate`](crate::OutboxTable::migrate).
    pub async fn migrate(&self) -> Result<()> {
        let (dialect, plain) = (self.dialect()?, Declaration::new());
        crate::schema::migrate(&self.db, dialect, Kind::Inbox, &self.name, &plain).await.map(drop)
    }

    /// Whether the table is there, complete and of the right version.
    ///
    /// # Errors
    /// [`Schema`](outbox_core::ErrorKind::Schema), whose text names what is missing and what to do.
    pub async fn check(&self) -> Result<()> {
        crate::schema::check(&self.db, self.dialect()?, Kind::Inbox, &self.name, &Declaration::new()).await
    }

    fn dialect(&self) -> Result<Dialect> {
        Dialect::of(self.db.get_database_backend())
    }

    fn sql(&self) -> Result<InboxSql> {
        Ok(InboxSql::new(self.dialect()?, &self.name))
    }

    fn statement(&self, sql: String, values: Values) -> Statement {
        Statement { sql, values: Some(values), db_backend: self.db.get_database_backend() }
    }

    async fn query(
        &self,
        connection: &impl ConnectionTrait,
        sql: String,
        values: Values,
    ) -> Result<Option<QueryResult>> {
        let row = connection.query_one_raw(self.statement(sql, values)).await;
        row.map_err(|error| from_db("find processed", &self.name, error))
    }

    async fn execute(
        &self,
        operation: &'static str,
        connection: &impl ConnectionTrait,
        sql: String,
        values: Values,
    ) -> Result<ExecResult> {
        let result = connection.execute_raw(self.statement(sql, values)).await;
        result.map_err(|error| from_db(operation, &self.name, error))
    }

    /// Inserts the record, and says whether it was not there.
    async fn is_first(&self, connection: &impl ConnectionTrait, sql: String, values: Values) -> Result<bool> {
        let inserted = self.execute("mark processed", connection, sql, values).await?;
        Ok(match self.dialect()? {
            // the number of rows is 1 in both cases
            #[cfg(feature = "mysql")]
            Dialect::MySql => inserted.last_insert_id() == 0,
            #[allow(unreachable_patterns, reason = "there may be no other")]
            _ => inserted.rows_affected() == 1,
        })
    }
}

impl fmt::Debug for ProcessedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessedTable").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ProcessedStore for ProcessedTable {
    async fn is_processed(&self, group: &str, id: MessageId) -> Result<bool> {
        Mark::validate_group(group)?;
        let values = Values(vec![group.into(), id.into()]);
        Ok(self.query(&self.db, self.sql()?.is_processed, values).await?.is_some())
    }

    async fn mark_processed(&self, cx: &Context, mark: Mark) -> Result<Marked> {
        mark.validate()?;
        let connection = cx.connection()?;
        let sql = self.sql()?;
        let key = Values(vec![mark.group.as_str().into(), mark.id.into()]);
        let values = vec![
            mark.group.into(),
            mark.id.into(),
            mark.fingerprint.into(),
            mark.metadata.to_string().into(),
        ];
        if self.is_first(connection, sql.mark_processed, Values(values)).await? {
            return Ok(Marked::First);
        }
        match self.query(connection, sql.find_processed, key).await? {
            Some(row) => Ok(Marked::Duplicate(processed(self.dialect()?, &row)?)),
            // the record was purged between the two statements
            None => Err(outbox_core::Error::new(outbox_core::ErrorKind::Contention, "mark processed")
                .with_table(&self.name)),
        }
    }

    async fn store_result(
        &self,
        cx: &Context,
        group: &str,
        id: MessageId,
        result: serde_json::Value,
    ) -> Result<()> {
        Mark::validate_group(group)?;
        Mark::validate_json("result", &result)?;
        let (group, id, result) = (group.into(), id.into(), result.to_string().into());
        let values = Values(match self.dialect()? {
            #[cfg(feature = "mysql")]
            Dialect::MySql => vec![result, group, id],
            #[allow(unreachable_patterns, reason = "there may be no other")]
            _ => vec![group, id, result],
        });
        self.execute("store result", cx.connection()?, self.sql()?.store_result, values).await.map(drop)
    }

    async fn purge_before(&self, group: &str, age: Duration, limit: usize) -> Result<u64> {
        Mark::validate_group(group)?;
        let age = duration(self.dialect()?, age.min(outbox_core::MAX_DELAY));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let values = Values(vec![group.into(), age.into(), limit.into()]);
        self.execute("purge", &self.db, self.sql()?.purge, values).await.map(|purged| purged.rows_affected())
    }
}

fn processed(dialect: Dialect, row: &QueryResult) -> Result<Processed> {
    let json = |text: String| serde_json::from_str(&text).unwrap_or(serde_json::Value::Null);
    Ok(Processed {
        fingerprint: column(row, 0)?,
        metadata: json(column(row, 1)?),
        result: column::<Option<String>>(row, 2)?.map(json),
        processed_at: time(dialect, row, 3)?,
    })
}

impl Transactions for ProcessedTable {
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
