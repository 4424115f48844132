//! The row that a service writes beside its message, the same statement on both sides of every comparison.

/// On PostgreSQL.
pub(crate) const POSTGRES_TABLE: &str = "DROP TABLE IF EXISTS public.business;
    CREATE TABLE public.business (id uuid PRIMARY KEY, item text NOT NULL, amount bigint NOT NULL,
                                  created_at timestamptz NOT NULL DEFAULT now())";
/// On PostgreSQL.
pub(crate) const POSTGRES_INSERT: &str = "INSERT INTO public.business (id, item, amount) VALUES ($1, $2, $3)";
/// On MySQL.
pub(crate) const MYSQL_TABLE: &str = "DROP TABLE IF EXISTS business;
    CREATE TABLE business (id BINARY(16) PRIMARY KEY, item TEXT NOT NULL, amount BIGINT NOT NULL,
                           created_at DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)))";
/// On MySQL.
pub(crate) const MYSQL_INSERT: &str = SQLITE_INSERT;
/// On SQLite.
pub(crate) const SQLITE_TABLE: &str =
    "CREATE TABLE IF NOT EXISTS business (id BLOB PRIMARY KEY, item TEXT NOT NULL,
    amount INTEGER NOT NULL, created_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)";
/// On SQLite.
pub(crate) const SQLITE_INSERT: &str = "INSERT INTO business (id, item, amount) VALUES (?, ?, ?)";

/// What stands in `item`.
pub(crate) const ITEM: &str = "a blue ballpoint pen, medium";
/// What stands in `amount`.
pub(crate) const AMOUNT: i64 = 1_250;
