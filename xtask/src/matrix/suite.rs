//! The tests of `outbox-sea-orm`, compiled once and run for each entry with another environment.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::image::Image;
use crate::{
    cargo::{cargo, output, root},
    report::Outcome,
};

/// What the tests in `versions.rs` print before the version.
const SERVER: &str = "server: ";
/// The counts of one run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Results {
    pub(super) version: String,
    pub(super) n_passed: usize,
    pub(super) n_failed: usize,
    pub(super) n_skipped: usize,
}

impl Results {
    pub(super) fn outcome(&self) -> Outcome {
        let Self { version, n_passed, n_failed, n_skipped } = self;
        println!("{version}: {n_passed} passed, {n_failed} failed, {n_skipped} skipped");
        if *n_failed == 0 { Ok(()) } else { Err(format!("{n_failed} tests failed on {version}")) }
    }

    /// `stdout` and `stderr` of a test program.
    fn read(stdout: &str, stderr: &str) -> Result<Self, String> {
        // the last one: what a failed test has shown may have others
        let summary = stdout.lines().rfind(|line| line.starts_with("test result: "));
        let summary = summary.ok_or("the test program ended without a result")?;
        let version = stderr.lines().find_map(|line| line.strip_prefix(SERVER));
        let n_skipped = stderr.lines().filter(|line| is_skip(line)).count();
        let n_ok = count(summary, " passed").ok_or("no count of passed tests")?;
        Ok(Self {
            version: version.ok_or("no test said which server it was")?.to_owned(),
            n_passed: n_ok.saturating_sub(n_skipped),
            n_failed: count(summary, " failed").ok_or("no count of failed tests")?,
            n_skipped,
        })
    }
}

/// Whether it says that a test was skipped, and not just a part of it that names no backend it would have run on.
fn is_skip(line: &str) -> bool {
    line.starts_with("SKIPPED ") || line.strip_prefix("skipped: ").is_some_and(|what| what.contains(" on "))
}

/// The number before `word`.
fn count(summary: &str, word: &str) -> Option<usize> {
    let (before, _) = summary.split_once(word)?;
    before.rsplit(' ').next()?.parse().ok()
}

/// The path of the test program.
pub(super) fn build() -> Result<PathBuf, String> {
    let build = ["test", "-p", "outbox-sea-orm", "--all-features", "--test", "it", "--no-run"];
    let messages = output(cargo(&build).args(["--message-format", "json"]).stderr(Stdio::inherit()))?;
    let found = messages.lines().filter_map(|line| line.split_once(r#""executable":""#)).next_back();
    let (_, rest) = found.ok_or("cargo named no test program")?;
    Ok(PathBuf::from(rest.split('"').next().unwrap_or_default()))
}

pub(super) fn without_server(program: &Path) -> Result<Results, String> {
    run(program, "sqlite", "none", |_| ())
}

/// A server of this image for the whole run, and others of it for tests that want one of their own.
pub(super) fn in_container(program: &Path, engine: &str, image: &Image) -> Result<Results, String> {
    let variable = |what| format!("OUTBOX_TEST_{}_{what}", engine.to_uppercase());
    run(program, engine, "container", |tests| {
        tests.env(variable("IMAGE"), &image.name).env(variable("TAG"), &image.tag);
        tests.env_remove(variable("URL")).env("OUTBOX_TEST_REQUIRE", format!("{engine},local,local-mysql"));
    })
}

/// Tests of a database have its name in theirs.
fn run(
    program: &Path,
    filter: &str,
    server: &str,
    set: impl FnOnce(&mut Command),
) -> Result<Results, String> {
    let mut tests = Command::new(program);
    tests.args(names(filter)).current_dir(root().join("outbox-sea-orm")).stdin(Stdio::null());
    tests.env("OUTBOX_TEST_SERVER", server).env_remove("OUTBOX_TEST_REQUIRE");
    set(&mut tests);
    let output = tests.output().map_err(|error| format!("{}: {error}", program.display()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    if !output.status.success() {
        eprintln!("{}", stdout.split_once("\nfailures:\n").map_or(&*stdout, |(_, failures)| failures));
    }
    let results = Results::read(&stdout, &stderr)?;
    match (results.n_failed == 0) == output.status.success() {
        true => Ok(results),
        false => {
            Err(format!("{} failed, and the test program ended with {}", results.n_failed, output.status))
        }
    }
}

/// Logs, their horizon and their feeds are PostgreSQL's without its name; but for pairs of servers, and for dumps by local programs.
fn names(filter: &str) -> &[&str] {
    match filter {
        "postgres" => &[
            "postgres",
            "log::",
            "horizon::",
            "wal::",
            "--skip=sqlite",
            "--skip=log::promoted",
            "--skip=log::restored",
            "--skip=wal::failover",
        ],
        "mysql" => &["mysql"],
        _ => &["sqlite"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STDOUT: &str = "test a ... ok\n\ntest result: ok. 41 passed; 0 failed; 0 ignored; 0 measured; \
                          7 filtered out; finished in 9.99s\n";

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let stderr = "server: 17.11 (Debian)\nSKIPPED a: no server\nskipped: b on sqlite: needs it\n\
                      skipped: sqlite cannot hold it\nother\n";
        let read = Results::read(STDOUT, stderr).expect("results");
        assert_eq!((read.n_passed, read.n_failed, read.n_skipped), (39, 0, 2));
        assert_eq!(read.version, "17.11 (Debian)");
    }

    #[test]
    fn a_run_without_a_version_or_a_result_is_none() {
        assert!(Results::read(STDOUT, "").is_err());
        assert!(Results::read("killed", "server: 17\n").is_err());
    }

    #[test]
    fn failures_are_counted() {
        let stdout = STDOUT.replace("ok. 41 passed; 0 failed", "FAILED. 40 passed; 1 failed");
        let read = Results::read(&stdout, "server: 17\n").expect("results");
        assert_eq!((read.n_passed, read.n_failed), (40, 1));
        assert!(read.outcome().is_err());
    }
}
