//! A PostgreSQL, MySQL or MariaDB server for tests: found by URL, started in a container, or started from local binaries.
//!
//! Asked in that order, the first that works is used:
//!
//! 1. `OUTBOX_TEST_POSTGRES_URL` or `OUTBOX_TEST_MYSQL_URL` names a running server; one that is named but does not
//!    answer is an error.
//! 2. A container (cargo feature `containers`), from the image `OUTBOX_TEST_POSTGRES_IMAGE`
//!    (default `postgres`) with the tag `OUTBOX_TEST_POSTGRES_TAG` (default `17`), or `OUTBOX_TEST_MYSQL_IMAGE`
//!    (default `mariadb`) with `OUTBOX_TEST_MYSQL_TAG` (default `11.8`).
//! 3. A private server from `initdb` and `postgres`, or `mariadbd` or `mysqld`, searched in
//!    `OUTBOX_TEST_POSTGRES_BIN` or `OUTBOX_TEST_MYSQL_BIN`, in `PATH` and in the folders that the usual packages
//!    install to.
//!
//! `OUTBOX_TEST_SERVER=url|container|local` forces one of them, and `none` does without. What this module started goes away with the
//! process that started it, also when that process is killed.
//!
//! A test without a server is skipped with a line on standard error, or fails where
//! `OUTBOX_TEST_REQUIRE` (a comma-separated list) names what is missing.
//!
//! # Examples
//!
//! ```no_run
//! # async fn example() {
//! let Ok(server) = outbox_testkit::server::postgres().await else {
//!     return; // said so on standard error
//! };
//! println!("{}", server.origin());
//! # }
//! ```

mod binaries;
#[cfg_attr(not(feature = "containers"), path = "container_absent.rs")]
mod container;
mod engine;
mod env;
mod error;
mod keeper;
mod local;
mod owner;
mod probe;
mod settings;
mod shared;
mod url;

use std::{fmt, panic::resume_unwind, sync::Arc};

use container::Container;
use local::Local;
use url::Address;

pub use binaries::has_local_binaries;
pub use engine::Engine;
pub use env::required;
pub use error::{Attempt, ControlError, Skipped, StartError};
pub use settings::Settings;
pub use shared::{mysql, postgres, private};

/// Where a server came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// `OUTBOX_TEST_POSTGRES_URL` or `OUTBOX_TEST_MYSQL_URL`; it runs before and after us.
    Url,
    /// A container of ours.
    Container,
    /// A process of ours, from binaries on this machine.
    Local,
}

impl Origin {
    /// The word that `OUTBOX_TEST_SERVER` uses for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Url => "url",
            Origin::Container => "container",
            Origin::Local => "local",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a private server is brought down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopMode {
    /// Sessions are ended, open transactions rolled back, and a checkpoint is written (SIGINT; MySQL: SIGTERM).
    Fast,
    /// As `Fast`, without the checkpoint: the next start recovers (SIGQUIT; MySQL: as `Kill`).
    Immediate,
    /// SIGKILL; PostgreSQL's sessions notice and exit by themselves a moment later.
    Kill,
}

/// A server for tests. Dropping it stops and removes what was started for it.
///
/// `Debug` shows where it came from and never its URL, which holds a password.
pub struct Server {
    engine: Engine,
    url: String,
    backing: Backing,
}

enum Backing {
    Url,
    Container(Arc<Container>),
    Local(Arc<Local>),
}

impl Server {
    /// Finds or starts a server; the settings reach it only where it is started here, not by URL.
    ///
    /// # Errors
    /// [`StartError`] with one reason for each way that was tried.
    ///
    /// # Cancel safety
    /// A dropped future leaves the start running on a blocking thread, which then removes the server again.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        blocking(move || Self::start_blocking(&settings)).await
    }

    /// Starts a private server from local binaries, whatever the environment says about URL and containers.
    ///
    /// # Errors
    /// [`StartError`] when there are no binaries or the server does not come up.
    pub async fn local(settings: Settings) -> Result<Self, StartError> {
        blocking(move || Self::local_blocking(&settings)).await
    }

    /// [`Server::start`] for callers without a runtime.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_blocking(settings: &Settings) -> Result<Self, StartError> {
        Self::first_of(&env::order(settings.engine())?, settings)
    }

    /// A server of the caller's own: a container where `OUTBOX_TEST_SERVER` forces one, else from local binaries.
    fn private_blocking(settings: &Settings) -> Result<Self, StartError> {
        Self::first_of(&[env::private()?], settings)
    }

    /// [`Server::local`] for callers without a runtime.
    ///
    /// # Errors
    /// As [`Server::local`].
    pub fn local_blocking(settings: &Settings) -> Result<Self, StartError> {
        Self::first_of(&[Origin::Local], settings)
    }

    fn first_of(origins: &[Origin], settings: &Settings) -> Result<Self, StartError> {
        let mut attempts = Vec::new();
        for &origin in origins {
            match Self::start_one(origin, settings) {
                Ok(server) => return Ok(server),
                Err(reason) => attempts.push(Attempt { origin, reason }),
            }
        }
        Err(StartError::NoServer(settings.engine(), attempts))
    }

    fn start_one(origin: Origin, settings: &Settings) -> Result<Self, String> {
        match origin {
            Origin::Url => Self::at_url(settings.engine()),
            Origin::Container => {
                let container = Container::start(settings)?;
                let url = container.url().to_owned();
                let backing = Backing::Container(Arc::new(container));
                Ok(Self { engine: settings.engine(), url, backing })
            }
            Origin::Local => {
                let local = Local::start(settings)?;
                let url = local.url().to_owned();
                Ok(Self { engine: settings.engine(), url, backing: Backing::Local(Arc::new(local)) })
            }
        }
    }

    fn at_url(engine: Engine) -> Result<Self, String> {
        let url = env::url(engine).ok_or_else(|| format!("{} is not set", env::name(engine, "URL")))?;
        if let Address::Tcp { host, port } = Address::of(engine, &url)? {
            probe::wait_until_ready(engine, &host, port, probe::PATIENCE_WITH_A_URL, || true)?;
        }
        Ok(Self { engine, url, backing: Backing::Url })
    }

    /// Which database it is.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// URL of the database `postgres`, or `outbox` on MySQL, for a superuser; for [`Origin::Url`] the URL that was given. Holds a
    /// password: do not log it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where the server came from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match self.backing {
            Backing::Url => Origin::Url,
            Backing::Container(_) => Origin::Container,
            Backing::Local(_) => Origin::Local,
        }
    }

    /// Stops a server that was started here and returns when it is gone. Its data stays for [`Self::restart`].
    ///
    /// # Errors
    /// [`ControlError::NotPrivate`] if [`Self::origin`] is [`Origin::Url`].
    pub async fn stop(&self, mode: StopMode) -> Result<(), ControlError> {
        self.control(move |container| container.stop(mode), move |local| local.stop(mode)).await
    }

    /// Starts it again on its port and data, after a fast stop if it still runs, and returns when it accepts
    /// connections.
    ///
    /// # Errors
    /// [`ControlError::NotPrivate`] if [`Self::origin`] is [`Origin::Url`];
    /// [`ControlError::Failed`] when it does not come up.
    pub async fn restart(&self) -> Result<(), ControlError> {
        self.control(Container::restart, Local::restart).await
    }

    /// Starts a standby that streams from this PostgreSQL, with its settings, users and passwords; `SELECT pg_promote()` on it makes it
    /// a server of its own.
    ///
    /// # Errors
    /// [`ControlError::NotPrivate`] unless [`Self::origin`] is [`Origin::Local`]; [`ControlError::Failed`] when it does not come
    /// up, or on MySQL.
    pub async fn standby(&self) -> Result<Self, ControlError> {
        let Backing::Local(local) = &self.backing else {
            return Err(ControlError::NotPrivate(self.origin()));
        };
        let local = Arc::clone(local);
        let standby = blocking(move || local.standby()).await.map_err(ControlError::Failed)?;
        let (url, backing) = (standby.url().to_owned(), Backing::Local(Arc::new(standby)));
        Ok(Self { engine: self.engine, url, backing })
    }

    async fn control(
        &self,
        on_container: impl FnOnce(&Container) -> Result<(), String> + Send + 'static,
        on_local: impl FnOnce(&Local) -> Result<(), String> + Send + 'static,
    ) -> Result<(), ControlError> {
        let done = match &self.backing {
            Backing::Url => return Err(ControlError::NotPrivate(Origin::Url)),
            Backing::Container(container) => {
                let container = Arc::clone(container);
                blocking(move || on_container(&container)).await
            }
            Backing::Local(local) => {
                let local = Arc::clone(local);
                blocking(move || on_local(&local)).await
            }
        };
        done.map_err(ControlError::Failed)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("engine", &self.engine)
            .field("origin", &self.origin())
            .finish_non_exhaustive()
    }
}

/// Runs what blocks off the caller's runtime; a panic there is the caller's panic.
async fn blocking<T: Send + 'static>(action: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(action).await {
        Ok(value) => value,
        Err(error) => resume_unwind(error.into_panic()),
    }
}
