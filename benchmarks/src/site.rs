//! Where a scenario runs: a PostgreSQL or a MySQL server or a folder of SQLite files, and how to measure there.

mod mysql;
mod postgres;
mod sqlite;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

pub(crate) use mysql::MySqlSite;
pub(crate) use postgres::{BENCH, Executed, FOREIGN, PLANS, PostgresSite, head};
pub(crate) use sqlite::{Pin, SqliteSite, options as sqlite_options, remove as remove_sqlite};

use crate::error::Result;

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    Sqlite,
    /// Or MariaDB.
    MySql,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
            Self::MySql => "mysql",
        })
    }
}

/// One or several.
#[derive(Clone, Debug)]
pub(crate) struct Kinds(pub(crate) Vec<Kind>);

impl FromStr for Kinds {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "postgres" => Ok(Self(vec![Kind::Postgres])),
            "sqlite" => Ok(Self(vec![Kind::Sqlite])),
            "mysql" => Ok(Self(vec![Kind::MySql])),
            "both" => Ok(Self(vec![Kind::Postgres, Kind::Sqlite])),
            _ => Err("expected postgres, sqlite, mysql or both (the first two)"),
        }
    }
}

/// A place to measure at.
#[derive(Debug)]
pub(crate) enum Site {
    Postgres(Box<PostgresSite>),
    Sqlite(SqliteSite),
    MySql(Box<MySqlSite>),
}

impl Site {
    pub(crate) async fn open(kind: Kind) -> Result<Self> {
        Ok(match kind {
            Kind::Postgres => Self::Postgres(Box::new(PostgresSite::open().await?)),
            Kind::Sqlite => Self::Sqlite(SqliteSite::open()?),
            Kind::MySql => Self::MySql(Box::new(MySqlSite::open().await?)),
        })
    }

    /// A PostgreSQL server of its own, with `wal_level = logical`.
    pub(crate) async fn open_logical() -> Result<Self> {
        Ok(Self::Postgres(Box::new(PostgresSite::open_logical().await?)))
    }

    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Postgres(_) => Kind::Postgres,
            Self::Sqlite(_) => Kind::Sqlite,
            Self::MySql(_) => Kind::MySql,
        }
    }

    /// The PostgreSQL server, for scenarios that make sense nowhere else.
    pub(crate) fn postgres(&self) -> Result<&PostgresSite> {
        match self {
            Self::Postgres(site) => Ok(site),
            _ => Err("this scenario runs on PostgreSQL only".into()),
        }
    }

    /// Brings the database to rest before a measurement, so that no checkpoint of the load before runs into it.
    pub(crate) async fn rest(&self) -> Result<()> {
        match self {
            Self::Postgres(site) => site.checkpoint().await,
            Self::Sqlite(_) | Self::MySql(_) => Ok(()),
        }
    }

    /// Statements and bytes of the write-ahead log so far; `file` is the database file on SQLite.
    pub(crate) async fn counters(&self, file: Option<&Path>) -> Result<Counters> {
        match (self, file) {
            (Self::Postgres(site), _) => site.counters().await,
            (Self::MySql(site), _) => site.counters().await,
            (Self::Sqlite(_), Some(file)) => Ok(sqlite::counters(file)),
            (Self::Sqlite(_), None) => Err("SQLite counts per file".into()),
        }
    }

    /// The process whose children do the database's work, where they can be seen.
    pub(crate) fn postmaster(&self) -> Option<u32> {
        match self {
            Self::Postgres(site) => site.postmaster(),
            Self::MySql(site) => site.process(),
            Self::Sqlite(_) => None,
        }
    }
}

/// What a database has counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) statements: u64,
    pub(crate) wal_bytes: u64,
}
