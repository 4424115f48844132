//! `cargo xtask test`: everything that CI runs.

use std::{
    env::{var, var_os},
    process::Command,
};

use outbox_testkit::server::{Postgres, Settings, StartError, has_local_binaries};

use crate::{
    boundaries, budget,
    cargo::{cargo, run},
    container, examples,
    report::{Outcome, Report},
};

const INSTALL: &str = "cargo xtask test needs PostgreSQL: install its server (Debian and Ubuntu: \
    apt-get install postgresql), or start Docker, or set OUTBOX_TEST_POSTGRES_URL";

/// Fails before the first step where there is no PostgreSQL.
pub(crate) fn test(report: &mut Report) -> Outcome {
    let server = Server::find()?;
    println!("== PostgreSQL: {}", server.origin());
    report.step("boundaries", boundaries::check);
    report.step("budget", budget::check);
    report.step("tests", || suite(&server));
    container::suite(report);
    report.step("examples", examples::run_all);
    Ok(())
}

fn suite(server: &Server) -> Outcome {
    let mut tests = cargo(&["test", "--workspace", "--all-features", "--no-fail-fast"]);
    server.announce(&mut tests);
    run(tests.env("OUTBOX_TEST_REQUIRE", requirements()))
}

/// What was required of us, and what we have just seen to be there.
fn requirements() -> String {
    let given = var("OUTBOX_TEST_REQUIRE").unwrap_or_default();
    let local = if has_local_binaries() { "local" } else { "" };
    [given.as_str(), "postgres", local].join(",")
}

/// The PostgreSQL of this run.
enum Server {
    /// Given by URL, or started here and stopped when this is dropped.
    Shared(Postgres),
    /// Each test binary starts a container of its own.
    Containers,
}

impl Server {
    /// By URL, else from local binaries, because one server for all is faster than a container for each test
    /// binary; containers get a run of their own later.
    fn find() -> Result<Self, String> {
        let settings = Settings::for_tests();
        let found = if var_os("OUTBOX_TEST_POSTGRES_URL").is_some() {
            Postgres::start_blocking(&settings)
        } else {
            Postgres::local_blocking(&settings)
        };
        found.map(Server::Shared).or_else(|error| Self::without(&error))
    }

    fn without(error: &StartError) -> Result<Self, String> {
        match container::obstacle() {
            None => Ok(Server::Containers),
            Some(obstacle) => Err(format!("{INSTALL} ({error}; {obstacle})")),
        }
    }

    fn origin(&self) -> &'static str {
        match self {
            Server::Shared(server) => server.origin().as_str(),
            Server::Containers => "a container for each test binary",
        }
    }

    fn announce(&self, tests: &mut Command) {
        match self {
            Server::Shared(server) => {
                tests.env_remove("OUTBOX_TEST_SERVER").env("OUTBOX_TEST_POSTGRES_URL", server.url())
            }
            Server::Containers => tests.env("OUTBOX_TEST_SERVER", "container"),
        };
    }
}
