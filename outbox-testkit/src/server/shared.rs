//! One server for all tests of a process, and the rule for tests that have none.

use std::{
    io::{Write, stderr},
    sync::OnceLock,
    thread,
};

use super::{Server, Settings, Skipped, StartError, blocking, required};

type Shared = OnceLock<Result<Server, StartError>>;

/// The PostgreSQL that all tests of this process share; the first caller starts it. It depends on no caller's
/// runtime and goes away with the process.
///
/// # Errors
/// [`Skipped`] when there is no server, after one line on standard error that says what is missing.
///
/// # Panics
/// When there is no server and `OUTBOX_TEST_REQUIRE` names `postgres`.
pub async fn postgres() -> Result<&'static Server, Skipped> {
    static SHARED: Shared = OnceLock::new();
    shared(&SHARED, Settings::for_tests()).await
}

/// The MySQL or MariaDB that all tests of this process share; see [`postgres`].
///
/// # Errors
/// [`Skipped`] when there is no server, after one line on standard error that says what is missing.
///
/// # Panics
/// When there is no server and `OUTBOX_TEST_REQUIRE` names `mysql`.
pub async fn mysql() -> Result<&'static Server, Skipped> {
    static SHARED: Shared = OnceLock::new();
    shared(&SHARED, Settings::for_mysql_tests()).await
}

async fn shared(server: &'static Shared, settings: Settings) -> Result<&'static Server, Skipped> {
    let name = settings.engine().as_str();
    let shared = blocking(move || server.get_or_init(|| Server::start_blocking(&settings))).await;
    shared.as_ref().map_err(|error| skip(name, error))
}

/// A server of the caller's own, for tests that stop, restart or configure it: from local binaries, or a container where
/// `OUTBOX_TEST_SERVER` is `container`.
///
/// # Errors
/// [`Skipped`] when there are none, after one line on standard error that says what is missing.
///
/// # Panics
/// When there is no server and `OUTBOX_TEST_REQUIRE` names `local` (for MySQL `local-mysql`).
pub async fn private(settings: Settings) -> Result<Server, Skipped> {
    let name = settings.engine().local();
    blocking(move || Server::private_blocking(&settings)).await.map_err(|error| skip(name, &error))
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
