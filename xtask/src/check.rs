//! `cargo xtask check` and `lint`: what needs no server.

use crate::{
    cargo::{cargo, run},
    report::{Outcome, Report},
    skipped::Skipped,
};

pub(crate) fn lint(report: &mut Report) -> Outcome {
    report.step("format", || run(&mut cargo(&["fmt", "--all", "--check"])));
    report.step("clippy", || {
        run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]))
    });
    report.step("each database and feature alone", || {
        DATABASES.iter().try_for_each(|database| alone(database))
    });
    report.step("documentation", || {
        let mut doc = cargo(&["doc", "--workspace", "--all-features", "--no-deps"]);
        run(doc.env("RUSTDOCFLAGS", "-D warnings"))
    });
    Ok(())
}

const DATABASES: [&str; 5] = ["postgres", "sqlite", "mysql", "wal", "wal-tls"];

/// What only another database needs is no part of a build for this one.
fn alone(database: &str) -> Outcome {
    run(&mut cargo(&["clippy", "-p", "outbox-sea-orm", "--features", database, "--", "-D", "warnings"]))
}

/// Tests of PostgreSQL and MySQL have that word in their names; what slips through is told that there is no server.
pub(crate) fn check(report: &mut Report) -> Outcome {
    lint(report)?;
    let skipped = Skipped::begin();
    report.step("tests without a server", || {
        let mut tests =
            cargo(&["test", "--workspace", "--all-features", "--", "--skip", "postgres", "--skip", "mysql"]);
        skipped.hear(&mut tests);
        run(tests.env("OUTBOX_TEST_SERVER", "none").env_remove("OUTBOX_TEST_REQUIRE"))
    });
    skipped.tell(report);
    Ok(())
}
