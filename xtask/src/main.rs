//! The project's own commands: `cargo xtask check`, `lint`, `test`, `matrix` and `budget`.

mod boundaries;
mod budget;
mod cargo;
mod check;
mod container;
#[cfg(test)]
mod docs;
mod examples;
mod matrix;
mod report;
mod skipped;
mod test;

use std::{env::args, process::ExitCode};

use report::Report;

const USAGE: &str = "\
usage: cargo xtask COMMAND
  check   format, clippy, tests that need no server, documentation
  lint    the same without the tests
  test    everything that CI runs; finds or starts PostgreSQL and MariaDB by itself
  matrix [--write] [NAME…]
          the tests of the storages on each version of each server, in containers; --write puts the table into docs/storage.md
  budget  how many crates we add to a user's build";

fn main() -> ExitCode {
    let mut report = Report::new();
    let arguments: Vec<String> = args().skip(2).collect();
    let begun = match args().nth(1).as_deref() {
        Some("check") => check::check(&mut report),
        Some("lint") => check::lint(&mut report),
        Some("test") => test::test(&mut report),
        Some("matrix") => matrix::matrix(&mut report, &arguments),
        Some("budget") => budget::budget(&mut report),
        _ => Err(USAGE.to_owned()),
    };
    begun.map_or_else(refuse, |()| report.finish())
}

/// Nothing ran.
fn refuse(reason: String) -> ExitCode {
    eprintln!("{reason}");
    ExitCode::from(2)
}
