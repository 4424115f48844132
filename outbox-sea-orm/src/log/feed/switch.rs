//! From reading by number to the WAL and back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outbox_core::{Error, ErrorKind, Result};
use pgwire_replication::config::TlsConfig;
use pgwire_replication::{ReplicationClient, ReplicationConfig};
use sea_orm::ConnectionTrait;
use sea_orm::sea_query::Values;
use sea_orm::sqlx::ConnectOptions;
use sea_orm::sqlx::postgres::PgConnectOptions;
#[cfg(not(feature = "wal-tls"))]
use sea_orm::sqlx::postgres::PgSslMode;

use super::stream::{failed, is_busy};
use super::{Feed, WalFeed};
use crate::context::{SeaOrmContext, transactor};
use crate::dialect::Dialect;
use crate::error::from_db;
use crate::log::LogGroup;
use crate::row::column;

/// How long a switch waits for transactions, for claims and for the slot to be free.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);
/// The first version whose slots send rows in binary.
const MIN_VERSION: i64 = 140_000;

impl LogGroup {
    /// This group with a feed: while it is [fed](Self::start_feed), claims take what the server sends of its WAL
    /// instead of asking for it, in the order of the commits. PostgreSQL 14 and later, with `wal_level = logical`; claims on another database
    /// are [`Unsupported`](ErrorKind::Unsupported).
    ///
    /// Every dispatcher of a group that is fed must have this. One process reads the slot, the others stand by: they deliver what is
    /// to be retried, and take over when the slot is free.
    #[must_use]
    pub fn with_feed(mut self, feed: WalFeed) -> Self {
        self.feed = Some(Arc::new(Feed::new(&self, feed)));
        self
    }

    /// Feeds the group from the WAL from now on: makes the log's publication and the group's replication slot, and lets claims
    /// read by number what was enqueued before. Nothing is lost and nothing comes twice. Where the group is fed already,
    /// nothing happens.
    ///
    /// Needs the owner of the log for the publication, and `REPLICATION` for the slot. The server makes a slot once the transactions
    /// that have written anything and are open have ended, in whatever database; that is waited for up to 30 s.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) on an ordered log, whose order is not that of the commits, before PostgreSQL 14 and on SQLite;
    /// [`Schema`](ErrorKind::Schema) where `wal_level` is not `logical` or no slot is left;
    /// [`PermissionDenied`](ErrorKind::PermissionDenied); [`Timeout`](ErrorKind::Timeout).
    pub async fn start_feed(&self) -> Result<()> {
        if self.order().is_some() {
            return Err(self.error(ErrorKind::Unsupported, "an ordered log is read by number"));
        }
        let feed = self.feed_or_plain()?;
        let published = self.log.table.db.execute_unprepared(&feed.sql.log_feed_publish).await;
        published.map_err(|error| from_db("feed", self.log.name(), error))?;
        let table = &self.log.table;
        transactor(&table.db)
            .run(async |cx| {
                let connection = cx.connection()?;
                // it has no transaction number while the slot is made, which would wait for it
                let slot = self.slot_name(connection, &feed).await?;
                if self.current_slot(&feed, connection).await?.is_some() {
                    return Ok(());
                }
                self.make_slot(&feed, &slot).await?;
                let values = || vec![self.name().into()];
                table.query("feed", connection, &self.postgres.log_group_slot, Values(values())).await?;
                let values = Values([values(), vec![slot.into()]].concat());
                match table.execute("feed", connection, &feed.sql.log_feed_start, values).await? {
                    0 => Err(super::super::claim::unknown(self)),
                    _ => Ok(()),
                }
            })
            .await
    }

    /// Reads the group by number again. The feed goes on until everything that was enqueued before this call is claimed; then its
    /// slot is dropped. Nothing is lost and nothing comes twice. Where the group is not fed, only a slot that was left is dropped.
    ///
    /// # Errors
    /// [`Contention`](ErrorKind::Contention) where that takes longer than 30 s, for example because no dispatcher runs or a
    /// transaction that has enqueued stays open: it goes on, call again. Those of the database.
    pub async fn stop_feed(&self) -> Result<()> {
        let feed = self.feed_or_plain()?;
        let table = &self.log.table;
        transactor(&table.db)
            .run(async |cx| {
                let connection = cx.connection()?;
                let values = || Values(vec![self.name().into()]);
                // before the highest number is read: no claim goes beyond it
                table.query("feed", connection, &self.postgres.log_group_slot, values()).await?;
                table.execute("feed", connection, &feed.sql.log_feed_stop, values()).await
            })
            .await?;
        let started = Instant::now();
        while self.current_slot(&feed, &table.db).await?.is_some() {
            if started.elapsed() > PATIENCE {
                return Err(
                    self.error(ErrorKind::Contention, "not everything that was enqueued is claimed yet")
                );
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.drop_slot(&feed).await
    }

    /// Reads the group by number again, at once and whatever has become of its slot, and drops that. Nothing is lost; what was
    /// delivered in the last moments comes again: at most what was enqueued since the oldest transaction began that had enqueued
    /// and was open in the last seconds of the feed.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn resync(&self) -> Result<()> {
        let feed = self.feed_or_plain()?;
        let table = &self.log.table;
        if let Some(slot) = self.current_slot(&feed, &table.db).await? {
            let values = Values(vec![self.name().into(), slot.into(), 0_i64.into()]);
            table.execute("feed", &table.db, &feed.sql.log_feed_end, values).await?;
        }
        self.drop_slot(&feed).await
    }

    fn error(&self, kind: ErrorKind, detail: &str) -> Error {
        Error::new(kind, "feed").with_table(self.log.name()).with_detail(detail)
    }

    fn feed_or_plain(&self) -> Result<Arc<Feed>> {
        self.require_wal()?;
        let plain = || Arc::new(Feed::new(self, WalFeed::new()));
        Ok(self.feed.clone().unwrap_or_else(plain))
    }

    /// Refuses other databases.
    pub(super) fn require_wal(&self) -> Result<()> {
        match self.dialect {
            Dialect::Postgres => Ok(()),
            #[allow(unreachable_patterns, reason = "there may be no other")]
            _ => Err(self.error(ErrorKind::Unsupported, "only PostgreSQL feeds groups from its WAL")),
        }
    }

    async fn current_slot(&self, feed: &Feed, connection: &impl ConnectionTrait) -> Result<Option<String>> {
        let sql = &feed.sql.log_feed_slot;
        let rows = self.log.table.query("feed", connection, sql, Values(vec![self.name().into()])).await?;
        rows.first().map_or(Ok(None), |row| column(row, 0))
    }

    /// One at a time makes or drops it.
    async fn slot_name(&self, connection: &impl ConnectionTrait, feed: &Feed) -> Result<String> {
        let values = Values(vec![self.name().into()]);
        let rows = self.log.table.query("feed", connection, &feed.sql.log_feed_name, values).await?;
        column(rows.first().ok_or_else(|| Error::new(ErrorKind::Other, "feed"))?, 0)
    }

    /// A slot of that name is left of a switch that was broken off.
    async fn make_slot(&self, feed: &Feed, slot: &str) -> Result<()> {
        let mut session = self.session(feed).await?;
        let version =
            session.simple_query("SHOW server_version_num").await.map_err(|error| failed(&error))?;
        let version = version.first().and_then(|row| row.first()?.clone());
        let version: i64 =
            version.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()).unwrap_or_default();
        if version < MIN_VERSION {
            return Err(self.error(ErrorKind::Unsupported, "a feed needs PostgreSQL 14 or later"));
        }
        // the name holds nothing that would have to be quoted
        for sql in [
            format!(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}'"
            ),
            format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"),
        ] {
            session.simple_query(&sql).await.map_err(|error| failed(&error).with_table(self.log.name()))?;
        }
        Ok(())
    }

    async fn drop_slot(&self, feed: &Feed) -> Result<()> {
        let table = &self.log.table;
        transactor(&table.db)
            .run(async |cx| {
                let connection = cx.connection()?;
                let slot = self.slot_name(connection, feed).await?;
                if self.current_slot(feed, connection).await?.is_some() {
                    return Ok(());
                }
                feed.let_go().await;
                self.drop_when_free(feed, &slot).await
            })
            .await
    }

    async fn drop_when_free(&self, feed: &Feed, slot: &str) -> Result<()> {
        let mut session = self.session(feed).await?;
        let started = Instant::now();
        loop {
            let left = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
            let rows = session.simple_query(&left).await.map_err(|error| failed(&error))?;
            let Some(row) = rows.first() else { return Ok(()) };
            let is_active = row.first().is_some_and(|active| active.as_deref() == Some(b"t"));
            if !is_active {
                let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
                match session.simple_query(&drop).await {
                    Ok(_) => return Ok(()),
                    // somebody has just begun to read it
                    Err(error) if is_busy(&error) => {}
                    Err(error) => return Err(failed(&error).with_table(self.log.name())),
                }
            }
            if started.elapsed() > PATIENCE {
                return Err(self.error(ErrorKind::Contention, &format!("somebody reads the slot {slot}")));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A session of the role that reads the WAL.
    async fn session(&self, feed: &Feed) -> Result<ReplicationClient> {
        let patience = format!("-c statement_timeout={}", PATIENCE.as_millis());
        let config = config(self, feed, "none", "none")?.with_options(patience);
        ReplicationClient::connect_gated(config).await.map_err(|error| failed(&error))
    }
}

/// How to connect to where the group's own connections go.
pub(super) fn config(
    group: &LogGroup,
    feed: &Feed,
    slot: &str,
    publication: &str,
) -> Result<ReplicationConfig> {
    let pool = group.log.table.db.get_postgres_connection_pool();
    let options = (*pool.connect_options()).clone();
    let tls = tls(feed, &options).map_err(|detail| group.error(ErrorKind::Unsupported, detail))?;
    let host = options
        .get_socket()
        .map_or_else(|| options.get_host().to_owned(), |socket| socket.to_string_lossy().into_owned());
    let database = options.get_database().unwrap_or_else(|| options.get_username()).to_owned();
    let port = options.get_port();
    let own = || {
        let user = options.get_username().to_owned();
        // nothing of the rest is in the way of a URL
        let url = options.clone().username("user").host("host").to_url_lossy();
        let password = url.password().map(percent_decoded).unwrap_or_default();
        (user, password)
    };
    let (user, password) = feed.options.login.clone().unwrap_or_else(own);
    Ok(ReplicationConfig::new(host, user, password, database, slot, publication)
        .with_port(port)
        .with_tls(tls)
        .with_application_name(format!("outbox feed of {}", group.name())))
}

#[cfg(feature = "wal-tls")]
fn tls(feed: &Feed, options: &PgConnectOptions) -> std::result::Result<TlsConfig, &'static str> {
    feed.options.tls.config(options)
}

#[cfg(not(feature = "wal-tls"))]
fn tls(_: &Feed, options: &PgConnectOptions) -> std::result::Result<TlsConfig, &'static str> {
    match options.get_ssl_mode() {
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer => Ok(TlsConfig::disabled()),
        _ => Err("the connections ask for TLS, which the feed has with the cargo feature wal-tls"),
    }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| *byte == b'%') {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            None => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_comes_out_of_its_url_as_it_went_in() {
        let password = "p%41:@/?# ü%";
        let options = sea_orm::sqlx::postgres::PgConnectOptions::new().username("user").host("host");
        let url = options.password(password).to_url_lossy();
        assert_eq!(url.password().map(percent_decoded).as_deref(), Some(password));
    }
}
