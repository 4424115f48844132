//! A group that is fed from the WAL: docs/decisions/073.

mod buffer;
mod claim;
mod open;
mod rows;
mod stream;
mod switch;
#[cfg(feature = "wal-tls")]
mod tls;

use std::fmt;
use std::time::{Duration, Instant};

use outbox_core::{Finding, Result, Severity, SlotLag, Symptom};
use sea_orm::sea_query::Values;
use tokio::sync::{Mutex, watch};

use super::LogGroup;
use super::claim::Claiming;
use crate::dialect::Dialect;
use crate::row::column;
use crate::sql::FeedSql;
use open::{Open, Stage};

/// How soon a claim looks again whether the slot is free.
const STAND_BY: Duration = Duration::from_millis(250);
/// How long claims may go without a look at whether the group is fed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often one claim may begin again because somebody else has moved the group.
const MAX_OPENINGS: usize = 3;

/// How a [`LogGroup`] is fed from the WAL, see [`LogGroup::with_feed`].
#[derive(Clone, Default)]
pub struct WalFeed {
    login: Option<(String, String)>,
    #[cfg(feature = "wal-tls")]
    tls: tls::Tls,
}

impl WalFeed {
    /// Reads the WAL with the login of the group's own connections. Its role needs the attribute `REPLICATION`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the WAL with another login, so that only this role needs the attribute `REPLICATION`.
    #[must_use]
    pub fn with_login(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.login = Some((user.into(), password.into()));
        self
    }

    /// Reads the WAL over TLS, from a server whose certificate one of those in this file (PEM) has signed for its host name, whatever the
    /// `sslmode` of the group's own connections. Without this the feed does what these connections do, with their files; what they have in
    /// memory it cannot use, and of `verify-ca` it checks the name as well.
    ///
    /// The first connection makes ring the cryptography of rustls in this process where the service has not chosen one: choose before.
    #[cfg(feature = "wal-tls")]
    #[must_use]
    pub fn with_root_certificate(mut self, file: impl Into<std::path::PathBuf>) -> Self {
        self.tls.root = Some(file.into());
        self
    }

    /// The name that the server's certificate has, where the group's own connections use another one or an address.
    #[cfg(feature = "wal-tls")]
    #[must_use]
    pub fn with_server_name(mut self, name: impl Into<String>) -> Self {
        self.tls.server_name = Some(name.into());
        self
    }
}

impl fmt::Debug for WalFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.login.as_ref().map(|(user, _)| user);
        f.debug_struct("WalFeed").field("user", &user).finish_non_exhaustive()
    }
}

/// So much WAL may wait for a slot before `doctor` says so.
const MUCH_WAL: u64 = 1024 * 1024 * 1024;

/// What the clones of a group's handle share of its feed.
pub(super) struct Feed {
    options: WalFeed,
    sql: FeedSql,
    /// Whether anything waits for a claim.
    arrivals: watch::Sender<bool>,
    reading: Mutex<Reading>,
}

#[derive(Default)]
struct Reading {
    open: Option<Open>,
    /// What the last look found and until when that holds.
    known: Option<(Idle, Instant)>,
}

/// Why this process does not read the slot.
#[derive(Clone, Copy)]
enum Idle {
    /// The group is read by number.
    Polled,
    /// Another process reads it.
    StandBy,
}

impl Feed {
    /// Does not read the slot any more, until a claim finds that it is to.
    async fn let_go(&self) {
        *self.reading.lock().await = Reading::default();
    }

    pub(super) fn new(group: &LogGroup, options: WalFeed) -> Self {
        Self {
            options,
            sql: FeedSql::of(group.log.name(), group.own.name()),
            arrivals: watch::Sender::new(false),
            reading: Mutex::default(),
        }
    }

    /// Becomes true whenever something arrives where nothing was, and false when a claim has taken all.
    pub(super) fn arrivals(&self) -> watch::Receiver<bool> {
        self.arrivals.subscribe()
    }
}

/// Claims what the slot has delivered; false where the group is read by number.
pub(super) async fn take(claiming: &mut Claiming<'_>) -> Result<bool> {
    let group = claiming.group;
    let Some(feed) = &group.feed else { return Ok(false) };
    group.require_wal()?;
    let mut reading = feed.reading.lock().await;
    for _ in 0..MAX_OPENINGS {
        match reading.stage(group, feed).await? {
            Stage::Polled => return Ok(false),
            Stage::StandBy => break,
            Stage::Rest(above) => {
                claiming.take_log().await?;
                if !claiming.is_empty() || !open::begin(group, feed, above).await? {
                    return Ok(true);
                }
            }
            Stage::Open => {
                let Some(mut open) = reading.open.take() else { break };
                // where it fails the slot is let go, so that a server that is being stopped does not wait for it
                if open.advance(group, feed).await? && open.claim(claiming, feed).await? {
                    open.set_due();
                    claiming.look_in_at_most(open.look_in());
                    reading.open = Some(open);
                    return Ok(true);
                }
                open.end(group)?;
            }
        }
    }
    claiming.look_in_at_most(Some(STAND_BY));
    Ok(true)
}

/// Moves the group's position as far as this process knows what is behind it.
pub(super) async fn settle_position(group: &LogGroup) -> Result<()> {
    let Some(feed) = &group.feed else { return Ok(()) };
    let mut reading = feed.reading.lock().await;
    let Some(open) = reading.open.as_mut().filter(|open| !open.is_over()) else { return Ok(()) };
    open.settle_position(group, feed).await
}

/// The slot of a group, whoever reads it.
struct Slot {
    lag: SlotLag,
    is_there: bool,
    is_lost: bool,
}

impl Slot {
    /// `None` where the group is read by number.
    async fn read(group: &LogGroup, operation: &'static str) -> Result<Option<Self>> {
        let sql = FeedSql::of(group.log.name(), group.own.name()).log_feed_lag;
        let values = Values(vec![group.name().into()]);
        let rows = group.log.table.query(operation, &group.log.table.db, &sql, values).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let n_bytes = |index| Ok(u64::try_from(column::<i64>(row, index)?).unwrap_or_default());
        let lag = SlotLag::new(column::<String>(row, 0)?)
            .with_active(column(row, 3)?)
            .with_bytes(n_bytes(4)?, n_bytes(5)?);
        Ok(Some(Self { lag, is_there: column(row, 1)?, is_lost: column(row, 2)? }))
    }
}

/// How far the slot is behind, where there is one.
pub(super) async fn slot_lag(group: &LogGroup) -> Result<Option<SlotLag>> {
    if group.dialect != Dialect::Postgres {
        return Ok(None);
    }
    let slot = Slot::read(group, "stats").await?;
    Ok(slot.filter(|slot| slot.is_there && !slot.is_lost).map(|slot| slot.lag))
}

/// What is wrong with the slot.
pub(super) async fn findings(group: &LogGroup) -> Result<Vec<Finding>> {
    let Some(Slot { lag, is_there, is_lost }) = Slot::read(group, "doctor").await? else {
        return Ok(Vec::new());
    };
    let SlotLag { slot, n_retained: n_bytes, is_active, .. } = lag;
    let name = group.name();
    let finding =
        |severity, what: String, advice: &str| vec![Finding::new(severity, Symptom::Slot, what, advice)];
    Ok(if !is_there || is_lost {
        let what = format!(
            "the replication slot {slot} of group {name} is {}",
            if is_lost { "lost" } else { "missing" }
        );
        finding(Severity::Critical, what, "call resync, which reads the group by number, and then start_feed")
    } else if !is_active {
        let what = format!(
            "nobody reads the replication slot {slot} of group {name}, which keeps {n_bytes} bytes of WAL"
        );
        finding(
            Severity::Warning,
            what,
            "run a dispatcher on the group, or call resync; set max_slot_wal_keep_size",
        )
    } else if n_bytes > MUCH_WAL {
        let what = format!("the replication slot {slot} of group {name} keeps {n_bytes} bytes of WAL");
        finding(Severity::Warning, what, "end transactions that stay open, or run handlers that are faster")
    } else {
        Vec::new()
    })
}

impl Reading {
    async fn stage(&mut self, group: &LogGroup, feed: &Feed) -> Result<Stage> {
        if let Some(open) = self.open.take_if(|open| open.is_over()) {
            open.end(group)?;
        }
        if self.open.is_some() {
            return Ok(Stage::Open);
        }
        match self.known {
            Some((Idle::Polled, until)) if Instant::now() < until => return Ok(Stage::Polled),
            Some((Idle::StandBy, until)) if Instant::now() < until => return Ok(Stage::StandBy),
            _ => self.known = None,
        }
        let (stage, opened) = open::open(group, feed).await?;
        if matches!(stage, Stage::Polled) {
            group.reader.lock().await.read_again();
        }
        self.open = opened;
        self.known = match stage {
            Stage::Polled => Some((Idle::Polled, Instant::now() + LOOK_INTERVAL)),
            Stage::StandBy => Some((Idle::StandBy, Instant::now() + STAND_BY)),
            Stage::Rest(_) | Stage::Open => None,
        };
        Ok(stage)
    }
}
