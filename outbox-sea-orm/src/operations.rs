use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use outbox_core::{
    BlockedKey, BlockedPage, BlockedQuery, Blocker, Context, DeadLetter, DeadLetterFilter, DeadLetterPage,
    DeadLetterQuery, Enqueued, Error, ErrorKind, FailedAttempt, Finding, Inspect, MAX_BEHIND, MAX_COUNTED,
    MessageId, Moved, Operations, Prunable, Prune, Result, Stats, TopicStats, Unblocked, validate_key,
    validate_limit,
};
use sea_orm::sea_query::Values;
use sea_orm::{QueryResult, Value};
use serde_json::Value as Json;

use crate::context::SeaOrmContext;
use crate::dialect::Dialect;
use crate::repository::{Ordered, OutboxTable};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use crate::row::ids as ids_of;
use crate::row::{column, duration, from_duration, readable, time};
use crate::sql::Kind;

/// SQLite takes 32,766 parameters.
const MAX_IDS: usize = 10_000;

impl Operations for OutboxTable {
    /// On PostgreSQL over the connections of the claims, whose plans are fixed.
    async fn stats(&self) -> Result<Stats> {
        let sql = &self.table()?.sql;
        let limit = (MAX_COUNTED as i64 + 1).into();
        let limit = Values(self.repeated(vec![limit], 5)?);
        let mut counts = self.counts(&sql.stats, limit).await?;
        let large = counts.large_states();
        if !large.is_empty() {
            counts.project(&large, self.counts(&sql.stats_sample, Values(Vec::new())).await?);
        }
        Ok(Stats::new(counts.topics()).with_estimate(!large.is_empty()))
    }

    async fn dead_letters(&self, query: DeadLetterQuery) -> Result<DeadLetterPage> {
        query.validate()?;
        let table = self.table()?;
        let mut values = filter_values(table.dialect, &query.filter);
        values.extend([query.after.unwrap_or(0).into(), (query.limit as i64).into()]);
        let rows = self.query("list dead letters", &self.db, &table.sql.dead_letters, Values(values)).await?;
        let letters = rows.iter().map(|row| dead_letter(table.dialect, row)).collect::<Result<Vec<_>>>()?;
        let last = rows.last().filter(|_| letters.len() == query.limit);
        Ok(DeadLetterPage { letters, next: last.map(|row| column(row, 0)).transpose()? })
    }

    async fn redrive(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        let table = self.table()?;
        #[cfg(feature = "mysql")]
        if table.draws_numbers() {
            return self.move_dead("redrive", &table.mysql.sql.redrive_behind, ids, &[]).await;
        }
        // behind a dead letter that blocks, its place is kept for it
        let keeps = table.dead_blocks();
        self.move_dead("redrive", &table.sql.redrive, ids, &[keeps.into()]).await
    }

    async fn redrive_matching(&self, filter: DeadLetterFilter, limit: usize) -> Result<u64> {
        let table = self.table()?;
        #[cfg(feature = "mysql")]
        if table.draws_numbers() {
            let sql = &table.mysql.sql.redrive_matching_behind;
            return Ok(self.move_matching("redrive", sql, &filter, limit, &[]).await? / 2);
        }
        let keeps = table.dead_blocks();
        self.move_matching("redrive", &table.sql.redrive_matching, &filter, limit, &[keeps.into()]).await
    }

    async fn discard(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        self.move_dead("discard", &self.table()?.sql.discard, ids, &[]).await
    }

    async fn discard_matching(&self, filter: DeadLetterFilter, limit: usize) -> Result<u64> {
        self.move_matching("discard", &self.table()?.sql.discard_matching, &filter, limit, &[]).await
    }

    async fn blocked_keys(&self, query: BlockedQuery) -> Result<BlockedPage> {
        query.validate()?;
        let operation = "list blocked keys";
        let ordered = self.ordered_table(operation)?;
        #[cfg(feature = "mysql")]
        if self.table()?.dialect == Dialect::MySql {
            return crate::mysql::keys::blocked(self, operation, ordered, query).await;
        }
        let (n, most) = (query.limit as i64, MAX_BEHIND as i64 + 1);
        let values = [query.from.unwrap_or_default().into(), n.into(), ordered.blocks.into(), most.into()];
        let sql = &ordered.keys.blocked_keys;
        let rows = self.query(operation, self.hot()?, sql, Values(values.to_vec())).await?;
        let (looked_at, next) = rows.split_at(rows.len().min(query.limit));
        let dialect = self.table()?.dialect;
        let keys = looked_at.iter().map(|row| blocked_key(dialect, row));
        Ok(BlockedPage {
            keys: keys.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect(),
            next: next.first().map(|row| column(row, 0)).transpose()?,
        })
    }

    async fn skip_head(&self, key: String, head: MessageId) -> Result<Unblocked> {
        let ordered = self.ordered_table("skip head")?;
        self.unblock("skip head", ordered, &ordered.keys.skip_head, key, head).await
    }

    async fn release_head(&self, key: String, head: MessageId) -> Result<Unblocked> {
        let ordered = self.ordered_table("release head")?;
        self.unblock("release head", ordered, &ordered.keys.release_head, key, head).await
    }

    async fn history(&self, id: MessageId) -> Result<Vec<FailedAttempt>> {
        let rows =
            self.query("read history", &self.db, &self.table()?.sql.history, Values(vec![id.into()])).await?;
        let text = rows.first().map(|row| column::<Option<String>>(row, 0)).transpose()?.flatten();
        Ok(text.map(|text| failed_attempts(&text)).unwrap_or_default())
    }

    async fn prune(&self, prune: Prune) -> Result<u64> {
        prune.validate()?;
        if prune.dry_run {
            return self.n_prunable(prune).await;
        }
        let n_whole = self.prune_whole(&prune).await?;
        let Some(limit) = prune.limit.checked_sub(n_whole as usize).filter(|limit| *limit > 0) else {
            return Ok(n_whole);
        };
        let sql = &self.table()?.sql;
        let sql = match prune.what {
            Prunable::Done => &sql.prune_done,
            Prunable::Dead => &sql.prune_dead,
            Prunable::DedupKeys => &sql.prune_keys,
        };
        let bounds = Values(self.bounds(&prune.with_limit(limit))?.into());
        Ok(n_whole + self.execute_alone("prune", &self.db, sql, bounds).await?)
    }

    async fn ping(&self) -> Result<()> {
        self.query("ping", &self.db, &self.table()?.sql.ping, Values(Vec::new())).await.map(drop)
    }

    async fn check(&self) -> Result<()> {
        crate::schema::check(
            &self.db,
            self.table()?.dialect,
            Kind::Outbox,
            &self.name,
            &self.table()?.declared,
        )
        .await
    }

    /// Takes two seconds where notifications do not arrive. On PostgreSQL it needs a connection for the listener.
    async fn doctor(&self, patience: Duration) -> Result<Vec<Finding>> {
        crate::doctor::doctor(self, patience).await
    }
}

impl Inspect for OutboxTable {
    async fn enqueued(&self, cx: &Context, limit: usize) -> Result<Vec<Enqueued>> {
        validate_limit(limit)?;
        let sql = &self.table()?.sql.enqueued;
        let values = Values(vec![(limit as i64).into()]);
        let rows = if cx.has_transaction() {
            let connection = cx.connection()?;
            self.require_same_backend(connection)?;
            self.query("list enqueued", connection, sql, values).await?
        } else {
            self.query("list enqueued", &self.db, sql, values).await?
        };
        let dialect = self.table()?.dialect;
        rows.iter().rev().map(|row| enqueued(dialect, row)).collect()
    }
}

impl OutboxTable {
    fn ordered_table(&self, operation: &'static str) -> Result<&Ordered> {
        self.table()?.ordered.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, operation)
                .with_table(&self.name)
                .with_detail("the table is not declared ordered")
        })
    }

    async fn unblock(
        &self,
        operation: &'static str,
        ordered: &Ordered,
        sql: &str,
        key: String,
        head: MessageId,
    ) -> Result<Unblocked> {
        validate_key(&key)?;
        // the statement itself says so elsewhere
        #[cfg(feature = "mysql")]
        if self.table()?.dialect == Dialect::MySql
            && !crate::mysql::keys::is_head(self, operation, ordered, &key, head).await?
        {
            return Ok(Unblocked::NotBlocking);
        }
        let values = Values(vec![head.into(), key.into(), ordered.blocks.into()]);
        Ok(match self.execute_alone(operation, &self.db, sql, values).await? {
            0 => Unblocked::NotBlocking,
            _ => Unblocked::Applied,
        })
    }

    /// The values, `n` times where parameters have no numbers.
    fn repeated(&self, values: Vec<Value>, n: usize) -> Result<Vec<Value>> {
        Ok(match self.table()?.dialect {
            #[cfg(feature = "mysql")]
            Dialect::MySql => vec![values; n].concat(),
            #[allow(unreachable_patterns, reason = "there may be no other")]
            _ => {
                let _ = n;
                values
            }
        })
    }

    /// Removes, or counts, what leaves in whole partitions.
    async fn prune_whole(&self, prune: &Prune) -> Result<u64> {
        #[cfg(feature = "postgres")]
        return match (prune.what, prune.dry_run) {
            (Prunable::Dead | Prunable::DedupKeys, _) => Ok(0),
            (Prunable::Done, false) => crate::partitions::prune(self, prune.older_than, prune.limit).await,
            (Prunable::Done, true) => {
                crate::partitions::count_prunable(self, prune.older_than, prune.limit).await
            }
        };
        #[cfg(not(feature = "postgres"))]
        {
            let _ = prune;
            Ok(0)
        }
    }

    /// Age and limit.
    fn bounds(&self, prune: &Prune) -> Result<[Value; 2]> {
        Ok([duration(self.table()?.dialect, prune.older_than).into(), (prune.limit as i64).into()])
    }

    async fn n_prunable(&self, prune: Prune) -> Result<u64> {
        let n_whole = self.prune_whole(&prune).await?;
        if n_whole >= prune.limit as u64 {
            return Ok(n_whole);
        }
        let sql = &self.table()?.sql;
        let [age, limit] = self.bounds(&prune)?;
        let of_state = |state: i16, age| self.repeated(vec![state.into(), age], 2);
        let (sql, mut values) = match prune.what {
            Prunable::Done => (&sql.count_prunable, of_state(State::DONE, age)?),
            Prunable::Dead => (&sql.count_prunable, of_state(State::DEAD, age)?),
            Prunable::DedupKeys => (&sql.count_expired_keys, vec![age]),
        };
        values.push(limit);
        let rows = self.query("prune", &self.db, sql, Values(values)).await?;
        rows.first().map_or(Ok(0), |row| count(row, 0))
    }

    pub(crate) async fn counts(&self, sql: &str, values: Values) -> Result<Counts> {
        let dialect = self.table()?.dialect;
        let rows = self.query("stats", self.hot()?, sql, values).await?;
        let mut counts = Counts::default();
        for row in rows {
            counts.add(column(&row, 0)?, column(&row, 1)?, StateStats::decode(dialect, &row)?);
        }
        Ok(counts)
    }

    /// Runs a statement that takes ids of dead letters and returns those that it moved. An id that is named
    /// twice is moved once.
    async fn move_dead(
        &self,
        operation: &'static str,
        sql: &str,
        ids: Vec<MessageId>,
        rest: &[Value],
    ) -> Result<Vec<Moved>> {
        let mut seen = HashSet::new();
        let unique: Vec<MessageId> = ids.iter().copied().filter(|id| seen.insert(*id)).collect();
        let mut moved = HashSet::new();
        for chunk in unique.chunks(MAX_IDS) {
            moved.extend(self.moved(operation, sql, chunk, rest).await?);
        }
        Ok(ids.iter().map(|id| if moved.remove(id) { Moved::Applied } else { Moved::NotDead }).collect())
    }

    async fn move_matching(
        &self,
        operation: &'static str,
        sql: &str,
        filter: &DeadLetterFilter,
        limit: usize,
        rest: &[Value],
    ) -> Result<u64> {
        filter.validate_with_limit(limit)?;
        let mut values = filter_values(self.table()?.dialect, filter);
        values.push((limit as i64).into());
        values.extend_from_slice(self.numbering(rest)?);
        self.execute_alone(operation, &self.db, sql, Values(values)).await
    }

    /// What statements are told of ordered tables; on MySQL it stands in the rows.
    fn numbering<'a>(&self, rest: &'a [Value]) -> Result<&'a [Value]> {
        Ok(match self.table()?.dialect {
            #[cfg(feature = "mysql")]
            Dialect::MySql => &[],
            #[allow(unreachable_patterns, reason = "there may be no other")]
            _ => rest,
        })
    }

    async fn moved(
        &self,
        operation: &'static str,
        sql: &str,
        ids: &[MessageId],
        rest: &[Value],
    ) -> Result<Vec<MessageId>> {
        #[cfg(any(feature = "postgres", feature = "sqlite"))]
        let with_rest = |values: Vec<Value>| Values([values, rest.to_vec()].concat());
        match self.table()?.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => {
                let values = with_rest(vec![ids.to_vec().into()]);
                ids_of(&self.query_alone(operation, &self.db, sql, values).await?)
            }
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => {
                let values = ids.iter().map(|id| (*id).into()).collect();
                let sql = crate::sql::repeat_values(sql, ids.len());
                ids_of(&self.query(operation, &self.db, &sql, with_rest(values)).await?)
            }
            #[cfg(feature = "mysql")]
            Dialect::MySql => {
                let _ = rest;
                crate::mysql::move_dead(self, operation, sql, ids).await
            }
        }
    }
}

/// The five values of the filter in the statements on dead letters.
fn filter_values(dialect: Dialect, filter: &DeadLetterFilter) -> Vec<Value> {
    let age = |age: Option<Duration>| age.map(|age| duration(dialect, age));
    let values: [Value; 5] = [
        filter.topic.clone().into(),
        filter.key.clone().into(),
        filter.error.clone().into(),
        age(filter.min_age).into(),
        age(filter.max_age).into(),
    ];
    match dialect {
        // parameters have no numbers
        #[cfg(feature = "mysql")]
        Dialect::MySql => values.into_iter().flat_map(|value| [value.clone(), value]).collect(),
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => values.to_vec(),
    }
}

fn enqueued(dialect: Dialect, row: &QueryResult) -> Result<Enqueued> {
    Ok(Enqueued { message: readable(dialect, row), delay: from_duration(dialect, column(row, 9)?) })
}

/// `key, id, topic, state, is leased, time left, error, how many are behind it`; without an id where nothing of the key
/// is left to deliver.
pub(crate) fn blocked_key(dialect: Dialect, row: &QueryResult) -> Result<Option<BlockedKey>> {
    let Some(head) = column::<Option<MessageId>>(row, 1)? else { return Ok(None) };
    let left = || column::<Option<i64>>(row, 5).map(|left| from_duration(dialect, left.unwrap_or_default()));
    let blocker = match (column::<i16>(row, 3)?, column::<bool>(row, 4)?) {
        (State::DEAD, _) => Blocker::Dead { error: column(row, 6)? },
        (State::PARKED, _) => Blocker::Waiting { due_in: left()? },
        (_, true) => Blocker::Claimed { expires_in: left()? },
        (_, false) => return Ok(None),
    };
    let n_behind = count(row, 7)?;
    let holds = n_behind > 0 || matches!(blocker, Blocker::Dead { .. });
    let blocked = || Ok(BlockedKey::new(column(row, 0)?, head, column(row, 2)?, blocker, n_behind));
    holds.then(blocked).transpose()
}

fn dead_letter(dialect: Dialect, row: &QueryResult) -> Result<DeadLetter> {
    Ok(DeadLetter {
        message: readable(dialect, row),
        error: column(row, 9)?,
        dead_at: time(dialect, row, 10).unwrap_or_default(),
    })
}

/// What stands in the column `history`; what cannot be read there is left out.
fn failed_attempts(text: &str) -> Vec<FailedAttempt> {
    let failed: Vec<Json> = serde_json::from_str(text).unwrap_or_default();
    failed.iter().filter_map(failed_attempt).collect()
}

fn failed_attempt(json: &Json) -> Option<FailedAttempt> {
    Some(FailedAttempt {
        attempt: u32::try_from(json["attempt"].as_u64()?).ok()?,
        failed_at: DateTime::parse_from_rfc3339(json["at"].as_str()?).ok()?.with_timezone(&Utc),
        error: json["error"].as_str()?.to_owned(),
    })
}

/// The values of the column `state`.
struct State;

impl State {
    const PARKED: i16 = 1;
    const DEAD: i16 = 2;
    const DONE: i16 = 3;
}

fn count(row: &QueryResult, index: usize) -> Result<u64> {
    column::<i64>(row, index).map(|count| u64::try_from(count).unwrap_or_default())
}

/// Counts by state and topic.
#[derive(Default)]
pub(crate) struct Counts(BTreeMap<(i16, String), StateStats>);

/// The messages of one state and topic.
#[derive(Default)]
struct StateStats {
    n: u64,
    n_due: u64,
    n_claimed: u64,
    n_retrying: u64,
    oldest_due: Option<Duration>,
    highest_attempt: u32,
}

impl StateStats {
    /// `state, topic, rows, due, claimed, waiting for a retry, oldest due, highest attempt`.
    fn decode(dialect: Dialect, row: &QueryResult) -> Result<Self> {
        Ok(Self {
            n: count(row, 2)?,
            n_due: count(row, 3)?,
            n_claimed: count(row, 4)?,
            n_retrying: count(row, 5)?,
            oldest_due: column::<Option<i64>>(row, 6)?.map(|age| from_duration(dialect, age)),
            highest_attempt: u32::try_from(column::<i32>(row, 7)?).unwrap_or_default(),
        })
    }

    /// The greater of both, count by count.
    fn at_least(&mut self, other: &Self) {
        self.n = self.n.max(other.n);
        self.n_due = self.n_due.max(other.n_due);
        self.n_claimed = self.n_claimed.max(other.n_claimed);
        self.n_retrying = self.n_retrying.max(other.n_retrying);
        self.oldest_due = self.oldest_due.max(other.oldest_due);
        self.highest_attempt = self.highest_attempt.max(other.highest_attempt);
    }

    fn of_topic(&self, state: i16) -> TopicStats {
        match state {
            State::DEAD => TopicStats { n_dead: self.n, ..TopicStats::default() },
            State::DONE => TopicStats { n_done: self.n, ..TopicStats::default() },
            _ => TopicStats {
                n_pending: self.n.saturating_sub(self.n_claimed),
                n_due: self.n_due,
                n_retrying: self.n_retrying,
                n_claimed: self.n_claimed,
                oldest_due: self.oldest_due,
                highest_attempt: self.highest_attempt,
                ..TopicStats::default()
            },
        }
    }
}

impl Counts {
    fn add(&mut self, state: i16, topic: String, stats: StateStats) {
        self.0.insert((state, topic), stats);
    }

    /// The states of which not all rows were looked at.
    fn large_states(&self) -> HashSet<i16> {
        let mut totals = BTreeMap::<i16, u64>::new();
        for ((state, _), stats) in &self.0 {
            *totals.entry(*state).or_default() += stats.n;
        }
        totals.into_iter().filter(|(_, n)| *n > MAX_COUNTED as u64).map(|(state, _)| state).collect()
    }

    /// Takes the greater numbers of a sample for these states.
    fn project(&mut self, large: &HashSet<i16>, sample: Self) {
        for (key, stats) in sample.0.into_iter().filter(|(key, _)| large.contains(&key.0)) {
            self.0.entry(key).or_default().at_least(&stats);
        }
    }

    pub(crate) fn topics(self) -> BTreeMap<String, TopicStats> {
        let mut topics = BTreeMap::<String, TopicStats>::new();
        for ((state, topic), stats) in self.0 {
            let sum = topics.entry(topic).or_default();
            *sum = std::mem::take(sum).plus(&stats.of_topic(state));
        }
        topics
    }
}
