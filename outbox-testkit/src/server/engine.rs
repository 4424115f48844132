/// The database of a server: what differs between the two ways to find or start one, as data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Engine {
    /// PostgreSQL.
    Postgres,
    /// MySQL or MariaDB, which is preferred.
    MySql,
}

impl Engine {
    /// What `OUTBOX_TEST_REQUIRE` calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::MySql => "mysql",
        }
    }

    /// What `OUTBOX_TEST_REQUIRE` calls a private server of it.
    pub(super) fn local(self) -> &'static str {
        match self {
            Self::Postgres => "local",
            Self::MySql => "local-mysql",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::MySql => "MySQL",
        }
    }

    pub(super) fn schemes(self) -> &'static [&'static str] {
        match self {
            Self::Postgres => &["postgres://", "postgresql://"],
            Self::MySql => &["mysql://", "mariadb://"],
        }
    }

    pub(super) fn port(self) -> &'static str {
        match self {
            Self::Postgres => "5432",
            Self::MySql => "3306",
        }
    }

    /// The user and the database of a server that is started here.
    pub(super) fn url(self, password: &str, host: &str, port: u16) -> String {
        match self {
            Self::Postgres => format!("postgres://postgres:{password}@{host}:{port}/postgres"),
            Self::MySql => format!("mysql://root:{password}@{host}:{port}/outbox"),
        }
    }

    /// An option of the server's command line.
    pub(super) fn option(self, key: &str, value: &str) -> String {
        format!("--{key}={value}")
    }

    /// Whom a private server may run as where we are root.
    pub(super) fn users(self) -> &'static [&'static str] {
        match self {
            Self::Postgres => &["postgres", "nobody"],
            Self::MySql => &["mysql", "nobody"],
        }
    }

    /// What the log says of a port that is taken.
    pub(super) fn port_is_taken(self) -> &'static str {
        match self {
            Self::Postgres => "could not bind",
            Self::MySql => "Address already in use",
        }
    }
}
