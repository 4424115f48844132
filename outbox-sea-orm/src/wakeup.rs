//! Hints: only PostgreSQL has them.

#[cfg(not(feature = "postgres"))]
impl outbox_core::Wakeup for crate::OutboxTable {
    type Listener = outbox_core::NoListener;

    async fn listen(&self) -> outbox_core::Result<Option<Self::Listener>> {
        Ok(None)
    }
}

#[cfg(feature = "postgres")]
pub use postgres::TableListener;

#[cfg(feature = "postgres")]
mod postgres {
    use std::collections::HashSet;
    use std::fmt;
    use std::pin::pin;
    use std::time::Duration;

    use futures_util::future::{Either, select};
    use outbox_core::{Error, ErrorKind, Listener, Readiness, Result, Wakeup};
    use sea_orm::DatabaseConnectionType;
    use sea_orm::sea_query::Values;
    use sea_orm::sqlx::postgres::{PgArguments, PgListener, PgPoolOptions, PgRow};
    use sea_orm::sqlx::query::Query;
    use sea_orm::sqlx::{self, AssertSqlSafe, ConnectOptions, Postgres, Row};
    use tokio::sync::watch;
    use tokio::sync::watch::error::RecvError;
    use uuid::Uuid;

    use crate::error::from_sqlx;
    use crate::repository::OutboxTable;
    use crate::sql::PostgresSql;

    const FIRST_LOOK: Duration = Duration::from_millis(1);
    const LAST_LOOK: Duration = Duration::from_millis(50);
    const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
    /// A setting of the session that means nothing to the server: where it does not arrive, the session is a pooler's.
    const SESSION: &str = "outbox.session";

    /// The listener of an [`OutboxTable`] on PostgreSQL. It owns one direct connection, on which it listens and
    /// holds the guard that tells the trigger to notify.
    #[derive(Debug)]
    pub struct TableListener {
        sleeper: Box<Sleeper>,
        /// True while something waits that has come by another way than a notification.
        arrivals: Option<watch::Receiver<bool>>,
    }

    impl Wakeup for OutboxTable {
        type Listener = TableListener;

        async fn listen(&self) -> Result<Option<TableListener>> {
            if !self.can_listen() {
                return Ok(None);
            }
            let writers = self.table()?.postgres.sql.writers.clone();
            TableListener::connect(self.clone(), writers).await.map(Some)
        }
    }

    impl OutboxTable {
        /// Whether there is a connection of its own to listen on.
        pub(crate) fn can_listen(&self) -> bool {
            let is_postgres = matches!(&self.db.inner, DatabaseConnectionType::SqlxPostgresPoolConnection(_));
            is_postgres && !self.has_shared_pool()
        }
    }

    impl TableListener {
        /// A listener on the guard and the channel of `table`, for what is told by those whom `writers` finds.
        pub(crate) async fn connect(table: OutboxTable, writers: String) -> Result<Self> {
            Ok(Self { sleeper: Box::new(Sleeper::connect(table, writers).await?), arrivals: None })
        }

        /// Takes it for a hint, too, when `arrivals` becomes true.
        #[cfg(feature = "wal")]
        pub(crate) fn with_arrivals(mut self, arrivals: watch::Receiver<bool>) -> Self {
            self.arrivals = Some(arrivals);
            self
        }
    }

    /// Waits for what is still there when it is looked at.
    async fn arrived(arrivals: &mut watch::Receiver<bool>) -> Result<(), RecvError> {
        loop {
            arrivals.changed().await?;
            if *arrivals.borrow_and_update() {
                return Ok(());
            }
        }
    }

    impl Listener for TableListener {
        async fn prepare(&mut self) -> Result<Readiness> {
            self.sleeper.prepare().await
        }

        async fn hint(&mut self) -> Result<()> {
            let hint = pin!(self.sleeper.hint());
            let Some(arrivals) = &mut self.arrivals else { return hint.await };
            match select(hint, pin!(arrived(arrivals))).await {
                Either::Left((hint, _)) => hint,
                Either::Right((Ok(()), _)) => Ok(()),
                // the group's handle is gone
                Either::Right((Err(_), hint)) => hint.await,
            }
        }

        async fn stand_down(&mut self) -> Result<()> {
            self.sleeper.stand_down().await
        }

        async fn probe(&mut self) -> Result<bool> {
            self.sleeper.probe().await
        }
    }

    /// How far this sleeper is on its way to sleep.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Post {
        /// Nobody needs to notify for this one.
        None,
        /// It holds the guard itself.
        Leader,
        /// Another sleeper holds it.
        Follower,
    }

    /// A connection that listens and stands guard.
    ///
    /// While the guard is held, every insert notifies. A transaction that inserted before notified nobody, but
    /// it holds its lock on the table until its commit is visible: once all that held it when the guard had
    /// been taken are gone, one more claim sees whatever they left, and then it is safe to sleep.
    struct Sleeper {
        listener: PgListener,
        table: OutboxTable,
        writers_sql: String,
        guard: i64,
        channel: String,
        /// Nothing is listened to: the pooler would leave that to whoever has the session next, whose statements fail when
        /// a notification arrives.
        is_pooled: bool,
        post: Post,
        /// Who held the lock on the table since the guard was taken; `None` before it was asked.
        writers: Option<HashSet<String>>,
        look_after: Duration,
        /// A hint arrived that has not been handed out.
        pending: bool,
        /// A hint was handed out since the guard was taken, so the other sleepers had it too.
        hinted: bool,
    }

    impl fmt::Debug for Sleeper {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Sleeper")
                .field("table", &self.table)
                .field("post", &self.post)
                .finish_non_exhaustive()
        }
    }

    type Pg<'a> = Query<'a, Postgres, PgArguments>;

    impl Sleeper {
        async fn connect(table: OutboxTable, writers: String) -> Result<Self> {
            let failed = |error| from_sqlx("listen", &table.name, error);
            let session = Uuid::new_v4().to_string();
            let mut listener = open(&table, &session).await.map_err(failed)?;
            let sql = &table.table()?.postgres.sql.guard;
            let row: PgRow = statement(sql).fetch_one(&mut listener).await.map_err(failed)?;
            let (guard, channel): (i64, String) =
                (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
            let is_pooled = row.try_get::<String, _>(2).map_err(failed)? != session;
            if !is_pooled {
                listener.listen(&channel).await.map_err(failed)?;
            }
            Ok(Self {
                listener,
                table,
                writers_sql: writers,
                guard,
                channel,
                is_pooled,
                post: Post::None,
                writers: None,
                look_after: FIRST_LOOK,
                pending: false,
                hinted: false,
            })
        }

        async fn prepare(&mut self) -> Result<Readiness> {
            if self.is_pooled || self.post != Post::Leader && !self.take_post().await? {
                return Ok(self.look());
            }
            if self.writers.as_ref().is_some_and(HashSet::is_empty) {
                return Ok(Readiness::Sleep);
            }
            let now = self.read_writers().await?;
            let left = self.writers.take().map_or(now.clone(), |before| &before & &now);
            let is_clear = left.is_empty();
            self.writers = Some(left);
            Ok(if is_clear { Readiness::Sleep } else { self.look() })
        }

        /// Stands guard, or finds somebody who does.
        async fn take_post(&mut self) -> Result<bool> {
            let was = self.post;
            if self.try_lead().await? {
                self.post = Post::Leader;
            } else if was == Post::Follower || self.is_guarded().await? {
                self.post = Post::Follower;
            } else {
                return Ok(false);
            }
            if self.post != was {
                self.start_over();
            }
            Ok(true)
        }

        fn look(&mut self) -> Readiness {
            let after = self.look_after;
            self.look_after = (after * 2).min(LAST_LOOK);
            Readiness::Look { after }
        }

        async fn hint(&mut self) -> Result<()> {
            while !self.pending {
                self.receive().await?;
            }
            while let Some(notification) = self.listener.next_buffered() {
                drop(notification);
            }
            self.pending = false;
            self.hinted = true;
            Ok(())
        }

        /// Waits for one notification and returns its payload: empty for a hint.
        async fn receive(&mut self) -> Result<String> {
            let received = self.listener.try_recv().await.map_err(|error| self.failed(error))?;
            let Some(notification) = received else {
                self.forget();
                return Err(Error::new(ErrorKind::Unavailable, "listen").with_table(&self.table.name));
            };
            let payload = notification.payload().to_owned();
            self.pending |= payload.is_empty();
            Ok(payload)
        }

        fn failed(&mut self, error: sqlx::Error) -> Error {
            let error = from_sqlx("listen", &self.table.name, error);
            if error.kind() == ErrorKind::Unavailable {
                self.forget();
            }
            error
        }

        /// The connection is lost and its locks with it; the next call opens another one without a word.
        fn forget(&mut self) {
            self.post = Post::None;
            self.start_over();
        }

        fn start_over(&mut self) {
            self.writers = None;
            self.hinted = false;
            self.look_after = FIRST_LOOK;
        }

        async fn stand_down(&mut self) -> Result<()> {
            let was = std::mem::replace(&mut self.post, Post::None);
            self.writers = None;
            if was != Post::Leader {
                return Ok(());
            }
            // the other sleepers rely on this guard: unless a notification has woken them too, tell them
            let tell = !self.hinted;
            let sql = statement(&self.sql()?.leave_guard);
            self.run(sql.bind(self.guard).bind(self.channel.clone()).bind(tell)).await?;
            Ok(())
        }

        async fn probe(&mut self) -> Result<bool> {
            if self.is_pooled {
                return Ok(false);
            }
            let nonce = Uuid::new_v4().to_string();
            let values = Values(vec![self.channel.clone().into(), nonce.clone().into()]);
            self.table.execute("probe", self.table.hot()?, "SELECT pg_notify($1, $2)", values).await?;
            let arrived = async {
                while self.receive().await? != nonce {}
                Ok(())
            };
            match tokio::time::timeout(PROBE_TIMEOUT, arrived).await {
                Ok(result) => result.map(|()| true),
                Err(_) => Ok(false),
            }
        }

        async fn try_lead(&mut self) -> Result<bool> {
            let sql = statement(&self.sql()?.stand_guard);
            let row = self.run(sql.bind(self.guard)).await?;
            row.try_get(0).map_err(|error| from_sqlx("listen", &self.table.name, error))
        }

        async fn is_guarded(&mut self) -> Result<bool> {
            let sql = statement(&self.sql()?.is_guarded);
            let row = self.run(sql.bind(self.guard)).await?;
            row.try_get(0).map_err(|error| from_sqlx("listen", &self.table.name, error))
        }

        async fn read_writers(&mut self) -> Result<HashSet<String>> {
            let sql = statement(&self.writers_sql);
            let row = self.run(sql).await?;
            let writers: Vec<String> =
                row.try_get(0).map_err(|error| from_sqlx("listen", &self.table.name, error))?;
            Ok(writers.into_iter().collect())
        }

        fn sql(&self) -> Result<&PostgresSql> {
            Ok(&self.table.table()?.postgres.sql)
        }

        async fn run(&mut self, query: Pg<'static>) -> Result<PgRow> {
            query.fetch_one(&mut self.listener).await.map_err(|error| self.failed(error))
        }
    }

    /// A connection of its own, which tells the server the name of its session.
    async fn open(table: &OutboxTable, session: &str) -> sqlx::Result<PgListener> {
        let options = (*table.db.get_postgres_connection_pool().connect_options()).clone();
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(5))
            // the session's locks must not outlive the sleeper
            .after_release(|_, _| Box::pin(async { Ok(false) }))
            .connect_with(options.disable_statement_logging().options([(SESSION, session)]))
            .await?;
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        Ok(listener)
    }

    fn statement(sql: &str) -> Pg<'static> {
        sqlx::query(AssertSqlSafe(sql.to_owned()))
    }
}
