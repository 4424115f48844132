//! What is compared: the raw floor and the crates, driven alike.

use std::path::Path;
use std::time::Duration;

use outbox_core::Draft;

use crate::error::Result;
use crate::load::{BATCH, TOPIC, batches, split};
use crate::meter::{Meter, Rounds, Usage};
use crate::site::{Kind, Site};

/// One way to enqueue and to drain, on a table of its own.
pub(crate) trait Side: Sized {
    /// A fresh, empty table.
    async fn create(site: &Site) -> Result<Self>;

    /// Enqueues each batch in a transaction of its own, on one connection.
    async fn enqueue_batches(&self, batches: Vec<Vec<Draft>>) -> Result<()>;

    /// Enqueues each draft beside a business row in a transaction of its own, one task for each part.
    async fn enqueue_singles(&self, parts: Vec<Vec<Draft>>) -> Result<()>;

    /// Claims, handles and settles until `n_messages` have been handled.
    async fn drain(&self, n_messages: u64) -> Result<()>;

    /// The database file, on SQLite.
    fn file(&self) -> Option<&Path>;

    /// Closes the connections and removes the table.
    async fn remove(self) -> Result<()>;
}

/// Which run of a comparison this is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// Statements and WAL count, the rate does not.
    pub(crate) detailed: bool,
}

/// Runs both sides in turn, the first one changing from round to round, and a round more where counting
/// would change the rate.
pub(crate) async fn interleave(
    site: &Site,
    n_rounds: usize,
    mut one: impl AsyncFnMut(Round) -> Result<Usage>,
    mut other: impl AsyncFnMut(Round) -> Result<Usage>,
) -> Result<(Rounds, Rounds)> {
    let mut sides = (Rounds::default(), Rounds::default());
    let n_detailed = usize::from(site.kind() == Kind::Sqlite);
    for index in 0..n_rounds + n_detailed {
        let round = Round { detailed: index >= n_rounds };
        if index % 2 == 0 {
            sides.0.push(one(round).await?);
            sides.1.push(other(round).await?);
        } else {
            sides.1.push(other(round).await?);
            sides.0.push(one(round).await?);
        }
    }
    Ok(sides)
}

/// Measures `n_messages` of 1 message and 1 business row per transaction, by so many tasks.
pub(crate) async fn singles<S: Side>(
    site: &Site,
    n_messages: u64,
    n_tasks: usize,
    round: Round,
) -> Result<Usage> {
    let side = S::create(site).await?;
    let drafts = batches(TOPIC, n_messages, BATCH, Duration::ZERO).into_iter().flatten().collect();
    let parts = split(drafts, n_tasks);
    site.rest().await?;
    let meter = Meter::start(site, side.file(), round.detailed).await?;
    side.enqueue_singles(parts).await?;
    let usage = meter.stop(n_messages).await?;
    side.remove().await?;
    Ok(usage)
}

/// Measures `n_messages` in transactions of a full batch, by one task.
pub(crate) async fn full_batches<S: Side>(site: &Site, n_messages: u64, round: Round) -> Result<Usage> {
    let side = S::create(site).await?;
    let batches = batches(TOPIC, n_messages, BATCH, Duration::ZERO);
    site.rest().await?;
    let meter = Meter::start(site, side.file(), round.detailed).await?;
    side.enqueue_batches(batches).await?;
    let usage = meter.stop(n_messages).await?;
    side.remove().await?;
    Ok(usage)
}

/// Measures the drain of a backlog on a table of its own.
pub(crate) async fn drained<S: Side>(site: &Site, n_messages: u64, round: Round) -> Result<Usage> {
    let side = S::create(site).await?;
    let usage = refill_and_drain(site, &side, n_messages, round).await?;
    side.remove().await?;
    Ok(usage)
}

/// Measures the drain of a new backlog on a table that is there.
pub(crate) async fn refill_and_drain<S: Side>(
    site: &Site,
    side: &S,
    n_messages: u64,
    round: Round,
) -> Result<Usage> {
    fill(side, n_messages).await?;
    site.rest().await?;
    let meter = Meter::start(site, side.file(), round.detailed).await?;
    side.drain(n_messages).await?;
    meter.stop(n_messages).await
}

/// Enqueues a backlog. Drafts are made in pieces, so that two million of them do not fill the memory.
pub(crate) async fn fill<S: Side>(side: &S, n_messages: u64) -> Result<()> {
    fill_with(side, TOPIC, n_messages, Duration::ZERO).await
}

/// The same for another topic, or for later.
pub(crate) async fn fill_with<S: Side>(
    side: &S,
    topic: &str,
    n_messages: u64,
    delay: Duration,
) -> Result<()> {
    const PIECE: u64 = 50_000;
    let mut left = n_messages;
    while left > 0 {
        let piece = left.min(PIECE);
        side.enqueue_batches(batches(topic, piece, BATCH, delay)).await?;
        left -= piece;
    }
    Ok(())
}
