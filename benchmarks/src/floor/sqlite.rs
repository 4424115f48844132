use std::hint::black_box;
use std::path::{Path, PathBuf};

use outbox_core::Draft;
use sea_orm::sqlx::sqlite::{SqliteArguments, SqliteConnection, SqlitePool, SqlitePoolOptions};
use sea_orm::sqlx::types::Json;
use sea_orm::sqlx::{Arguments as _, AssertSqlSafe, Connection as _, query, query_as, query_with, raw_sql};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{LEASE, SqliteRow};
use crate::business;
use crate::error::Result;
use crate::load::BATCH;
use crate::site::{remove_sqlite, sqlite_options};

const TABLE: &str = include_str!("sqlite/table.sql");
const CLAIM: &str = include_str!("sqlite/claim.sql");
const DONE: &str = include_str!("sqlite/done.sql");
const INSERT_ONE: &str = include_str!("sqlite/insert_one.sql");
const INSERT_BATCH: &str = include_str!("sqlite/insert_batch.sql");

/// The floor on SQLite: one connection that writes messages, one that claims.
#[derive(Debug)]
pub(crate) struct SqliteFloor {
    file: PathBuf,
    producers: SqlitePool,
    consumer: SqlitePool,
}

impl SqliteFloor {
    pub(crate) async fn create(file: PathBuf) -> Result<Self> {
        let producers = one_connection(&file).await?;
        let consumer = one_connection(&file).await?;
        raw_sql(TABLE).execute(&producers).await?;
        raw_sql(business::SQLITE_TABLE).execute(&producers).await?;
        Ok(Self { file, producers, consumer })
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    pub(crate) fn producers(&self) -> &SqlitePool {
        &self.producers
    }

    pub(crate) fn consumer(&self) -> &SqlitePool {
        &self.consumer
    }

    pub(super) async fn enqueue_batches(&self, batches: &[Vec<Draft>]) -> Result<()> {
        let mut connection = self.producers.acquire().await?;
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
            tasks.spawn(enqueue_each(self.producers.clone(), part));
        }
        while let Some(outcome) = tasks.join_next().await {
            outcome??;
        }
        Ok(())
    }

    pub(super) async fn drain(&self) -> Result<u64> {
        let mut connection = self.consumer.acquire().await?;
        let (mut mark, mut n_messages) = (0, 0);
        loop {
            let token = Uuid::new_v4();
            let messages = claim(&mut connection, BATCH, token, mark).await?;
            let Some(last) = messages.last() else {
                return Ok(n_messages);
            };
            mark = last.0;
            n_messages += messages.len() as u64;
            let numbers: Vec<i64> = messages.iter().map(|message| black_box(message).0).collect();
            done(&mut connection, &numbers, token).await?;
        }
    }

    pub(crate) async fn remove(self) -> Result<()> {
        self.producers.close().await;
        self.consumer.close().await;
        remove_sqlite(&self.file);
        Ok(())
    }
}

async fn one_connection(file: &Path) -> Result<SqlitePool> {
    let pool = SqlitePoolOptions::new().max_connections(1).test_before_acquire(false);
    Ok(pool.connect_with(sqlite_options(file)).await?)
}

/// Claims in the order of the numbers.
pub(crate) async fn claim(
    connection: &mut SqliteConnection,
    limit: usize,
    token: Uuid,
    mark: i64,
) -> Result<Vec<SqliteRow>> {
    let (limit, lease) = (i64::try_from(limit)?, i64::try_from(LEASE.as_millis())?);
    let claim = query_as(CLAIM).bind(limit).bind(token).bind(mark).bind(lease);
    let mut messages: Vec<SqliteRow> = claim.fetch_all(connection).await?;
    messages.sort_unstable_by_key(|message| message.0);
    Ok(messages)
}

/// Settles what a claim took.
pub(crate) async fn done(connection: &mut SqliteConnection, numbers: &[i64], token: Uuid) -> Result<()> {
    query(DONE).bind(Json(numbers)).bind(token).execute(connection).await?;
    Ok(())
}

/// Inserts one message.
pub(crate) async fn insert_one(connection: &mut SqliteConnection, draft: &Draft) -> Result<()> {
    let insert = query(INSERT_ONE)
        .bind(draft.id)
        .bind(&draft.topic)
        .bind(draft.key.as_deref())
        .bind(draft.payload.as_ref())
        .bind(Json(&draft.headers));
    insert.execute(connection).await?;
    Ok(())
}

async fn insert_batch(connection: &mut SqliteConnection, drafts: &[Draft]) -> Result<()> {
    let statement = INSERT_BATCH.trim_end().to_owned() + &", (?, ?, ?, ?, ?)".repeat(drafts.len() - 1);
    let mut arguments = SqliteArguments::default();
    for draft in drafts {
        arguments.add(draft.id)?;
        arguments.add(draft.topic.as_str())?;
        arguments.add(draft.key.as_deref())?;
        arguments.add(draft.payload.as_ref())?;
        arguments.add(Json(&draft.headers))?;
    }
    query_with(AssertSqlSafe(statement), arguments).execute(connection).await?;
    Ok(())
}

async fn enqueue_each(pool: SqlitePool, drafts: Vec<Draft>) -> Result<()> {
    for draft in drafts {
        let mut transaction = pool.begin().await?;
        let row =
            query(business::SQLITE_INSERT).bind(Uuid::now_v7()).bind(business::ITEM).bind(business::AMOUNT);
        row.execute(&mut *transaction).await?;
        insert_one(&mut transaction, &draft).await?;
        transaction.commit().await?;
    }
    Ok(())
}
