//! The log: drained through dispatcher and group, beside its raw floor and that of the queue.

use std::path::Path;

use outbox_core::{Declaration, Draft, OnDead, TableName};
use outbox_dispatcher::{Config, Router, TracingObserver};
use outbox_sea_orm::{LogGroup, OutboxLog, Start, Subscription, WalFeed};
use sea_orm::sqlx::{PgConnection, query_as};
use sea_orm::{DatabaseConnection, TransactionTrait};
use tokio::time::sleep;

use super::heap_only::{BETWEEN_LOOKS, N_LOOKS};
use super::ordered::{MANY, keyed};
use crate::deliveries::Deliveries;
use crate::error::Result;
use crate::floor::{Floor, LogFloor};
use crate::load::BATCH;
use crate::meter::Rounds;
use crate::options::Options;
use crate::ours::{Live, Ours, counting, full_batches, start};
use crate::report::{Bound, Line};
use crate::side::{Round, Side, drained, fill, full_batches as enqueued, interleave, refill_and_drain};
use crate::site::{BENCH, Site};

/// A log with groups, in the schema of an outbox table.
pub(super) struct OurLog {
    ours: Ours,
    log: OutboxLog,
    groups: Vec<LogGroup>,
    feed: Option<WalFeed>,
    declared: Declaration,
}

impl OurLog {
    pub(super) async fn without_groups(site: &Site) -> Result<Self> {
        Self::declared(site, Declaration::new()).await
    }

    async fn declared(site: &Site, declared: Declaration) -> Result<Self> {
        let ours = Ours::create(site).await?;
        let name = TableName::parse(&format!("{}.log", schema(&ours)))?;
        let log = OutboxLog::new(&ours.db, name).declared(declared.clone());
        log.migrate().await?;
        Ok(Self { ours, log, groups: Vec::new(), feed: None, declared })
    }

    pub(super) async fn with_groups(site: &Site, n_groups: usize) -> Result<Self> {
        let mut side = Self::without_groups(site).await?;
        for number in 0..n_groups {
            side.register(Subscription::new(format!("bench_{number}")).with_start(Start::Beginning)).await?;
        }
        Ok(side)
    }

    pub(super) async fn register(&mut self, subscription: Subscription) -> Result<()> {
        self.groups.push(self.log.register(subscription).await?);
        Ok(())
    }

    /// Feeds every group from the WAL from now on.
    pub(super) async fn start_feed(&mut self) -> Result<()> {
        for group in &self.groups {
            group.start_feed().await?;
        }
        self.feed = Some(WalFeed::new());
        // it comes from the slot, so once it is there nothing is left to be read by number
        fill(self, 1).await?;
        self.drain(1).await
    }

    pub(super) fn log(&self) -> &OutboxLog {
        &self.log
    }

    pub(super) fn db(&self) -> &DatabaseConnection {
        &self.ours.db
    }

    pub(super) fn schema(&self) -> &str {
        schema(&self.ours)
    }

    /// A dispatcher for every group, each with what it knows of its own as in a process of its own.
    pub(super) fn start_each(&self, router: impl Fn() -> Router, config: &Config) -> Result<Vec<Live>> {
        self.groups.iter().map(|group| self.start(group, router(), config.clone())).collect()
    }

    pub(super) fn start_first(&self, router: Router, config: Config) -> Result<Live> {
        self.start(&self.groups[0], router, config)
    }

    fn start(&self, group: &LogGroup, router: Router, config: Config) -> Result<Live> {
        let log = OutboxLog::new(&self.ours.db, self.log.name().clone()).declared(self.declared.clone());
        let group = log.group(group.name())?;
        let group = match &self.feed {
            Some(feed) => group.with_feed(feed.clone()),
            None => group,
        };
        start(group, router, config, TracingObserver)
    }

    /// So many dispatchers for every group.
    pub(super) fn start_by(&self, n_dispatchers: usize, deliveries: &Deliveries) -> Result<Vec<Live>> {
        let mut live = Vec::new();
        for _ in 0..n_dispatchers {
            live.extend(self.start_each(|| counting(deliveries), &full_batches())?);
        }
        Ok(live)
    }
}

/// Waits until dispatchers have settled so many messages, and stops them.
pub(super) async fn finish(live: Vec<Live>, deliveries: &Deliveries, n_messages: u64) -> Result<()> {
    deliveries.reach(n_messages).await?;
    let mut n_done = 0;
    for live in live {
        n_done += live.stop().await?.n_done;
    }
    if n_done == n_messages {
        Ok(())
    } else {
        Err(format!("{n_done} of {n_messages} messages settled").into())
    }
}

fn schema(ours: &Ours) -> &str {
    ours.name().schema().unwrap_or("public")
}

impl Side for OurLog {
    async fn create(site: &Site) -> Result<Self> {
        Self::with_groups(site, 1).await
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
        let live = self.start_by(1, &deliveries)?;
        finish(live, &deliveries, n_messages * self.groups.len() as u64).await
    }

    fn file(&self) -> Option<&Path> {
        self.ours.file()
    }

    async fn remove(self) -> Result<()> {
        if self.feed.is_some() {
            for group in &self.groups {
                group.resync().await?;
            }
        }
        self.ours.remove().await
    }
}

/// An ordered log whose messages have 10,000 keys.
pub(super) struct OrderedLog(OurLog);

impl Side for OrderedLog {
    async fn create(site: &Site) -> Result<Self> {
        let mut side = OurLog::declared(site, Declaration::new().ordered(OnDead::Block)).await?;
        side.register(Subscription::new("bench").with_start(Start::Beginning)).await?;
        Ok(Self(side))
    }

    async fn enqueue_batches(&self, batches: Vec<Vec<Draft>>) -> Result<()> {
        let keyed = |batch: Vec<Draft>| batch.into_iter().map(|draft| keyed(draft, MANY)).collect();
        self.0.enqueue_batches(batches.into_iter().map(keyed).collect()).await
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

pub(crate) async fn drain(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(1_000_000);
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

/// What a drain writes. Without full-page images, which depend on when the last checkpoint was and not on the statements.
pub(crate) async fn wal(site: &Site, options: &Options) -> Result<Line> {
    let postgres = site.postgres()?;
    postgres.full_page_writes(false).await?;
    let n_messages = options.n_messages(200_000);
    let side = OurLog::create(site).await?;
    let usage = refill_and_drain(site, &side, n_messages, Round { detailed: true }).await;
    postgres.full_page_writes(true).await?;
    let bytes = usage?.wal_bytes_per_message();
    let changed = changed(&mut postgres.connect(BENCH).await?, side.schema(), n_messages).await?;
    side.remove().await?;
    let n_in_log = changed.iter().filter(|(table, _)| !is_progress(table)).map(|(_, n)| n).sum::<i64>();
    let n_elsewhere = changed.iter().filter(|(table, _)| is_progress(table)).map(|(_, n)| n).sum::<i64>();
    Ok(Line::new("log_wal", site.kind())
        .with("messages", n_messages)
        .with("full_page_writes", "off")
        .exact_gate("WAL bytes per drained message", bytes, Bound::AtMost(5.0))
        .exact_gate("dead rows of messages", n_in_log as f64, Bound::Exactly(0.0))
        .exact_gate(
            "dead rows per drained message",
            n_elsewhere as f64 / n_messages as f64,
            Bound::AtMost(0.005),
        ))
}

/// Whether a table of the log says how far a group is.
fn is_progress(table: &str) -> bool {
    table.ends_with("_groups") || table.ends_with("_ranges")
}

/// How many rows of which tables were updated or deleted, when the sessions have reported what the drain did.
async fn changed(session: &mut PgConnection, schema: &str, n_messages: u64) -> Result<Vec<(String, i64)>> {
    let sql = "SELECT relname::text, n_tup_upd + n_tup_del FROM pg_stat_user_tables WHERE schemaname = $1";
    for _ in 0..N_LOOKS {
        let changed: Vec<(String, i64)> = query_as(sql).bind(schema).fetch_all(&mut *session).await?;
        let n_ranges =
            changed.iter().filter(|(table, _)| table.ends_with("_ranges")).map(|(_, n)| *n).sum::<i64>();
        if n_ranges.cast_unsigned() >= n_messages / BATCH as u64 {
            return Ok(changed);
        }
        sleep(BETWEEN_LOOKS).await;
    }
    Err("the server's statistics do not show the drain".into())
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
