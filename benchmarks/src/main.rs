//! The figures of this project, as JSON lines, each beside its raw floor.

mod args;
mod business;
mod clock;
mod error;
mod floor;
mod load;
mod meter;
mod options;
mod proc;
mod report;
mod side;
mod site;
mod stats;
mod statements;

use std::env;
use std::process::ExitCode;

use args::Flags;
use error::Result;
use floor::Floor;
use meter::Rounds;
use options::Options;
use report::Line;
use side::{Round, drained, full_batches, singles};
use site::Site;

#[tokio::main]
async fn main() -> ExitCode {
    statements::install();
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let mut flags = Flags::parse(env::args().skip(1))?;
    let options = Options::read(&mut flags)?;
    flags.finish()?;
    for kind in &options.kinds {
        let site = Site::open(*kind).await?;
        let (mut a, mut b, mut c) = (Rounds::default(), Rounds::default(), Rounds::default());
        for i in 0..options.n_rounds + 1 {
            let round = Round { detailed: i == options.n_rounds };
            a.push(singles::<Floor>(&site, 20_000, 8, round).await?);
            b.push(full_batches::<Floor>(&site, 200_000, round).await?);
            c.push(drained::<Floor>(&site, 200_000, round).await?);
        }
        Line::new("floor", kind).with("single", a.json()).with("batch", b.json()).with("drain", c.json()).print();
    }
    Ok(())
}
