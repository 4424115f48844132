//! Claims and settlements that do not wait for the disk.

use std::path::Path;

use outbox_core::Draft;

use super::neighbours::against;
use crate::error::Result;
use crate::options::Options;
use crate::ours::Ours;
use crate::report::Line;
use crate::side::{Side, drained, interleave};
use crate::site::Site;

/// A table with relaxed commit.
struct Relaxed(Ours);

impl Side for Relaxed {
    async fn create(site: &Site) -> Result<Self> {
        let mut ours = Ours::create(site).await?;
        ours.outbox = ours.outbox.with_relaxed_commit();
        Ok(Self(ours))
    }

    async fn enqueue_batches(&self, batches: Vec<Vec<Draft>>) -> Result<()> {
        self.0.enqueue_batches(batches).await
    }

    async fn enqueue_singles(&self, parts: Vec<Vec<Draft>>) -> Result<()> {
        self.0.enqueue_singles(parts).await
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

pub(crate) async fn run(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(200_000);
    let (plain, relaxed) = interleave(
        site,
        options.n_rounds,
        async |round| drained::<Ours>(site, n_messages, round).await,
        async |round| drained::<Relaxed>(site, n_messages, round).await,
    )
    .await?;
    let line = Line::new("relaxed_commit", site.kind()).with("messages", n_messages);
    Ok(against(line, &plain, &relaxed))
}
