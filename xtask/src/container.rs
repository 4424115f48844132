//! The PostgreSQL suite once more, on a server that testcontainers starts.

use std::env::var;

use outbox_testkit::server::{Engine, required};

use crate::{
    cargo::{cargo, output, run, succeeds},
    report::{Outcome, Report},
    skipped::Skipped,
};

const STEP: &str = "tests in a container";

/// Without an engine or an image it is left out, or fails where `OUTBOX_TEST_REQUIRE` names `container`.
pub(crate) fn suite(report: &mut Report, skipped: &Skipped) {
    match obstacle(Engine::Postgres) {
        None => report.step(STEP, || tests(skipped)),
        Some(reason) if required("container") => report.step(STEP, || Err(reason)),
        Some(reason) => report.leave_out(STEP, reason),
    }
}

/// What is in the way of starting a container, if anything.
pub(crate) fn obstacle(engine: Engine) -> Option<String> {
    if !succeeds("docker", &["info"]) {
        return Some("no container engine answers to `docker info`".to_owned());
    }
    let image = image(engine);
    let there = succeeds("docker", &["image", "inspect", &image]) || succeeds("docker", &["pull", &image]);
    (!there).then(|| format!("the image {image} is neither here nor can it be pulled"))
}

fn image(engine: Engine) -> String {
    let setting = |what, default: &str| {
        let name = format!("OUTBOX_TEST_{}_{what}", engine.as_str().to_uppercase());
        var(name).ok().filter(|v| !v.is_empty()).unwrap_or_else(|| default.to_owned())
    };
    let (name, tag) = match engine {
        Engine::MySql => ("mariadb", "11.8"),
        _ => ("postgres", "17"),
    };
    format!("{}:{}", setting("IMAGE", name), setting("TAG", tag))
}

/// For the whole workspace, so that nothing is compiled again; the filter keeps the rest out.
const TESTS: [&str; 6] = ["test", "--workspace", "--all-features", "--test", "it", "postgres"];

fn tests(skipped: &Skipped) -> Outcome {
    let listed = output(cargo(&TESTS).args(["--", "--list"]))?;
    if !listed.lines().any(|line| line.ends_with(": test")) {
        return Err("no test of a target `it` has `postgres` in its name".to_owned());
    }
    let mut tests = cargo(&TESTS);
    tests.env_remove("OUTBOX_TEST_POSTGRES_URL").env("OUTBOX_TEST_SERVER", "container");
    run(skipped.hear(&mut tests).env("OUTBOX_TEST_REQUIRE", "postgres"))
}
