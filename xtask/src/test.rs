//! `cargo xtask test`: everything that CI runs.

use std::{
    env::{var, var_os},
    process::Command,
};

use outbox_testkit::server::{self, Engine, Settings, StartError, has_local_binaries};

use crate::{
    boundaries, budget,
    cargo::{cargo, run},
    container, examples,
    report::{Outcome, Report},
    skipped::Skipped,
};

/// Fails before the first step where a server is missing.
pub(crate) fn test(report: &mut Report) -> Outcome {
    let servers =
        [Settings::for_tests(), Settings::for_mysql_tests()].map(|settings| Server::find(&settings));
    let [postgres, mysql] = servers;
    let servers = [postgres?, mysql?];
    for server in &servers {
        println!("== {}", server.describe());
    }
    report.step("boundaries", boundaries::check);
    report.step("budget", budget::check);
    let skipped = Skipped::begin();
    report.step("tests", || suite(&servers, &skipped));
    container::suite(report, &skipped);
    report.step("examples", examples::run_all);
    skipped.tell(report);
    Ok(())
}

fn suite(servers: &[Server], skipped: &Skipped) -> Outcome {
    let mut tests = cargo(&["test", "--workspace", "--all-features", "--no-fail-fast"]);
    tests.env_remove("OUTBOX_TEST_SERVER");
    servers.iter().for_each(|server| server.announce(&mut tests));
    run(skipped.hear(&mut tests).env("OUTBOX_TEST_REQUIRE", requirements()))
}

/// What was required of us, and what we have just seen to be there.
fn requirements() -> String {
    let given = var("OUTBOX_TEST_REQUIRE").unwrap_or_default();
    let mut names = vec![given.as_str(), "postgres", "mysql"];
    names.extend(has_local_binaries(Engine::Postgres).then_some("local"));
    names.extend(has_local_binaries(Engine::MySql).then_some("local-mysql"));
    names.join(",")
}

/// A server of this run.
enum Server {
    /// Given by URL, or started here and stopped when this is dropped.
    Shared(server::Server),
    /// Each test binary starts a container of its own.
    Containers(Engine),
}

impl Server {
    /// By URL, else from local binaries, because one server for all is faster than a container for each test
    /// binary; containers get a run of their own later.
    fn find(settings: &Settings) -> Result<Self, String> {
        let found = if var_os(url(settings.engine())).is_some() {
            server::Server::start_blocking(settings)
        } else {
            server::Server::local_blocking(settings)
        };
        found.map(Server::Shared).or_else(|error| Self::without(settings.engine(), &error))
    }

    fn without(engine: Engine, error: &StartError) -> Result<Self, String> {
        match container::obstacle(engine) {
            None => Ok(Server::Containers(engine)),
            Some(obstacle) => Err(format!("{} ({error}; {obstacle})", install(engine))),
        }
    }

    fn describe(&self) -> String {
        match self {
            Server::Shared(server) => format!("{}: {}", server.engine().as_str(), server.origin()),
            Server::Containers(engine) => format!("{}: a container for each test binary", engine.as_str()),
        }
    }

    fn announce(&self, tests: &mut Command) {
        if let Server::Shared(server) = self {
            tests.env(url(server.engine()), server.url());
        }
    }
}

fn url(engine: Engine) -> &'static str {
    match engine {
        Engine::MySql => "OUTBOX_TEST_MYSQL_URL",
        _ => "OUTBOX_TEST_POSTGRES_URL",
    }
}

fn install(engine: Engine) -> String {
    let (name, package) = match engine {
        Engine::MySql => ("MariaDB or MySQL", "mariadb-server"),
        _ => ("PostgreSQL", "postgresql"),
    };
    let url = url(engine);
    format!(
        "cargo xtask test needs {name}: install its server (Debian and Ubuntu: apt-get install {package}), or start \
         Docker, or set {url}"
    )
}
