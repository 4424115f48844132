//! Claims of what has arrived.

use std::time::Duration;

use outbox_core::Result;
use sea_orm::sqlx::{self, AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::Feed;
use super::buffer::{Arrived, Position};
use super::open::Open;
use super::rows::Row;
use crate::error::from_sqlx;
use crate::log::claim::Claiming;
use crate::log::range::Place;
use crate::row::{ClaimedRow, ToDatabase};

/// How soon to look again at a transaction that has been sent before it was visible.
const SOON: Duration = Duration::from_millis(2);

/// The most batches that one claim passes over or puts aside.
const MAX_BATCHES: usize = 64;

/// What of that which the slot delivers the group wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) topics: Option<Vec<String>>,
    /// What is numbered up to here is read by number.
    pub(super) above: i64,
    /// What is numbered above this will be.
    pub(super) upto: Option<i64>,
}

/// What becomes of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The group does not want it, or does not get it from here.
    Over,
    /// It is leased.
    Leased,
    /// It goes to the group's own table.
    Aside,
}

impl Wants {
    fn way(&self, row: &Row, served: Option<&[String]>) -> Way {
        let is_among = |topics: &[String]| topics.contains(&row.topic);
        let is_here = row.seq > self.above && self.upto.is_none_or(|upto| row.seq <= upto);
        if !is_here || !self.topics.as_deref().is_none_or(is_among) {
            Way::Over
        } else if row.is_due && served.is_none_or(is_among) {
            Way::Leased
        } else {
            Way::Aside
        }
    }
}

/// The next rows, and how far the group has got with them.
struct Batch {
    taken: Vec<(Way, Arrived)>,
    to: Position,
}

/// What a statement has answered.
enum Answer {
    Took,
    /// The transaction of this number is not visible yet.
    Unseen(i64),
    /// The group is not where this process believes it to be.
    Moved,
}

impl Batch {
    fn numbers(&self, way: Way) -> Vec<i64> {
        let rows = self.taken.iter().filter(|(its, _)| *its == way);
        let mut numbers: Vec<i64> = rows.map(|(_, arrived)| arrived.row.seq).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Of the rows that are not passed over, each once.
    fn xids(&self) -> Vec<i64> {
        let rows = self.taken.iter().filter(|(way, _)| *way != Way::Over);
        let mut xids: Vec<i64> = rows.map(|(_, arrived)| arrived.xid).collect();
        xids.dedup();
        xids
    }
}

/// The ends of runs of sorted numbers: each below its first one, and its last one.
fn runs(numbers: &[i64]) -> Vec<i64> {
    let run = |run: &[i64]| [run.first().map(|first| first - 1), run.last().copied()];
    numbers.chunk_by(|before, after| before + 1 == *after).flat_map(run).flatten().collect()
}

impl Open {
    /// Leases the next rows that are for this claim; false where the group is not where it was.
    pub(super) async fn claim(&mut self, claiming: &mut Claiming<'_>, feed: &Feed) -> Result<bool> {
        let (mut unseen, mut place) = (None, None);
        let n = claiming.n_left();
        for _ in 0..MAX_BATCHES {
            if unseen.is_none() {
                self.catch_up(claiming.group, feed, n, &mut place).await?;
            }
            let batch = self.next(claiming, unseen);
            let is_empty = batch.taken.is_empty();
            self.is_unmarked |= !is_empty;
            if batch.taken.iter().all(|(way, _)| *way == Way::Over) {
                self.done = batch.to;
                if !is_empty && unseen.is_none() {
                    continue;
                }
                break;
            }
            let token = Uuid::new_v4();
            self.is_uncertain = true;
            let answer = self.run(claiming, feed, &batch, token).await?;
            self.is_uncertain = false;
            match answer {
                Answer::Moved => return Ok(false),
                Answer::Unseen(xid) => {
                    self.buffer.put_back(batch.taken.into_iter().map(|(_, arrived)| arrived).collect());
                    unseen = Some(xid);
                }
                Answer::Took => {
                    (self.at, self.done, self.is_unconfirmed) = (batch.to, batch.to, true);
                    claiming.add(leased(batch, token)).await?;
                    if !claiming.is_empty() {
                        break;
                    }
                }
            }
        }
        claiming.look_in_at_most(unseen.map(|_| SOON));
        Ok(true)
    }

    /// The next rows before a transaction that is not visible yet.
    fn next(&self, claiming: &Claiming<'_>, unseen: Option<i64>) -> Batch {
        let request = claiming.request;
        let (limit, max_bytes) = (claiming.n_left(), request.max_bytes.unwrap_or(u64::MAX));
        let (mut n_leased, mut n_bytes, mut ways) = (0, 0, Vec::new());
        let taken = self.buffer.take_while(|arrived| {
            let way = self.wants.way(&arrived.row, request.topics.as_deref());
            if way != Way::Over && unseen == Some(arrived.xid) {
                return false;
            }
            if way == Way::Leased {
                n_bytes += arrived.row.payload.len() as u64;
                if n_leased == limit || (n_leased > 0 && n_bytes > max_bytes) {
                    return false;
                }
                n_leased += 1;
            }
            ways.push(way);
            true
        });
        let last = taken.last().map_or(self.done, |arrived| arrived.behind);
        let to = self.buffer.behind_all().unwrap_or(last).max(self.done);
        Batch { taken: ways.into_iter().zip(taken).collect(), to }
    }

    async fn run(&self, claiming: &Claiming<'_>, feed: &Feed, batch: &Batch, token: Uuid) -> Result<Answer> {
        let (group, xids, leased) = (claiming.group, batch.xids(), batch.numbers(Way::Leased));
        let aside = Some(batch.numbers(Way::Aside)).filter(|aside| !aside.is_empty());
        let sql = if aside.is_some() { &feed.sql.log_feed_claim_aside } else { &feed.sql.log_feed_claim };
        let query = sqlx::query(AssertSqlSafe(sql.clone()))
            .bind(group.name())
            .bind(token)
            .bind(claiming.request.lease.micros())
            .bind(&self.slot)
            .bind(self.wants.topics.as_deref())
            .bind(self.wants.upto)
            .bind(self.at.lsn.to_string())
            .bind(self.at.n)
            .bind(batch.to.lsn.to_string())
            .bind(batch.to.n)
            .bind(&xids)
            .bind(runs(&leased))
            .bind(leased.len() as i32);
        let query = match aside {
            Some(aside) => query.bind(aside),
            None => query,
        };
        let failed = |error| from_sqlx("claim", group.log.name(), error);
        let pool = group.log.table.hot()?.get_postgres_connection_pool();
        let row = query.fetch_one(pool).await.map_err(failed)?;
        let unseen: Option<i64> = row.try_get(1).map_err(failed)?;
        let unseen = unseen.and_then(|place| xids.get(usize::try_from(place).ok()?.checked_sub(1)?));
        Ok(match (row.try_get(0).map_err(failed)?, unseen) {
            (true, _) => Answer::Took,
            (false, Some(xid)) => Answer::Unseen(*xid),
            (false, None) => Answer::Moved,
        })
    }
}

/// The leased rows of a batch as a claim hands them out, in the order of the commits. The places are those of the numbers.
fn leased(batch: Batch, token: Uuid) -> Vec<ClaimedRow> {
    let numbers = batch.numbers(Way::Leased);
    let rows = batch.taken.into_iter().filter(|(way, _)| *way == Way::Leased);
    rows.map(|(_, Arrived { row, .. })| {
        let mut lease = row.lease(token);
        let place = numbers.partition_point(|number| *number < row.seq);
        Place::enter(place, &mut lease);
        row.claimed(lease)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_name_every_number_once() {
        for (numbers, ends) in
            [(vec![], vec![]), (vec![7], vec![6, 7]), (vec![3, 4, 5, 9, 11, 12], vec![2, 5, 8, 9, 10, 12])]
        {
            assert_eq!(runs(&numbers), ends);
        }
    }
}
