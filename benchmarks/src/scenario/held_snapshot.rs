//! A transaction elsewhere that holds a snapshot for the whole run, so that nothing dead can be removed.

use sea_orm::sqlx::{PgConnection, raw_sql};

use super::neighbours::{against, gated};
use crate::deliveries::Deliveries;
use crate::error::{Error, Result};
use crate::load::{BATCH, TOPIC, batches};
use crate::meter::{Meter, Usage};
use crate::options::Options;
use crate::ours::{Ours, counting, full_batches};
use crate::report::Line;
use crate::side::{Round, Side, drained, interleave};
use crate::site::{BENCH, Site};

/// A snapshot in the same database.
pub(super) struct Snapshot(PgConnection);

impl Snapshot {
    pub(super) async fn take(site: &Site) -> Result<Self> {
        let mut session = site.postgres()?.connect(BENCH).await?;
        raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class")
            .execute(&mut session)
            .await?;
        Ok(Self(session))
    }

    pub(super) async fn release(mut self) -> Result<()> {
        raw_sql("ROLLBACK").execute(&mut self.0).await?;
        Ok(())
    }
}

/// A backlog is filled and drained while the snapshot is held.
pub(crate) async fn drain(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(200_000);
    let (without, with) = interleave(
        site,
        options.n_rounds,
        async |round| drained::<Ours>(site, n_messages, round).await,
        async |round| {
            let snapshot = Snapshot::take(site).await?;
            let usage = drained::<Ours>(site, n_messages, round).await?;
            snapshot.release().await?;
            Ok(usage)
        },
    )
    .await?;
    let line = Line::new("held_snapshot", site.kind()).with("messages", n_messages);
    Ok(gated(against(line, &without, &with), site, &without, &with, 0.8))
}

/// Messages flow through the table while the snapshot is held: its pages fill with what cannot be removed.
pub(crate) async fn stream(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(400_000);
    let (without, with) = interleave(
        site,
        options.n_rounds.min(3),
        async |round| streamed(site, n_messages, round).await,
        async |round| {
            let snapshot = Snapshot::take(site).await?;
            let usage = streamed(site, n_messages, round).await?;
            snapshot.release().await?;
            Ok(usage)
        },
    )
    .await?;
    let line = Line::new("held_snapshot_stream", site.kind()).with("messages", n_messages);
    Ok(gated(against(line, &without, &with), site, &without, &with, 0.8))
}

/// One producer enqueues full batches as fast as it can while a dispatcher delivers.
async fn streamed(site: &Site, n_messages: u64, round: Round) -> Result<Usage> {
    let ours = Ours::create(site).await?;
    let deliveries = Deliveries::default();
    let drafts = batches(TOPIC, n_messages, BATCH, std::time::Duration::ZERO);
    site.rest().await?;
    let meter = Meter::start(site, ours.file(), round.detailed).await?;
    let live = ours.start(counting(&deliveries), full_batches())?;
    tokio::try_join!(ours.enqueue_batches(drafts), async {
        deliveries.reach(n_messages).await?;
        Ok::<_, Error>(())
    })?;
    let usage = meter.stop(n_messages).await?;
    live.stop().await?;
    ours.remove().await?;
    Ok(usage)
}
