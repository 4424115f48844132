//! A slot that this process reads for its group.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outbox_core::{Error, ErrorKind, Result};
use pgwire_replication::Lsn;
use sea_orm::sea_query::Values;
use sea_orm::{QueryResult, Value};

use super::Feed;
use super::buffer::{Buffer, Position};
use super::claim::Wants;
use super::stream::{Opened, Stream};
use super::switch::config;
use crate::log::LogGroup;
use crate::log::claim::{poll, standby, unknown};
use crate::row::column;

/// How often what is claimed is confirmed to the server, and the group's position moved.
const ADVANCE_INTERVAL: Duration = Duration::from_secs(1);
/// The same while somebody waits for the feed to end.
const END_INTERVAL: Duration = Duration::from_millis(20);
/// How long a claim waits for what has been committed to arrive.
const MAX_WAIT: Duration = Duration::from_millis(250);
/// So much of other people's WAL may come before it is confirmed by itself.
const MAX_UNCONFIRMED: u64 = 1024 * 1024;

/// Who delivers what to a group, as far as this process is concerned.
pub(super) enum Stage {
    /// It is read by number.
    Polled,
    /// What is numbered up to here is still to be read by number.
    Rest(i64),
    /// Another process reads the slot.
    StandBy,
    Open,
}

/// What log_feed_state says.
pub(super) struct State {
    slot: String,
    position: i64,
    wants: Wants,
    at: Position,
    next_xid: i64,
    is_active: bool,
    refusal: Option<String>,
    publication: String,
}

impl State {
    /// `None` where the group is read by number. A standby refuses.
    async fn read(group: &LogGroup, feed: &Feed) -> Result<Option<Self>> {
        let values = Values(vec![group.name().into()]);
        let sql = &feed.sql.log_feed_state;
        let rows = group.log.table.query("claim", group.log.table.hot()?, sql, values).await?;
        let row = rows.first().ok_or_else(|| unknown(group))?;
        let Some(slot) = column(row, 0)? else { return Ok(None) };
        if column(row, 11)? {
            return Err(standby(group));
        }
        Ok(Some(Self {
            slot,
            position: column(row, 1)?,
            wants: Wants { topics: column(row, 2)?, above: column(row, 3)?, upto: column(row, 4)? },
            at: Position { lsn: lsn(row, 5)?, n: column(row, 6)? },
            next_xid: column(row, 7)?,
            is_active: column(row, 8)?,
            refusal: column(row, 9)?,
            publication: column(row, 10)?,
        }))
    }
}

fn lsn(row: &QueryResult, index: usize) -> Result<Lsn> {
    let broken = |_| Error::new(ErrorKind::Undecodable, "claim").with_detail("a place in the WAL");
    Lsn::parse(&column::<String>(row, index)?).map_err(broken)
}

/// A number up to which everything has arrived once all that was committed before `lsn` has.
struct Mark {
    number: i64,
    lsn: Lsn,
}

/// A snapshot in which only what is behind the group is visible once all that was committed before `lsn` is.
struct Seen {
    snapshot: String,
    lsn: Lsn,
}

/// The slot, and what has arrived from it.
pub(super) struct Open {
    pub(super) slot: String,
    pub(super) wants: Wants,
    pub(super) buffer: Arc<Buffer>,
    _stream: Stream,
    /// How far the group has got in the database, and with what was passed over since.
    pub(super) at: Position,
    pub(super) done: Position,
    /// A claim was sent and not answered.
    pub(super) is_uncertain: bool,
    /// Something was claimed that is not confirmed.
    pub(super) is_unconfirmed: bool,
    /// The group's position does not say all that is behind it.
    pub(super) is_unmarked: bool,
    mark: Option<Mark>,
    seen: Option<Seen>,
    advanced_at: Instant,
}

/// Finds out who delivers, and reads the slot where nobody else does. What is wrong with a slot counts when it is found twice:
/// it may have been dropped, by a switch, since the group was looked at.
pub(super) async fn open(group: &LogGroup, feed: &Feed) -> Result<(Stage, Option<Open>)> {
    match try_open(group, feed).await {
        Err(error) if !error.is_retryable() => try_open(group, feed).await,
        opened => opened,
    }
}

async fn try_open(group: &LogGroup, feed: &Feed) -> Result<(Stage, Option<Open>)> {
    let Some(state) = State::read(group, feed).await? else { return Ok((Stage::Polled, None)) };
    if state.position < state.wants.above {
        return Ok((Stage::Rest(state.wants.above), None));
    }
    if let Some(reason) = state.refusal {
        return Err(refused(group, &state.slot, &reason));
    }
    if state.is_active {
        return Ok((Stage::StandBy, None));
    }
    let buffer = Arc::new(Buffer::new(state.at, feed.arrivals.clone()));
    let config = config(group, feed, &state.slot, &state.publication)?;
    let opened = Stream::open(config, state.at, state.next_xid, Arc::clone(&buffer)).await;
    let Opened::Stream(stream) = opened.map_err(|error| named(group, error))? else {
        return Ok((Stage::StandBy, None));
    };
    let open = Open {
        slot: state.slot,
        wants: state.wants,
        buffer,
        _stream: stream,
        at: state.at,
        done: state.at,
        is_uncertain: false,
        is_unconfirmed: false,
        is_unmarked: true,
        mark: None,
        seen: None,
        advanced_at: Instant::now(),
    };
    Ok((Stage::Open, Some(open)))
}

fn refused(group: &LogGroup, slot: &str, reason: &str) -> Error {
    let detail = format!(
        "the replication slot {slot} {reason}: nothing is lost, call resync to read group {} on by number",
        group.name()
    );
    Error::new(ErrorKind::Schema, "claim").with_table(group.log.name()).with_detail(detail)
}

fn named(group: &LogGroup, error: Error) -> Error {
    error.with_table(group.log.name())
}

/// Lets the slot take over where all up to `above` is read; whether it does.
pub(super) async fn begin(group: &LogGroup, feed: &Feed, above: i64) -> Result<bool> {
    if group.reader.lock().await.horizon() < above {
        return Ok(false);
    }
    let values = Values(vec![group.name().into()]);
    let n =
        group.log.table.execute("claim", group.log.table.hot()?, &feed.sql.log_feed_begin, values).await?;
    Ok(n > 0)
}

impl Open {
    /// Whether the slot has to be opened again: its connection has ended, or nobody knows what was claimed.
    pub(super) fn is_over(&self) -> bool {
        self.is_uncertain || self.buffer.has_ended()
    }

    /// Why it is over, where beginning again does not help.
    pub(super) fn end(&self, group: &LogGroup) -> Result<()> {
        match self.buffer.take_end() {
            Some(error) if !error.is_retryable() => Err(named(group, error)),
            Some(error) => {
                tracing::warn!(group = group.name(), slot = self.slot, %error, "the feed has ended and begins again");
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn interval(&self) -> Duration {
        if self.wants.upto.is_some() { END_INTERVAL } else { ADVANCE_INTERVAL }
    }

    /// When to look again although nothing arrives, where that is soon.
    pub(super) fn look_in(&self) -> Option<Duration> {
        self.wants.upto.map(|_| END_INTERVAL)
    }

    /// Says whether there is to be a claim soon although nothing arrives.
    pub(super) fn set_due(&self) {
        let is_marked = self.mark.is_some() || self.seen.is_some();
        let is_moving = self.is_unconfirmed || self.is_unmarked || is_marked || self.wants.upto.is_some();
        self.buffer.set_due(is_moving);
    }

    /// Waits until what was committed before the claim began, which is before `place`, has arrived, or so many rows are there;
    /// not for long.
    pub(super) async fn catch_up(
        &self,
        group: &LogGroup,
        feed: &Feed,
        n: usize,
        place: &mut Option<Lsn>,
    ) -> Result<()> {
        if self.buffer.len() >= n {
            return Ok(());
        }
        let lsn = match *place {
            Some(lsn) => lsn,
            None => lsn(&self.ask(group, &feed.sql.log_feed_flush_lsn).await?, 0)?,
        };
        *place = Some(lsn);
        self.buffer.wait_for(lsn, n, MAX_WAIT).await;
        Ok(())
    }

    /// Moves the position by number as far as it is known, for whoever counts what is behind it.
    pub(super) async fn settle_position(&mut self, group: &LogGroup, feed: &Feed) -> Result<()> {
        // of an older mark, which a backlog may have kept until now
        let before = self.snapshot();
        self.mark(group, feed).await?;
        if let Some(mark) = &self.mark {
            self.buffer.wait_for(mark.lsn, usize::MAX, MAX_WAIT).await;
        }
        self.pass();
        let (ripe, snapshot) = (self.ripe(), self.snapshot().or(before));
        if ripe.is_some() || snapshot.is_some() {
            self.confirm(group, feed, ripe, snapshot).await?;
        }
        Ok(())
    }

    /// Goes on behind what was passed over.
    fn pass(&mut self) {
        if let Some(behind) = self.buffer.behind_all() {
            self.done = self.done.max(behind);
        }
    }

    /// What the mark says, once all that it stands for has arrived. What of that is not claimed is in the buffer.
    fn ripe(&mut self) -> Option<i64> {
        let mark = self.mark.take_if(|mark| self.buffer.has_reached(mark.lsn))?;
        let lowest = self.buffer.lowest();
        self.is_unmarked |= lowest.is_some();
        Some(lowest.map_or(mark.number, |lowest| mark.number.min(lowest - 1)))
    }

    /// The snapshot in which only what is behind the group is visible, where that is another one by now.
    fn snapshot(&mut self) -> Option<String> {
        let done = self.done.lsn;
        self.seen.take_if(|seen| done >= seen.lsn).map(|seen| seen.snapshot)
    }

    async fn ask(&self, group: &LogGroup, sql: &str) -> Result<QueryResult> {
        let rows = group.log.table.query("claim", group.log.table.hot()?, sql, Values(Vec::new())).await?;
        rows.into_iter().next().ok_or_else(|| Error::new(ErrorKind::Other, "claim"))
    }

    /// Now and then makes durable what was passed over, confirms to the server what it need not send again, and moves the position
    /// by number; false where the group is not where it was.
    pub(super) async fn advance(&mut self, group: &LogGroup, feed: &Feed) -> Result<bool> {
        if self.advanced_at.elapsed() < self.interval() {
            return Ok(true);
        }
        self.advanced_at = Instant::now();
        if !self.is_current(group, feed).await? {
            return Ok(false);
        }
        self.pass();
        let (ripe, snapshot) = (self.ripe(), self.snapshot());
        let n_foreign = self.done.lsn.as_u64().saturating_sub(self.at.lsn.as_u64());
        let is_ripe = ripe.is_some() || snapshot.is_some();
        if (is_ripe || self.is_unconfirmed || n_foreign >= MAX_UNCONFIRMED)
            && !self.confirm(group, feed, ripe, snapshot).await?
        {
            return Ok(false);
        }
        let end = self.wants.upto.filter(|upto| ripe.is_some_and(|ripe| ripe >= *upto));
        if let Some(upto) = end {
            let values = vec![group.name().into(), self.slot.as_str().into(), upto.into()];
            self.execute(group, &feed.sql.log_feed_end, values).await?;
            return Ok(false);
        }
        if self.mark.is_none() && (self.is_unmarked || self.wants.upto.is_some()) {
            self.mark(group, feed).await?;
        }
        Ok(true)
    }

    /// Whether the group is still fed in the same way, from here.
    async fn is_current(&self, group: &LogGroup, feed: &Feed) -> Result<bool> {
        let state = State::read(group, feed).await?;
        Ok(state.is_some_and(|state| {
            state.slot == self.slot
                && state.wants == self.wants
                && state.at == self.at
                && state.refusal.is_none()
        }))
    }

    /// Whatever committed before this statement is on the disk after it, however little claims wait for that.
    async fn confirm(
        &mut self,
        group: &LogGroup,
        feed: &Feed,
        number: Option<i64>,
        snapshot: Option<String>,
    ) -> Result<bool> {
        let [from, to] = [self.at, self.done].map(|position| (position.lsn.to_string(), position.n));
        let values = vec![
            group.name().into(),
            self.slot.as_str().into(),
            from.0.into(),
            from.1.into(),
            to.0.into(),
            to.1.into(),
            number.into(),
            snapshot.into(),
        ];
        self.is_uncertain = true;
        let n = self.execute(group, &feed.sql.log_feed_advance, values).await?;
        self.is_uncertain = false;
        if n == 0 {
            return Ok(false);
        }
        self.at = self.done;
        self.is_unconfirmed = false;
        self.buffer.confirm(self.at.lsn);
        Ok(true)
    }

    /// What is visible at the horizon was committed before the place in the WAL that is read after it.
    async fn mark(&mut self, group: &LogGroup, feed: &Feed) -> Result<()> {
        let mut reader = group.reader.lock().await;
        poll(group, &mut reader).await?.ok_or_else(|| standby(group))?;
        let (number, is_held) = (reader.horizon(), reader.n_held() > 0);
        drop(reader);
        let row = self.ask(group, &feed.sql.log_feed_mark).await?;
        let (lsn, snapshot) = (lsn(&row, 0)?, column(&row, 1)?);
        self.mark = Some(Mark { number, lsn });
        // an older one is ripe sooner
        self.seen.get_or_insert(Seen { snapshot, lsn });
        self.is_unmarked = is_held;
        Ok(())
    }

    async fn execute(&self, group: &LogGroup, sql: &str, values: Vec<Value>) -> Result<u64> {
        group.log.table.execute("claim", &group.log.table.db, sql, Values(values)).await
    }
}
