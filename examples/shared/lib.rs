//! What the examples share: a SQLite file to work on, and the business side of an order service.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, io};

use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr};
use uuid::Uuid;

pub mod http;
pub mod orders;

/// The error of an example's `main`.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// A folder of its own under the system's temporary one, removed when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes the folder.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new() -> io::Result<Self> {
        let folder = env::temp_dir().join(format!("outbox-example-{}", Uuid::new_v4().simple()));
        fs::create_dir(&folder)?;
        Ok(Self(folder))
    }

    /// Where the database file goes.
    pub fn file(&self) -> PathBuf {
        self.0.join("shop.db")
    }

    /// Connects to the database file.
    ///
    /// # Errors
    /// Those of SeaORM.
    pub async fn connect(&self) -> Result<DatabaseConnection, DbErr> {
        connect_sqlite(&self.file()).await
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // what is left in a temporary folder is no reason to fail
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Opens or creates a SQLite file as a service should: WAL, so that readers and the one writer do not
/// block each other, and a busy time-out, so that writers wait for their turn.
///
/// # Errors
/// Those of SeaORM.
pub async fn connect_sqlite(file: &Path) -> Result<DatabaseConnection, DbErr> {
    let file = file.to_owned();
    let mut options = ConnectOptions::new("sqlite:");
    options.max_connections(12).sqlx_logging(false).map_sqlx_sqlite_opts(move |options| {
        options
            .filename(&file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(Duration::from_secs(10))
    });
    Database::connect(options).await
}

/// The example of the README, compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// The example of the page on observability.
#[cfg(doctest)]
#[doc = include_str!("../../docs/observability.md")]
pub struct Observability;
