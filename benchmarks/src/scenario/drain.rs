//! The drain of a backlog through dispatcher and repository.

use super::part::{Part, Profile};
use crate::bare::Bare;
use crate::error::Result;
use crate::floor::Floor;
use crate::load::BATCH;
use crate::meter::Usage;
use crate::options::Options;
use crate::ours::Ours;
use crate::report::{Bound, Line};
use crate::side::{drained, interleave};
use crate::site::{Kind, Site};

/// Looks a second that a claim loop allows itself.
const LOOKS_PER_SECOND: f64 = 10.0;
/// Those of starting and stopping.
const OTHER_LOOKS: f64 = 4.0;

pub(crate) async fn run(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(200_000);
    let (mut floor_profile, mut profile) = (Profile::default(), Profile::default());
    let (floor, ours) = interleave(
        site,
        options.n_rounds,
        async |round| {
            Profile::begin(site).await?;
            let usage = drained::<Floor>(site, n_messages, round).await?;
            floor_profile = Profile::end(site).await?;
            Ok(usage)
        },
        async |round| {
            Profile::begin(site).await?;
            let usage = drained::<Ours>(site, n_messages, round).await?;
            profile = Profile::end(site).await?;
            Ok(usage)
        },
    )
    .await?;
    let n_batches = n_messages as f64 / BATCH as f64;
    let per_batch = ours.median(Usage::statements_per_message) * BATCH as f64;
    let line = Line::new("drain", site.kind())
        .with("messages", n_messages)
        .with("batch", BATCH)
        .compare(&floor, &ours)
        .figure("statements_per_batch", per_batch);
    if site.kind() != Kind::Postgres {
        return Ok(line);
    }
    let claims_and_settlements = (profile.calls(Part::Claim) + profile.calls(Part::Settle)) as f64;
    let allowed_looks = LOOKS_PER_SECOND * ours.median(Usage::seconds) + OTHER_LOOKS;
    Ok(line
        .with("statements", profile.json())
        .with("floor_statements", floor_profile.json())
        .gate("rate / floor", ours.ratio_to(&floor), Bound::AtLeast(0.7))
        .gate("statements per full batch", per_batch, Bound::AtMost(2.2))
        .exact_gate(
            "claims and settlements per full batch",
            claims_and_settlements / n_batches,
            Bound::AtMost(2.2),
        )
        .exact_gate(
            "looks / those that time allows",
            profile.calls(Part::Look) as f64 / allowed_looks,
            Bound::AtMost(1.0),
        ))
}

/// The same without the dispatcher.
pub(crate) async fn repository(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(200_000);
    let (floor, bare) = interleave(
        site,
        options.n_rounds,
        async |round| drained::<Floor>(site, n_messages, round).await,
        async |round| drained::<Bare>(site, n_messages, round).await,
    )
    .await?;
    Ok(Line::new("drain_repository", site.kind()).with("messages", n_messages).compare(&floor, &bare))
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
