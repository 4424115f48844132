//! What a deduplication key costs beside a plain message.

use outbox_core::Draft;

use super::neighbours::against;
use super::varied::{Variation, Varied};
use crate::error::Result;
use crate::load::BATCH;
use crate::options::Options;
use crate::ours::Ours;
use crate::report::Line;
use crate::side::{full_batches, interleave, singles};
use crate::site::Site;

const N_TASKS: usize = 8;

/// Every draft has a deduplication key of its own.
struct Keyed;

impl Variation for Keyed {
    fn change(_: usize, draft: Draft) -> Draft {
        draft.dedup_key(format!("order.placed {}", uuid::Uuid::new_v4().simple()))
    }
}

/// One message and one business row in a transaction.
pub(crate) async fn single(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(20_000);
    let (plain, keyed) = interleave(
        site,
        options.n_rounds,
        async |round| singles::<Ours>(site, n_messages, N_TASKS, round).await,
        async |round| singles::<Varied<Keyed>>(site, n_messages, N_TASKS, round).await,
    )
    .await?;
    let line = Line::new("dedup_single", site.kind()).with("messages", n_messages).with("tasks", N_TASKS);
    Ok(against(line, &plain, &keyed))
}

/// A full batch in a transaction.
pub(crate) async fn batch(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(100_000);
    let (plain, keyed) = interleave(
        site,
        options.n_rounds,
        async |round| full_batches::<Ours>(site, n_messages, round).await,
        async |round| full_batches::<Varied<Keyed>>(site, n_messages, round).await,
    )
    .await?;
    let line =
        Line::new("dedup_batch", site.kind()).with("messages", n_messages).with("per_transaction", BATCH);
    Ok(against(line, &plain, &keyed))
}
