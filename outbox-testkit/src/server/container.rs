//! A server in a container, through testcontainers.

use std::{
    process::{Command, Stdio},
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

use super::{Engine, Settings, StopMode, env, keeper::Keeper, local, probe};

const POSTGRES_PORTS: [ContainerPort; 1] = [ContainerPort::Tcp(5432)];
const MYSQL_PORTS: [ContainerPort; 1] = [ContainerPort::Tcp(3306)];
/// Covers pulling the image.
const PATIENCE_WITH_THE_ENGINE: Duration = Duration::from_secs(180);
const PATIENCE_WITH_THE_SERVER: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// Removes the container by name when we are gone; that it is gone already is fine.
const SCRIPT: &str = r#"cat >/dev/null; docker rm -f -v "$1""#;

/// Held by a thread with a runtime of its own, so that no test's runtime must outlive it.
#[derive(Debug)]
pub(super) struct Container {
    engine: Engine,
    name: String,
    url: String,
    place: Place,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _reaper: Keeper,
}

impl Container {
    pub(super) fn start(settings: &Settings) -> Result<Self, String> {
        let image = Server::new(settings)?;
        let (engine, name) = (image.engine, image.container.clone());
        let reaper = Keeper::spawn(SCRIPT, [name.as_str()], |_| ());
        let reaper = reaper.map_err(|error| format!("sh: {error}"))?;
        let (started, start) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || hold(image, &started, stopped));
        let (url, place) = start.recv().map_err(|_| "the container's thread panicked")??;
        Ok(Self { engine, name, url, place, stop: Some(stop), thread: Some(thread), _reaper: reaper })
    }

    /// Returns when the server is gone; its data stays in the container.
    pub(super) fn stop(&self, mode: StopMode) -> Result<(), String> {
        // what has stopped already cannot be killed, and is waited for all the same
        let _ = docker(&["kill", "--signal", local::signal(self.engine, mode), &self.name]);
        docker(&["wait", &self.name])
    }

    pub(super) fn restart(&self) -> Result<(), String> {
        self.stop(StopMode::Fast)?;
        docker(&["start", &self.name])?;
        let Place { host, port } = &self.place;
        probe::wait_until_ready(self.engine, host, *port, PATIENCE_WITH_THE_SERVER, || true)
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

fn docker(arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new("docker");
    let output = command.args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("docker: {error}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("docker {}: {complaint}", arguments[0])) }
}

/// Where the server answers.
#[derive(Debug)]
struct Place {
    host: String,
    port: u16,
}

/// Runs on the container's own thread from its start to its end.
fn hold(
    image: Server,
    started: &mpsc::Sender<Result<(String, Place), String>>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else {
        return;
    };
    runtime.block_on(async {
        match image.run().await {
            Ok((container, answer)) => {
                let _ = started.send(Ok(answer));
                let _ = stopped.await;
                let _ = container.rm().await;
            }
            Err(reason) => drop(started.send(Err(reason))),
        }
    });
}

/// The official images' contract, as far as it is used here.
#[derive(Debug)]
struct Server {
    engine: Engine,
    name: String,
    tag: String,
    container: String,
    /// On the host. Chosen by us, because the engine would choose another one whenever the container is started again.
    port: u16,
    password: String,
    command: Vec<String>,
}

impl Server {
    fn new(settings: &Settings) -> Result<Self, String> {
        let engine = settings.engine();
        // the images of MySQL and MariaDB put the server's name before options
        let command = (engine == Engine::Postgres).then(|| "postgres".to_owned()).into_iter();
        let (name, tag) = env::image(engine);
        Ok(Self {
            engine,
            name,
            tag,
            container: format!("outbox-test-{}", Uuid::new_v4().simple()),
            port: local::free_port()?,
            password: Uuid::new_v4().simple().to_string(),
            command: command.chain(settings.arguments()).collect(),
        })
    }

    /// The running container and where it answers.
    async fn run(self) -> Result<(ContainerAsync<Self>, (String, Place)), String> {
        let (engine, descriptor) = (self.engine, format!("{}:{}", self.name, self.tag));
        let password = self.password.clone();
        let container = self.create().await.map_err(|reason| format!("{descriptor}: {reason}"))?;
        let place = place(engine, &container).await.map_err(|error| error.to_string())?;
        wait_until_ready(engine, &container, &place).await?;
        let url = engine.url(&password, &place.host, place.port);
        Ok((container, (url, place)))
    }

    async fn create(self) -> Result<ContainerAsync<Self>, String> {
        let (name, port, inside) = (self.container.clone(), self.port, ports(self.engine)[0]);
        let start = self.with_container_name(name).with_mapped_port(port, inside).start();
        match timeout(PATIENCE_WITH_THE_ENGINE, start).await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_) => Err(format!("not started within {PATIENCE_WITH_THE_ENGINE:?}")),
        }
    }
}

impl Image for Server {
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
        match self.engine {
            Engine::Postgres => {
                vec![
                    ("POSTGRES_PASSWORD", self.password.clone()),
                    ("POSTGRES_HOST_AUTH_METHOD", "password".into()),
                ]
            }
            // only root may make databases
            Engine::MySql => {
                vec![("MYSQL_ROOT_PASSWORD", self.password.clone()), ("MYSQL_DATABASE", "outbox".into())]
            }
        }
    }

    fn cmd(&self) -> impl IntoIterator<Item = impl Into<std::borrow::Cow<'_, str>>> {
        &self.command
    }

    fn expose_ports(&self) -> &[ContainerPort] {
        ports(self.engine)
    }
}

fn ports(engine: Engine) -> &'static [ContainerPort] {
    match engine {
        Engine::Postgres => &POSTGRES_PORTS,
        Engine::MySql => &MYSQL_PORTS,
    }
}

/// `localhost` may mean IPv6 first, and the port is published for IPv4.
async fn place(engine: Engine, container: &ContainerAsync<Server>) -> Result<Place, TestcontainersError> {
    let host = container.get_host().await?.to_string();
    let port = container.get_host_port_ipv4(ports(engine)[0]).await?;
    let host = if host == "localhost" { "127.0.0.1".to_owned() } else { host };
    Ok(Place { host, port })
}

async fn wait_until_ready(
    engine: Engine,
    container: &ContainerAsync<Server>,
    Place { host, port }: &Place,
) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE_WITH_THE_SERVER;
    while !matches!(probe::ask(engine, host, *port), Ok(true)) {
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
