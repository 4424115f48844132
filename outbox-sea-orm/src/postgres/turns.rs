//! Claims on an ordered table: in the order of the numbers while that gives full batches, and by a walk from key to key,
//! which goes on where the last one ended and finds what the others leave out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use outbox_core::Result;
use sea_orm::QueryResult;
use uuid::Uuid;

use super::{Claiming, LOOK_INTERVAL, PROMOTE_LIMIT, Rest, micros};
use crate::repository::Ordered;
use crate::row::{ClaimedRow, column};
use crate::turns::{keyless_share, reached_key};

/// How long after a walk that found expired leases and could recover none: what is before them is not done yet.
const BLOCKED_PAUSE: Duration = Duration::from_secs(1);

/// Where keys have waited or have a dead letter, messages may be ready again below the floor: a walk comes after this time,
const WALK_INTERVAL: Duration = Duration::from_secs(1);
/// and after so many claims by number.
const MOST_FRONTS: u32 = 15;
/// So many walks follow at the most on a claim by number that found less than half a batch.
const MOST_WALKS: u32 = 16;
/// A key that took more than this part of a batch makes the next claim a walk: a long backlog keeps nobody waiting.
const FAIR_PART: i64 = 8;

/// What a loop remembers of its claims in the order of the numbers.
#[derive(Debug, Default)]
pub(super) struct Front {
    /// Nothing at or below it is ready or claimed, unless it was parked or dead before.
    floor: i64,
    /// The highest number that the last claim took if it was full. The next one reads little more then, and all it may otherwise.
    reached: Option<i64>,
    /// How many walks come before the next claim by number.
    n_walks: u32,
    /// How many walks follow when the next claim by number fails.
    penalty: u32,
    /// How many claims by number there were since the last walk.
    n_fronts: u32,
    walked_at: Option<Instant>,
    looked_at: Option<Instant>,
}

impl Front {
    /// `rows` are what a claim took, in order; up to the horizon no INSERT can add anything.
    fn claimed(&mut self, rows: &[ClaimedRow], below: Below, horizon: i64, limit: i64) {
        self.floor = self.floor.max(horizon.min(below.lowest - 1));
        let highest = rows.last().map_or(below.lowest, ClaimedRow::locator);
        let longest = longest_run(rows) as i64;
        let n_rows = rows.len() as i64;
        let was_bounded = self.reached.is_some();
        self.reached = (n_rows >= limit).then_some(highest);
        self.n_fronts += 1;
        if n_rows * 2 >= limit {
            self.penalty = 0;
        } else if !was_bounded {
            self.failed();
        }
        if longest * FAIR_PART > limit || below.has_held && self.is_walk_due() {
            self.n_walks = self.n_walks.max(1);
        }
    }

    /// Forgets all but when it looked.
    pub(super) fn forget(&mut self) {
        *self = Self { looked_at: self.looked_at, ..Self::default() };
    }

    fn is_walk_due(&self) -> bool {
        self.n_fronts >= MOST_FRONTS || self.walked_at.is_none_or(|at| at.elapsed() >= WALK_INTERVAL)
    }

    fn walked(&mut self) {
        self.n_walks = self.n_walks.saturating_sub(1);
        self.n_fronts = 0;
        self.walked_at = Some(Instant::now());
    }

    fn failed(&mut self) {
        self.penalty = (self.penalty * 2).clamp(1, MOST_WALKS);
        self.n_walks = self.penalty;
    }

    /// The number up to which the next claim reads, at least: two batches, for what other loops have taken meanwhile and for
    /// keys that are left out.
    fn end(&self, limit: i64) -> i64 {
        self.reached.map_or(i64::MAX, |reached| reached.saturating_add(2 * limit))
    }
}

/// What a claim by number saw beside its messages.
#[derive(Clone, Copy)]
struct Below {
    /// The lowest number above the floor that was ready or claimed.
    lowest: i64,
    /// Whether a message with a key is parked or dead, or was.
    has_held: bool,
}

impl Below {
    fn decode(row: &QueryResult) -> Result<Self> {
        Ok(Self { lowest: column(row, 10)?, has_held: column(row, 11)? })
    }
}

/// How many messages the key with the most of them has.
fn longest_run(rows: &[ClaimedRow]) -> usize {
    let mut runs = HashMap::<&str, usize>::new();
    for key in rows.iter().filter_map(ClaimedRow::key) {
        *runs.entry(key).or_default() += 1;
    }
    runs.into_values().max().unwrap_or_default()
}

impl Claiming<'_> {
    pub(super) async fn take_turns(&mut self, ordered: &Ordered) -> Result<()> {
        let request = self.request;
        if request.recover && self.marks.is_walk_due(Instant::now(), request) {
            if self.walk().await? {
                return Ok(());
            }
            self.rest_from_blocked();
        }
        let has_looked = self.is_look_due();
        if has_looked {
            self.promote_due().await?;
        }
        if self.is_front_due() && self.take_front(ordered).await? {
            return Ok(());
        }
        self.turn(ordered).await?;
        if self.claim.is_empty() && !has_looked && self.promote_due().await? > 0 {
            self.turn(ordered).await?;
        }
        Ok(())
    }

    fn rest_from_blocked(&mut self) {
        let now = Instant::now();
        if self.marks.walk_at.is_some_and(|at| at <= now) {
            self.marks.walk_at = Some(now + BLOCKED_PAUSE.min(self.request.lease));
        }
    }

    fn is_look_due(&self) -> bool {
        let now = Instant::now();
        let is_recent = self.marks.looked_at.is_some_and(|at| now.duration_since(at) < LOOK_INTERVAL);
        !is_recent || self.marks.next_due.is_some_and(|due| due <= now)
    }

    /// After a full batch the next one is likely to be as full; less is quicker found by a walk, which says when it was.
    fn is_front_due(&self) -> bool {
        self.marks.was_full && self.marks.front.n_walks == 0
    }

    /// Claims in the order of the numbers; whether there was something.
    async fn take_front(&mut self, ordered: &Ordered) -> Result<bool> {
        if !self.learn_horizon().await? {
            return Ok(false);
        }
        let (limit, token, front) = (self.request.limit as i64, Uuid::new_v4(), &self.marks.front);
        let rest = Rest::Front { floor: front.floor, blocks: ordered.blocks, end: front.end(limit) };
        let decode = |row: &QueryResult| {
            Ok((ClaimedRow::decode(self.inner.dialect, row, token)?, Below::decode(row)?))
        };
        let mut rows = self.decoded(&self.inner.postgres.sql.claim_front, token, rest, decode).await?;
        let Some(&(_, below)) = rows.first() else {
            self.marks.front.failed();
            return Ok(false);
        };
        let horizon = self.marks.horizon.at;
        rows.sort_unstable_by_key(|(row, _)| row.locator());
        let rows: Vec<ClaimedRow> = rows.into_iter().map(|(row, _)| row).collect();
        self.marks.front.claimed(&rows, below, horizon, limit);
        self.add(rows).await?;
        Ok(true)
    }

    /// Reads the horizon now and then. Says false when what was remembered is void.
    async fn learn_horizon(&mut self) -> Result<bool> {
        let now = Instant::now();
        let front = &mut self.marks.front;
        if front.looked_at.is_some_and(|at| now.duration_since(at) < LOOK_INTERVAL) {
            return Ok(true);
        }
        front.looked_at = Some(now);
        let row = self.row(&self.inner.postgres.sql.horizon, vec![self.marks.sessions()]).await?;
        self.marks.learn(&row, 0, self.marks.front.floor)
    }

    async fn turn(&mut self, ordered: &Ordered) -> Result<()> {
        let token = Uuid::new_v4();
        let turn = Rest::Turn {
            key: &self.marks.key,
            blocks: ordered.blocks,
            n_keyless: keyless_share(self.request.limit, token),
        };
        let rows = self.rows(&ordered.sql.claim_ordered, token, turn).await?;
        if let Some(key) = reached_key(&self.marks.key, &rows) {
            self.marks.key = key;
        }
        self.marks.front.walked();
        self.marks.was_full = rows.len() >= self.request.limit;
        self.add(rows).await
    }

    /// Makes ready what is due; how many rows.
    async fn promote_due(&mut self) -> Result<u64> {
        let mut n_promoted = 0;
        while self.look_at_parked().await? {
            let n = self.promote().await?;
            n_promoted += n;
            // the rest of a long list comes with the next claim; what others hold is theirs
            if n < PROMOTE_LIMIT as u64 {
                break;
            }
        }
        Ok(n_promoted)
    }

    /// Whether a parked row is due.
    async fn look_at_parked(&mut self) -> Result<bool> {
        let row = self.row(&self.inner.postgres.sql.parked, Vec::new()).await?;
        let now = Instant::now();
        self.marks.looked_at = Some(now);
        self.marks.next_due = micros(&row, 1)?.map(|due| now + due);
        column(&row, 0)
    }
}
