//! Claims on a fair table. Pages of an index say, without locks, which lanes there are and what is ready in each; one statement
//! takes the same share of each, as far as it can lock it: docs/decisions/012.

use outbox_core::Result;
use sea_orm::sea_query::Values;
use sea_orm::{QueryResult, Value};
use serde_json::json;
use uuid::Uuid;

use super::walk::{Named, Walk};
use super::{Claiming, max_attempts, max_bytes};
use crate::repository::Fair;
use crate::row::{ToDatabase, column};
use crate::turns::reached_lane;

/// The most rows of one page, which is twice as large after each that held several lanes.
const MAX_PAGE: usize = 4_096;
/// The fewest rows of one page: about as many as are read in the time of a round trip.
const MIN_PAGE: usize = 200;

/// One row of a page.
struct Ready {
    lane: String,
    number: i64,
}

impl Ready {
    fn decode(row: &QueryResult) -> Result<Self> {
        Ok(Self { lane: column(row, 0)?, number: column(row, 1)? })
    }

    fn topic(&self) -> &str {
        self.lane.rsplit_once('\u{1}').map_or("", |(_, topic)| topic)
    }
}

impl Named for Ready {
    fn name(&self) -> &str {
        &self.lane
    }
}

/// What is ready in one lane, in the order of arrival.
struct Lane {
    numbers: Vec<i64>,
    /// Whether there may be more.
    is_cut: bool,
}

/// The first of each lane, then the second of each, at most `n`.
fn in_turns(lanes: &[Lane], n: usize) -> Vec<i64> {
    let deepest = lanes.iter().map(|lane| lane.numbers.len()).max().unwrap_or_default();
    let rounds = (0..deepest).flat_map(|round| lanes.iter().filter_map(move |lane| lane.numbers.get(round)));
    rounds.take(n).copied().collect()
}

/// Whether more of the lanes that were cut would change what the first `limit` in turns are.
fn is_too_shallow(lanes: &[Lane], limit: usize) -> bool {
    let up_to = |depth: usize| lanes.iter().map(|lane| lane.numbers.len().min(depth)).sum::<usize>();
    lanes.iter().any(|lane| lane.is_cut && up_to(lane.numbers.len()) < limit)
}

impl Claiming<'_> {
    /// Whether messages were there that another claim holds.
    pub(super) async fn take_share(&mut self, fair: &Fair) -> Result<bool> {
        let limit = self.request.limit;
        let mut lanes = self.lanes(limit.div_ceil(self.memory.n_lanes.max(1))).await?;
        if is_too_shallow(&lanes, limit) {
            lanes = self.lanes(limit).await?;
        }
        self.memory.n_lanes = lanes.len().min(limit);
        // twice as many as it may take, for other claims hold some
        let numbers = in_turns(&lanes, 2 * limit);
        if numbers.is_empty() {
            return Ok(false);
        }
        let token = Uuid::new_v4();
        let mut values = vec![max_attempts(self.request).into(), json!(numbers).to_string().into()];
        values.extend([(limit as i64).into(), max_bytes(self.request), token.into()]);
        values.push(self.request.lease.micros().into());
        let rows = self.take(&fair.sql.claim_fair, values, token).await?;
        if let Some(lane) = reached_lane(&fair.fairness, &self.memory.lane, &rows) {
            self.memory.lane = lane;
        }
        self.add(rows).await?;
        Ok(true)
    }

    /// As many lanes of served topics as the limit, behind the one where the last claim ended and around; of each all that is
    /// ready, or `depth` rows at least.
    async fn lanes(&self, depth: usize) -> Result<Vec<Lane>> {
        let least = (2 * depth).max(MIN_PAGE);
        let mut walk = Walk::behind(&self.memory.lane, least);
        let mut lanes = Vec::new();
        while !walk.is_over && lanes.len() < self.request.limit {
            let mut page = self.page_of_lanes(&walk).await?;
            let is_full = page.len() >= walk.n_rows;
            walk.go_on(&mut page);
            let is_cut = is_full && !walk.is_over;
            let n_lanes = page.chunk_by(is_of_one_lane).count();
            if is_cut && n_lanes > 1 {
                begin_with_last(&mut walk, &mut page);
            }
            walk.n_rows = if n_lanes > 1 { (2 * walk.n_rows).min(MAX_PAGE.max(least)) } else { least };
            let is_cut = is_cut && n_lanes == 1;
            let served = page.chunk_by(is_of_one_lane).filter(|rows| self.is_served(rows));
            lanes.extend(
                served.map(|rows| Lane { numbers: rows.iter().map(|row| row.number).collect(), is_cut }),
            );
        }
        Ok(lanes)
    }

    async fn page_of_lanes(&self, walk: &Walk) -> Result<Vec<Ready>> {
        let values: Vec<Value> = vec![walk.from.as_str().into(), (walk.n_rows as i64).into()];
        let sql = &self.inner.mysql.sql.lanes;
        let rows = self.table.query("claim", self.table.hot()?, sql, Values(values)).await?;
        rows.iter().map(Ready::decode).collect()
    }

    /// All rows of a lane are of one topic.
    fn is_served(&self, rows: &[Ready]) -> bool {
        let Some(topics) = &self.request.topics else { return true };
        rows.first().is_some_and(|row| topics.iter().any(|topic| topic == row.topic()))
    }
}

fn is_of_one_lane(one: &Ready, other: &Ready) -> bool {
    one.lane == other.lane
}

/// The lane at the end of a page may go on: it is left to the next page, which begins with it.
fn begin_with_last(walk: &mut Walk, page: &mut Vec<Ready>) {
    let Some(last) = page.last().map(|row| row.lane.clone()) else { return };
    page.retain(|row| row.lane != last);
    walk.from = last;
}
