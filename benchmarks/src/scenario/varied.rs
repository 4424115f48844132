//! Our table with something about it changed, to be compared with the plain one.

use std::marker::PhantomData;
use std::path::Path;

use outbox_core::Draft;
use outbox_sea_orm::OutboxTable;

use crate::error::Result;
use crate::ours::Ours;
use crate::side::Side;
use crate::site::{BENCH, Site};

/// What is changed.
pub(crate) trait Variation {
    /// The table as it is used.
    fn declare(table: OutboxTable) -> OutboxTable {
        table
    }

    /// The draft as it is enqueued; it has this number in its call.
    fn change(_number: usize, draft: Draft) -> Draft {
        draft
    }
}

/// The table with a variation.
pub(crate) struct Varied<V> {
    ours: Ours,
    variation: PhantomData<V>,
}

fn changed<V: Variation>(batches: Vec<Vec<Draft>>) -> Vec<Vec<Draft>> {
    let mut numbers = 0..;
    let mut change = |draft| V::change(numbers.next().unwrap_or_default(), draft);
    batches.into_iter().map(|batch| batch.into_iter().map(&mut change).collect()).collect()
}

impl<V: Variation> Side for Varied<V> {
    async fn create(site: &Site) -> Result<Self> {
        Ok(Self { ours: Ours::create_with(site, BENCH, V::declare).await?, variation: PhantomData })
    }

    async fn enqueue_batches(&self, batches: Vec<Vec<Draft>>) -> Result<()> {
        self.ours.enqueue_batches(changed::<V>(batches)).await
    }

    async fn enqueue_singles(&self, parts: Vec<Vec<Draft>>) -> Result<()> {
        self.ours.enqueue_singles(changed::<V>(parts)).await
    }

    async fn drain(&self, n_messages: u64) -> Result<()> {
        self.ours.drain(n_messages).await
    }

    fn file(&self) -> Option<&Path> {
        self.ours.file()
    }

    async fn remove(self) -> Result<()> {
        self.ours.remove().await
    }
}
