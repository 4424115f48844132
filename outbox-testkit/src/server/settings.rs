use super::Engine;

/// Which server, and its parameters, as in `postgresql.conf` or `my.cnf`, if it is started here.
///
/// # Examples
///
/// ```
/// use outbox_testkit::server::Settings;
///
/// let settings = Settings::for_tests().with("fsync", "on").with("shared_buffers", "1GB");
/// assert_eq!(settings.get("fsync"), Some("on"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    engine: Engine,
    values: Vec<(String, String)>,
}

impl Settings {
    /// The server's own defaults, nothing set.
    #[must_use]
    pub fn new(engine: Engine) -> Self {
        Self { engine, values: Vec::new() }
    }

    /// Which server.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// PostgreSQL with many connections, prepared transactions and logical decoding; no waiting for the disk, so a
    /// machine that crashes loses the data (a killed server does not).
    #[must_use]
    pub fn for_tests() -> Self {
        Self::new(Engine::Postgres)
            .with("fsync", "off")
            .with("max_connections", "200")
            .with("max_prepared_transactions", "20")
            .with("wal_level", "logical")
    }

    /// The same for MySQL or MariaDB.
    #[must_use]
    pub fn for_mysql_tests() -> Self {
        Self::new(Engine::MySql)
            .with("innodb_flush_log_at_trx_commit", "2")
            .with("innodb_fast_shutdown", "2")
            .with("sync_binlog", "0")
            .with("innodb_buffer_pool_size", "256M")
            .with("max_connections", "400")
    }

    /// Sets `key`, in place of an earlier value for it.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let key = key.into();
        self.values.retain(|(known, _)| *known != key);
        self.values.push((key, value.into()));
        self
    }

    /// The value set for `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.values.iter().find(|(known, _)| known == key);
        found.map(|(_, value)| value.as_str())
    }

    /// The settings as options on the command line of `postgres`.
    pub(super) fn arguments(&self) -> impl Iterator<Item = String> + '_ {
        self.values.iter().map(|(key, value)| self.engine.option(key, value))
    }
}
