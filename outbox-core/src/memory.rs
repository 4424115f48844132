use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use uuid::Uuid;

use crate::lease::validate_lease;
use crate::{
    BlockedKey, BlockedPage, BlockedQuery, Blocker, Claim, ClaimRequest, Claimed, Claimer, Context,
    DEDUP_RETENTION, DeadLetter, DeadLetterFilter, DeadLetterPage, DeadLetterQuery, Declaration, Draft,
    Enqueued, Error, ErrorKind, FailedAttempt, Fairness, Finding, Headers, Inspect, Lease, Limits, Listener,
    MAX_BATCH, MAX_HISTORY, MAX_HISTORY_ERROR, Mark, Marked, Message, MessageId, Moved, OnDead, Operations,
    Outcome, Processed, ProcessedStore, Prunable, Prune, Readiness, Repository, Result, Retention, Settled,
    Settlement, Stats, TopicStats, Transactions, Unblocked, Wakeup, error_text, recovery_group,
    validate_dedup_retention, validate_drafts, validate_key, validate_limit,
};

/// An outbox, its operations and an inbox record in memory: the reference that every other backend is
/// compared with, and a double for your own tests.
///
/// Clones share one store. Time is that of the process plus what [`advance`](Self::advance) added.
///
/// # Guarantees
/// All of [`Repository`], except that nothing outlives the process. Beyond the contract:
/// * The order number of a message is drawn when its transaction commits. What a claim promotes, a release
///   or a redrive makes claimable gets a new one, except for messages with a key of an [ordered](Self::ordered)
///   store, which keep theirs. A [`Lease::locator`] is that number.
/// * A claim first promotes what is due of every topic, by due time, at most [`MAX_BATCH`] messages.
/// * Messages out of attempts count towards the limits of the claim that makes them dead.
/// * Whoever would write what another open transaction has written waits for its end, in `enqueue` for the
///   same id or deduplication key, in `mark_processed` for the same group and id. Two transactions that wait for each other:
///   the second gets [`ErrorKind::Contention`].
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use outbox_core::{ClaimRequest, Draft, MemoryRepository, Repository, Transactor};
/// # async fn example() -> outbox_core::Result<()> {
/// let outbox = MemoryRepository::new();
/// let later = Draft::new("reminder", "7").delay(Duration::from_secs(3600));
/// Transactor::over(outbox.clone()).run(async |cx| outbox.enqueue(cx, vec![later]).await).await?;
///
/// let request = ClaimRequest::new(10, Duration::from_secs(30));
/// assert!(outbox.claim(request.clone()).await?.is_empty());
/// outbox.advance(Duration::from_secs(3600));
/// assert_eq!(outbox.claim(request).await?.messages.len(), 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct MemoryRepository {
    shared: Arc<Shared>,
    limits: Limits,
    retention: Retention,
    dedup_retention: Duration,
}

impl Default for MemoryRepository {
    fn default() -> Self {
        Self {
            shared: Arc::default(),
            limits: Limits::default(),
            retention: Retention::default(),
            dedup_retention: DEDUP_RETENTION,
        }
    }
}

impl MemoryRepository {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the bounds that this handle and its later clones check drafts against.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets what becomes of messages that this handle and its later clones settle as done.
    #[must_use]
    pub fn with_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Sets how long the deduplication keys of what this handle and its later clones enqueue are honoured: more than
    /// zero, at most [`MAX_DELAY`](crate::MAX_DELAY).
    #[must_use]
    pub fn with_dedup_retention(mut self, retention: Duration) -> Self {
        self.dedup_retention = retention;
        self
    }

    /// Declares the store ordered, for all its handles; see [`Declaration::ordered`]. Do it before the first message.
    #[must_use]
    pub fn ordered(self, on_dead: OnDead) -> Self {
        let declared = self.shared.with(|store| store.declared.clone());
        self.declared(declared.ordered(on_dead))
    }

    /// Declares that claims of the store take turns, message by message; see [`Declaration::fair`]. Do it before the first message.
    #[must_use]
    pub fn fair(self, fairness: Fairness) -> Self {
        let declared = self.shared.with(|store| store.declared.clone());
        self.declared(declared.fair(fairness))
    }

    /// Declares all at once.
    #[must_use]
    pub fn declared(self, declared: Declaration) -> Self {
        self.shared.with(|store| store.declared = declared);
        self
    }

    /// Moves the store's clock forward, and hints at what may have become due.
    pub fn advance(&self, by: Duration) {
        self.shared.with(|store| {
            store.clock.advance(by);
            store.hint();
        });
    }

    fn transaction<'a>(&self, cx: &'a Context) -> Result<&'a MemoryTransaction> {
        let transaction: &MemoryTransaction = cx.transaction()?;
        self.check_own(transaction)?;
        Ok(transaction)
    }

    fn check_own(&self, transaction: &MemoryTransaction) -> Result<()> {
        match Arc::ptr_eq(&self.shared, &transaction.shared) {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::ForeignTransaction, "context")),
        }
    }
}

impl fmt::Debug for MemoryRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRepository").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Repository for MemoryRepository {
    async fn enqueue(&self, cx: &Context, mut drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        let transaction = self.transaction(cx)?;
        drafts.iter_mut().for_each(|draft| cx.add_trace_headers(&mut draft.headers));
        validate_drafts(&drafts, &self.limits)?;
        validate_dedup_retention(self.dedup_retention)?;
        transaction.attempt(|store, id| store.enqueue(id, &drafts, self.dedup_retention)).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claim> {
        request.validate()?;
        self.shared.with(|store| {
            store.check_declared()?;
            Ok(store.claim(&request))
        })
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        let counts = Settlement::validate(&settlements)?;
        let settle = |store: &mut Store| {
            let now = store.clock.now();
            let settlements = settlements.into_iter().zip(counts);
            let settle = |(settlement, counts)| store.settle(settlement, counts, self.retention, now);
            settlements.map(settle).collect()
        };
        Ok(self.shared.with(settle))
    }

    async fn extend(&self, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        validate_lease("by", by)?;
        Ok(self.shared.with(|store| leases.iter().map(|lease| store.extend(lease, by)).collect()))
    }
}

impl Operations for MemoryRepository {
    async fn stats(&self) -> Result<Stats> {
        Ok(self.shared.with(|store| store.stats()))
    }

    async fn dead_letters(&self, query: DeadLetterQuery) -> Result<DeadLetterPage> {
        query.validate()?;
        Ok(self.shared.with(|store| store.dead_letters(&query)))
    }

    async fn redrive(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        Ok(self.shared.with(|store| ids.iter().map(|id| store.redrive(id)).collect()))
    }

    async fn redrive_matching(&self, filter: DeadLetterFilter, limit: usize) -> Result<u64> {
        filter.validate_with_limit(limit)?;
        Ok(self.shared.with(|store| store.move_matching(&filter, limit, Store::redrive)))
    }

    async fn discard(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        Ok(self.shared.with(|store| ids.iter().map(|id| store.discard(id)).collect()))
    }

    async fn discard_matching(&self, filter: DeadLetterFilter, limit: usize) -> Result<u64> {
        filter.validate_with_limit(limit)?;
        Ok(self.shared.with(|store| store.move_matching(&filter, limit, Store::discard)))
    }

    async fn blocked_keys(&self, query: BlockedQuery) -> Result<BlockedPage> {
        query.validate()?;
        self.shared
            .with(|store| store.require_order("list blocked keys").map(|()| store.blocked_keys(&query)))
    }

    async fn skip_head(&self, key: String, head: MessageId) -> Result<Unblocked> {
        validate_key(&key)?;
        self.shared.with(|store| store.require_order("skip head").map(|()| store.skip_head(&key, head)))
    }

    async fn release_head(&self, key: String, head: MessageId) -> Result<Unblocked> {
        validate_key(&key)?;
        self.shared.with(|store| store.require_order("release head").map(|()| store.release_head(&key, head)))
    }

    async fn history(&self, id: MessageId) -> Result<Vec<FailedAttempt>> {
        Ok(self.shared.with(|store| store.history(&id)))
    }

    async fn prune(&self, prune: Prune) -> Result<u64> {
        prune.validate()?;
        Ok(self.shared.with(|store| store.prune(&prune)))
    }

    async fn ping(&self) -> Result<()> {
        Ok(())
    }

    async fn check(&self) -> Result<()> {
        self.shared.with(|store| store.check_declared())
    }

    async fn doctor(&self, _patience: Duration) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }
}

impl Inspect for MemoryRepository {
    async fn enqueued(&self, cx: &Context, limit: usize) -> Result<Vec<Enqueued>> {
        validate_limit(limit)?;
        let transaction = cx.has_transaction().then(|| self.transaction(cx)).transpose()?;
        Ok(self.shared.with(|store| store.enqueued(transaction.map(|transaction| transaction.id), limit)))
    }
}

impl ProcessedStore for MemoryRepository {
    async fn is_processed(&self, group: &str, id: MessageId) -> Result<bool> {
        Mark::validate_group(group)?;
        Ok(self.shared.with(|store| store.processed.contains_key(&(group.to_owned(), id))))
    }

    async fn mark_processed(&self, cx: &Context, mark: Mark) -> Result<Marked> {
        let transaction = self.transaction(cx)?;
        mark.validate()?;
        transaction.attempt(|store, id| store.mark_processed(id, &mark)).await
    }

    async fn store_result(&self, cx: &Context, group: &str, id: MessageId, result: Value) -> Result<()> {
        let transaction = self.transaction(cx)?;
        Mark::validate_group(group)?;
        Mark::validate_json("result", &result)?;
        let record = (group.to_owned(), id);
        transaction.shared.with(|store| store.store_result(transaction.id, &record, result))
    }

    async fn purge_before(&self, group: &str, age: Duration, limit: usize) -> Result<u64> {
        Mark::validate_group(group)?;
        Ok(self.shared.with(|store| store.purge_before(group, age, limit)))
    }
}

impl Transactions for MemoryRepository {
    async fn begin(&self) -> Result<Context> {
        let id = self.shared.with(Store::begin);
        let transaction = MemoryTransaction { shared: Arc::clone(&self.shared), id };
        Ok(Context::new().with_transaction(Arc::new(transaction)))
    }

    async fn commit(&self, cx: Context) -> Result<()> {
        let transaction = cx.into_transaction::<MemoryTransaction>()?;
        self.check_own(&transaction)?;
        match Arc::try_unwrap(transaction) {
            Ok(transaction) => self.shared.with(|store| store.commit(transaction.id)),
            Err(escaped) => {
                escaped.roll_back();
                Err(Error::new(ErrorKind::TransactionEscaped, "commit"))
            }
        }
    }

    async fn rollback(&self, cx: Context) -> Result<()> {
        let transaction = cx.into_transaction::<MemoryTransaction>()?;
        self.check_own(&transaction)?;
        transaction.roll_back();
        Ok(())
    }
}

/// A transaction of a [`MemoryRepository`]; what it writes is kept apart until it commits.
struct MemoryTransaction {
    shared: Arc<Shared>,
    id: u64,
}

impl MemoryTransaction {
    fn roll_back(&self) {
        self.shared.with(|store| store.end(self.id));
    }

    /// Repeats `attempt` until no other open transaction is in its way.
    async fn attempt<T>(&self, mut attempt: impl FnMut(&mut Store, u64) -> Result<Attempt<T>>) -> Result<T> {
        let wait = Wait { shared: &self.shared, id: self.shared.with(Store::next_id) };
        poll_fn(|task| {
            self.shared.with(|store| match attempt(store, self.id) {
                Ok(Attempt::Finished(value)) => Poll::Ready(Ok(value)),
                Ok(Attempt::BlockedBy(other)) if store.waits_for(other, self.id) => {
                    let error = Error::new(ErrorKind::Contention, "transaction");
                    Poll::Ready(Err(error.with_detail("it waits for a transaction that waits for it")))
                }
                Ok(Attempt::BlockedBy(other)) => {
                    let waker = task.waker().clone();
                    store.waits.insert(wait.id, Waiting { transaction: self.id, other, waker });
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(error)),
            })
        })
        .await
    }
}

impl Drop for MemoryTransaction {
    fn drop(&mut self) {
        self.roll_back();
    }
}

enum Attempt<T> {
    Finished(T),
    BlockedBy(u64),
}

/// Forgets that a transaction waits, also when the waiting future is dropped.
struct Wait<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.shared.with(|store| store.waits.remove(&self.id));
    }
}

impl Wakeup for MemoryRepository {
    type Listener = MemoryListener;

    async fn listen(&self) -> Result<Option<MemoryListener>> {
        let (id, seen) = self.shared.with(|store| (store.next_id(), store.n_hints));
        Ok(Some(MemoryListener { shared: Arc::clone(&self.shared), id, seen }))
    }
}

/// The listener of a [`MemoryRepository`]: every commit with a message, release, redrive, removal of a dead letter and
/// [`advance`](MemoryRepository::advance) gives a hint.
pub struct MemoryListener {
    shared: Arc<Shared>,
    id: u64,
    seen: u64,
}

impl Listener for MemoryListener {
    async fn prepare(&mut self) -> Result<Readiness> {
        Ok(Readiness::Sleep)
    }

    async fn hint(&mut self) -> Result<()> {
        poll_fn(|task| {
            self.shared.with(|store| {
                if self.seen == store.n_hints {
                    store.sleepers.insert(self.id, task.waker().clone());
                    return Poll::Pending;
                }
                self.seen = store.n_hints;
                Poll::Ready(Ok(()))
            })
        })
        .await
    }

    async fn stand_down(&mut self) -> Result<()> {
        Ok(())
    }

    async fn probe(&mut self) -> Result<bool> {
        Ok(true)
    }
}

impl Drop for MemoryListener {
    fn drop(&mut self) {
        self.shared.with(|store| store.sleepers.remove(&self.id));
    }
}

impl fmt::Debug for MemoryListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryListener")
    }
}

#[derive(Default)]
struct Shared(Mutex<Store>);

impl Shared {
    /// Runs `f` on the store, then wakes whom it decided to wake.
    fn with<T>(&self, f: impl FnOnce(&mut Store) -> T) -> T {
        let (value, woken) = {
            let mut store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let value = f(&mut store);
            (value, mem::take(&mut store.woken))
        };
        woken.into_iter().for_each(Waker::wake);
        value
    }
}

/// The time since the store was made.
type Moment = Duration;

struct Clock {
    started: Instant,
    epoch: DateTime<Utc>,
    skipped: Duration,
}

impl Default for Clock {
    #[allow(clippy::disallowed_methods, reason = "this store's clock is that of the process")]
    fn default() -> Self {
        Self { started: Instant::now(), epoch: SystemTime::now().into(), skipped: Duration::ZERO }
    }
}

impl Clock {
    fn now(&self) -> Moment {
        self.started.elapsed().saturating_add(self.skipped)
    }

    fn advance(&mut self, by: Duration) {
        self.skipped = self.skipped.saturating_add(by);
    }

    fn date(&self, at: Moment) -> DateTime<Utc> {
        let since = TimeDelta::from_std(at).unwrap_or(TimeDelta::MAX);
        self.epoch.checked_add_signed(since).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Parked { due_at: Moment },
    Dead { at: Moment },
    Done { at: Moment },
}

struct Held {
    token: Uuid,
    until: Moment,
}

/// A stored message. Only a ready one has a lease.
struct Row {
    id: MessageId,
    topic: String,
    key: Option<String>,
    payload: Bytes,
    headers: Headers,
    created_at: Moment,
    state: State,
    lease: Option<Held>,
    attempts: u32,
    fence: i64,
    last_error: Option<String>,
    history: Vec<Failure>,
    /// Since when it has been ready, unless since it was created.
    ready_at: Option<Moment>,
}

/// Attempt, time, error.
type Failure = (u32, Moment, String);

impl Row {
    fn new(draft: &Draft, now: Moment) -> Self {
        let state = match draft.delay {
            Duration::ZERO => State::Ready,
            delay => State::Parked { due_at: now.saturating_add(delay) },
        };
        Self {
            id: draft.id,
            topic: draft.topic.clone(),
            key: draft.key.clone(),
            payload: draft.payload.clone(),
            headers: draft.headers.clone(),
            created_at: now,
            state,
            lease: None,
            attempts: 0,
            fence: 0,
            last_error: None,
            history: Vec::new(),
            ready_at: None,
        }
    }

    fn is_dead(&self) -> bool {
        matches!(self.state, State::Dead { .. })
    }

    fn is_ready(&self) -> bool {
        self.state == State::Ready && self.lease.is_none()
    }

    fn is_expired(&self, now: Moment) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.until <= now)
    }

    fn is_claimed(&self, now: Moment) -> bool {
        self.lease.is_some() && !self.is_expired(now)
    }

    fn enqueued(&self, clock: &Clock) -> Enqueued {
        let delay = match self.state {
            State::Parked { due_at } => due_at.saturating_sub(self.created_at),
            State::Ready | State::Dead { .. } | State::Done { .. } => Duration::ZERO,
        };
        Enqueued { message: self.message(clock), delay }
    }

    /// When this row will be claimable, if it is waiting for a time.
    fn due_at(&self, now: Moment) -> Option<Moment> {
        match (self.state, &self.lease) {
            (State::Parked { due_at }, _) => Some(due_at),
            (_, Some(lease)) if lease.until > now => Some(lease.until),
            _ => None,
        }
    }

    /// Since when this row has been claimable, if it is.
    fn due_since(&self, now: Moment) -> Option<Moment> {
        match (self.state, &self.lease) {
            (State::Ready, None) => Some(self.ready_at.unwrap_or(self.created_at)),
            (State::Ready, Some(lease)) => Some(lease.until).filter(|until| *until <= now),
            (State::Parked { due_at }, _) => Some(due_at).filter(|due_at| *due_at <= now),
            (State::Dead { .. } | State::Done { .. }, _) => None,
        }
    }

    /// When and how it ended.
    fn ended(&self) -> Option<(Prunable, Moment)> {
        match self.state {
            State::Done { at } => Some((Prunable::Done, at)),
            State::Dead { at } => Some((Prunable::Dead, at)),
            State::Ready | State::Parked { .. } => None,
        }
    }

    fn become_ready(&mut self) {
        if let State::Parked { due_at } = self.state {
            self.ready_at = Some(due_at);
        }
        self.state = State::Ready;
        self.lease = None;
    }

    fn become_dead(&mut self, now: Moment, error: &str) {
        self.state = State::Dead { at: now };
        self.lease = None;
        self.last_error = Some(error_text(error));
    }

    /// Remembers that the present attempt failed.
    fn fail(&mut self, at: Moment, error: &str) {
        let error = error_text(error).chars().take(MAX_HISTORY_ERROR).collect();
        self.history.push((self.attempts, at, error));
        self.history.drain(..self.history.len().saturating_sub(MAX_HISTORY));
    }

    fn message(&self, clock: &Clock) -> Message {
        Message {
            id: self.id,
            topic: self.topic.clone(),
            key: self.key.clone(),
            payload: self.payload.clone(),
            headers: self.headers.clone(),
            created_at: clock.date(self.created_at),
            attempt: self.attempts,
            fence: self.fence,
        }
    }
}

struct Record {
    fingerprint: Option<String>,
    metadata: Value,
    result: Option<Value>,
    processed_at: Moment,
}

impl Record {
    fn processed(&self, clock: &Clock) -> Processed {
        Processed {
            fingerprint: self.fingerprint.clone(),
            metadata: self.metadata.clone(),
            result: self.result.clone(),
            processed_at: clock.date(self.processed_at),
        }
    }
}

type RecordName = (String, MessageId);

/// Order number and attempts of a row.
type Place = (i64, u32);

/// The lane where the last claim of a loop ended.
#[derive(Default)]
struct LastLane(String);

/// What an open transaction has written.
#[derive(Default)]
struct Open {
    /// In the order of writing, with the place of each id.
    rows: Vec<Row>,
    places: HashMap<MessageId, usize>,
    records: BTreeMap<RecordName, Record>,
    keys: BTreeMap<String, Key>,
}

/// The first message with a deduplication key.
#[derive(Clone, Copy)]
struct Key {
    id: MessageId,
    expires_at: Moment,
}

struct Waiting {
    transaction: u64,
    other: u64,
    waker: Waker,
}

#[derive(Default)]
struct Store {
    clock: Clock,
    declared: Declaration,
    /// By order number.
    rows: BTreeMap<i64, Row>,
    places: HashMap<MessageId, i64>,
    last_seq: i64,
    processed: BTreeMap<RecordName, Record>,
    keys: BTreeMap<String, Key>,
    open: BTreeMap<u64, Open>,
    waits: BTreeMap<u64, Waiting>,
    sleepers: BTreeMap<u64, Waker>,
    n_hints: u64,
    last_id: u64,
    woken: Vec<Waker>,
}

// transactions
impl Store {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn begin(&mut self) -> u64 {
        let id = self.next_id();
        self.open.insert(id, Open::default());
        id
    }

    fn open(&mut self, transaction: u64) -> Result<&mut Open> {
        let doomed = || Error::new(ErrorKind::TransactionDoomed, "transaction");
        self.open.get_mut(&transaction).ok_or_else(doomed)
    }

    /// Ends a transaction, if it is open, and lets those go on that waited for it.
    fn end(&mut self, transaction: u64) -> Option<Open> {
        let open = self.open.remove(&transaction)?;
        let freed = self.waits.values().filter(|waiting| waiting.other == transaction);
        self.woken.extend(freed.map(|waiting| waiting.waker.clone()));
        Some(open)
    }

    fn commit(&mut self, transaction: u64) -> Result<()> {
        self.open(transaction)?;
        let open = self.end(transaction).unwrap_or_default();
        self.processed.extend(open.records);
        self.keys.extend(open.keys);
        if !open.rows.is_empty() {
            open.rows.into_iter().for_each(|row| self.insert(row));
            self.hint();
        }
        Ok(())
    }

    fn blocker(&self, transaction: u64, is_blocking: impl Fn(&Open) -> bool) -> Option<u64> {
        let mut others = self.open.iter().filter(|(id, _)| **id != transaction);
        others.find(|(_, open)| is_blocking(open)).map(|(id, _)| *id)
    }

    /// Whether `transaction` waits for `other`, also by way of further ones.
    fn waits_for(&self, transaction: u64, other: u64) -> bool {
        let mut waits = self.waits.values().filter(|waiting| waiting.transaction == transaction);
        waits.any(|waiting| waiting.other == other || self.waits_for(waiting.other, other))
    }

    fn hint(&mut self) {
        self.n_hints += 1;
        self.woken.extend(mem::take(&mut self.sleepers).into_values());
    }
}

// blocked keys
impl Store {
    fn require_order(&self, operation: &'static str) -> Result<()> {
        match self.is_ordered() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Unsupported, operation)
                .with_detail("the table is not declared ordered")),
        }
    }

    /// The messages of each key that are not over with, from a key on.
    fn keys(&self, from: &str) -> BTreeMap<&str, Vec<i64>> {
        let mut keys = BTreeMap::<&str, Vec<i64>>::new();
        for (seq, row) in &self.rows {
            if let Some(key) = row.key.as_deref().filter(|key| *key >= from && !self.is_over(row)) {
                keys.entry(key).or_default().push(*seq);
            }
        }
        keys
    }

    fn blocked_keys(&self, query: &BlockedQuery) -> BlockedPage {
        let keys = self.keys(query.from.as_deref().unwrap_or_default());
        let looked_at = keys.iter().take(query.limit);
        BlockedPage {
            keys: looked_at.filter_map(|(key, numbers)| self.blocked(key, numbers)).collect(),
            next: keys.keys().nth(query.limit).map(|key| (*key).to_owned()),
        }
    }

    fn blocked(&self, key: &str, numbers: &[i64]) -> Option<BlockedKey> {
        let waits = |seq: &&i64| self.rows.get(seq).is_some_and(|row| !row.is_dead());
        let (head, behind) = numbers.split_first()?;
        let (head, n_behind) = (self.rows.get(head)?, behind.iter().filter(waits).count());
        let blocker = self.hold(head)?;
        let holds = n_behind > 0 || head.is_dead();
        let topic = head.topic.clone();
        holds.then(|| BlockedKey::new(key.to_owned(), head.id, topic, blocker, n_behind as u64))
    }

    /// Why this row is not claimable, if it is not.
    fn hold(&self, row: &Row) -> Option<Blocker> {
        let left = |at: Moment| at.saturating_sub(self.clock.now());
        match (row.state, &row.lease) {
            (State::Dead { .. }, _) => {
                Some(Blocker::Dead { error: row.last_error.clone().unwrap_or_default() })
            }
            (State::Parked { due_at }, _) => Some(Blocker::Waiting { due_in: left(due_at) }),
            (State::Ready, Some(lease)) => Some(Blocker::Claimed { expires_in: left(lease.until) }),
            (State::Ready | State::Done { .. }, _) => None,
        }
    }

    /// The number of `head`, if it is the first of its key, and waits or is dead.
    fn head(&self, key: &str, head: MessageId) -> Option<i64> {
        let mut rows = self.rows.iter();
        let (seq, row) = rows.find(|(_, row)| row.key.as_deref() == Some(key) && !self.is_over(row))?;
        (row.id == head && row.state != State::Ready).then_some(*seq)
    }

    fn skip_head(&mut self, key: &str, head: MessageId) -> Unblocked {
        let Some(seq) = self.head(key, head) else { return Unblocked::NotBlocking };
        self.remove(seq);
        self.hint();
        Unblocked::Applied
    }

    fn release_head(&mut self, key: &str, head: MessageId) -> Unblocked {
        let Some(seq) = self.head(key, head) else { return Unblocked::NotBlocking };
        let now = self.clock.now();
        if let Some(row) = self.rows.get_mut(&seq) {
            row.attempts = if row.is_dead() { 0 } else { row.attempts };
            row.become_ready();
            row.ready_at = Some(now);
        }
        self.hint();
        Unblocked::Applied
    }
}

// messages
impl Store {
    fn enqueue(
        &mut self,
        transaction: u64,
        drafts: &[Draft],
        dedup_retention: Duration,
    ) -> Result<Attempt<Vec<MessageId>>> {
        self.open(transaction)?;
        let now = self.clock.now();
        let has_one =
            |open: &Open| drafts.iter().any(|draft| self.is_in_the_way(transaction, open, draft, now));
        if let Some(other) = self.blocker(transaction, has_one) {
            return Ok(Attempt::BlockedBy(other));
        }
        let expires_at = now.saturating_add(dedup_retention);
        let store = |draft| self.store(transaction, draft, now, expires_at);
        let stored = drafts.iter().map(store).collect::<Result<Vec<_>>>()?;
        match stored.iter().position(Option::is_none) {
            None => Ok(Attempt::Finished(stored.into_iter().flatten().collect())),
            Some(repeated) => Err(Error::new(ErrorKind::AlreadyEnqueued, "enqueue")
                .with_detail(drafts[repeated].id.to_string())),
        }
    }

    /// Whether another open transaction has written what the draft would write.
    fn is_in_the_way(&self, transaction: u64, open: &Open, draft: &Draft, now: Moment) -> bool {
        self.first_with_key(transaction, draft, now).is_none()
            && (open.places.contains_key(&draft.id)
                || draft.dedup_key.as_ref().is_some_and(|key| open.keys.contains_key(key)))
    }

    /// The id in the place of the draft; `None` when its own is there already.
    fn store(
        &mut self,
        transaction: u64,
        draft: &Draft,
        now: Moment,
        expires_at: Moment,
    ) -> Result<Option<MessageId>> {
        if let Some(first) = self.first_with_key(transaction, draft, now) {
            return Ok(Some(first));
        }
        let is_stored = self.places.contains_key(&draft.id);
        let open = self.open(transaction)?;
        if let Some(key) = draft.dedup_key.clone() {
            open.keys.insert(key, Key { id: draft.id, expires_at });
        }
        if is_stored || open.places.contains_key(&draft.id) {
            return Ok(None);
        }
        open.places.insert(draft.id, open.rows.len());
        open.rows.push(Row::new(draft, now));
        Ok(Some(draft.id))
    }

    /// The message that has taken the draft's deduplication key, as the transaction sees it.
    fn first_with_key(&self, transaction: u64, draft: &Draft, now: Moment) -> Option<MessageId> {
        let key = draft.dedup_key.as_ref()?;
        let own = self.open.get(&transaction).and_then(|open| open.keys.get(key));
        let honoured = |key: &&Key| key.expires_at > now;
        own.filter(honoured).or_else(|| self.keys.get(key).filter(honoured)).map(|key| key.id)
    }

    fn insert(&mut self, row: Row) {
        self.last_seq += 1;
        self.places.insert(row.id, self.last_seq);
        self.rows.insert(self.last_seq, row);
    }

    fn remove(&mut self, seq: i64) -> Option<Row> {
        let row = self.rows.remove(&seq)?;
        self.places.remove(&row.id);
        Some(row)
    }

    /// Makes a row claimable, as a new arrival unless its place is kept.
    fn renew(&mut self, seq: i64, keeps_place: bool) {
        match self.rows.get_mut(&seq) {
            Some(row) if keeps_place && row.key.is_some() => row.become_ready(),
            _ => {
                if let Some(mut row) = self.remove(seq) {
                    row.become_ready();
                    self.insert(row);
                }
            }
        }
    }

    fn check_declared(&self) -> Result<()> {
        if self.declared.partitioned.is_some() {
            return Err(Error::new(ErrorKind::Unsupported, "declare").with_detail("memory has no partitions"));
        }
        self.declared.validate()
    }

    fn is_ordered(&self) -> bool {
        self.declared.ordered.is_some()
    }

    fn dead_blocks(&self) -> bool {
        self.declared.ordered == Some(OnDead::Block)
    }

    /// Whether the next message of its key need not wait for it.
    fn is_over(&self, row: &Row) -> bool {
        match row.state {
            State::Done { .. } => true,
            State::Dead { .. } => !self.dead_blocks(),
            State::Ready | State::Parked { .. } => false,
        }
    }

    /// Those of the rows that may be claimed together: with every earlier one of their key, where there is an order.
    fn in_order(&self, rows: Vec<Place>) -> Vec<Place> {
        if !self.is_ordered() {
            return rows;
        }
        let mut own = HashSet::new();
        let is_next = |(seq, _): &Place| {
            let key = self.rows.get(seq).and_then(|row| row.key.as_ref());
            let mut earlier =
                self.rows.range(..seq).filter(|(_, row)| key.is_some() && row.key.as_ref() == key);
            let is_next = earlier.all(|(seq, row)| own.contains(seq) || self.is_over(row));
            if is_next {
                own.insert(*seq);
            }
            is_next
        };
        rows.into_iter().filter(is_next).collect()
    }

    /// Where a dead letter blocks its key, a claim takes nothing behind what it makes dead.
    fn before_the_dead(&self, rows: Vec<Place>, request: &ClaimRequest) -> Vec<Place> {
        let mut stopped = HashSet::new();
        let is_before = |(seq, attempts): &Place| {
            let key = self.rows.get(seq).and_then(|row| row.key.clone()).filter(|_| self.dead_blocks());
            let is_stopped = key.as_ref().is_some_and(|key| stopped.contains(key));
            stopped.extend(key.filter(|_| *attempts >= request.max_attempts));
            !is_stopped
        };
        rows.into_iter().filter(is_before).collect()
    }

    fn claim(&mut self, request: &ClaimRequest) -> Claim {
        let now = self.clock.now();
        let mut claim = Claim { ordered: self.is_ordered(), ..Claim::default() };
        if request.recover {
            self.claim_expired(request, now, &mut claim);
        }
        claim.recovered = !claim.messages.is_empty();
        if !claim.recovered {
            self.promote(now);
            self.claim_ready(request, now, &mut claim);
        }
        claim.next_due_in = self.next_due_in(request, now);
        claim
    }

    fn claim_expired(&mut self, request: &ClaimRequest, now: Moment, claim: &mut Claim) {
        let expired = self.find(request, |row| row.is_expired(now));
        let (spent, live): (Vec<_>, Vec<_>) =
            expired.into_iter().partition(|(_, attempts)| *attempts >= request.max_attempts);
        for (seq, attempts) in spent.into_iter().take(request.limit) {
            self.note_expiry(seq);
            self.bury(seq, now, &format!("lease expired in attempt {attempts}"));
            claim.n_dead += 1;
        }
        let heads = self.in_order(live.clone());
        let Some((_, attempts)) = heads.first().copied() else { return };
        let group = self.in_order(live.into_iter().filter(|row| row.1 == attempts).collect());
        let largest = recovery_group(request.limit, attempts, request.max_attempts);
        let group = self.within_bounds(group, largest, request);
        group.iter().for_each(|(seq, _)| self.note_expiry(*seq));
        self.hand_out(&group, request, now, claim);
    }

    fn note_expiry(&mut self, seq: i64) {
        let Some(row) = self.rows.get_mut(&seq) else { return };
        if let Some(until) = row.lease.as_ref().map(|lease| lease.until) {
            row.fail(until, "lease expired");
        }
    }

    fn claim_ready(&mut self, request: &ClaimRequest, now: Moment, claim: &mut Claim) {
        let ready = self.before_the_dead(self.in_order(self.find(request, Row::is_ready)), request);
        let ready = match self.declared.lanes() {
            Some(fairness) => self.fair_share(ready, fairness, request),
            None => self.within_bounds(ready, request.limit, request),
        };
        let (spent, live): (Vec<_>, Vec<_>) =
            ready.into_iter().partition(|(_, attempts)| *attempts >= request.max_attempts);
        for (seq, _) in spent {
            self.bury(seq, now, &format!("attempt limit {} reached", request.max_attempts));
            claim.n_dead += 1;
        }
        self.hand_out(&live, request, now, claim);
    }

    /// As many rows as the bounds let through, lane by lane, beginning behind the one where the loop's last claim ended.
    fn fair_share(&self, rows: Vec<Place>, fairness: &Fairness, request: &ClaimRequest) -> Vec<Place> {
        let kept = request.claimer.as_ref().and_then(Claimer::take::<LastLane>);
        let LastLane(last) = kept.unwrap_or_default();
        let mut taken = self.within_bounds(self.in_turns(rows, fairness, &last), request.limit, request);
        let lanes = taken.iter().map(|(seq, _)| self.lane(fairness, *seq));
        let reached = lanes.max_by_key(|lane| (*lane <= last, lane.clone()));
        if let Some(claimer) = &request.claimer {
            claimer.put(LastLane(reached.unwrap_or(last)));
        }
        taken.sort_unstable();
        taken
    }

    /// The first row of each lane, then the second of each, and so on; of each round first the lanes behind `last`.
    fn in_turns(&self, rows: Vec<Place>, fairness: &Fairness, last: &str) -> Vec<Place> {
        let mut rounds = HashMap::<String, usize>::new();
        let turn = |place: Place| {
            let lane = self.lane(fairness, place.0);
            let round = rounds.entry(lane.clone()).or_default();
            *round += 1;
            (*round, lane.as_str() <= last, lane, place)
        };
        let mut turns: Vec<_> = rows.into_iter().map(turn).collect();
        turns.sort_unstable();
        turns.into_iter().map(|(.., place)| place).collect()
    }

    fn lane(&self, fairness: &Fairness, seq: i64) -> String {
        let row = self.rows.get(&seq);
        row.map(|row| fairness.lane(&row.topic, row.key.as_deref(), &row.headers)).unwrap_or_default()
    }

    /// The rows of the claimed topics, in order.
    fn find(&self, request: &ClaimRequest, is_wanted: impl Fn(&Row) -> bool) -> Vec<Place> {
        let rows = self.rows.iter().filter(|(_, row)| is_wanted(row) && serves(request, row));
        rows.map(|(seq, row)| (*seq, row.attempts)).collect()
    }

    fn bury(&mut self, seq: i64, now: Moment, error: &str) {
        if let Some(row) = self.rows.get_mut(&seq) {
            row.become_dead(now, error);
        }
    }

    /// The first rows, as many as the bounds let through, and at least one.
    fn within_bounds(&self, mut rows: Vec<Place>, limit: usize, request: &ClaimRequest) -> Vec<Place> {
        let bytes = |seq| self.rows.get(seq).map_or(0, |row| row.payload.len() as u64);
        let totals = rows.iter().scan(0, |total, (seq, _)| {
            *total += bytes(seq);
            Some(*total)
        });
        let n_fitting = totals.take_while(|total| request.max_bytes.is_none_or(|max| *total <= max)).count();
        rows.truncate(limit.min(n_fitting.max(1)));
        rows
    }

    fn hand_out(&mut self, places: &[Place], request: &ClaimRequest, now: Moment, claim: &mut Claim) {
        let token = Uuid::new_v4();
        for (seq, _) in places {
            let Some(row) = self.rows.get_mut(seq) else { continue };
            row.attempts = row.attempts.saturating_add(1);
            row.fence += 1;
            row.lease = Some(Held { token, until: now.saturating_add(request.lease) });
            let lease = Lease { id: row.id, token, locator: *seq };
            claim.messages.push(Claimed { message: row.message(&self.clock), lease });
        }
    }

    fn promote(&mut self, now: Moment) {
        let due = |(seq, row): (&i64, &Row)| match row.state {
            State::Parked { due_at } if due_at <= now => Some((due_at, *seq)),
            _ => None,
        };
        let mut due: Vec<_> = self.rows.iter().filter_map(due).collect();
        due.sort_unstable();
        let keeps_place = self.is_ordered();
        due.into_iter().take(MAX_BATCH).for_each(|(_, seq)| self.renew(seq, keeps_place));
    }

    fn next_due_in(&self, request: &ClaimRequest, now: Moment) -> Option<Duration> {
        let rows = self.rows.values().filter(|row| serves(request, row));
        rows.filter_map(|row| row.due_at(now)).min().map(|due_at| due_at.saturating_sub(now))
    }

    fn leased(&mut self, lease: &Lease) -> Option<&mut Row> {
        let is_current = |row: &&mut Row| {
            row.id == lease.id && row.lease.as_ref().is_some_and(|held| held.token == lease.token)
        };
        self.rows.get_mut(&lease.locator).filter(is_current)
    }

    fn settle(&mut self, settlement: Settlement, counts: bool, retention: Retention, now: Moment) -> Settled {
        let seq = settlement.lease.locator;
        let Some(row) = self.leased(&settlement.lease).filter(|_| counts) else {
            return Settled::LeaseLost;
        };
        match settlement.outcome {
            Outcome::Done if retention == Retention::Keep => {
                row.state = State::Done { at: now };
                row.lease = None;
            }
            Outcome::Done => drop(self.remove(seq)),
            Outcome::Dead { error } => {
                row.fail(now, &error);
                row.become_dead(now, &error);
            }
            Outcome::Retry { after, error } => {
                row.fail(now, &error);
                row.state = State::Parked { due_at: now.saturating_add(after) };
                row.lease = None;
                row.last_error = Some(error_text(&error));
            }
            Outcome::Release => {
                row.attempts = row.attempts.saturating_sub(1);
                self.renew(seq, self.is_ordered());
                self.hint();
            }
        }
        Settled::Applied
    }

    fn extend(&mut self, lease: &Lease, by: Duration) -> Settled {
        let until = self.clock.now().saturating_add(by);
        match self.leased(lease).and_then(|row| row.lease.as_mut()) {
            None => Settled::LeaseLost,
            Some(held) => {
                held.until = until;
                Settled::Applied
            }
        }
    }
}

fn serves(request: &ClaimRequest, row: &Row) -> bool {
    request.topics.as_ref().is_none_or(|topics| topics.contains(&row.topic))
}

// operations
impl Store {
    fn stats(&self) -> Stats {
        let now = self.clock.now();
        let mut topics = BTreeMap::<String, TopicStats>::new();
        for row in self.rows.values() {
            count(topics.entry(row.topic.clone()).or_default(), row, now);
        }
        Stats::new(topics)
    }

    /// The waiting rows of the table, then those of an open transaction.
    fn enqueued(&self, transaction: Option<u64>, limit: usize) -> Vec<Enqueued> {
        let own = transaction.and_then(|id| self.open.get(&id)).map_or(&[][..], |open| &open.rows);
        let waiting = self.rows.values().filter(|row| row.ended().is_none()).chain(own);
        let mut last: Vec<_> = waiting.rev().take(limit).map(|row| row.enqueued(&self.clock)).collect();
        last.reverse();
        last
    }

    fn dead_letters(&self, query: &DeadLetterQuery) -> DeadLetterPage {
        let now = self.clock.now();
        let is_wanted = |row: &Row| matches(&query.filter, row, now);
        let behind = self.rows.range(query.after.map_or(i64::MIN, |after| after.saturating_add(1))..);
        let rows: Vec<_> = behind.filter(|(_, row)| is_wanted(row)).take(query.limit).collect();
        let next = rows.last().filter(|_| rows.len() == query.limit).map(|(seq, _)| **seq);
        DeadLetterPage { letters: rows.iter().filter_map(|(_, row)| self.dead_letter(row)).collect(), next }
    }

    fn dead_letter(&self, row: &Row) -> Option<DeadLetter> {
        let State::Dead { at } = row.state else { return None };
        Some(DeadLetter {
            message: row.message(&self.clock),
            error: row.last_error.clone().unwrap_or_default(),
            dead_at: self.clock.date(at),
        })
    }

    fn dead(&mut self, id: &MessageId) -> Option<i64> {
        let seq = *self.places.get(id)?;
        self.rows.get(&seq).filter(|row| row.is_dead()).map(|_| seq)
    }

    fn redrive(&mut self, id: &MessageId) -> Moved {
        let Some(seq) = self.dead(id) else { return Moved::NotDead };
        let now = self.clock.now();
        if let Some(row) = self.rows.get_mut(&seq) {
            row.attempts = 0;
            row.ready_at = Some(now);
        }
        self.renew(seq, self.dead_blocks());
        self.hint();
        Moved::Applied
    }

    fn discard(&mut self, id: &MessageId) -> Moved {
        match self.dead(id).and_then(|seq| self.remove(seq)) {
            Some(_) => {
                self.hint();
                Moved::Applied
            }
            None => Moved::NotDead,
        }
    }

    fn move_matching(
        &mut self,
        filter: &DeadLetterFilter,
        limit: usize,
        act: impl Fn(&mut Self, &MessageId) -> Moved,
    ) -> u64 {
        let now = self.clock.now();
        let matching = self.rows.values().filter(|row| matches(filter, row, now)).take(limit);
        let ids: Vec<_> = matching.map(|row| row.id).collect();
        ids.iter().filter(|id| act(self, id) == Moved::Applied).count() as u64
    }

    fn history(&self, id: &MessageId) -> Vec<FailedAttempt> {
        let row = self.places.get(id).and_then(|seq| self.rows.get(seq));
        let attempt = |(attempt, at, error): &Failure| FailedAttempt {
            attempt: *attempt,
            failed_at: self.clock.date(*at),
            error: error.clone(),
        };
        row.map(|row| row.history.iter().map(attempt).collect()).unwrap_or_default()
    }

    fn prune(&mut self, prune: &Prune) -> u64 {
        let now = self.clock.now();
        if prune.what == Prunable::DedupKeys {
            return self.prune_keys(prune, now);
        }
        let is_old = |(ended, at): (Prunable, Moment)| {
            (ended == prune.what && now.saturating_sub(at) > prune.older_than).then_some(at)
        };
        let old = self.rows.iter().filter_map(|(seq, row)| Some((row.ended().and_then(is_old)?, *seq)));
        let mut old: Vec<_> = old.collect();
        old.sort_unstable();
        old.truncate(prune.limit);
        if !prune.dry_run {
            old.iter().for_each(|(_, seq)| drop(self.remove(*seq)));
            // what a dead letter blocked can go on
            if prune.what == Prunable::Dead {
                self.hint();
            }
        }
        old.len() as u64
    }

    fn prune_keys(&mut self, prune: &Prune, now: Moment) -> u64 {
        let is_old = |key: &Key| key.expires_at.saturating_add(prune.older_than) <= now;
        let old = self.keys.iter().filter(|(_, key)| is_old(key));
        let mut old: Vec<_> = old.map(|(name, key)| (key.expires_at, name.clone())).collect();
        old.sort_unstable();
        old.truncate(prune.limit);
        if !prune.dry_run {
            old.iter().for_each(|(_, name)| {
                self.keys.remove(name);
            });
        }
        old.len() as u64
    }
}

/// Whether a row is a dead letter that the filter lets through.
fn matches(filter: &DeadLetterFilter, row: &Row, now: Moment) -> bool {
    let State::Dead { at } = row.state else { return false };
    let age = now.saturating_sub(at);
    filter.topic.as_ref().is_none_or(|topic| *topic == row.topic)
        && filter.key.as_ref().is_none_or(|key| Some(key) == row.key.as_ref())
        && filter
            .error
            .as_ref()
            .is_none_or(|text| row.last_error.as_ref().is_some_and(|error| error.contains(text)))
        && filter.min_age.is_none_or(|least| age >= least)
        && filter.max_age.is_none_or(|greatest| age <= greatest)
}

fn count(topic: &mut TopicStats, row: &Row, now: Moment) {
    match row.state {
        State::Dead { .. } => topic.n_dead += 1,
        State::Done { .. } => topic.n_done += 1,
        State::Ready | State::Parked { .. } => count_unfinished(topic, row, now),
    }
}

fn count_unfinished(topic: &mut TopicStats, row: &Row, now: Moment) {
    topic.highest_attempt = topic.highest_attempt.max(row.attempts);
    if row.is_claimed(now) {
        topic.n_claimed += 1;
        return;
    }
    topic.n_pending += 1;
    match row.due_since(now) {
        Some(since) => {
            topic.n_due += 1;
            topic.oldest_due = topic.oldest_due.max(Some(now.saturating_sub(since)));
        }
        None if row.attempts > 0 => topic.n_retrying += 1,
        None => {}
    }
}

// inbox record
impl Store {
    fn mark_processed(&mut self, transaction: u64, mark: &Mark) -> Result<Attempt<Marked>> {
        let name = (mark.group.clone(), mark.id);
        if let Some(other) = self.blocker(transaction, |open| open.records.contains_key(&name)) {
            return Ok(Attempt::BlockedBy(other));
        }
        let processed_at = self.clock.now();
        self.open(transaction)?;
        if let Some(record) = self.record(transaction, &name) {
            return Ok(Attempt::Finished(Marked::Duplicate(record.processed(&self.clock))));
        }
        let (fingerprint, metadata) = (mark.fingerprint.clone(), mark.metadata.clone());
        let record = Record { fingerprint, metadata, result: None, processed_at };
        self.open(transaction)?.records.insert(name, record);
        Ok(Attempt::Finished(Marked::First))
    }

    /// A record as the transaction sees it.
    fn record(&self, transaction: u64, name: &RecordName) -> Option<&Record> {
        let own = self.open.get(&transaction).and_then(|open| open.records.get(name));
        own.or_else(|| self.processed.get(name))
    }

    fn store_result(&mut self, transaction: u64, name: &RecordName, result: Value) -> Result<()> {
        let missing = || {
            Error::new(ErrorKind::Other, "store_result")
                .with_detail("this transaction has not recorded the message")
        };
        self.open(transaction)?.records.get_mut(name).ok_or_else(missing)?.result = Some(result);
        Ok(())
    }

    fn purge_before(&mut self, group: &str, age: Duration, limit: usize) -> u64 {
        let now = self.clock.now();
        let is_old = |record: &Record| now.saturating_sub(record.processed_at) > age;
        let old = self.processed.iter().filter(|(name, record)| name.0 == group && is_old(record));
        let mut old: Vec<_> = old.map(|(name, record)| (record.processed_at, name.clone())).collect();
        old.sort_unstable();
        old.truncate(limit);
        old.iter().filter(|(_, name)| self.processed.remove(name).is_some()).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft() -> Draft {
        Draft::new("topic", "payload")
    }

    async fn claimed(outbox: &MemoryRepository) -> usize {
        let request = ClaimRequest::new(10, Duration::from_secs(60));
        outbox.claim(request).await.expect("claim").messages.len()
    }

    #[tokio::test]
    async fn two_transactions_that_wait_for_each_other_do_not_hang() {
        let outbox = MemoryRepository::new();
        let (a, b) = (draft(), draft());
        let (first, second) = (outbox.begin().await.expect("begin"), outbox.begin().await.expect("begin"));
        outbox.enqueue(&first, vec![a.clone()]).await.expect("enqueue");
        outbox.enqueue(&second, vec![b.clone()]).await.expect("enqueue");
        let waiting = tokio::spawn({
            let (outbox, first) = (outbox.clone(), first.clone());
            async move { outbox.enqueue(&first, vec![b]).await }
        });
        tokio::task::yield_now().await;
        let error = outbox.enqueue(&second, vec![a]).await.expect_err("it would wait for ever");
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Contention, true));
        outbox.rollback(second).await.expect("rollback");
        waiting.await.expect("joined").expect("goes on after the rollback");
        outbox.commit(first).await.expect("commit");
        assert_eq!(claimed(&outbox).await, 2);
    }

    #[tokio::test]
    async fn wait_that_was_dropped_is_forgotten() {
        let outbox = MemoryRepository::new();
        let (a, b) = (draft(), draft());
        let (first, second) = (outbox.begin().await.expect("begin"), outbox.begin().await.expect("begin"));
        outbox.enqueue(&first, vec![a.clone()]).await.expect("enqueue");
        outbox.enqueue(&second, vec![b.clone()]).await.expect("enqueue");
        tokio::select! {
            biased;
            _ = outbox.enqueue(&second, vec![a]) => unreachable!("the first transaction is open"),
            () = tokio::task::yield_now() => {}
        }
        let waiting = tokio::spawn({
            let (outbox, first) = (outbox.clone(), first.clone());
            async move { outbox.enqueue(&first, vec![b]).await.expect_err("there already").kind() }
        });
        tokio::task::yield_now().await;
        outbox.commit(second).await.expect("commit");
        assert_eq!(waiting.await.expect("joined"), ErrorKind::AlreadyEnqueued, "and no deadlock");
    }

    #[tokio::test]
    async fn escaped_transaction_lets_others_go_on_and_is_doomed() {
        let outbox = MemoryRepository::new();
        let cx = outbox.begin().await.expect("begin");
        let escaped = cx.clone();
        let id = outbox.enqueue(&cx, vec![draft()]).await.expect("enqueue")[0];
        assert_eq!(outbox.commit(cx).await.expect_err("escaped").kind(), ErrorKind::TransactionEscaped);
        let next = outbox.begin().await.expect("begin");
        outbox.enqueue(&next, vec![draft().id(id)]).await.expect("the id is free at once");
        outbox.commit(next).await.expect("commit");
        let error = outbox.enqueue(&escaped, vec![draft()]).await.expect_err("ended");
        assert_eq!(error.kind(), ErrorKind::TransactionDoomed);
        assert_eq!(outbox.commit(escaped).await.expect_err("ended").kind(), ErrorKind::TransactionDoomed);
        assert_eq!(claimed(&outbox).await, 1);
    }

    #[tokio::test]
    async fn whatever_makes_messages_claimable_gives_a_hint() {
        let outbox = MemoryRepository::new();
        let mut listener = outbox.listen().await.expect("listen").expect("a listener");
        let hints = tokio::spawn(async move { listener.hint().await });
        tokio::task::yield_now().await;
        let empty = outbox.begin().await.expect("begin");
        outbox.commit(empty).await.expect("commit");
        tokio::task::yield_now().await;
        assert!(!hints.is_finished(), "a commit without messages gives no hint");
        outbox.advance(Duration::from_secs(1));
        hints.await.expect("joined").expect("hint");
    }

    #[tokio::test]
    async fn limits_belong_to_the_handle() {
        let outbox = MemoryRepository::new();
        let narrow = outbox.clone().with_limits(Limits::default().with_max_payload(3));
        let cx = outbox.begin().await.expect("begin");
        let error = narrow.enqueue(&cx, vec![draft()]).await.expect_err("too large");
        assert_eq!(error.to_string(), "invalid payload: 7 bytes, max 3");
        outbox.enqueue(&cx, vec![draft()]).await.expect("enqueue");
    }

    #[tokio::test]
    async fn clock_stops_at_the_end_of_time() {
        let outbox = MemoryRepository::new();
        outbox.advance(Duration::MAX);
        outbox.advance(Duration::MAX);
        let cx = outbox.begin().await.expect("begin");
        outbox.enqueue(&cx, vec![draft()]).await.expect("enqueue");
        outbox.commit(cx).await.expect("commit");
        assert_eq!(claimed(&outbox).await, 1);
    }
}
