//! The drain of a table whose claims take turns.

use std::path::Path;

use outbox_core::{Draft, Fairness, TableName};
use outbox_sea_orm::OutboxTable;

use super::neighbours::against;
use crate::error::Result;
use crate::options::Options;
use crate::ours::Ours;
use crate::report::Line;
use crate::side::{Side, drained, interleave};
use crate::site::Site;

/// A fair table with so many keys, which come one after another.
struct Fair<const KEYS: usize>(Ours);

impl<const KEYS: usize> Side for Fair<KEYS> {
    async fn create(site: &Site) -> Result<Self> {
        let mut ours = Ours::create(site).await?;
        let schema = ours.name().schema().unwrap_or_default();
        let name = TableName::parse(&format!("{schema}.fair"))?;
        ours.outbox = OutboxTable::new(&ours.db, name).fair(Fairness::Key);
        ours.outbox.migrate().await?;
        Ok(Self(ours))
    }

    async fn enqueue_batches(&self, mut batches: Vec<Vec<Draft>>) -> Result<()> {
        for (number, draft) in batches.iter_mut().flatten().enumerate() {
            draft.key = Some(format!("order-{}", number % KEYS));
        }
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
        async |round| drained::<Fair<KEYS>>(site, n_messages, round).await,
    )
    .await?;
    let line = Line::new(name, site.kind()).with("messages", n_messages).with("keys", KEYS as u64);
    Ok(against(line, &plain, &fair))
}
