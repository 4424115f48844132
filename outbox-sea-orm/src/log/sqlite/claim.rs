//! A claim: what is examined of the log, which of it is leased with a range, and what goes to the group's own table.

use std::collections::{BTreeMap, HashMap, HashSet};

use outbox_core::{ClaimRequest, Result};
use sea_orm::{QueryResult, Value};
use uuid::Uuid;

use super::{Leased, Steps, digits, json, transaction};
use crate::dialect::Dialect;
use crate::log::LogGroup;
use crate::log::claim::{Taken, unknown};
use crate::log::range::{MAX_MESSAGES, Place};
use crate::row::{ClaimedRow, ToDatabase, column};

/// Leases the next range of the log and moves the group's position behind it. Of `n_examined` rows at the most, `limit` messages at
/// the most.
pub(in crate::log) async fn take(
    group: &LogGroup,
    request: &ClaimRequest,
    n_examined: i64,
    limit: usize,
) -> Result<Taken> {
    transaction(group, "claim", async |steps| {
        let examined = steps.examine(request, n_examined).await?;
        let keys = steps.held_keys(&examined).await?;
        let plan = Plan::new(&examined, &keys.held, limit, request.max_bytes);
        steps.pass(&examined, &plan, keys.leased).await?;
        let rows = steps.lease(request, &examined, &plan).await?;
        let is_all = plan.is_all && examined.n < n_examined;
        Ok(Taken { rows, is_all, n_examined: plan.n_passed })
    })
    .await
}

/// Makes what is not settled of the range that expired first messages of the group's own table.
pub(in crate::log) async fn give_up(group: &LogGroup) -> Result<()> {
    transaction(group, "claim", async |steps| {
        let rows = steps.query(&group.sqlite.log_expired, vec![group.name().into()]).await?;
        let Some(row) = rows.first() else { return Ok(()) };
        let token: Uuid = column(row, 0)?;
        let left: Vec<i64> =
            steps.leased(Some(token), false).await?.iter().map(|leased| leased.seq).collect();
        steps.pull(token, &left).await?;
        steps.execute(&group.sqlite.log_end, vec![token.into()]).await.map(drop)
    })
    .await
}

/// A row of the log that the group wants.
struct Row {
    seq: i64,
    /// On an ordered log.
    key: Option<String>,
    bytes: u64,
    is_served: bool,
}

impl Row {
    /// `None` where the statement has no row to show.
    fn decode(row: &QueryResult) -> Result<Option<Self>> {
        let Some(seq) = column(row, 3)? else { return Ok(None) };
        let bytes = u64::try_from(column::<i64>(row, 5)?).unwrap_or_default();
        Ok(Some(Self { seq, key: column(row, 4)?, bytes, is_served: column(row, 6)? }))
    }
}

/// The next rows of the log.
struct Examined {
    position: i64,
    n: i64,
    upto: i64,
    rows: Vec<Row>,
}

/// Of which keys no message may be leased with a range now, and what is leased of any.
#[derive(Default)]
struct Keys {
    held: HashSet<String>,
    leased: Vec<Leased>,
}

/// What becomes of the examined rows up to the end of the range.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    upto: i64,
    /// How many rows are passed that the group wants, or all where every one is.
    n_passed: i64,
    /// Every examined row is.
    is_all: bool,
    /// Numbers, and places in the range.
    own: Vec<(i64, usize)>,
    /// Numbers of what goes to the group's own table.
    aside: Vec<i64>,
    /// Whether the message at each place of the range is elsewhere.
    elsewhere: Vec<bool>,
    /// The keys of what goes to the group's own table.
    keys: HashSet<String>,
}

impl Plan {
    fn new(examined: &Examined, held: &HashSet<String>, limit: usize, max_bytes: Option<u64>) -> Self {
        let mut plan = Self { upto: examined.upto, n_passed: examined.n, is_all: true, ..Self::default() };
        let mut bytes = 0;
        for (n_passed, row) in examined.rows.iter().enumerate() {
            let is_held = row.key.as_ref().is_some_and(|key| held.contains(key));
            let is_own = row.is_served && !is_held;
            let is_too_much = max_bytes.is_some_and(|most| bytes + row.bytes > most) && !plan.own.is_empty();
            if is_own && (plan.own.len() == limit || is_too_much)
                || row.is_served && plan.elsewhere.len() == MAX_MESSAGES
            {
                plan.end(n_passed, row, examined);
                break;
            }
            plan.add(row, is_own);
            bytes += if is_own { row.bytes } else { 0 };
        }
        plan
    }

    /// The range ends before this row.
    fn end(&mut self, n_passed: usize, row: &Row, examined: &Examined) {
        self.is_all = false;
        self.n_passed = n_passed as i64;
        self.upto = if n_passed == 0 { examined.position } else { row.seq - 1 };
    }

    fn add(&mut self, row: &Row, is_own: bool) {
        if is_own {
            self.own.push((row.seq, self.elsewhere.len()));
        } else {
            self.aside.push(row.seq);
            self.keys.extend(row.key.clone());
        }
        if row.is_served {
            self.elsewhere.push(!is_own);
        }
    }
}

impl Steps<'_> {
    async fn examine(&self, request: &ClaimRequest, n_examined: i64) -> Result<Examined> {
        let values =
            vec![self.group.name().into(), served(request), n_examined.into(), self.is_ordered().into()];
        let rows = self.query(&self.group.sql.log_claim, values).await?;
        let first = rows.first().ok_or_else(|| unknown(self.group))?;
        let position = column(first, 0)?;
        Ok(Examined {
            position,
            n: column(first, 1)?,
            upto: column::<Option<i64>>(first, 2)?.unwrap_or(position),
            rows: rows.iter().filter_map(|row| Row::decode(row).transpose()).collect::<Result<_>>()?,
        })
    }

    /// A key is held when a message of it is leased with a range, is in the group's own table, or goes there now.
    async fn held_keys(&self, examined: &Examined) -> Result<Keys> {
        let keys: HashSet<&str> = examined.rows.iter().filter_map(|row| row.key.as_deref()).collect();
        if keys.is_empty() {
            return Ok(Keys::default());
        }
        let keys: Vec<&str> = keys.into_iter().collect();
        let rows = self.query(&self.group.sqlite.log_held, vec![json(keys)]).await?;
        let mut held: HashSet<String> = rows.iter().map(|row| column(row, 0)).collect::<Result<_>>()?;
        let leased = self.leased(None, true).await?;
        held.extend(leased.iter().filter_map(|leased| leased.key.clone()));
        let unserved = examined.rows.iter().filter(|row| !row.is_served);
        held.extend(unserved.filter_map(|row| row.key.clone()));
        Ok(Keys { held, leased })
    }

    /// Moves the position, and what cannot be leased with a range to the group's own table.
    async fn pass(&self, examined: &Examined, plan: &Plan, leased: Vec<Leased>) -> Result<()> {
        if plan.upto > examined.position {
            let values = vec![self.group.name().into(), plan.upto.into()];
            self.execute(&self.group.sqlite.log_move, values).await?;
        }
        self.pull_keys(plan, leased).await?;
        if !plan.aside.is_empty() {
            let values = vec![json(plan.aside.clone()), self.is_ordered().into()];
            self.execute(&self.group.sqlite.log_put_aside, values).await?;
        }
        Ok(())
    }

    /// What is leased of the keys that go to the group's own table goes there first.
    async fn pull_keys(&self, plan: &Plan, leased: Vec<Leased>) -> Result<()> {
        let mut pulled = BTreeMap::<Uuid, Vec<Leased>>::new();
        let is_pulled = |leased: &Leased| leased.key.as_ref().is_some_and(|key| plan.keys.contains(key));
        for leased in leased.into_iter().filter(is_pulled) {
            pulled.entry(leased.token).or_default().push(leased);
        }
        let tokens: Vec<Uuid> = pulled.keys().copied().collect();
        if tokens.is_empty() {
            return Ok(());
        }
        for mut range in self.ranges(&tokens).await? {
            let leased = pulled.remove(&range.token).unwrap_or_default();
            self.pull_from(&mut range, &leased).await?;
            self.keep(range.token, &range.done).await?;
        }
        Ok(())
    }

    /// Enters the range and reads its messages, in their order.
    async fn lease(
        &self,
        request: &ClaimRequest,
        examined: &Examined,
        plan: &Plan,
    ) -> Result<Vec<ClaimedRow>> {
        if plan.own.is_empty() {
            return Ok(Vec::new());
        }
        let token = Uuid::new_v4();
        let is_whole = !plan.elsewhere.contains(&true);
        let done = (!is_whole).then(|| digits(&plan.elsewhere));
        let values: Vec<Value> = vec![
            token.into(),
            self.group.name().into(),
            examined.position.into(),
            plan.upto.into(),
            served(request),
            (plan.elsewhere.len() as i64).into(),
            done.into(),
            request.lease.millis().into(),
        ];
        self.execute(&self.group.sqlite.log_range, values).await?;
        let places: HashMap<i64, usize> = plan.own.iter().copied().collect();
        let numbers: Vec<i64> = plan.own.iter().map(|(seq, _)| *seq).collect();
        let rows = self.query(&self.group.sqlite.log_take, vec![json(numbers)]).await?;
        let decode = |row| ClaimedRow::decode(Dialect::Sqlite, row, token);
        let mut rows: Vec<ClaimedRow> = rows.iter().map(decode).collect::<Result<_>>()?;
        rows.sort_unstable_by_key(ClaimedRow::locator);
        for lease in rows.iter_mut().filter_map(ClaimedRow::lease_mut) {
            let place = places.get(&lease.locator).copied().unwrap_or_default();
            Place::enter(place, lease);
        }
        Ok(rows)
    }
}

fn served(request: &ClaimRequest) -> Value {
    request.topics.as_ref().map(|topics| serde_json::json!(topics).to_string()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows behind position 10 whose words are number, key or `-`, size, and whether it is served.
    fn examined(rows: &str) -> Examined {
        let row = |text: &str| {
            let words: Vec<&str> = text.split(' ').collect();
            let key = (words[1] != "-").then(|| words[1].to_owned());
            let (seq, bytes) = (words[0].parse().expect("number"), words[2].parse().expect("size"));
            Row { seq, key, bytes, is_served: words[3] == "served" }
        };
        let rows: Vec<Row> = rows.split(", ").map(row).collect();
        Examined { position: 10, n: rows.len() as i64 + 1, upto: 99, rows }
    }

    fn plan(
        rows: &str,
        held: &str,
        limit: usize,
        max_bytes: Option<u64>,
    ) -> (i64, Vec<i64>, Vec<i64>, String) {
        let held = held.split_whitespace().map(str::to_owned).collect();
        let Plan { upto, own, aside, elsewhere, .. } = Plan::new(&examined(rows), &held, limit, max_bytes);
        (upto, own.into_iter().map(|(seq, _)| seq).collect(), aside, digits(&elsewhere))
    }

    #[test]
    fn range_ends_before_what_is_too_much() {
        let rows = "11 - 5 served, 20 - 5 served, 30 - 5 served";
        let own = |numbers: &[i64]| numbers.to_vec();
        assert_eq!(plan(rows, "", 9, None), (99, own(&[11, 20, 30]), own(&[]), "000".into()));
        assert_eq!(plan(rows, "", 2, None), (29, own(&[11, 20]), own(&[]), "00".into()));
        assert_eq!(plan(rows, "", 9, Some(9)), (19, own(&[11]), own(&[]), "0".into()));
        assert_eq!(plan(rows, "", 9, Some(1)), (19, own(&[11]), own(&[]), "0".into()), "one always fits");
        assert_eq!(plan(rows, "", 0, None), (10, own(&[]), own(&[]), String::new()), "nothing is passed");
    }

    #[test]
    fn what_cannot_be_leased_is_put_aside() {
        let rows = "11 a 5 served, 12 b 5 served, 13 - 5 other, 14 a 5 served, 15 b 5 served";
        assert_eq!(plan(rows, "a", 9, None), (99, vec![12, 15], vec![11, 13, 14], "1010".into()));
        assert_eq!(plan(rows, "a b", 0, None), (99, vec![], vec![11, 12, 13, 14, 15], "1111".into()));
    }
}
