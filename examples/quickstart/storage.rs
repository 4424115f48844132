//! Where everything is: one database that the shop, the outbox and the ledger share.

use std::env;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use outbox_core::TableName;
use outbox_examples::{AnyError, connect_sqlite};
use outbox_sea_orm::{OutboxTable, ProcessedTable};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};
use uuid::Uuid;

use crate::tables;

const SQLITE: &str = "QUICKSTART_SQLITE";
const POSTGRES: &str = "QUICKSTART_POSTGRES";
const SCHEMA: &str = "QUICKSTART_SCHEMA";

#[derive(Clone)]
pub(crate) enum Place {
    Sqlite(PathBuf),
    Postgres { url: String, schema: String },
}

impl Place {
    /// A schema of its own for each run.
    pub(crate) fn postgres(url: String) -> Self {
        Self::Postgres { url, schema: format!("quickstart_{:08x}", Uuid::new_v4().as_fields().0) }
    }

    /// By the environment, because a command line with a password in it can be read by everybody.
    pub(crate) fn hand_to(&self, child: &mut Command) {
        match self {
            Self::Sqlite(file) => child.env(SQLITE, file),
            Self::Postgres { url, schema } => child.env(POSTGRES, url).env(SCHEMA, schema),
        };
    }

    pub(crate) fn from_parent() -> Result<Self, AnyError> {
        match env::var_os(SQLITE) {
            Some(file) => Ok(Self::Sqlite(file.into())),
            None => Ok(Self::Postgres { url: env::var(POSTGRES)?, schema: env::var(SCHEMA)? }),
        }
    }

    async fn connect(&self) -> Result<DatabaseConnection, AnyError> {
        match self {
            Self::Sqlite(file) => Ok(connect_sqlite(file).await?),
            Self::Postgres { url, schema } => {
                let mut options = ConnectOptions::new(url);
                options.max_connections(12).connect_timeout(Duration::from_secs(10)).sqlx_logging(false);
                options.set_schema_search_path(schema);
                Ok(Database::connect(options).await?)
            }
        }
    }

    fn table(&self, name: &str) -> Result<TableName, AnyError> {
        let schema = match self {
            Self::Sqlite(_) => "shop",
            Self::Postgres { schema, .. } => schema,
        };
        Ok(TableName::parse(&format!("{schema}.{name}"))?)
    }

    async fn in_schema(&self, statement: &str, db: &DatabaseConnection) -> Result<(), AnyError> {
        if let Self::Postgres { schema, .. } = self {
            db.execute_unprepared(&statement.replace("$schema", schema)).await?;
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(file) => write!(f, "the file {}", file.display()),
            Self::Postgres { schema, .. } => write!(f, "the schema {schema}"),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Storage {
    pub(crate) db: DatabaseConnection,
    pub(crate) outbox: OutboxTable,
    pub(crate) processed: ProcessedTable,
}

impl Storage {
    pub(crate) async fn connect(place: &Place) -> Result<Self, AnyError> {
        let db = place.connect().await?;
        let outbox = OutboxTable::new(&db, place.table("outbox")?);
        let processed = ProcessedTable::new(&db, place.table("processed")?);
        Ok(Self { db, outbox, processed })
    }

    pub(crate) async fn create(place: &Place) -> Result<Self, AnyError> {
        let storage = Self::connect(place).await?;
        place.in_schema("CREATE SCHEMA $schema", &storage.db).await?;
        storage.outbox.migrate().await?;
        storage.processed.migrate().await?;
        tables::create(&storage.db).await?;
        Ok(storage)
    }

    pub(crate) async fn drop_schema(&self, place: &Place) -> Result<(), AnyError> {
        place.in_schema("DROP SCHEMA $schema CASCADE", &self.db).await
    }
}
