//! `cargo xtask matrix`: the tests of the storages on every version of every server that we promise.

mod image;
mod suite;
mod table;

use std::path::Path;

use crate::report::{Outcome, Report};

use image::Image;
use suite::Results;

/// One row of the table.
struct Entry {
    name: &'static str,
    title: &'static str,
    server: Server,
}

/// Where the server comes from: the official image first, then one built from packages of Debian.
enum Server {
    Embedded,
    Container { engine: &'static str, official: &'static str, packaged: (&'static str, &'static str) },
}

const ENTRIES: [Entry; 8] = [
    entry("postgres-13", "PostgreSQL 13", "postgres", "postgres:13", ("postgres", "13")),
    entry("postgres-15", "PostgreSQL 15", "postgres", "postgres:15", ("postgres", "15")),
    entry("postgres-17", "PostgreSQL 17", "postgres", "postgres:17", ("postgres", "17")),
    entry("postgres-18", "PostgreSQL 18", "postgres", "postgres:18", ("postgres", "18")),
    entry("mariadb-10.11", "MariaDB 10.11", "mysql", "mariadb:10.11", ("mariadb", "10.11")),
    entry("mariadb-11.8", "MariaDB 11.8", "mysql", "mariadb:11.8", ("mariadb", "11.8")),
    entry("mysql-9", "MySQL 9", "mysql", "mysql:9", ("mysql", "9.7")),
    Entry { name: "sqlite", title: "SQLite", server: Server::Embedded },
];

const fn entry(
    name: &'static str,
    title: &'static str,
    engine: &'static str,
    official: &'static str,
    packaged: (&'static str, &'static str),
) -> Entry {
    Entry { name, title, server: Server::Container { engine, official, packaged } }
}

/// What came of an entry.
enum End {
    Ran(Results),
    /// For this reason, which is never a pass.
    NotRun(String),
}

/// `--write` puts the table into docs/storage.md; names choose entries, and the rows of the others stay as they are.
pub(crate) fn matrix(report: &mut Report, arguments: &[String]) -> Outcome {
    let (options, names): (Vec<_>, Vec<_>) = arguments.iter().partition(|word| word.starts_with("--"));
    let write = match options.as_slice() {
        [] => false,
        [option] if *option == "--write" => true,
        _ => return Err(format!("unknown option: {options:?}")),
    };
    let chosen = chosen(&names)?;
    let program = suite::build()?;
    let mut rows = Vec::new();
    for entry in chosen {
        let end = entry.run(&program);
        tell(report, entry, &end);
        rows.push((entry.title, table::row(entry.title, &end)));
    }
    println!("{}", table::new(&rows));
    if write { table::write(&rows) } else { Ok(()) }
}

fn chosen(names: &[&String]) -> Result<Vec<&'static Entry>, String> {
    let known = || ENTRIES.iter().map(|entry| entry.name);
    if let Some(unknown) = names.iter().find(|name| !known().any(|known| known == **name)) {
        return Err(format!("{unknown} is none of {}", known().collect::<Vec<_>>().join(", ")));
    }
    Ok(ENTRIES
        .iter()
        .filter(|entry| names.is_empty() || names.iter().any(|name| *name == entry.name))
        .collect())
}

fn tell(report: &mut Report, entry: &Entry, end: &End) {
    match end {
        End::NotRun(reason) => report.leave_out(entry.name, reason.clone()),
        End::Ran(results) => report.step(entry.name, || results.outcome()),
    }
}

impl Entry {
    fn run(&self, program: &Path) -> End {
        println!("== {}", self.title);
        match &self.server {
            Server::Embedded => ran(suite::without_server(program)),
            Server::Container { engine, official, packaged } => match Image::find(official, *packaged) {
                Ok(image) => ran(suite::in_container(program, engine, &image)),
                Err(reason) => End::NotRun(reason),
            },
        }
    }
}

/// Whether it passed or not; what did not even come to its results did not run.
fn ran(results: Result<Results, String>) -> End {
    results.map_or_else(End::NotRun, End::Ran)
}
