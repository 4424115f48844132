//! The raw floor: the plainest statements for the job, sent by plain sqlx with nothing around them. FROZEN.
//!
//! A claim decodes what a consumer needs into Rust values: the number to settle by, id, topic, key, payload,
//! headers as a map, the time of the enqueue and the attempt, in claim order. The handler does nothing.
//! Claiming and settling take turns on one connection with generic plans; the mark is the highest number
//! claimed.

mod log;
pub(crate) mod mysql;
pub(crate) mod postgres;
pub(crate) mod sqlite;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use outbox_core::Draft;
use sea_orm::sqlx::types::Json;
use uuid::Uuid;

pub(crate) use log::LogFloor;
pub(crate) use mysql::MySqlFloor;
pub(crate) use postgres::PostgresFloor;
pub(crate) use sqlite::SqliteFloor;

use crate::error::Result;
use crate::side::Side;
use crate::site::Site;

const LEASE: Duration = Duration::from_secs(30);

/// A claimed row of any database; only the type of the time differs.
type Row<Time> = (i64, Uuid, String, Option<String>, Vec<u8>, Json<BTreeMap<String, String>>, Time, i32);
type PostgresRow = Row<DateTime<Utc>>;
type SqliteRow = Row<i64>;
type MySqlRow = Row<NaiveDateTime>;

/// The floor of the site's database.
#[derive(Debug)]
pub(crate) enum Floor {
    Postgres(PostgresFloor),
    Sqlite(SqliteFloor),
    MySql(MySqlFloor),
}

impl Side for Floor {
    async fn create(site: &Site) -> Result<Self> {
        Ok(match site {
            Site::Postgres(site) => Self::Postgres(PostgresFloor::create(site).await?),
            Site::Sqlite(site) => Self::Sqlite(SqliteFloor::create(site.file()).await?),
            Site::MySql(site) => Self::MySql(MySqlFloor::create(site).await?),
        })
    }

    async fn enqueue_batches(&self, batches: Vec<Vec<Draft>>) -> Result<()> {
        match self {
            Self::Postgres(floor) => floor.enqueue_batches(&batches).await,
            Self::Sqlite(floor) => floor.enqueue_batches(&batches).await,
            Self::MySql(floor) => floor.enqueue_batches(&batches).await,
        }
    }

    async fn enqueue_singles(&self, parts: Vec<Vec<Draft>>) -> Result<()> {
        match self {
            Self::Postgres(floor) => floor.enqueue_singles(parts).await,
            Self::Sqlite(floor) => floor.enqueue_singles(parts).await,
            Self::MySql(floor) => floor.enqueue_singles(parts).await,
        }
    }

    async fn drain(&self, n_messages: u64) -> Result<()> {
        let n_drained = match self {
            Self::Postgres(floor) => floor.drain().await?,
            Self::Sqlite(floor) => floor.drain().await?,
            Self::MySql(floor) => floor.drain().await?,
        };
        if n_drained == n_messages {
            return Ok(());
        }
        Err(format!("the floor drained {n_drained} of {n_messages}").into())
    }

    fn file(&self) -> Option<&Path> {
        match self {
            Self::Postgres(_) | Self::MySql(_) => None,
            Self::Sqlite(floor) => Some(floor.file()),
        }
    }

    async fn remove(self) -> Result<()> {
        match self {
            Self::Postgres(floor) => floor.remove().await,
            Self::Sqlite(floor) => floor.remove().await,
            Self::MySql(floor) => floor.remove().await,
        }
    }
}
