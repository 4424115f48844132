//! The raw floor of the log: the statements of docs/decisions/071 and one write of the cursor for each batch, which runs
//! beside the next read. FROZEN.

use std::hint::black_box;
use std::path::Path;

use outbox_core::Draft;
use sea_orm::sqlx::postgres::{PgPool, PgPoolOptions};
use sea_orm::sqlx::types::Json;
use sea_orm::sqlx::{query, query_as, query_scalar, raw_sql};

use super::PostgresRow;
use crate::error::Result;
use crate::load::BATCH;
use crate::side::Side;
use crate::site::{BENCH, Site};

const TABLE: &str = include_str!("log/table.sql");
const INSERT_BATCH: &str = include_str!("log/insert_batch.sql");
const LAST: &str = include_str!("log/last.sql");
const HOLDERS: &str = include_str!("log/holders.sql");
const READ: &str = include_str!("log/read.sql");
const MOVE: &str = include_str!("log/move.sql");

/// The floor of the log.
#[derive(Debug)]
pub(crate) struct LogFloor(PgPool);

impl LogFloor {
    /// A backlog has no writers: the horizon is the last number.
    async fn horizon(&self) -> Result<i64> {
        let last = query_scalar(LAST).fetch_one(&self.0).await?;
        let holders: Vec<String> = query_scalar(HOLDERS).fetch_all(&self.0).await?;
        if holders.is_empty() { Ok(last) } else { Err("somebody writes to the backlog".into()) }
    }

    async fn read(&self, position: i64, horizon: i64) -> Result<Vec<PostgresRow>> {
        let read = query_as(READ).bind(position).bind(horizon).bind(i64::try_from(BATCH)?);
        Ok(read.fetch_all(&self.0).await?)
    }

    async fn settle(&self, position: i64) -> Result<()> {
        query(MOVE).bind(position).execute(&self.0).await?;
        Ok(())
    }
}

impl Side for LogFloor {
    async fn create(site: &Site) -> Result<Self> {
        let options = site.postgres()?.options(BENCH).options([("plan_cache_mode", "force_generic_plan")]);
        let pool =
            PgPoolOptions::new().max_connections(4).test_before_acquire(false).connect_with(options).await?;
        raw_sql(TABLE).execute(&pool).await?;
        Ok(Self(pool))
    }

    async fn enqueue_batches(&self, batches: Vec<Vec<Draft>>) -> Result<()> {
        for drafts in batches {
            let insert = query(INSERT_BATCH)
                .bind(drafts.iter().map(|draft| draft.id).collect::<Vec<_>>())
                .bind(drafts.iter().map(|draft| draft.topic.as_str()).collect::<Vec<_>>())
                .bind(drafts.iter().map(|draft| draft.key.as_deref()).collect::<Vec<_>>())
                .bind(drafts.iter().map(|draft| draft.payload.as_ref()).collect::<Vec<_>>())
                .bind(drafts.iter().map(|draft| Json(&draft.headers)).collect::<Vec<_>>());
            insert.execute(&self.0).await?;
        }
        Ok(())
    }

    async fn enqueue_singles(&self, _parts: Vec<Vec<Draft>>) -> Result<()> {
        Err("the floor of the log enqueues batches only".into())
    }

    async fn drain(&self, n_messages: u64) -> Result<()> {
        let horizon = self.horizon().await?;
        let (mut n_drained, mut position) = (0, 0);
        let mut messages = self.read(position, horizon).await?;
        while let Some(last) = messages.last() {
            position = last.0;
            n_drained += black_box(&messages).len() as u64;
            let (settled, next) = tokio::join!(self.settle(position), self.read(position, horizon));
            settled?;
            messages = next?;
        }
        if n_drained == n_messages {
            return Ok(());
        }
        Err(format!("the floor drained {n_drained} of {n_messages}").into())
    }

    fn file(&self) -> Option<&Path> {
        None
    }

    async fn remove(self) -> Result<()> {
        raw_sql("DROP SCHEMA floor_log CASCADE").execute(&self.0).await?;
        self.0.close().await;
        Ok(())
    }
}
