use outbox_core::{Error, ErrorKind, Result};
use sea_orm::DbBackend;

/// The databases that this build speaks to. What differs between them is data here and SQL in `sql/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    #[cfg(feature = "postgres")]
    Postgres,
    #[cfg(feature = "sqlite")]
    Sqlite,
    /// MariaDB too: what they do not share is not used.
    #[cfg(feature = "mysql")]
    MySql,
}

impl Dialect {
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn has_logs(self) -> bool {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres => true,
            #[cfg(feature = "sqlite")]
            Self::Sqlite => true,
            #[cfg(feature = "mysql")]
            Self::MySql => false,
        }
    }

    pub(crate) fn has_partitions(self) -> bool {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres => true,
            #[allow(unreachable_patterns, reason = "there may be no other")]
            _ => false,
        }
    }

    pub(crate) fn of(backend: DbBackend) -> Result<Self> {
        match backend {
            #[cfg(feature = "postgres")]
            DbBackend::Postgres => Ok(Self::Postgres),
            #[cfg(feature = "sqlite")]
            DbBackend::Sqlite => Ok(Self::Sqlite),
            #[cfg(feature = "mysql")]
            DbBackend::MySql => Ok(Self::MySql),
            #[allow(unreachable_patterns, reason = "with every feature there is no other")]
            other => {
                let detail = format!("{other:?}: enable the feature of outbox-sea-orm, where there is one");
                Err(Error::new(ErrorKind::Unsupported, "connect").with_detail(detail))
            }
        }
    }
}
