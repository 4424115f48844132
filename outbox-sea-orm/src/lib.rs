//! The transactional outbox and inbox on SeaORM: tables for PostgreSQL, MariaDB and SQLite behind the traits of
//! [`outbox_core`].
//!
//! * [`OutboxTable`]: one schema-scoped table, chosen at run time; enqueues in the caller's transaction.
//! * [`OutboxLog`] and [`LogGroup`] (PostgreSQL, SQLite): one append-only log, delivered to any number of consumer groups.
//! * [`ProcessedTable`]: the record behind the inbox.
//! * [`transactor`]: a transaction that travels on the [`Context`](outbox_core::Context) and cannot be broken by a
//!   dropped future, a swallowed error or a cancelled savepoint.
//!
//! Features: `postgres`, `mysql` (MySQL and MariaDB), `sqlite`, `wal` (groups of a log fed from the WAL of PostgreSQL, see
//! `LogGroup::with_feed`; `wal-tls` over TLS), and `migration` for the same steps as `sea-orm-migration` migrations. The async
//! runtime and TLS are chosen where you depend on `sea-orm` (for example its feature `runtime-tokio-rustls`).
//!
//! # Examples
//! ```
//! # #[cfg(feature = "sqlite")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! use outbox_core::{Draft, TableName};
//! use outbox_sea_orm::OutboxTable;
//! use sea_orm::TransactionTrait;
//!
//! let db = sea_orm::Database::connect("sqlite::memory:").await?;
//! let outbox = OutboxTable::new(&db, TableName::parse("orders.outbox")?);
//! outbox.migrate().await?;
//!
//! let txn = db.begin().await?;
//! // … the business rows …
//! outbox.enqueue_in(&txn, [Draft::json("order.placed", &7)?.key(7)]).await?;
//! txn.commit().await?;
//! # Ok(()) }
//! # #[cfg(not(feature = "sqlite"))]
//! # fn main() {}
//! ```

mod context;
mod dedup;
mod dialect;
mod doctor;
mod enqueue;
mod error;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod horizon;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod log;
#[cfg(feature = "migration")]
mod migration;
#[cfg(feature = "mysql")]
mod mysql;
mod operations;
#[cfg(feature = "postgres")]
mod partitions;
#[cfg(feature = "postgres")]
mod postgres;
mod processed;
mod repository;
mod row;
mod schema;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sessions;
mod settle;
mod shield;
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod turns;
mod wakeup;

pub use context::{OpenTransaction, SeaOrm, SeaOrmContext, Transaction, transactor};
#[cfg(feature = "wal")]
pub use log::WalFeed;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use log::{LogGroup, OutboxLog, Start, Subscription};
#[cfg(feature = "migration")]
pub use migration::{inbox_migrations, migrations, outbox_migrations};
pub use processed::ProcessedTable;
pub use repository::OutboxTable;
#[cfg(feature = "postgres")]
pub use wakeup::TableListener;

#[cfg(not(any(feature = "postgres", feature = "sqlite", feature = "mysql")))]
compile_error!("outbox-sea-orm needs a database: enable its feature postgres, mysql or sqlite");
