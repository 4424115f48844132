//! Which version of a server the tests have run on, for the table of versions.

use std::io::Write;

use crate::support::{Site, on_mysql, on_postgres, on_sqlite};

/// Past the capturing of the test runner; `cargo xtask matrix` reads it.
async fn say(site: &Site, version: &str) {
    let version: String = site.value(version).await;
    assert!(version.starts_with(|first: char| first.is_ascii_digit()), "{version}");
    // a closed standard error is no reason to fail
    let _ = writeln!(std::io::stderr(), "server: {version}");
}

async fn of_postgres(site: &Site) {
    say(site, "SELECT current_setting('server_version')").await;
}

async fn of_mysql(site: &Site) {
    say(site, "SELECT version()").await;
}

async fn of_sqlite(site: &Site) {
    say(site, "SELECT sqlite_version()").await;
}

on_postgres! { of_postgres }
on_mysql! { of_mysql }
on_sqlite! { of_sqlite }
