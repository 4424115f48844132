/// Server parameters, as in `postgresql.conf`, for a server that is started here.
///
/// # Examples
///
/// ```
/// use outbox_testkit::server::Settings;
///
/// let settings = Settings::for_tests().with("fsync", "on").with("shared_buffers", "1GB");
/// assert_eq!(settings.get("fsync"), Some("on"));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    values: Vec<(String, String)>,
}

impl Settings {
    /// The server's own defaults, nothing set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Many connections, prepared transactions and logical decoding; no waiting for the disk, so a machine
    /// that crashes loses the data (a killed server does not).
    #[must_use]
    pub fn for_tests() -> Self {
        Self::new()
            .with("fsync", "off")
            .with("max_connections", "200")
            .with("max_prepared_transactions", "20")
            .with("wal_level", "logical")
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
        self.values.iter().flat_map(|(key, value)| ["-c".to_owned(), format!("{key}={value}")])
    }
}
