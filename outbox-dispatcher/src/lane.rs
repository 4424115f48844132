//! Claimed messages that wait for a handler, in lanes: each limit and each batch handler has one of its own.

use std::collections::VecDeque;
use std::time::Duration;

use outbox_core::{Message, recovery_group};
use tokio::time::Instant;

use crate::held::Ticket;
use crate::limit::{Bucket, Limit};
use crate::pace::Pace;
use crate::pause::Gate;

/// So far ahead of its rate a lane claims.
const AHEAD: Duration = Duration::from_secs(1);

/// How many messages a batch handler gets at once.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use outbox_dispatcher::Batching;
/// let batching = Batching::new(500).with_linger(Duration::from_millis(50));
/// assert_eq!(Batching::from(500), Batching::new(500));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batching {
    /// The most messages of a batch, 1 to [`MAX_BATCH`](outbox_core::MAX_BATCH). A message that has failed
    /// before is handed over in smaller batches, the last attempt alone, so that one that makes every batch
    /// fail uses up nobody else's attempts.
    pub max: usize,
    /// How long the first message of a batch may wait for others, up to 1 min. Default 10 ms. Too low: smaller
    /// batches. Too high: more latency; a full batch never waits.
    pub linger: Duration,
}

impl Batching {
    /// Batches of at most `max` messages.
    pub fn new(max: usize) -> Self {
        Self { max, linger: Duration::from_millis(10) }
    }

    /// Sets [`linger`](Self::linger).
    #[must_use]
    pub fn with_linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }
}

impl From<usize> for Batching {
    fn from(max: usize) -> Self {
        Self::new(max)
    }
}

/// A claimed message that waits.
pub(crate) struct Waiting {
    pub(crate) ticket: Ticket,
    pub(crate) message: Message,
    pub(crate) since: Instant,
}

/// How many handlers run, and how many messages are started, for the lanes that share a limit.
#[derive(Debug)]
pub(crate) struct Limiter {
    most: usize,
    n_running: usize,
    bucket: Option<Bucket>,
}

impl Limiter {
    pub(crate) fn new(limit: &Limit, now: Instant) -> Self {
        let bucket = limit.rate.as_ref().map(|rate| Bucket::new(rate, now));
        Self { most: limit.concurrency.unwrap_or(usize::MAX), n_running: 0, bucket }
    }

    pub(crate) fn start(&mut self, n: usize, now: Instant) {
        self.n_running += 1;
        if let Some(bucket) = &mut self.bucket {
            bucket.take(n, now);
        }
    }

    pub(crate) fn end(&mut self) {
        self.n_running = self.n_running.saturating_sub(1);
    }

    fn room(&self) -> usize {
        self.most.saturating_sub(self.n_running)
    }
}

/// When the next handler of a lane may be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Now,
    At(Instant),
    /// When something else happens first.
    Later,
}

/// What a lane may claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    Messages(usize),
    /// Nothing before this time.
    At(Instant),
    Nothing,
}

pub(crate) struct Lane {
    pub(crate) queue: VecDeque<Waiting>,
    pub(crate) limiter: Option<usize>,
    /// Shut while what its handlers call is away.
    pub(crate) gate: Gate,
    batching: Option<Batching>,
    max_attempts: u32,
    pace: Pace,
    /// Since when the claim loop has found no room here.
    full_since: Option<Instant>,
    /// The claim loop wants to know when there is room.
    is_awaited: bool,
}

impl Lane {
    pub(crate) fn new(
        batching: Option<Batching>,
        limiter: Option<usize>,
        pace: Pace,
        max_attempts: u32,
    ) -> Self {
        Self {
            queue: VecDeque::new(),
            limiter,
            gate: Gate::default(),
            batching,
            max_attempts,
            pace,
            full_since: None,
            is_awaited: false,
        }
    }

    pub(crate) fn is_batching(&self) -> bool {
        self.batching.is_some()
    }

    /// The messages of one handler.
    fn size(&self) -> usize {
        self.batching.map_or(1, |batching| batching.max)
    }

    fn limiter<'a>(&self, limiters: &'a [Limiter]) -> Option<&'a Limiter> {
        self.limiter.and_then(|index| limiters.get(index))
    }
}

// starting
impl Lane {
    pub(crate) fn start(&self, limiters: &[Limiter], now: Instant) -> Start {
        let Some(first) = self.queue.front() else { return Start::Later };
        let limiter = self.limiter(limiters);
        if limiter.is_some_and(|limiter| limiter.room() == 0) {
            return Start::Later;
        }
        let lingers_until = match self.batching {
            Some(Batching { max, linger }) if self.queue.len() < max => Some(first.since + linger),
            _ => None,
        };
        let bucket = limiter.and_then(|limiter| limiter.bucket.as_ref());
        let allowed_at =
            bucket.map(|bucket| bucket.at(self.size().min(self.queue.len()).min(bucket.burst())));
        match lingers_until.max(allowed_at) {
            Some(at) if at > now => Start::At(at),
            _ => Start::Now,
        }
    }

    /// How many handlers there is work for now, at the most.
    pub(crate) fn n_ready(&self, limiters: &[Limiter], now: Instant) -> usize {
        match self.start(limiters, now) {
            Start::Now => {
                let room = self.limiter(limiters).map_or(usize::MAX, Limiter::room);
                self.queue.len().div_ceil(self.size()).min(room)
            }
            Start::At(_) | Start::Later => 0,
        }
    }

    /// How many messages the next handler gets; above zero when it may be started.
    pub(crate) fn n_next(&self, limiters: &[Limiter], now: Instant) -> usize {
        if self.batching.is_none() {
            return self.queue.len().min(1);
        }
        let bucket = self.limiter(limiters).and_then(|limiter| limiter.bucket.as_ref());
        let most = bucket.map_or(usize::MAX, |bucket| bucket.tokens(now).max(1)).min(self.size());
        let mut n = 0;
        let mut group = most;
        for waiting in self.queue.iter().take(most) {
            group = group.min(self.group(waiting.ticket.attempt));
            if n >= group {
                break;
            }
            n += 1;
        }
        n
    }

    /// How large a batch with a message in this attempt may be.
    fn group(&self, attempt: u32) -> usize {
        match attempt {
            0 | 1 => usize::MAX,
            _ => recovery_group(usize::MAX, attempt - 1, self.max_attempts),
        }
    }
}

// claiming
impl Lane {
    /// What may be claimed for this lane while `n_free` handlers more could run and `n_coming` messages are on their way.
    pub(crate) fn demand(
        &self,
        limiters: &[Limiter],
        n_free: usize,
        n_coming: usize,
        now: Instant,
    ) -> Demand {
        let limiter = self.limiter(limiters);
        let n_free = limiter.map_or(n_free, |limiter| limiter.room().min(n_free));
        let (n_startable, n_waiting) = (n_free.saturating_mul(self.size()), self.queue.len());
        let n_idle = n_startable.saturating_sub(n_waiting + n_coming);
        match self.pace.limit(n_idle, n_waiting.saturating_sub(n_startable)) {
            0 => Demand::Nothing,
            limit => match limiter.and_then(|limiter| limiter.bucket.as_ref()) {
                Some(bucket) => within_rate(bucket, limit, n_waiting + n_coming, now),
                None => Demand::Messages(limit),
            },
        }
    }

    pub(crate) fn note_full(&mut self, now: Instant) {
        self.full_since.get_or_insert(now);
        self.is_awaited = true;
    }

    pub(crate) fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    /// The claim loop is told.
    pub(crate) fn call(&mut self) {
        self.is_awaited = false;
    }

    /// There is room again.
    pub(crate) fn note_room(&mut self, now: Instant) {
        self.is_awaited = false;
        if let Some(since) = self.full_since.take() {
            self.pace.waited(now.duration_since(since));
        }
    }

    /// A full claim has arrived: did the handlers wait for it?
    pub(crate) fn note_full_claim(&mut self, limiters: &[Limiter], n_free: usize) {
        let room = self.limiter(limiters).map_or(n_free, |limiter| limiter.room().min(n_free));
        if self.queue.is_empty() && room > 0 {
            self.pace.starved();
        }
    }
}

/// Claims what may be started within a second, half of it at once.
fn within_rate(bucket: &Bucket, limit: usize, n_waiting: usize, now: Instant) -> Demand {
    let allowed = bucket.until(now, now + AHEAD).saturating_sub(n_waiting);
    let enough = (bucket.until(now, now + AHEAD / 2) - bucket.tokens(now)).clamp(1, limit);
    match allowed >= enough {
        true => Demand::Messages(limit.min(allowed)),
        false => Demand::At((bucket.at(n_waiting + enough)).checked_sub(AHEAD).unwrap_or(now)),
    }
}
