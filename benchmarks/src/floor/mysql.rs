use std::hint::black_box;

use outbox_core::Draft;
use sea_orm::sqlx::mysql::{MySqlArguments, MySqlConnection, MySqlPool, MySqlPoolOptions};
use sea_orm::sqlx::types::Json;
use sea_orm::sqlx::{
    Arguments as _, AssertSqlSafe, Connection as _, Executor as _, query, query_as, query_with, raw_sql,
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{LEASE, MySqlRow};
use crate::business;
use crate::error::Result;
use crate::load::BATCH;
use crate::site::MySqlSite;

const TABLE: &str = include_str!("mysql/table.sql");
const CLAIM: &str = include_str!("mysql/claim.sql");
const CLAIMED: &str = include_str!("mysql/claimed.sql");
const DONE: &str = include_str!("mysql/done.sql");
const INSERT_ONE: &str = include_str!("mysql/insert_one.sql");
const INSERT_BATCH: &str = include_str!("mysql/insert_batch.sql");
const MAX_CONNECTIONS: u32 = 16;

/// The floor on MySQL and MariaDB, under READ COMMITTED.
#[derive(Debug)]
pub(crate) struct MySqlFloor {
    pool: MySqlPool,
}

impl MySqlFloor {
    pub(crate) async fn create(site: &MySqlSite) -> Result<Self> {
        let pool = MySqlPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .test_before_acquire(false)
            .after_connect(|connection, _| {
                let level = raw_sql("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED");
                Box::pin(async move { connection.execute(level).await.map(drop) })
            })
            .connect_with(site.options())
            .await?;
        raw_sql(TABLE).execute(&pool).await?;
        raw_sql(business::MYSQL_TABLE).execute(&pool).await?;
        Ok(Self { pool })
    }

    pub(crate) fn pool(&self) -> &MySqlPool {
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
            let (Some(first), Some(last)) = (messages.first(), messages.last()) else {
                return Ok(n_messages);
            };
            let ends = [first.0, last.0];
            mark = last.0;
            n_messages += messages.iter().map(black_box).count() as u64;
            done(&mut connection, ends, token).await?;
        }
    }

    pub(crate) async fn remove(self) -> Result<()> {
        raw_sql("DROP TABLE outbox").execute(&self.pool).await?;
        self.pool.close().await;
        Ok(())
    }
}

/// Claims in the order of the numbers.
pub(crate) async fn claim(
    connection: &mut MySqlConnection,
    limit: usize,
    token: Uuid,
    mark: i64,
) -> Result<Vec<MySqlRow>> {
    let (limit, lease) = (i64::try_from(limit)?, i64::try_from(LEASE.as_secs())?);
    let claim = query(CLAIM).bind(mark).bind(limit).bind(token).bind(lease);
    if claim.execute(&mut *connection).await?.rows_affected() == 0 {
        return Ok(Vec::new());
    }
    Ok(query_as(CLAIMED).bind(mark).bind(token).bind(limit).fetch_all(connection).await?)
}

/// Settles what a claim took, named by its first and last number.
pub(crate) async fn done(
    connection: &mut MySqlConnection,
    [first, last]: [i64; 2],
    token: Uuid,
) -> Result<()> {
    query(DONE).bind(first).bind(last).bind(token).execute(connection).await?;
    Ok(())
}

/// Inserts one message.
pub(crate) async fn insert_one(connection: &mut MySqlConnection, draft: &Draft) -> Result<()> {
    let insert = query(INSERT_ONE)
        .bind(draft.id)
        .bind(&draft.topic)
        .bind(draft.key.as_deref())
        .bind(draft.payload.as_ref())
        .bind(Json(&draft.headers));
    insert.execute(connection).await?;
    Ok(())
}

async fn insert_batch(connection: &mut MySqlConnection, drafts: &[Draft]) -> Result<()> {
    let statement = INSERT_BATCH.trim_end().to_owned() + &", (?, ?, ?, ?, ?)".repeat(drafts.len() - 1);
    let mut arguments = MySqlArguments::default();
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

async fn enqueue_each(pool: MySqlPool, drafts: Vec<Draft>) -> Result<()> {
    for draft in drafts {
        let mut transaction = pool.begin().await?;
        let row =
            query(business::MYSQL_INSERT).bind(Uuid::now_v7()).bind(business::ITEM).bind(business::AMOUNT);
        row.execute(&mut *transaction).await?;
        insert_one(&mut transaction, &draft).await?;
        transaction.commit().await?;
    }
    Ok(())
}
