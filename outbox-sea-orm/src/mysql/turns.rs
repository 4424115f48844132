//! Claims on an ordered table. One statement reads, without locks, what may be taken, and one takes of it what it can lock.
//! Meanwhile a message can only cease to be in the way of those behind it: docs/decisions/020.

use std::collections::{HashMap, HashSet};

use outbox_core::{Outcome, Result, Settlement, recovery_group};
use sea_orm::sea_query::Values;
use sea_orm::{QueryResult, Value};
use serde_json::json;
use uuid::Uuid;

use super::walk::{Named, Walk};
use super::{Claiming, max_attempts, max_bytes, n_topics, topics};
use crate::repository::Ordered;
use crate::row::{ClaimedRow, ToDatabase, column};
use crate::turns::{keyless_share, reached_key};

/// The most rows of one page, which is twice as large after each in which nothing could be taken.
const MAX_PAGE: usize = 4_096;
/// How many pages are read for the sake of more keys when there are enough messages.
const MAX_PAGES: usize = 2;
/// The most expired messages that are looked at.
const MAX_EXPIRED: i64 = 1_000;

/// A message that may be taken: only together with those before it in its run.
struct Candidate {
    /// Which of the keys.
    turn: usize,
    /// Its place in the run, from 1.
    place: usize,
    number: i64,
}

/// One row of a page.
struct Ready {
    key: String,
    number: i64,
    is_served: bool,
    /// In the first row of a key: the lowest number that is in the way of those behind it.
    barrier: Option<i64>,
}

impl Ready {
    fn decode(row: &QueryResult) -> Result<Self> {
        Ok(Self {
            key: column(row, 0)?,
            number: column(row, 1)?,
            is_served: column(row, 2)?,
            barrier: column(row, 3)?,
        })
    }
}

impl Named for Ready {
    fn name(&self) -> &str {
        &self.key
    }
}

/// Of each key the messages that may be taken, with one turn a key beginning at `turn`.
fn runs(page: &[Ready], turn: usize) -> Vec<Candidate> {
    let of_keys = page.chunk_by(|one, other| one.key == other.key);
    let runs = of_keys.map(|rows| {
        let barrier = rows.first().and_then(|row| row.barrier).unwrap_or(0);
        rows.iter().take_while(move |row| row.is_served && row.number < barrier).collect::<Vec<_>>()
    });
    let runs = runs.filter(|run| !run.is_empty()).zip(turn..);
    runs.flat_map(|(run, turn)| {
        let places = run.into_iter().zip(1..);
        places.map(move |(row, place)| Candidate { turn, place, number: row.number })
    })
    .collect()
}

/// As the statements take them.
fn named(candidates: &[Candidate]) -> Value {
    let row = |Candidate { turn, place, number }: &Candidate| json!([number, turn, place]);
    json!(candidates.iter().map(row).collect::<Vec<_>>()).to_string().into()
}

impl Claiming<'_> {
    /// Whether messages were there that another claim holds.
    pub(super) async fn take_turns(&mut self, ordered: &Ordered) -> Result<bool> {
        let mut walk = Walk::behind(&self.memory.key, 2 * self.request.limit + 16);
        let mut is_passed_over = false;
        loop {
            let candidates = self.candidates(ordered, &mut walk).await?;
            is_passed_over |= !candidates.is_empty();
            self.take_candidates(ordered, &candidates).await?;
            if !self.claim.is_empty() || walk.is_over {
                return Ok(is_passed_over);
            }
        }
    }

    /// The first messages of as many keys as the limit, or of fewer keys that have enough behind them.
    async fn candidates(&self, ordered: &Ordered, walk: &mut Walk) -> Result<Vec<Candidate>> {
        let limit = self.request.limit;
        let mut found: Vec<Candidate> = Vec::new();
        let mut n_keys = 0;
        let mut n_pages = 0;
        while !walk.is_over && n_keys < limit && (found.len() < limit || n_pages < MAX_PAGES) {
            let mut page = self.page(ordered, walk).await?;
            walk.go_on(&mut page);
            n_pages += 1;
            found.extend(runs(&page, n_keys));
            n_keys = found.last().map_or(0, |last| last.turn + 1);
            if found.is_empty() {
                walk.n_rows = (2 * walk.n_rows).min(MAX_PAGE);
            }
        }
        found.sort_unstable_by_key(|candidate| (candidate.place, candidate.turn));
        found.truncate(limit);
        Ok(found)
    }

    async fn page(&self, ordered: &Ordered, walk: &Walk) -> Result<Vec<Ready>> {
        let sql = crate::sql::repeat_list(&self.inner.mysql.sql.turns, n_topics(self.request));
        let mut values = topics(self.request);
        values.extend([
            i16::from(ordered.blocks).into(),
            walk.from.as_str().into(),
            (walk.n_rows as i64).into(),
        ]);
        let rows = self.table.query("claim", self.table.hot()?, &sql, Values(values)).await?;
        rows.iter().map(Ready::decode).collect()
    }

    /// Takes candidates, and messages without a key.
    async fn take_candidates(&mut self, ordered: &Ordered, candidates: &[Candidate]) -> Result<()> {
        let sql = crate::sql::repeat_list(&ordered.sql.claim_ordered, n_topics(self.request));
        let token = Uuid::new_v4();
        let limit = self.request.limit as i64;
        let share = keyless_share(self.request.limit, token);
        // what stands behind a head that this claim makes dead is not taken where that blocks
        let is_sure = |one: &&Candidate| !ordered.blocks || one.place == 1;
        let n_sure = candidates.iter().filter(is_sure).count() as i64;
        let most = limit - n_sure.min(limit - share);
        let mut values = vec![max_attempts(self.request).into(), named(candidates), share.into()];
        values.extend(topics(self.request));
        values.extend([most.into(), i16::from(ordered.blocks).into(), max_attempts(self.request).into()]);
        values.extend([limit.into(), max_bytes(self.request), token.into()]);
        values.push(self.request.lease.micros().into());
        let rows = self.take(&sql, values, token).await?;
        let rows = self.keep_whole(rows, candidates, ordered.blocks).await?;
        if let Some(key) = reached_key(&self.memory.key, &rows) {
            self.memory.key = key;
        }
        self.add(rows).await
    }

    /// A group of those whose lease has expired and that no message of their key precedes.
    pub(super) async fn recover_turns(&mut self, ordered: &Ordered) -> Result<Vec<ClaimedRow>> {
        let (candidates, attempts) = self.expired(ordered).await?;
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let token = Uuid::new_v4();
        let mut values = vec![named(&candidates), attempts.into(), max_bytes(self.request), token.into()];
        values.push(self.request.lease.micros().into());
        let rows = self.take(&ordered.sql.recover_ordered, values, token).await?;
        self.keep_whole(rows, &candidates, ordered.blocks).await
    }

    /// Leaves out what stands in a run behind a message that was leased and not read: its lease has expired in between, and it may
    /// be somebody else's by now. What is left out is released. A message that has become dead is not in the way, unless it blocks.
    async fn keep_whole(
        &self,
        rows: Vec<ClaimedRow>,
        candidates: &[Candidate],
        blocks: bool,
    ) -> Result<Vec<ClaimedRow>> {
        let mut here: HashSet<i64> = rows.iter().map(ClaimedRow::locator).collect();
        let mut behind = behind_missing(candidates, &here);
        if !blocks && rows.iter().any(|row| behind.contains(&row.locator())) {
            here.extend(self.dead_of(candidates).await?);
            behind = behind_missing(candidates, &here);
        }
        let (left, whole): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| behind.contains(&row.locator()));
        let leases = left.iter().filter_map(ClaimedRow::lease);
        let settlements: Vec<_> = leases.map(|lease| Settlement::new(lease, Outcome::Release)).collect();
        if !settlements.is_empty() {
            // a lease lost meanwhile is somebody else's
            let _ = crate::settle::settle(self.table, settlements).await?;
        }
        Ok(whole)
    }

    async fn dead_of(&self, candidates: &[Candidate]) -> Result<Vec<i64>> {
        let numbers: Vec<i64> = candidates.iter().map(|one| one.number).collect();
        let values = Values(vec![json!(numbers).to_string().into()]);
        let rows =
            self.table.query("claim", self.table.hot()?, &self.inner.mysql.sql.are_dead, values).await?;
        rows.iter().map(|row| column(row, 0)).collect()
    }

    /// Expired messages that may be recovered together, and how many attempts each has had.
    async fn expired(&self, ordered: &Ordered) -> Result<(Vec<Candidate>, u32)> {
        let sql = crate::sql::repeat_list(&self.inner.mysql.sql.expired, n_topics(self.request));
        let mut values: Vec<Value> = vec![i16::from(ordered.blocks).into()];
        for _ in 0..2 {
            values.push(max_attempts(self.request).into());
            values.extend(topics(self.request));
        }
        values.push(MAX_EXPIRED.into());
        let rows = self.table.query("claim", self.table.hot()?, &sql, Values(values)).await?;
        let rows = rows.iter().map(|row| Ok((column(row, 0)?, column(row, 1)?, column(row, 2)?)));
        let rows = rows.collect::<Result<Vec<(i64, Option<String>, i32)>>>()?;
        let attempts = rows.first().map_or(0, |row| u32::try_from(row.2).unwrap_or(0));
        let mut candidates = alike(rows);
        candidates.truncate(recovery_group(self.request.limit, attempts, self.request.max_attempts));
        Ok((candidates, attempts))
    }
}

/// What stands in its run behind one that is not here.
fn behind_missing(candidates: &[Candidate], here: &HashSet<i64>) -> HashSet<i64> {
    let mut first_missing = HashMap::<usize, usize>::new();
    for Candidate { turn, place, .. } in candidates.iter().filter(|one| !here.contains(&one.number)) {
        let first = first_missing.entry(*turn).or_insert(*place);
        *first = (*first).min(*place);
    }
    let is_behind = |one: &&Candidate| first_missing.get(&one.turn).is_some_and(|first| one.place > *first);
    candidates.iter().filter(is_behind).map(|one| one.number).collect()
}

/// Those with as many attempts as the first, of each key up to the first with another number of them. The rows, of number, key
/// and attempts, are sorted by number.
fn alike(rows: Vec<(i64, Option<String>, i32)>) -> Vec<Candidate> {
    let first = rows.first().map(|row| row.2);
    let mut runs = HashMap::<String, (usize, usize)>::new();
    let mut stopped = HashSet::new();
    let mut found = Vec::new();
    for (turn, (number, key, attempts)) in rows.into_iter().enumerate() {
        if key.as_ref().is_some_and(|key| stopped.contains(key)) {
            continue;
        }
        if Some(attempts) != first {
            stopped.extend(key);
            continue;
        }
        let (turn, place) = match key {
            Some(key) => *runs.entry(key).and_modify(|run| run.1 += 1).or_insert((turn, 1)),
            None => (turn, 1),
        };
        found.push(Candidate { turn, place, number });
    }
    found
}
