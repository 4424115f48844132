//! A table declared ordered: the drain of a backlog over many keys, and of a single one.

use outbox_core::{Draft, OnDead};
use outbox_sea_orm::OutboxTable;

use super::neighbours::against;
use super::part::{Part, Profile};
use super::varied::{Variation, Varied};
use crate::error::Result;
use crate::load::{BATCH, scramble};
use crate::meter::Usage;
use crate::options::Options;
use crate::ours::Ours;
use crate::report::{Bound, Line};
use crate::side::{drained, interleave};
use crate::site::{Kind, Site};

pub(super) const MANY: u64 = 10_000;

/// An ordered table whose messages have so many keys.
struct Ordered<const N_KEYS: u64>;

impl<const N_KEYS: u64> Variation for Ordered<N_KEYS> {
    fn declare(table: OutboxTable) -> OutboxTable {
        table.ordered(OnDead::Block)
    }

    fn change(_: usize, draft: Draft) -> Draft {
        keyed(draft, N_KEYS)
    }
}

/// With one of so many keys, by chance but the same in each run.
pub(super) fn keyed(draft: Draft, n_keys: u64) -> Draft {
    let number = draft.id.as_u128() as u64;
    draft.key(scramble(number) % n_keys)
}

/// The drain rate over 10,000 keys against that of a table without order.
pub(crate) async fn many_keys(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(500_000);
    let mut profile = Profile::default();
    let (plain, ordered) = interleave(
        site,
        options.n_rounds,
        async |round| drained::<Ours>(site, n_messages, round).await,
        async |round| {
            Profile::begin(site).await?;
            let usage = drained::<Varied<Ordered<MANY>>>(site, n_messages, round).await?;
            profile = Profile::end(site).await?;
            Ok(usage)
        },
    )
    .await?;
    let line = Line::new("ordered", site.kind())
        .with("messages", n_messages)
        .with("keys", MANY)
        .with("statements", profile.json());
    let line = against(line, &plain, &ordered);
    if !matches!(site.kind(), Kind::Postgres) {
        return Ok(line);
    }
    let n_batches = n_messages as f64 / BATCH as f64;
    let n_statements = (profile.calls(Part::Claim) + profile.calls(Part::Settle)) as f64;
    Ok(line.gate("ordered / unordered rate", ordered.ratio_to(&plain), Bound::AtLeast(0.7)).exact_gate(
        "ordered: claims and settlements per full batch",
        n_statements / n_batches,
        Bound::AtMost(3.0),
    ))
}

/// The rate at which a single key is drained.
pub(crate) async fn hot_key(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(50_000);
    let (plain, hot) = interleave(
        site,
        options.n_rounds.min(3),
        async |round| drained::<Ours>(site, n_messages, round).await,
        async |round| drained::<Varied<Ordered<1>>>(site, n_messages, round).await,
    )
    .await?;
    let rate = hot.median(Usage::rate);
    let line = Line::new("hot_key", site.kind()).with("messages", n_messages);
    Ok(against(line, &plain, &hot).gate("messages of one key a second", rate, Bound::AtLeast(2_000.0)))
}
