//! The figures of this project, as JSON lines, each beside its raw floor.
//!
//! `cargo run --release -p outbox-benchmarks -- help` lists what there is.

// The layout of a scenario's future, a storage in a wrapper in rounds of two sides, is computed deeper than by default.
#![recursion_limit = "256"]

mod args;
mod bare;
mod business;
mod clock;
mod deliveries;
mod error;
mod floor;
mod gate;
mod load;
mod meter;
mod options;
mod ours;
mod proc;
mod produce;
mod report;
mod scenario;
mod side;
mod site;
mod statements;
mod stats;

use std::env;
use std::process::ExitCode;

use serde_json::json;

use args::Flags;
use error::Result;
use options::Options;
use report::{Gate, Line, table};
use site::{Kind, Site};

const HELP: &str = "\
outbox-benchmarks SUBCOMMAND [--flag value …]

  all                every scenario, then the table of gates
  gate               the gates that noise cannot move, in a minute; exits with 1 when one fails
  NAME[,NAME…]       scenarios by name, see below
  produce            a load generator: --url URL [--table T --count N --rate R --batch N --tasks N --topics A,B
                     --keys N --payload 200|100..2000 --delay-share 0.1 --delay 30s --failure-share 0.05 --failures 1
                     --rollback-share 0.1]
  consume            delivers what produce enqueued: --url URL [--table T --count N --topics A,B --batch N
                     --concurrency N]

  for scenarios:     --database postgres|sqlite|mysql|both  --rounds 5  --messages N  --neighbours N  --window 10s

JSON lines go to standard output, the table of gates to standard error. PostgreSQL is a private server from local
binaries, or the one that OUTBOX_BENCH_POSTGRES_URL names, which must belong to the benchmark alone; so is MySQL, or MariaDB, and OUTBOX_BENCH_MYSQL_URL.

scenarios:";

#[tokio::main]
async fn main() -> ExitCode {
    statements::install();
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<bool> {
    let mut words = env::args().skip(1);
    let subcommand = words.next().unwrap_or_else(|| "help".to_owned());
    let flags = Flags::parse(words)?;
    match subcommand.as_str() {
        "help" | "--help" | "-h" => help(),
        "gate" => return gate::run(flags).await,
        "produce" => produce::run(flags).await?,
        "consume" => produce::consume(flags).await?,
        "rss-child" => scenario::rss::drain_as_child(flags).await?,
        "all" => {
            let names: Vec<&str> = scenario::ALL.iter().map(|(name, _)| *name).collect();
            return scenarios(&names, flags).await;
        }
        names => return scenarios(&names.split(',').collect::<Vec<_>>(), flags).await,
    }
    Ok(true)
}

fn help() {
    println!("{HELP}");
    for (name, sqlite) in scenario::ALL {
        let mysql = if scenario::runs_on(name, Kind::MySql) { ", mysql" } else { "" };
        println!("  {name:<22} {}{mysql}", if sqlite { "postgres, sqlite" } else { "postgres" });
    }
}

/// Runs scenarios by name on every database that has them. A gate that fails is shown, not an error: on a
/// noisy machine a ratio means nothing by itself.
async fn scenarios(names: &[&str], mut flags: Flags) -> Result<bool> {
    let options = Options::read(&mut flags)?;
    flags.finish()?;
    if let Some(name) = names.iter().find(|name| !scenario::runs_on(name, Kind::Postgres)) {
        return Err(format!("unknown scenario {name}; try help").into());
    }
    let mut gates: Vec<Gate> = Vec::new();
    for kind in &options.kinds {
        let names = names.iter().filter(|name| scenario::runs_on(name, *kind));
        let site = Site::open(*kind).await?;
        host(&site).await?.print();
        for name in names {
            eprintln!("{kind} {name} …");
            gates.extend(scenario::run(name, &site, &options).await?.print());
        }
    }
    table(&gates);
    Ok(true)
}

/// What the figures were measured on.
async fn host(site: &Site) -> Result<Line> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let settings = match site {
        Site::Postgres(site) => site.settings().await?,
        Site::MySql(site) => site.settings().await?,
        Site::Sqlite(_) => json!({ "journal_mode": "wal", "synchronous": "normal" }),
    };
    let line = Line::new("host", site.kind()).with("cores", cores).with("settings", settings);
    Ok(line.with("build", if cfg!(debug_assertions) { "debug" } else { "release" }))
}
