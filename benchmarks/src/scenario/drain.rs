//! The drain of a backlog through dispatcher and repository.

use crate::error::Result;
use crate::floor::Floor;
use crate::load::BATCH;
use crate::meter::Usage;
use crate::options::Options;
use crate::ours::Ours;
use crate::report::{Bound, Line};
use crate::side::{drained, interleave};
use crate::site::{Kind, Site};

pub(crate) async fn run(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(200_000);
    let (floor, ours) = interleave(
        site,
        options.n_rounds,
        async |round| drained::<Floor>(site, n_messages, round).await,
        async |round| drained::<Ours>(site, n_messages, round).await,
    )
    .await?;
    let per_batch = ours.median(Usage::statements_per_message) * BATCH as f64;
    let line = Line::new("drain", site.kind())
        .with("messages", n_messages)
        .with("batch", BATCH)
        .compare(&floor, &ours)
        .figure("statements_per_batch", per_batch);
    if site.kind() == Kind::Sqlite {
        return Ok(line);
    }
    let ratio = ours.ratio_to(&floor);
    Ok(line.gate("rate / floor", ratio, Bound::AtLeast(0.7)).exact_gate(
        "statements per full batch",
        per_batch,
        Bound::AtMost(2.2),
    ))
}

/// Without full-page images, which depend on when the last checkpoint was and not on the statements.
pub(crate) async fn wal(site: &Site, options: &Options) -> Result<Line> {
    let postgres = site.postgres()?;
    postgres.full_page_writes(false).await?;
    let n_messages = options.n_messages(200_000);
    let compared = interleave(
        site,
        options.n_rounds.min(3),
        async |round| drained::<Floor>(site, n_messages, round).await,
        async |round| drained::<Ours>(site, n_messages, round).await,
    )
    .await;
    postgres.full_page_writes(true).await?;
    let (floor, ours) = compared?;
    let bytes = ours.median(Usage::wal_bytes_per_message);
    Ok(Line::new("wal", site.kind())
        .with("messages", n_messages)
        .with("full_page_writes", "off")
        .compare(&floor, &ours)
        .exact_gate("WAL bytes per drained message", bytes, Bound::AtMost(300.0)))
}
