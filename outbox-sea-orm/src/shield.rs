//! Statements that a dropped future does not cut off.
//!
//! SQLx for MySQL loses step with the server when the future of a prepared statement is dropped while it is being
//! prepared: the answer is taken for that of the next statement on the connection. So on MySQL a prepared statement
//! runs in a task of its own, which goes on when its caller is dropped. Elsewhere dropping is safe.

use std::fmt;
use std::future::Future;
use std::ops::Deref;

use sea_orm::prelude::async_trait::async_trait;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, ExecResult, QueryResult, Statement};
use tracing::Instrument;

/// Runs `call` to its end even if the returned future is dropped.
pub(crate) async fn shield<T: Send + 'static>(
    call: impl Future<Output = Result<T, DbErr>> + Send + 'static,
) -> Result<T, DbErr> {
    let joined = tokio::spawn(call.in_current_span()).await;
    joined.unwrap_or_else(|error| Err(DbErr::Custom(format!("the statement was not finished: {error}"))))
}

/// Whether statements on this database need it.
pub(crate) fn is_needed(backend: DbBackend) -> bool {
    backend == DbBackend::MySql
}

/// A pool whose statements are shielded where that is needed.
#[derive(Clone)]
pub(crate) struct Db(DatabaseConnection);

impl Db {
    pub(crate) fn new(db: &DatabaseConnection) -> Self {
        Self(db.clone())
    }
}

impl Deref for Db {
    type Target = DatabaseConnection;

    fn deref(&self) -> &DatabaseConnection {
        &self.0
    }
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Db")
    }
}

#[async_trait]
impl ConnectionTrait for Db {
    fn get_database_backend(&self) -> DbBackend {
        self.0.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        if !is_needed(self.get_database_backend()) {
            return self.0.execute_raw(statement).await;
        }
        let db = self.0.clone();
        shield(async move { db.execute_raw(statement).await }).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.0.execute_unprepared(sql).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        if !is_needed(self.get_database_backend()) {
            return self.0.query_one_raw(statement).await;
        }
        let db = self.0.clone();
        shield(async move { db.query_one_raw(statement).await }).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        if !is_needed(self.get_database_backend()) {
            return self.0.query_all_raw(statement).await;
        }
        let db = self.0.clone();
        shield(async move { db.query_all_raw(statement).await }).await
    }
}
