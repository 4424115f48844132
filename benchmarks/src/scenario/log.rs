//! The log: drained through dispatcher and group, beside its raw floor and that of the queue.

use std::path::Path;

use outbox_core::{Draft, TableName};
use outbox_dispatcher::TracingObserver;
use outbox_sea_orm::{LogGroup, OutboxLog, Start, Subscription};
use sea_orm::TransactionTrait;

use crate::deliveries::Deliveries;
use crate::error::Result;
use crate::floor::{Floor, LogFloor};
use crate::load::BATCH;
use crate::meter::Rounds;
use crate::options::Options;
use crate::ours::{Ours, counting, full_batches, start};
use crate::report::{Bound, Line};
use crate::side::{Round, Side, drained, full_batches as enqueued, interleave};
use crate::site::Site;

/// A log with one group, in the schema of an outbox table.
struct OurLog {
    ours: Ours,
    log: OutboxLog,
    group: LogGroup,
}

impl Side for OurLog {
    async fn create(site: &Site) -> Result<Self> {
        let ours = Ours::create(site).await?;
        let schema = ours.name().schema().unwrap_or("public");
        let log = OutboxLog::new(&ours.db, TableName::parse(&format!("{schema}.log"))?);
        log.migrate().await?;
        let group = log.register(Subscription::new("bench").with_start(Start::Beginning)).await?;
        Ok(Self { ours, log, group })
    }

    async fn enqueue_batches(&self, batches: Vec<Vec<Draft>>) -> Result<()> {
        for batch in batches {
            let transaction = self.ours.db.begin().await?;
            self.log.enqueue_in(&transaction, batch).await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    async fn enqueue_singles(&self, _parts: Vec<Vec<Draft>>) -> Result<()> {
        Err("the log is measured with batches only".into())
    }

    async fn drain(&self, n_messages: u64) -> Result<()> {
        let deliveries = Deliveries::default();
        let live = start(self.group.clone(), counting(&deliveries), full_batches(), TracingObserver)?;
        deliveries.reach(n_messages).await?;
        let report = live.stop().await?;
        if report.n_done == n_messages {
            return Ok(());
        }
        Err(format!("{n_messages} messages drained: {report:?}").into())
    }

    fn file(&self) -> Option<&Path> {
        None
    }

    async fn remove(self) -> Result<()> {
        self.ours.remove().await
    }
}

pub(crate) async fn drain(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(200_000);
    let mut queue = Rounds::default();
    let (floor, ours) = interleave(
        site,
        options.n_rounds,
        async |round| {
            queue.push(drained::<Floor>(site, n_messages, round).await?);
            drained::<LogFloor>(site, n_messages, round).await
        },
        async |round| drained::<OurLog>(site, n_messages, round).await,
    )
    .await?;
    Ok(Line::new("log_drain", site.kind())
        .with("messages", n_messages)
        .with("batch", BATCH)
        .with("queue_floor", queue.json())
        .compare(&floor, &ours)
        .gate("rate / floor", ours.ratio_to(&floor), Bound::AtLeast(0.7))
        .gate("rate / floor of the queue", ours.ratio_to(&queue), Bound::AtLeast(1.6)))
}

/// Without full-page images, which depend on when the last checkpoint was and not on the statements.
pub(crate) async fn wal(site: &Site, options: &Options) -> Result<Line> {
    let postgres = site.postgres()?;
    postgres.full_page_writes(false).await?;
    let n_messages = options.n_messages(200_000);
    let usage = drained::<OurLog>(site, n_messages, Round { detailed: true }).await;
    postgres.full_page_writes(true).await?;
    let bytes = usage?.wal_bytes_per_message();
    Ok(Line::new("log_wal", site.kind())
        .with("messages", n_messages)
        .with("full_page_writes", "off")
        .exact_gate("WAL bytes per drained message", bytes, Bound::AtMost(5.0)))
}

pub(crate) async fn enqueue(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(100_000);
    let (queue, log) = interleave(
        site,
        options.n_rounds,
        async |round| enqueued::<Ours>(site, n_messages, round).await,
        async |round| enqueued::<OurLog>(site, n_messages, round).await,
    )
    .await?;
    Ok(Line::new("log_enqueue", site.kind())
        .with("messages", n_messages)
        .with("queue", queue.json())
        .with("log", log.json())
        .gate("rate / queue", log.ratio_to(&queue), Bound::AtLeast(0.95)))
}
