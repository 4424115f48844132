//! The crates as a user has them: `OutboxTable`, `Router`, `Dispatcher`, nothing else.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use outbox_core::{Draft, Message, Repository, TableName, Wakeup};
use outbox_dispatcher::{Config, Dispatcher, Observer, Report, Router, TracingObserver};
use outbox_sea_orm::OutboxTable;
use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, DbBackend, Statement,
    TransactionTrait,
};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::business;
use crate::deliveries::Deliveries;
use crate::error::Result;
use crate::load::{BATCH, TOPIC};
use crate::side::Side;
use crate::site::{BENCH, Site, remove_sqlite};

/// The most producers of a scenario, the late committers, and some.
const MAX_CONNECTIONS: u32 = 32;

/// One outbox table of the crates, in a schema or file of its own.
#[derive(Clone)]
pub(crate) struct Ours {
    pub(crate) outbox: OutboxTable,
    pub(crate) db: DatabaseConnection,
    name: TableName,
    url: String,
    file: Option<PathBuf>,
}

impl Ours {
    /// A fresh table in a database of the server; the database means nothing on SQLite and MySQL.
    pub(crate) async fn create_at(site: &Site, database: &str) -> Result<Self> {
        Self::create_with(site, database, |table| table).await
    }

    /// The same, declared otherwise.
    pub(crate) async fn create_with(
        site: &Site,
        database: &str,
        declare: impl FnOnce(OutboxTable) -> OutboxTable,
    ) -> Result<Self> {
        let (url, file) = match site {
            Site::Postgres(site) => (site.url(database), None),
            Site::MySql(site) => (site.url(), None),
            Site::Sqlite(site) => {
                let file = site.file();
                (format!("sqlite://{}?mode=rwc", file.display()), Some(file))
            }
        };
        let db = connect(url.clone()).await?;
        let name = fresh_name()?;
        create_schemas(&db, &name).await?;
        let outbox = declare(OutboxTable::new(&db, name.clone()));
        outbox.migrate().await?;
        Ok(Self { outbox, db, name, url, file })
    }

    /// Where another process finds it. Holds a password.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// `schema.table`, as PostgreSQL has it.
    pub(crate) fn name(&self) -> &TableName {
        &self.name
    }

    /// Starts a dispatcher on the table.
    pub(crate) fn start(&self, router: Router, config: Config) -> Result<Live> {
        start(self.outbox.clone(), router, config, TracingObserver)
    }

    /// One message and one business row in a transaction of SeaORM's.
    pub(crate) async fn enqueue_one(&self, draft: Draft) -> Result<()> {
        let transaction = self.db.begin().await?;
        insert_business_row(&transaction).await?;
        self.outbox.enqueue_in(&transaction, draft).await?;
        transaction.commit().await?;
        Ok(())
    }
}

impl Side for Ours {
    async fn create(site: &Site) -> Result<Self> {
        Self::create_at(site, BENCH).await
    }

    async fn enqueue_batches(&self, batches: Vec<Vec<Draft>>) -> Result<()> {
        for batch in batches {
            let transaction = self.db.begin().await?;
            self.outbox.enqueue_in(&transaction, batch).await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    async fn enqueue_singles(&self, parts: Vec<Vec<Draft>>) -> Result<()> {
        let mut tasks = JoinSet::new();
        for part in parts {
            let side = self.clone();
            tasks.spawn(async move {
                for draft in part {
                    side.enqueue_one(draft).await?;
                }
                Ok::<_, crate::error::Error>(())
            });
        }
        while let Some(outcome) = tasks.join_next().await {
            outcome??;
        }
        Ok(())
    }

    async fn drain(&self, n_messages: u64) -> Result<()> {
        let deliveries = Deliveries::default();
        let live = self.start(counting(&deliveries), full_batches())?;
        deliveries.reach(n_messages).await?;
        let report = live.stop().await?;
        if report.n_done == n_messages {
            return Ok(());
        }
        Err(format!("{n_messages} messages drained: {report:?}").into())
    }

    fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    async fn remove(self) -> Result<()> {
        let drop = match self.db.get_database_backend() {
            DbBackend::Postgres => self.name.schema().map(|schema| format!("DROP SCHEMA {schema} CASCADE")),
            DbBackend::MySql => self.name.schema().map(|schema| format!("DROP DATABASE {schema}")),
            _ => None,
        };
        if let Some(drop) = drop {
            self.db.execute_unprepared(&drop).await?;
        }
        self.db.close().await?;
        if let Some(file) = &self.file {
            remove_sqlite(file);
        }
        Ok(())
    }
}

/// SeaORM's own defaults, but no round trip to test a connection before it is used: the floor has none either.
pub(crate) async fn connect(url: String) -> Result<DatabaseConnection> {
    let is_sqlite = url.starts_with("sqlite:");
    let mut options = ConnectOptions::new(url);
    options.test_before_acquire(false).map_sqlx_sqlite_opts(|options| {
        options
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(Duration::from_secs(30))
    });
    if !is_sqlite {
        options.max_connections(MAX_CONNECTIONS);
    }
    Ok(Database::connect(options).await?)
}

fn fresh_name() -> Result<TableName> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Ok(TableName::parse(&format!("bench_{number}.outbox"))?)
}

async fn create_schemas(db: &DatabaseConnection, name: &TableName) -> Result<()> {
    if db.get_database_backend() == DbBackend::Sqlite {
        db.execute_unprepared(business::SQLITE_TABLE).await?;
        return Ok(());
    }
    if let Some(schema) = name.schema() {
        db.execute_unprepared(&format!("CREATE SCHEMA IF NOT EXISTS {schema}")).await?;
    }
    let is_mysql = db.get_database_backend() == DbBackend::MySql;
    let business = if is_mysql { business::MYSQL_TABLE } else { business::POSTGRES_TABLE };
    db.execute_unprepared(business).await?;
    Ok(())
}

async fn insert_business_row(transaction: &DatabaseTransaction) -> Result<()> {
    let backend = transaction.get_database_backend();
    let insert =
        if backend == DbBackend::Postgres { business::POSTGRES_INSERT } else { business::SQLITE_INSERT };
    let values = [Uuid::now_v7().into(), business::ITEM.into(), business::AMOUNT.into()];
    transaction.execute_raw(Statement::from_sql_and_values(backend, insert, values)).await?;
    Ok(())
}

/// Claims full batches; everything else as it comes.
pub(crate) fn full_batches() -> Config {
    Config::default().with_batch(BATCH)
}

/// A handler that does nothing but count.
pub(crate) fn counting(deliveries: &Deliveries) -> Router {
    let deliveries = deliveries.clone();
    Router::new().on(TOPIC, async move |_message: Message| {
        deliveries.count();
        Ok(())
    })
}

/// A handler that notes when each message arrived.
pub(crate) fn recording(deliveries: &Deliveries) -> Router {
    let deliveries = deliveries.clone();
    Router::new().on(TOPIC, async move |message: Message| {
        deliveries.record(&message);
        Ok(())
    })
}

/// A running dispatcher.
#[derive(Debug)]
pub(crate) struct Live {
    token: CancellationToken,
    task: JoinHandle<outbox_core::Result<Report>>,
}

/// Starts a dispatcher on any repository.
pub(crate) fn start(
    repository: impl Repository + Wakeup + 'static,
    router: Router,
    config: Config,
    observer: impl Observer,
) -> Result<Live> {
    let token = CancellationToken::new();
    let dispatcher = Dispatcher::new(repository, router).with_config(config)?.with_observer(observer);
    let task = tokio::spawn(dispatcher.run(token.clone()));
    Ok(Live { token, task })
}

impl Live {
    /// Stops it gracefully.
    pub(crate) async fn stop(self) -> Result<Report> {
        self.token.cancel();
        Ok(self.task.await??)
    }
}
