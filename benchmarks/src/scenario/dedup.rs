//! What a deduplication key costs beside a plain message.

use std::path::Path;

use outbox_core::Draft;

use super::neighbours::against;
use crate::error::Result;
use crate::load::BATCH;
use crate::options::Options;
use crate::ours::Ours;
use crate::report::Line;
use crate::side::{Side, full_batches, interleave, singles};
use crate::site::Site;

const N_TASKS: usize = 8;

/// Every draft has a key of its own.
struct Keyed(Ours);

fn keyed(drafts: Vec<Draft>) -> Vec<Draft> {
    let key = |draft: Draft| {
        let key = format!("order.placed {}", uuid::Uuid::new_v4().simple());
        draft.dedup_key(key)
    };
    drafts.into_iter().map(key).collect()
}

impl Side for Keyed {
    async fn create(site: &Site) -> Result<Self> {
        Ok(Self(Ours::create(site).await?))
    }

    async fn enqueue_batches(&self, batches: Vec<Vec<Draft>>) -> Result<()> {
        self.0.enqueue_batches(batches.into_iter().map(keyed).collect()).await
    }

    async fn enqueue_singles(&self, parts: Vec<Vec<Draft>>) -> Result<()> {
        self.0.enqueue_singles(parts.into_iter().map(keyed).collect()).await
    }

    async fn drain(&self, n_messages: u64) -> Result<()> {
        self.0.drain(n_messages).await
    }

    fn file(&self) -> Option<&Path> {
        self.0.file()
    }

    async fn remove(self) -> Result<()> {
        self.0.remove().await
    }
}

/// One message and one business row in a transaction.
pub(crate) async fn single(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(20_000);
    let (plain, keyed) = interleave(
        site,
        options.n_rounds,
        async |round| singles::<Ours>(site, n_messages, N_TASKS, round).await,
        async |round| singles::<Keyed>(site, n_messages, N_TASKS, round).await,
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
        async |round| full_batches::<Keyed>(site, n_messages, round).await,
    )
    .await?;
    let line =
        Line::new("dedup_batch", site.kind()).with("messages", n_messages).with("per_transaction", BATCH);
    Ok(against(line, &plain, &keyed))
}
