//! The drain of a table whose claims take turns.

use outbox_core::{Draft, Fairness};
use outbox_sea_orm::OutboxTable;

use super::neighbours::against;
use super::varied::{Variation, Varied};
use crate::error::Result;
use crate::options::Options;
use crate::ours::Ours;
use crate::report::Line;
use crate::side::{drained, interleave};
use crate::site::Site;

/// A fair table with so many keys, which come one after another.
struct Fair<const KEYS: usize>;

impl<const KEYS: usize> Variation for Fair<KEYS> {
    fn declare(table: OutboxTable) -> OutboxTable {
        table.fair(Fairness::Key)
    }

    fn change(number: usize, draft: Draft) -> Draft {
        draft.key(format!("order-{}", number % KEYS))
    }
}

/// With a thousand keys.
pub(crate) async fn thousand_keys(site: &Site, options: &Options) -> Result<Line> {
    against_plain::<1_000>("fair", site, options).await
}

/// With one key, which has the whole backlog.
pub(crate) async fn one_key(site: &Site, options: &Options) -> Result<Line> {
    against_plain::<1>("fair_one_key", site, options).await
}

async fn against_plain<const KEYS: usize>(
    name: &'static str,
    site: &Site,
    options: &Options,
) -> Result<Line> {
    let n_messages = options.n_messages(200_000);
    let (plain, fair) = interleave(
        site,
        options.n_rounds,
        async |round| drained::<Ours>(site, n_messages, round).await,
        async |round| drained::<Varied<Fair<KEYS>>>(site, n_messages, round).await,
    )
    .await?;
    let line = Line::new(name, site.kind()).with("messages", n_messages).with("keys", KEYS as u64);
    Ok(against(line, &plain, &fair))
}
