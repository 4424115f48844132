use std::hint::black_box;

use outbox_core::Draft;
use sea_orm::sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sea_orm::sqlx::types::Json;
use sea_orm::sqlx::{Connection as _, query, query_as, raw_sql};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{LEASE, PostgresRow};
use crate::business;
use crate::error::Result;
use crate::load::BATCH;
use crate::site::{BENCH, PostgresSite};

const TABLE: &str = include_str!("postgres/table.sql");
const NOTIFY: &str = include_str!("postgres/notify.sql");
const CLAIM: &str = include_str!("postgres/claim.sql");
const DONE: &str = include_str!("postgres/done.sql");
const INSERT_ONE: &str = include_str!("postgres/insert_one.sql");
const INSERT_BATCH: &str = include_str!("postgres/insert_batch.sql");
const MAX_CONNECTIONS: u32 = 16;

/// The floor on PostgreSQL.
#[derive(Debug)]
pub(crate) struct PostgresFloor {
    pool: PgPool,
}

impl PostgresFloor {
    pub(crate) async fn create(site: &PostgresSite) -> Result<Self> {
        let options = site.options(BENCH).options([("plan_cache_mode", "force_generic_plan")]);
        let pool = PgPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .test_before_acquire(false)
            .connect_with(options)
            .await?;
        raw_sql(TABLE).execute(&pool).await?;
        raw_sql(business::POSTGRES_TABLE).execute(&pool).await?;
        Ok(Self { pool })
    }

    /// Adds the plain wake-up.
    pub(crate) async fn add_notify(&self) -> Result<()> {
        raw_sql(NOTIFY).execute(&self.pool).await?;
        Ok(())
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(super) async fn enqueue_batches(&self, batches: &[Vec<Draft>]) -> Result<()> {
        let mut connection = self.pool.acquire().await?;
        for batch in batches {
            let mut transaction = connection.begin().await?;
            insert_batch(&mut transaction, batch).await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    pub(super) async fn enqueue_singles(&self, parts: Vec<Vec<Draft>>) -> Result<()> {
        let mut tasks = JoinSet::new();
        for part in parts {
            tasks.spawn(enqueue_each(self.pool.clone(), part));
        }
        while let Some(outcome) = tasks.join_next().await {
            outcome??;
        }
        Ok(())
    }

    pub(super) async fn drain(&self) -> Result<u64> {
        let mut connection = self.pool.acquire().await?;
        let (mut mark, mut n_messages) = (0, 0);
        loop {
            let token = Uuid::new_v4();
            let messages = claim(&mut connection, BATCH, token, mark).await?;
            let Some(last) = messages.last() else {
                return Ok(n_messages);
            };
            mark = last.0;
            n_messages += messages.len() as u64;
            let numbers = messages.iter().map(|message| black_box(message).0).collect();
            done(&mut connection, numbers, token).await?;
        }
    }

    pub(super) async fn remove(self) -> Result<()> {
        raw_sql("DROP SCHEMA floor CASCADE").execute(&self.pool).await?;
        self.pool.close().await;
        Ok(())
    }
}

/// Claims in the order of the numbers.
pub(crate) async fn claim(
    connection: &mut PgConnection,
    limit: usize,
    token: Uuid,
    mark: i64,
) -> Result<Vec<PostgresRow>> {
    let limit = i64::try_from(limit)?;
    let claim = query_as(CLAIM).bind(limit).bind(token).bind(mark).bind(LEASE);
    let mut messages: Vec<PostgresRow> = claim.fetch_all(connection).await?;
    messages.sort_unstable_by_key(|message| message.0);
    Ok(messages)
}

/// Settles what a claim took.
pub(crate) async fn done(connection: &mut PgConnection, numbers: Vec<i64>, token: Uuid) -> Result<()> {
    query(DONE).bind(numbers).bind(token).execute(connection).await?;
    Ok(())
}

/// Inserts one message.
pub(crate) async fn insert_one(connection: &mut PgConnection, draft: &Draft) -> Result<()> {
    let insert = query(INSERT_ONE)
        .bind(draft.id)
        .bind(&draft.topic)
        .bind(draft.key.as_deref())
        .bind(draft.payload.as_ref())
        .bind(Json(&draft.headers));
    insert.execute(connection).await?;
    Ok(())
}

async fn insert_batch(connection: &mut PgConnection, drafts: &[Draft]) -> Result<()> {
    let insert = query(INSERT_BATCH)
        .bind(drafts.iter().map(|draft| draft.id).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.topic.as_str()).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.key.as_deref()).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| draft.payload.as_ref()).collect::<Vec<_>>())
        .bind(drafts.iter().map(|draft| Json(&draft.headers)).collect::<Vec<_>>());
    insert.execute(connection).await?;
    Ok(())
}

async fn enqueue_each(pool: PgPool, drafts: Vec<Draft>) -> Result<()> {
    for draft in drafts {
        let mut transaction = pool.begin().await?;
        let row =
            query(business::POSTGRES_INSERT).bind(Uuid::now_v7()).bind(business::ITEM).bind(business::AMOUNT);
        row.execute(&mut *transaction).await?;
        insert_one(&mut transaction, &draft).await?;
        transaction.commit().await?;
    }
    Ok(())
}
