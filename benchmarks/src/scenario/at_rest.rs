//! What is left of a table after many messages, by what becomes of delivered ones, with and without a snapshot that is
//! held open for the whole run.

use outbox_core::{PartitionInterval, Retention};
use outbox_sea_orm::OutboxTable;
use sea_orm::sqlx::{Row as _, query};
use serde_json::{Value, json};

use super::heap_only::{BETWEEN_LOOKS, N_LOOKS};
use super::held_snapshot::Snapshot;
use crate::error::Result;
use crate::meter::Rounds;
use crate::options::Options;
use crate::ours::Ours;
use crate::report::{Line, rounded};
use crate::side::{Round, Side, refill_and_drain};
use crate::site::{BENCH, Site};

/// Messages that wait at a time.
const BACKLOG: u64 = 100_000;
const VARIANTS: [&str; 3] = ["delete", "keep", "partitioned"];

/// Beside each other: delivered messages deleted, kept, and kept in partitions.
pub(crate) async fn run(site: &Site, options: &Options) -> Result<Line> {
    let postgres = site.postgres()?;
    // full-page images depend on when the last checkpoint was
    postgres.full_page_writes(false).await?;
    let line = compared(site, options.n_messages(1_000_000)).await;
    postgres.full_page_writes(true).await?;
    line
}

async fn compared(site: &Site, n_messages: u64) -> Result<Line> {
    let mut line = Line::new("at_rest", site.kind()).with("messages", n_messages).with("backlog", BACKLOG);
    for variant in VARIANTS {
        line = line.with(variant, at_rest(site, variant, n_messages).await?);
        let snapshot = Snapshot::take(site).await?;
        line = line.with(&format!("{variant}_held_snapshot"), at_rest(site, variant, n_messages).await?);
        snapshot.release().await?;
    }
    Ok(line)
}

fn declare(variant: &str, table: OutboxTable) -> OutboxTable {
    match variant {
        "delete" => table,
        "keep" => table.with_retention(Retention::Keep),
        _ => table.partitioned(PartitionInterval::Day),
    }
}

async fn at_rest(site: &Site, variant: &str, n_messages: u64) -> Result<Value> {
    let ours = Ours::create_with(site, BENCH, |table| declare(variant, table)).await?;
    let mut drains = Rounds::default();
    let mut left = n_messages;
    while left > 0 {
        let backlog = left.min(BACKLOG);
        drains.push(refill_and_drain(site, &ours, backlog, Round { detailed: false }).await?);
        left -= backlog;
    }
    // keeping a row where it is is an update too; one that moves to a partition is counted as a new row
    let n_updates = if variant == "keep" { 2 * n_messages } else { n_messages };
    let table = Table::read(site, &ours, n_updates).await?;
    ours.remove().await?;
    Ok(json!({
        "drain": drains.json(),
        "heap_only_share_of_claims": rounded(table.n_heap_only as f64 / n_messages as f64),
        "dead_rows": table.n_dead,
        "table_mb": rounded(table.bytes as f64 / 1e6),
        "index_mb": rounded(table.index_bytes as f64 / 1e6),
        "waiting_table_mb": rounded(table.waiting_bytes as f64 / 1e6),
    }))
}

/// The table with all of its partitions.
struct Table {
    n_updated: i64,
    n_heap_only: i64,
    n_dead: i64,
    bytes: i64,
    index_bytes: i64,
    /// Of the part in which claims look.
    waiting_bytes: i64,
}

impl Table {
    /// When sessions have reported what they did.
    async fn read(site: &Site, ours: &Ours, n_updates: u64) -> Result<Self> {
        for _ in 0..N_LOOKS {
            let table = Self::look(site, ours).await?;
            if table.n_updated.cast_unsigned() >= n_updates {
                return Ok(table);
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        Err("the server's statistics do not show the drain".into())
    }

    async fn look(site: &Site, ours: &Ours) -> Result<Self> {
        let mut session = site.postgres()?.connect(BENCH).await?;
        let row = query(
            "SELECT sum(n_tup_upd)::bigint, sum(n_tup_hot_upd)::bigint, sum(n_dead_tup)::bigint,
                    sum(pg_table_size(relid))::bigint, sum(pg_indexes_size(relid))::bigint,
                    sum(pg_table_size(relid)) FILTER (WHERE relname IN ($2, $2 || '_pending'))::bigint
               FROM pg_stat_user_tables WHERE schemaname = $1",
        )
        .bind(ours.name().schema())
        .bind(ours.name().table())
        .fetch_one(&mut session)
        .await?;
        Ok(Self {
            n_updated: row.get(0),
            n_heap_only: row.get(1),
            n_dead: row.get(2),
            bytes: row.get(3),
            index_bytes: row.get(4),
            waiting_bytes: row.get(5),
        })
    }
}
