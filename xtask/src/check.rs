//! `cargo xtask check` and `lint`: what needs no server.

use crate::{
    cargo::{cargo, run},
    report::{Outcome, Report},
};

pub(crate) fn lint(report: &mut Report) -> Outcome {
    report.step("format", || run(&mut cargo(&["fmt", "--all", "--check"])));
    report.step("clippy", || {
        run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]))
    });
    report.step("documentation", || {
        let mut doc = cargo(&["doc", "--workspace", "--all-features", "--no-deps"]);
        run(doc.env("RUSTDOCFLAGS", "-D warnings"))
    });
    Ok(())
}

/// Tests of PostgreSQL and MySQL have that word in their names; what slips through is told that there is no server.
pub(crate) fn check(report: &mut Report) -> Outcome {
    lint(report)?;
    report.step("tests without a server", || {
        let mut tests =
            cargo(&["test", "--workspace", "--all-features", "--", "--skip", "postgres", "--skip", "mysql"]);
        run(tests.env("OUTBOX_TEST_SERVER", "none").env_remove("OUTBOX_TEST_REQUIRE"))
    });
    Ok(())
}
