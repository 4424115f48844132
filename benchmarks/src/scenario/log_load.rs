//! The log among others: more groups, more dispatchers, transactions elsewhere, what is retained.

use std::time::Duration;

use outbox_sea_orm::{Start, Subscription};
use sea_orm::ConnectionTrait;
use sea_orm::sqlx::{PgConnection, raw_sql};

use super::held_snapshot::Snapshot;
use super::log::{OrderedLog, OurLog, finish};
use crate::deliveries::Deliveries;
use crate::error::Result;
use crate::load::{BATCH, TOPIC, batches};
use crate::meter::{Meter, Rounds, Usage};
use crate::options::Options;
use crate::ours::Ours;
use crate::report::{Bound, Line};
use crate::side::{Round, Side, drained, fill, interleave, refill_and_drain};
use crate::site::{BENCH, Site};

/// A log is drained by `one` and by `other`, in turn.
async fn compared(
    scenario: &str,
    site: &Site,
    options: &Options,
    mut one: impl AsyncFnMut(u64, Round) -> Result<Usage>,
    mut other: impl AsyncFnMut(u64, Round) -> Result<Usage>,
) -> Result<(Line, Rounds, Rounds)> {
    let n_messages = options.n_messages(500_000);
    let (one, other) = interleave(
        site,
        options.n_rounds,
        async |round| one(n_messages, round).await,
        async |round| other(n_messages, round).await,
    )
    .await?;
    let line = Line::new(scenario, site.kind())
        .with("messages", n_messages)
        .with("one", one.json())
        .with("other", other.json());
    Ok((line, one, other))
}

/// The same through a queue and through a log, each by our dispatcher.
pub(crate) async fn beside_queue(site: &Site, options: &Options) -> Result<Line> {
    let (line, queue, log) = compared(
        "log_queue",
        site,
        options,
        async |n_messages, round| drained::<Ours>(site, n_messages, round).await,
        async |n_messages, round| drained::<OurLog>(site, n_messages, round).await,
    )
    .await?;
    Ok(line.figure("rate / rate of the queue", log.ratio_to(&queue)))
}

/// A log that keeps the order of 10,000 keys, and one that does not.
pub(crate) async fn ordered(site: &Site, options: &Options) -> Result<Line> {
    let (line, plain, ordered) = compared(
        "log_ordered",
        site,
        options,
        async |n_messages, round| drained::<OurLog>(site, n_messages, round).await,
        async |n_messages, round| drained::<OrderedLog>(site, n_messages, round).await,
    )
    .await?;
    Ok(line.figure("ordered / unordered rate", ordered.ratio_to(&plain)))
}

/// Three groups read what one reads.
pub(crate) async fn groups(site: &Site, options: &Options) -> Result<Line> {
    let drained = async |n_groups, n_messages, round| {
        let side = OurLog::with_groups(site, n_groups).await?;
        let usage = refill_and_drain(site, &side, n_messages, round).await?;
        side.remove().await?;
        Ok(usage)
    };
    let (line, one, three) = compared(
        "log_groups",
        site,
        options,
        async |n_messages, round| drained(1, n_messages, round).await,
        async |n_messages, round| drained(3, n_messages, round).await,
    )
    .await?;
    let enqueued =
        [enqueued(site, 1).await?, enqueued(site, 3).await?].map(|usage| usage.wal_bytes_per_message());
    let ratio = three.median(Usage::cpu_per_message) / one.median(Usage::cpu_per_message);
    Ok(line.gate("CPU / CPU of one group", ratio, Bound::AtMost(3.3)).exact_gate(
        "WAL bytes of an enqueue / with one group",
        enqueued[1] / enqueued[0],
        Bound::AtMost(1.01),
    ))
}

/// An enqueue without full-page images.
async fn enqueued(site: &Site, n_groups: usize) -> Result<Usage> {
    const N_MESSAGES: u64 = 20_000;
    let side = OurLog::with_groups(site, n_groups).await?;
    site.postgres()?.full_page_writes(false).await?;
    let meter = Meter::start(site, None, false).await?;
    side.enqueue_batches(batches(TOPIC, N_MESSAGES, BATCH, Duration::ZERO)).await?;
    let usage = meter.stop(N_MESSAGES).await;
    site.postgres()?.full_page_writes(true).await?;
    side.remove().await?;
    usage
}

/// A transaction that has written elsewhere and stays open.
struct Foreign(PgConnection);

impl Foreign {
    async fn open(site: &Site) -> Result<Self> {
        let mut session = site.postgres()?.connect(BENCH).await?;
        raw_sql("CREATE TABLE IF NOT EXISTS elsewhere (id int)").execute(&mut session).await?;
        raw_sql("BEGIN; INSERT INTO elsewhere VALUES (1)").execute(&mut session).await?;
        Ok(Self(session))
    }

    async fn end(mut self) -> Result<()> {
        raw_sql("ROLLBACK").execute(&mut self.0).await?;
        Ok(())
    }
}

/// A backlog is filled and drained while a transaction that has written elsewhere is open.
pub(crate) async fn foreign(site: &Site, options: &Options) -> Result<Line> {
    let (line, without, with) = compared(
        "log_foreign",
        site,
        options,
        async |n_messages, round| drained::<OurLog>(site, n_messages, round).await,
        async |n_messages, round| {
            let foreign = Foreign::open(site).await?;
            let usage = drained::<OurLog>(site, n_messages, round).await?;
            foreign.end().await?;
            Ok(usage)
        },
    )
    .await?;
    Ok(line.gate("rate / without", with.ratio_to(&without), Bound::AtLeast(0.95)))
}

/// The same while a snapshot is held.
pub(crate) async fn snapshot(site: &Site, options: &Options) -> Result<Line> {
    let (line, without, with) = compared(
        "log_snapshot",
        site,
        options,
        async |n_messages, round| drained::<OurLog>(site, n_messages, round).await,
        async |n_messages, round| {
            let snapshot = Snapshot::take(site).await?;
            let usage = drained::<OurLog>(site, n_messages, round).await?;
            snapshot.release().await?;
            Ok(usage)
        },
    )
    .await?;
    Ok(line.gate("rate / without", with.ratio_to(&without), Bound::AtLeast(0.9)))
}

/// The drain rate behind ten million rows and behind a hundredth of them, which stay from round to round.
pub(crate) async fn retained(site: &Site, options: &Options) -> Result<Line> {
    let n_retained = options.n_neighbours(10_000_000);
    let (few, many) = (retaining(site, n_retained / 100).await?, retaining(site, n_retained).await?);
    let (line, of_few, of_many) = compared(
        "log_retained",
        site,
        options,
        async |n_messages, round| refill_and_drain(site, &few, n_messages, round).await,
        async |n_messages, round| refill_and_drain(site, &many, n_messages, round).await,
    )
    .await?;
    few.remove().await?;
    many.remove().await?;
    Ok(line.with("retained", n_retained).gate(
        "rate / that behind a hundredth",
        of_many.ratio_to(&of_few),
        Bound::AtLeast(0.9),
    ))
}

/// A log with rows that its group does not read any more, like those that [`batches`] makes.
async fn retaining(site: &Site, n_rows: u64) -> Result<OurLog> {
    let mut side = OurLog::without_groups(site).await?;
    let insert = format!(
        "INSERT INTO {}.log (id, topic, key, payload, headers) \
         SELECT gen_random_uuid(), '{TOPIC}', 'order-' || i, decode(repeat(md5(i::text), 13), 'hex'), \
                jsonb_build_object('content-type', 'application/octet-stream', 'traceparent', '00-' || md5(i::text) || '-0123456789abcdef-01') \
           FROM generate_series(1, {n_rows}) AS i",
        side.schema()
    );
    side.db().execute_unprepared(&insert).await?;
    side.register(Subscription::new("bench").with_start(Start::End)).await?;
    Ok(side)
}

/// Four dispatchers of a group, beside one and beside four that share nothing: what this machine can do at the most.
pub(crate) async fn shared(site: &Site, options: &Options) -> Result<Line> {
    share(site, options, "log_shared", 1.2).await
}

/// The same where a commit waits five milliseconds more, as for a standby in another zone, so that waits and not cores decide.
pub(crate) async fn shared_waiting(site: &Site, options: &Options) -> Result<Line> {
    site.postgres()?.commit_delay(Duration::from_millis(5)).await?;
    let line = share(site, options, "log_shared_waiting", 1.6).await;
    site.postgres()?.commit_delay(Duration::ZERO).await?;
    line
}

async fn share(site: &Site, options: &Options, scenario: &str, wanted: f64) -> Result<Line> {
    let n_messages = options.n_messages(1_000_000);
    let [mut one, mut four, mut apart] = <[Rounds; 3]>::default();
    for _ in 0..options.n_rounds {
        one.push(drained_under_way(site, 1, 1, n_messages).await?);
        four.push(drained_under_way(site, 1, 4, n_messages).await?);
        apart.push(drained_under_way(site, 4, 1, n_messages).await?);
    }
    Ok(Line::new(scenario, site.kind())
        .with("messages", n_messages)
        .with("one", one.json())
        .with("four", four.json())
        .with("apart", apart.json())
        .figure("apart / one", apart.ratio_to(&one))
        .gate("rate / rate of one", four.ratio_to(&one), Bound::AtLeast(wanted))
        .gate("rate / rate of four logs", four.ratio_to(&apart), Bound::AtLeast(0.9)))
}

/// So many logs, each drained by so many dispatchers. Measured from the tenth part on: connecting is not what is compared.
async fn drained_under_way(
    site: &Site,
    n_logs: usize,
    n_dispatchers: usize,
    n_messages: u64,
) -> Result<Usage> {
    let n_each = n_messages / n_logs as u64;
    let mut sides = Vec::new();
    for _ in 0..n_logs {
        let side = OurLog::create(site).await?;
        fill(&side, n_each).await?;
        sides.push(side);
    }
    site.rest().await?;
    let (deliveries, mut live) = (Deliveries::default(), Vec::new());
    for side in &sides {
        live.extend(side.start_by(n_dispatchers, &deliveries)?);
    }
    deliveries.reach(n_messages / 10).await?;
    let meter = Meter::start(site, None, false).await?;
    let n_before = deliveries.n();
    let n_messages = n_each * n_logs as u64;
    finish(live, &deliveries, n_messages).await?;
    let usage = meter.stop(n_messages - n_before).await?;
    for side in sides {
        side.remove().await?;
    }
    Ok(usage)
}
