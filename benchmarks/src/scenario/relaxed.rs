//! Claims and settlements that do not wait for the disk.

use outbox_sea_orm::OutboxTable;

use super::neighbours::against;
use super::varied::{Variation, Varied};
use crate::error::Result;
use crate::options::Options;
use crate::ours::Ours;
use crate::report::Line;
use crate::side::{drained, interleave};
use crate::site::Site;

/// A table with relaxed commit.
struct Relaxed;

impl Variation for Relaxed {
    fn declare(table: OutboxTable) -> OutboxTable {
        table.with_relaxed_commit()
    }
}

pub(crate) async fn run(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(200_000);
    let (plain, relaxed) = interleave(
        site,
        options.n_rounds,
        async |round| drained::<Ours>(site, n_messages, round).await,
        async |round| drained::<Varied<Relaxed>>(site, n_messages, round).await,
    )
    .await?;
    let line = Line::new("relaxed_commit", site.kind()).with("messages", n_messages);
    Ok(against(line, &plain, &relaxed))
}
