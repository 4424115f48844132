//! Enqueue in the caller's transaction: one message beside a business row, and full batches.

use crate::error::Result;
use crate::floor::Floor;
use crate::load::BATCH;
use crate::meter::{Rounds, Usage};
use crate::options::Options;
use crate::ours::Ours;
use crate::report::{Bound, Line};
use crate::side::{full_batches, interleave, singles};
use crate::site::{Kind, Site};

const N_TASKS: usize = 8;
/// `BEGIN`, the business row and `COMMIT`.
const STATEMENTS_OF_THE_CALLER: f64 = 3.0;

pub(crate) async fn single(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(20_000);
    let (floor, ours) = interleave(
        site,
        options.n_rounds,
        async |round| singles::<Floor>(site, n_messages, N_TASKS, round).await,
        async |round| singles::<Ours>(site, n_messages, N_TASKS, round).await,
    )
    .await?;
    let per_call = ours.median(Usage::statements_per_message) - STATEMENTS_OF_THE_CALLER;
    let line = Line::new("enqueue_single", site.kind()).with("messages", n_messages).with("tasks", N_TASKS);
    Ok(compared(line, site, &floor, &ours, per_call))
}

pub(crate) async fn batch(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(200_000);
    let (floor, ours) = interleave(
        site,
        options.n_rounds,
        async |round| full_batches::<Floor>(site, n_messages, round).await,
        async |round| full_batches::<Ours>(site, n_messages, round).await,
    )
    .await?;
    // without `BEGIN` and `COMMIT`
    let per_call = ours.median(Usage::statements_per_message) * BATCH as f64 - 2.0;
    let line =
        Line::new("enqueue_batch", site.kind()).with("messages", n_messages).with("per_transaction", BATCH);
    Ok(compared(line, site, &floor, &ours, per_call))
}

fn compared(line: Line, site: &Site, floor: &Rounds, ours: &Rounds, per_call: f64) -> Line {
    let line = line.compare(floor, ours);
    if site.kind() != Kind::Postgres {
        return line;
    }
    let ratio = ours.ratio_to(floor);
    line.gate("rate / floor", ratio, Bound::AtLeast(0.85)).exact_gate(
        "statements per call",
        per_call,
        Bound::Exactly(1.0),
    )
}
