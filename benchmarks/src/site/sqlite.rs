//! A folder of SQLite files, removed at the end. Every run gets a file of its own.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{ConnectOptions as _, SqliteConnection, raw_sql};

use super::Counters;
use crate::error::Result;
use crate::statements;

const FOLDER: &str = "OUTBOX_BENCH_SQLITE_DIR";

/// The folder.
#[derive(Debug)]
pub(crate) struct SqliteSite {
    folder: PathBuf,
    n_files: AtomicU32,
}

impl SqliteSite {
    pub(crate) fn open() -> Result<Self> {
        let parent = env::var_os(FOLDER).map_or_else(env::temp_dir, PathBuf::from);
        let folder = parent.join(format!("outbox-bench-{}", process::id()));
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, n_files: AtomicU32::new(0) })
    }

    /// A file that does not exist yet.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.join(format!("{}.db", self.n_files.fetch_add(1, Ordering::Relaxed)))
    }
}

impl Drop for SqliteSite {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("left behind {}: {error}", self.folder.display());
        }
    }
}

/// WAL, `synchronous = NORMAL`, patient: what the guide of SQLite itself recommends for a service.
pub(crate) fn options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(Duration::from_secs(30))
}

/// What the log of statements has seen and how long the write-ahead log is.
pub(crate) fn counters(file: &Path) -> Counters {
    let wal = fs::metadata(with_suffix(file, "-wal"));
    Counters { statements: statements::counted(), wal_bytes: wal.map_or(0, |wal| wal.len()) }
}

/// Removes a database file and what stands beside it.
pub(crate) fn remove(file: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        // the last connection has removed the other two already, unless it was killed
        let _ = fs::remove_file(with_suffix(file, suffix));
    }
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// An open read transaction: as long as it lives the write-ahead log is never begun again, so that its length
/// tells what was written.
#[derive(Debug)]
pub(crate) struct Pin(SqliteConnection);

impl Pin {
    pub(crate) async fn new(file: &Path) -> Result<Self> {
        let mut connection = options(file).connect().await?;
        raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await?;
        raw_sql("BEGIN; SELECT count(*) FROM sqlite_schema").execute(&mut connection).await?;
        Ok(Self(connection))
    }

    pub(crate) async fn release(mut self) -> Result<()> {
        raw_sql("ROLLBACK").execute(&mut self.0).await?;
        Ok(())
    }
}
