//! The share of the claim's updates that touch no index, as the server counts them.

use std::time::Duration;

use sea_orm::sqlx::{PgConnection, Row as _, query};
use tokio::time::sleep;

use crate::error::Result;
use crate::options::Options;
use crate::ours::Ours;
use crate::report::{Bound, Line};
use crate::side::{Side, fill};
use crate::site::{BENCH, Site};

/// Sessions report their counts after a pause of up to ten seconds.
pub(super) const N_LOOKS: u32 = 150;
pub(super) const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

pub(crate) async fn run(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(100_000);
    let ours = Ours::create(site).await?;
    fill(&ours, n_messages).await?;
    ours.drain(n_messages).await?;
    let mut session = site.postgres()?.connect(BENCH).await?;
    let counts = Counts::settled(&mut session, &ours, n_messages).await?;
    ours.remove().await?;
    let share = counts.n_heap_only as f64 / counts.n_updated as f64;
    Ok(Line::new("heap_only", site.kind())
        .with("messages", n_messages)
        .with("updates", counts.n_updated)
        .with("heap_only_updates", counts.n_heap_only)
        .exact_gate("heap-only share of the claim's updates", share, Bound::AtLeast(0.9)))
}

struct Counts {
    n_updated: i64,
    n_heap_only: i64,
    n_deleted: i64,
}

impl Counts {
    async fn settled(session: &mut PgConnection, ours: &Ours, n_messages: u64) -> Result<Self> {
        for _ in 0..N_LOOKS {
            let counts = Self::read(session, ours).await?;
            if counts.n_deleted.cast_unsigned() >= n_messages
                && counts.n_updated.cast_unsigned() >= n_messages
            {
                return Ok(counts);
            }
            sleep(BETWEEN_LOOKS).await;
        }
        Err("the server's statistics do not show the drain".into())
    }

    async fn read(session: &mut PgConnection, ours: &Ours) -> Result<Self> {
        let row = query(
            "SELECT n_tup_upd, n_tup_hot_upd, n_tup_del FROM pg_stat_user_tables
              WHERE schemaname = $1 AND relname = $2",
        )
        .bind(ours.name().schema())
        .bind(ours.name().table())
        .fetch_one(session)
        .await?;
        Ok(Self { n_updated: row.get(0), n_heap_only: row.get(1), n_deleted: row.get(2) })
    }
}
