//! One server for all tests of a process, and the rule for tests that have none.

use std::{
    io::{Write, stderr},
    sync::OnceLock,
    thread,
};

use super::{Postgres, Settings, Skipped, StartError, blocking, env, required};

/// The server that all tests of this process share; the first caller starts it. It depends on no caller's
/// runtime and goes away with the process.
///
/// # Errors
/// [`Skipped`] when there is no server, after one line on standard error that says what is missing.
///
/// # Panics
/// When there is no server and `OUTBOX_TEST_REQUIRE` names `postgres`.
pub async fn postgres() -> Result<&'static Postgres, Skipped> {
    static SHARED: OnceLock<Result<Postgres, StartError>> = OnceLock::new();
    let start = || Postgres::start_blocking(&Settings::for_tests());
    let shared = blocking(move || SHARED.get_or_init(start)).await;
    shared.as_ref().map_err(|error| skip("postgres", error))
}

/// A server of the caller's own, for tests that stop, restart or configure it. Needs local binaries.
///
/// # Errors
/// [`Skipped`] when there are none, after one line on standard error that says what is missing.
///
/// # Panics
/// When there is no server and `OUTBOX_TEST_REQUIRE` names `local`.
pub async fn private(settings: Settings) -> Result<Postgres, Skipped> {
    let start = move || env::allowed().and_then(|()| Postgres::local_blocking(&settings));
    blocking(start).await.map_err(|error| skip("local", &error))
}

fn skip(name: &str, error: &StartError) -> Skipped {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let reason = error.to_string();
    assert!(!required(name), "{test} needs a server and OUTBOX_TEST_REQUIRE names {name}: {reason}");
    say(&format!("SKIPPED {test}: {reason}"));
    Skipped { reason }
}

/// Past the test harness, which swallows what a passing test prints with `eprintln!`. A closed standard
/// error is no reason to fail.
fn say(line: &str) {
    let _ = writeln!(stderr().lock(), "{line}");
}
