//! The tables of this crate as backends of the conformance suite.

use std::time::Duration;

use outbox_core::{Declaration, Fairness, MessageId, OnDead, PartitionInterval, Retention, TableName};
use outbox_sea_orm::{OutboxTable, ProcessedTable};
use outbox_testkit::{
    Capabilities, Corruption, DeclaredHarness, Harness, OperationsHarness, ProcessedHarness, Skip,
};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use uuid::Uuid;

/// What the harnesses have.
pub(crate) struct Tables {
    pub(crate) db: DatabaseConnection,
    pub(crate) outbox: OutboxTable,
    pub(crate) inbox: ProcessedTable,
}

impl Tables {
    async fn create(db: DatabaseConnection, schema: &str, declaration: Declaration) -> Self {
        crate::support::watch_log();
        let name = |table| TableName::parse(&format!("{schema}.{table}")).expect("name");
        let outbox = OutboxTable::new(&db, name("outbox")).declared(declaration);
        let inbox = ProcessedTable::new(&db, name("inbox"));
        outbox.migrate().await.expect("migrate the outbox");
        inbox.migrate().await.expect("migrate the inbox");
        Self { db, outbox, inbox }
    }

    /// Subtracts `by`, written as the dialect's own interval, from every time of both tables.
    async fn shift(&self, [outbox, inbox]: [&str; 2], by: &str) {
        let columns = ["created_at", "available_at", "leased_until", "dead_at", "done_at"];
        let set: Vec<String> = columns.iter().map(|column| format!("{column} = {column} - {by}")).collect();
        self.execute(&format!("UPDATE {outbox} SET {}", set.join(", "))).await.expect("shift the outbox");
        self.execute(&format!("UPDATE {outbox}_dedup SET expires_at = expires_at - {by}"))
            .await
            .expect("shift the keys");
        self.execute(&format!("UPDATE {inbox} SET processed_at = processed_at - {by}"))
            .await
            .expect("shift the inbox");
    }

    pub(crate) async fn execute(&self, sql: &str) -> Result<u64, sea_orm::DbErr> {
        let result = self.db.execute_unprepared(sql).await;
        result.map(|result| result.rows_affected())
    }

    async fn corrupt(&self, backend: DbBackend, sql: &str, id: MessageId) -> bool {
        let statement = Statement::from_sql_and_values(backend, sql, [id.into()]);
        // a constraint that refuses the row is as good as a claim that survives it
        self.db.execute_raw(statement).await.is_ok_and(|result| result.rows_affected() == 1)
    }
}

/// A schema of its own on the shared server.
pub(crate) struct Postgres {
    pub(crate) tables: Tables,
    schema: String,
}

impl Postgres {
    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    pub(crate) fn name(&self, table: &str) -> TableName {
        TableName::parse(&format!("{}.{table}", self.schema)).expect("name")
    }

    pub(crate) async fn with(declaration: Declaration) -> Result<Self, Skip> {
        let server = outbox_testkit::server::postgres().await?;
        let mut options = ConnectOptions::new(server.url());
        options.max_connections(12);
        let db = Database::connect(options).await.expect("connect");
        let schema = format!("t_{}", Uuid::new_v4().simple());
        let tables = Tables::create(db, &schema, declaration).await;
        Ok(Self { tables, schema })
    }
}

impl Harness for Postgres {
    const NAME: &'static str = "postgres";
    type Repository = OutboxTable;

    async fn start() -> Result<Self, Skip> {
        Self::with(Declaration::new()).await
    }

    fn repository(&self) -> &OutboxTable {
        &self.tables.outbox
    }

    async fn advance(&self, by: Duration) {
        let names = [&*format!("{}.outbox", self.schema), &*format!("{}.inbox", self.schema)];
        self.tables.shift(names, &format!("{} * interval '1 microsecond'", by.as_micros())).await;
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all()
    }

    async fn corrupt(&self, id: MessageId, corruption: Corruption) -> bool {
        let set = match corruption {
            Corruption::Headers => "headers = '[1]'",
            Corruption::Attempts => "attempts = -1",
            Corruption::CreatedAt => "created_at = 'infinity'",
            _ => return false,
        };
        let sql = format!("UPDATE {}.outbox SET {set} WHERE id = $1", self.schema);
        self.tables.corrupt(DbBackend::Postgres, &sql, id).await
    }

    async fn finish(self) {
        self.tables.execute(&format!("DROP SCHEMA {} CASCADE", self.schema)).await.expect("drop the schema");
    }
}

/// A database of its own on the shared server.
pub(crate) struct MySql {
    pub(crate) tables: Tables,
    schema: String,
}

impl MySql {
    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    async fn with(declaration: Declaration) -> Result<Self, Skip> {
        let server = outbox_testkit::server::mysql().await?;
        let mut options = ConnectOptions::new(server.url());
        options.max_connections(12).sqlx_logging(false);
        let db = Database::connect(options).await.expect("connect");
        let schema = format!("t_{}", Uuid::new_v4().simple());
        let tables = Tables::create(db, &schema, declaration).await;
        Ok(Self { tables, schema })
    }
}

impl Harness for MySql {
    const NAME: &'static str = "mysql";
    type Repository = OutboxTable;

    async fn start() -> Result<Self, Skip> {
        Self::with(Declaration::new()).await
    }

    fn repository(&self) -> &OutboxTable {
        &self.tables.outbox
    }

    async fn advance(&self, by: Duration) {
        let (schema, by) = (&self.schema, by.as_micros());
        // rows of open transactions are not there yet; without the LIMIT MySQL would walk the index that it changes, for ever
        let outbox = format!(
            "UPDATE (SELECT seq FROM {schema}.outbox LIMIT 1000000 FOR UPDATE SKIP LOCKED) AS p \
             STRAIGHT_JOIN {schema}.outbox AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq \
             SET m.created_at = m.created_at - INTERVAL {by} MICROSECOND, \
             m.dead_at = m.dead_at - INTERVAL {by} MICROSECOND, m.place = IF(m.place = 0, 0, m.place - {by} * 1000), \
             m.due_since = m.due_since - {by} * 1000, m.due = IF(m.state = 2, m.due, m.due - {by} * 1000)"
        );
        let keys = format!(
            "UPDATE (SELECT dedup_key FROM {schema}.outbox_dedup LIMIT 1000000 FOR UPDATE SKIP LOCKED) AS p \
             STRAIGHT_JOIN {schema}.outbox_dedup AS m USING (dedup_key) \
             SET m.expires_at = m.expires_at - INTERVAL {by} MICROSECOND"
        );
        let inbox = format!(
            "UPDATE (SELECT group_name, message_id FROM {schema}.inbox LIMIT 1000000 FOR UPDATE SKIP LOCKED) AS p \
             STRAIGHT_JOIN {schema}.inbox AS m USING (group_name, message_id) \
             SET m.processed_at = m.processed_at - INTERVAL {by} MICROSECOND"
        );
        for sql in [outbox, keys, inbox] {
            self.tables.execute(&sql).await.expect("shift the table");
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all().with_hints(false)
    }

    async fn corrupt(&self, id: MessageId, corruption: Corruption) -> bool {
        let set = match corruption {
            Corruption::Headers => "headers = '[1]'",
            Corruption::Attempts => "attempts = -1",
            Corruption::CreatedAt => "created_at = '0000-00-00 00:00:00'",
            _ => return false,
        };
        let sql = format!("UPDATE {}.outbox SET {set} WHERE id = ?", self.schema);
        self.tables.corrupt(DbBackend::MySql, &sql, id).await
    }

    async fn finish(self) {
        self.tables.execute(&format!("DROP DATABASE {}", self.schema)).await.expect("drop the database");
    }
}

/// A file of its own.
pub(crate) struct Sqlite {
    pub(crate) tables: Tables,
    _folder: tempfile::TempDir,
}

impl Sqlite {
    async fn with(declaration: Declaration) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let mut options =
            ConnectOptions::new(format!("sqlite://{}/test.db?mode=rwc", folder.path().display()));
        options.max_connections(6).map_sqlx_sqlite_opts(|options| {
            use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
            options
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Off)
                .busy_timeout(Duration::from_secs(20))
        });
        let db = Database::connect(options).await.expect("connect");
        Self { tables: Tables::create(db, "t", declaration).await, _folder: folder }
    }
}

impl Harness for Sqlite {
    const NAME: &'static str = "sqlite";
    type Repository = OutboxTable;

    async fn start() -> Result<Self, Skip> {
        Ok(Self::with(Declaration::new()).await)
    }

    fn repository(&self) -> &OutboxTable {
        &self.tables.outbox
    }

    async fn advance(&self, by: Duration) {
        self.tables.shift(["t_outbox", "t_inbox"], &by.as_millis().to_string()).await;
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all().with_hints(false).with_concurrent_writers(false)
    }

    async fn corrupt(&self, id: MessageId, corruption: Corruption) -> bool {
        let set = match corruption {
            Corruption::Headers => "headers = '[1]'",
            Corruption::Attempts => "attempts = -1",
            Corruption::CreatedAt => "created_at = 'never'",
            _ => return false,
        };
        let sql = format!("UPDATE t_outbox SET {set} WHERE id = ?1");
        self.tables.corrupt(DbBackend::Sqlite, &sql, id).await
    }
}

impl OperationsHarness for Postgres {
    type Operations = OutboxTable;

    fn operations(&self) -> &OutboxTable {
        &self.tables.outbox
    }

    fn keeping(&self) -> Option<OutboxTable> {
        Some(self.tables.outbox.clone().with_retention(Retention::Keep))
    }
}

impl OperationsHarness for MySql {
    type Operations = OutboxTable;

    fn operations(&self) -> &OutboxTable {
        &self.tables.outbox
    }

    fn keeping(&self) -> Option<OutboxTable> {
        Some(self.tables.outbox.clone().with_retention(Retention::Keep))
    }
}

impl OperationsHarness for Sqlite {
    type Operations = OutboxTable;

    fn operations(&self) -> &OutboxTable {
        &self.tables.outbox
    }

    fn keeping(&self) -> Option<OutboxTable> {
        Some(self.tables.outbox.clone().with_retention(Retention::Keep))
    }
}

impl ProcessedHarness for Postgres {
    type Processed = ProcessedTable;

    fn processed(&self) -> &ProcessedTable {
        &self.tables.inbox
    }
}

impl ProcessedHarness for MySql {
    type Processed = ProcessedTable;

    fn processed(&self) -> &ProcessedTable {
        &self.tables.inbox
    }
}

impl ProcessedHarness for Sqlite {
    type Processed = ProcessedTable;

    fn processed(&self) -> &ProcessedTable {
        &self.tables.inbox
    }
}

impl DeclaredHarness for Postgres {
    async fn declared(&self, declaration: Declaration) -> Self {
        Self::with(declaration).await.expect("the server is there")
    }
}

impl DeclaredHarness for MySql {
    async fn declared(&self, declaration: Declaration) -> Self {
        Self::with(declaration).await.expect("the server is there")
    }
}

impl DeclaredHarness for Sqlite {
    async fn declared(&self, declaration: Declaration) -> Self {
        Self::with(declaration).await
    }
}

/// The same harness over a table that is declared otherwise.
macro_rules! declared {
    ($declared:ident over $plain:ident: $declaration:expr) => {
        pub(crate) struct $declared($plain);

        impl Harness for $declared {
            const NAME: &'static str = $plain::NAME;
            type Repository = <$plain as Harness>::Repository;

            async fn start() -> Result<Self, Skip> {
                let plain = $plain::start().await?;
                let declared = plain.declared($declaration).await;
                plain.finish().await;
                Ok(Self(declared))
            }

            fn repository(&self) -> &Self::Repository {
                self.0.repository()
            }

            async fn advance(&self, by: Duration) {
                self.0.advance(by).await;
            }

            fn capabilities(&self) -> Capabilities {
                self.0.capabilities()
            }

            async fn corrupt(&self, id: MessageId, corruption: Corruption) -> bool {
                self.0.corrupt(id, corruption).await
            }

            async fn finish(self) {
                self.0.finish().await;
            }
        }

        impl OperationsHarness for $declared {
            type Operations = <$plain as OperationsHarness>::Operations;

            fn operations(&self) -> &Self::Operations {
                self.0.operations()
            }
        }
    };
}

pub(crate) use declared;

/// The same harness over a partitioned table. What moves it in time moves its rows between partitions.
pub(crate) struct PartitionedPostgres(Postgres);

impl Harness for PartitionedPostgres {
    const NAME: &'static str = Postgres::NAME;
    type Repository = OutboxTable;

    async fn start() -> Result<Self, Skip> {
        Ok(Self(Postgres::with(Declaration::new().partitioned(PartitionInterval::Hour)).await?))
    }

    fn repository(&self) -> &OutboxTable {
        self.0.repository()
    }

    async fn advance(&self, by: Duration) {
        self.0.advance(by).await;
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities().with_ended_ids(false)
    }

    async fn corrupt(&self, id: MessageId, corruption: Corruption) -> bool {
        self.0.corrupt(id, corruption).await
    }

    async fn finish(self) {
        self.0.finish().await;
    }
}

impl OperationsHarness for PartitionedPostgres {
    type Operations = OutboxTable;

    fn operations(&self) -> &OutboxTable {
        self.0.operations()
    }

    fn keeping(&self) -> Option<OutboxTable> {
        self.0.keeping()
    }
}

impl DeclaredHarness for PartitionedPostgres {
    async fn declared(&self, declaration: Declaration) -> Self {
        Self(self.0.declared(declaration.partitioned(PartitionInterval::Hour)).await)
    }
}

declared! { OrderedPostgres over Postgres: Declaration::new().ordered(OnDead::Continue) }
declared! { OrderedMySql over MySql: Declaration::new().ordered(OnDead::Continue) }
declared! { OrderedSqlite over Sqlite: Declaration::new().ordered(OnDead::Continue) }
declared! { FairPostgres over Postgres: Declaration::new().fair(Fairness::Key) }
declared! { FairMySql over MySql: Declaration::new().fair(Fairness::Key) }
declared! { FairSqlite over Sqlite: Declaration::new().fair(Fairness::Key) }
