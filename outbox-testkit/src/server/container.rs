//! A server in a container, through testcontainers.

use std::{
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use testcontainers::{
    ContainerAsync, Image, ImageExt, TestcontainersError,
    core::{ContainerPort, WaitFor},
    runners::AsyncRunner,
};
use tokio::{sync::oneshot, time::timeout};
use uuid::Uuid;

use super::{Settings, env, keeper::Keeper, probe};

const PORT: ContainerPort = ContainerPort::Tcp(5432);
/// Covers pulling the image.
const PATIENCE_WITH_THE_ENGINE: Duration = Duration::from_secs(180);
const PATIENCE_WITH_THE_SERVER: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// Removes the container by name when we are gone; that it is gone already is fine.
const SCRIPT: &str = r#"cat >/dev/null; docker rm -f -v "$1""#;

/// Held by a thread with a runtime of its own, so that no test's runtime must outlive it.
#[derive(Debug)]
pub(super) struct Container {
    url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _reaper: Keeper,
}

impl Container {
    pub(super) fn start(settings: &Settings) -> Result<Self, String> {
        let image = Postgres::new(settings);
        let reaper = Keeper::spawn(SCRIPT, [image.container.as_str()], |_| ());
        let reaper = reaper.map_err(|error| format!("sh: {error}"))?;
        let (started, start) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || hold(image, &started, stopped));
        let url = start.recv().map_err(|_| "the container's thread panicked")??;
        Ok(Self { url, stop: Some(stop), thread: Some(thread), _reaper: reaper })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs on the container's own thread from its start to its end.
fn hold(image: Postgres, started: &mpsc::Sender<Result<String, String>>, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else {
        return;
    };
    runtime.block_on(async {
        match image.run().await {
            Ok((container, url)) => {
                let _ = started.send(Ok(url));
                let _ = stopped.await;
                let _ = container.rm().await;
            }
            Err(reason) => drop(started.send(Err(reason))),
        }
    });
}

/// The official image's contract, as far as it is used here.
#[derive(Debug)]
struct Postgres {
    name: String,
    tag: String,
    container: String,
    password: String,
    command: Vec<String>,
}

impl Postgres {
    fn new(settings: &Settings) -> Self {
        let command = ["postgres".to_owned()].into_iter();
        Self {
            name: env::image(),
            tag: env::tag(),
            container: format!("outbox-test-{}", Uuid::new_v4().simple()),
            password: Uuid::new_v4().simple().to_string(),
            command: command.chain(settings.arguments()).collect(),
        }
    }

    /// The running container and its URL.
    async fn run(self) -> Result<(ContainerAsync<Self>, String), String> {
        let (descriptor, password) = (format!("{}:{}", self.name, self.tag), self.password.clone());
        let container = self.create().await.map_err(|reason| format!("{descriptor}: {reason}"))?;
        let (host, port) = place(&container).await.map_err(|error| error.to_string())?;
        wait_until_ready(&container, &host, port).await?;
        let url = format!("postgres://postgres:{password}@{host}:{port}/postgres");
        Ok((container, url))
    }

    async fn create(self) -> Result<ContainerAsync<Self>, String> {
        let name = self.container.clone();
        let start = self.with_container_name(name).start();
        match timeout(PATIENCE_WITH_THE_ENGINE, start).await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_) => Err(format!("not started within {PATIENCE_WITH_THE_ENGINE:?}")),
        }
    }
}

impl Image for Postgres {
    fn name(&self) -> &str {
        &self.name
    }

    fn tag(&self) -> &str {
        &self.tag
    }

    /// None: the log differs between images, the protocol does not, so [`wait_until_ready`] asks the server.
    fn ready_conditions(&self) -> Vec<WaitFor> {
        Vec::new()
    }

    /// `password` and not SCRAM: an unoptimised client needs tens of milliseconds for a SCRAM log-in.
    fn env_vars(
        &self,
    ) -> impl IntoIterator<Item = (impl Into<std::borrow::Cow<'_, str>>, impl Into<std::borrow::Cow<'_, str>>)>
    {
        [("POSTGRES_PASSWORD", self.password.as_str()), ("POSTGRES_HOST_AUTH_METHOD", "password")]
    }

    fn cmd(&self) -> impl IntoIterator<Item = impl Into<std::borrow::Cow<'_, str>>> {
        &self.command
    }

    fn expose_ports(&self) -> &[ContainerPort] {
        &[PORT]
    }
}

/// `localhost` may mean IPv6 first, and the port is published for IPv4.
async fn place(container: &ContainerAsync<Postgres>) -> Result<(String, u16), TestcontainersError> {
    let host = container.get_host().await?.to_string();
    let port = container.get_host_port_ipv4(PORT).await?;
    let host = if host == "localhost" { "127.0.0.1".to_owned() } else { host };
    Ok((host, port))
}

async fn wait_until_ready(container: &ContainerAsync<Postgres>, host: &str, port: u16) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE_WITH_THE_SERVER;
    while !matches!(probe::ask(host, port), Ok(true)) {
        if !container.is_running().await.unwrap_or(false) {
            return Err("the container exited".to_owned());
        }
        if Instant::now() >= deadline {
            return Err(format!("not ready within {PATIENCE_WITH_THE_SERVER:?}"));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
