//! When to claim again after a claim that was not full: by hints, by polling, or both.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use outbox_core::{Backoff, Error, ErrorKind, Listener, Readiness, Result, Wakeup};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use crate::Event;
use crate::config::Config;
use crate::health::within;
use crate::observer::Observers;

/// Claims that find something this soon after each other are a stream.
const STREAM_GAP: Duration = Duration::from_millis(6);
/// How many such claims in a row. Two of fifty messages a second are often that close.
const STREAM_LENGTH: u32 = 3;
/// A stream is looked after by polling: producers that need not hint commit faster.
const STREAM_POLL: Duration = Duration::from_millis(4);
/// How long a stream must have been empty before the dispatcher goes to sleep.
const STREAM_END: Duration = Duration::from_millis(20);
/// A claim that goes on where the last one ended may pass over a late commit for a tenth of a second.
const LAST_LOOK: Duration = Duration::from_millis(110);
const PROBE_INTERVAL: Duration = Duration::from_secs(60);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// After hints did not arrive: when to see whether they do now.
const DEAF_INTERVAL: Duration = Duration::from_secs(300);
const MAX_KEPT_HINTS: usize = 10_000;
/// After a hint that brought nothing, when the next one is answered: anybody can send them.
const VAIN_PAUSE: Duration = Duration::from_millis(10);

/// What a claim found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Found {
    Nothing,
    Some,
    /// Several messages that have come since the last claim.
    Several,
    /// Something, and there is likely to be more.
    More,
}

/// Decides how long to wait between claims, and waits.
pub(crate) struct Sleeper<R: Wakeup> {
    repository: Arc<R>,
    observers: Observers,
    operation_timeout: Duration,
    poll_interval: Duration,
    polling: Polling,
    stream: Stream,
    ear: Ear<R::Listener>,
    n_lost: u32,
    is_deaf: bool,
}

/// How the dispatcher hears of messages.
enum Ear<L> {
    /// The storage has no hints.
    None,
    Opening(AbortOnDropHandle<Result<Option<L>>>),
    Closed {
        until: Instant,
    },
    Open(Open<L>),
}

struct Open<L> {
    listener: L,
    state: Listening,
    probe_at: Option<Instant>,
    /// A hint has come that no claim has answered yet.
    is_hinted: bool,
    /// No hint is answered before.
    rests_until: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Listening {
    /// Producers need not send hints.
    Off,
    /// On the way to sleep.
    Preparing,
    /// Every commit gives a hint.
    On,
}

impl<R: Wakeup + 'static> Sleeper<R> {
    pub(crate) fn new(repository: Arc<R>, config: &Config, observers: Observers) -> Self {
        let mut sleeper = Self {
            repository,
            observers,
            operation_timeout: config.operation_timeout,
            poll_interval: config.poll_interval,
            polling: Polling::new(config),
            stream: Stream::default(),
            ear: Ear::None,
            n_lost: 0,
            is_deaf: false,
        };
        sleeper.open();
        sleeper
    }

    /// Takes note of a claim and takes the next step towards sleep; returns when to claim again.
    ///
    /// # Cancel safety
    /// Only to drop the sleeper afterwards: the listener may be between two states.
    pub(crate) async fn after(&mut self, found: Found) -> Instant {
        let now = Instant::now();
        self.stream.note(found, now);
        self.polling.note(found);
        let stepped = match &mut self.ear {
            Ear::Open(open) => {
                let step = open.step(found, &self.stream, self.poll_interval, now);
                within(self.operation_timeout, "listen", step).await
            }
            _ => Ok(Step::Wait(now + self.polling.interval(found))),
        };
        match stepped {
            Ok(Step::Wait(until)) => until,
            Ok(Step::Heard) => {
                self.heard();
                now
            }
            Ok(Step::Deaf) => {
                self.deaf();
                now
            }
            Err(error) => {
                self.lost(&error);
                now
            }
        }
    }

    /// Waits for a hint, at most until `until`.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn wait(&mut self, until: Instant) {
        match &mut self.ear {
            Ear::None => sleep_until(until).await,
            Ear::Closed { until: closed } => {
                let closed = *closed;
                sleep_until(until.min(closed)).await;
                if Instant::now() >= closed {
                    self.open();
                }
            }
            Ear::Opening(opening) => {
                tokio::select! {
                    biased;
                    opened = opening => self.opened(opened.unwrap_or_else(|_| Err(gone()))),
                    () = sleep_until(until) => {}
                }
                if matches!(self.ear, Ear::None) {
                    sleep_until(until).await;
                }
            }
            Ear::Open(open) => {
                if let Err(error) = open.wait(until).await {
                    self.lost(&error);
                }
            }
        }
    }

    fn open(&mut self) {
        let (repository, limit) = (Arc::clone(&self.repository), self.operation_timeout);
        let listen = async move { within(limit, "listen", repository.listen()).await };
        self.ear = Ear::Opening(AbortOnDropHandle::new(tokio::spawn(listen)));
    }

    fn opened(&mut self, opened: Result<Option<R::Listener>>) {
        match opened {
            Ok(Some(listener)) => {
                self.ear = Ear::Open(Open::new(listener));
            }
            Ok(None) => self.ear = Ear::None,
            Err(error) => self.lost(&error),
        }
    }

    fn heard(&mut self) {
        self.is_deaf = false;
        let again = mem::take(&mut self.n_lost) > 0;
        self.observers.emit(&Event::WakeupReady { again });
    }

    fn deaf(&mut self) {
        if !mem::replace(&mut self.is_deaf, true) {
            self.observers.emit(&Event::WakeupDeaf);
        }
        self.close(DEAF_INTERVAL);
    }

    fn lost(&mut self, error: &Error) {
        self.n_lost = self.n_lost.saturating_add(1);
        if self.n_lost == 1 {
            self.observers.emit(&Event::WakeupLost { error });
        }
        let backoff = Backoff::default().with_cap(Duration::from_secs(60));
        self.close(backoff.delay(self.n_lost, rand::random()));
    }

    fn close(&mut self, pause: Duration) {
        self.n_lost = self.n_lost.max(1);
        self.ear = Ear::Closed { until: Instant::now() + pause };
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "listen")
}

enum Step {
    Wait(Instant),
    /// The first round trip of a hint worked.
    Heard,
    Deaf,
}

impl<L: Listener> Open<L> {
    fn new(listener: L) -> Self {
        Self { listener, state: Listening::Off, probe_at: None, is_hinted: false, rests_until: None }
    }

    async fn step(
        &mut self,
        found: Found,
        stream: &Stream,
        poll_interval: Duration,
        now: Instant,
    ) -> Result<Step> {
        let was_vain = mem::take(&mut self.is_hinted) && found == Found::Nothing;
        self.rests_until = was_vain.then(|| now + VAIN_PAUSE);
        if let Some(until) = stream.next_look(found, now) {
            self.stand_down().await?;
            return Ok(Step::Wait(until));
        }
        if self.probe_at.is_none_or(|at| found == Found::Nothing && at <= now) {
            return self.probe(now).await;
        }
        if self.state == Listening::On {
            let last_look = stream.last_look.filter(|look| *look > now);
            return Ok(Step::Wait(last_look.unwrap_or(now + poll_interval)));
        }
        self.state = Listening::Preparing;
        Ok(Step::Wait(match self.listener.prepare().await? {
            Readiness::Sleep => {
                self.state = Listening::On;
                now
            }
            Readiness::Look { after } => Instant::now() + after,
        }))
    }

    async fn stand_down(&mut self) -> Result<()> {
        if self.state != Listening::Off {
            self.listener.stand_down().await?;
            self.state = Listening::Off;
        }
        Ok(())
    }

    async fn probe(&mut self, now: Instant) -> Result<Step> {
        let is_first = self.probe_at.is_none();
        let arrived = tokio::time::timeout(PROBE_TIMEOUT, self.listener.probe()).await;
        self.probe_at = Some(now + PROBE_INTERVAL);
        let hears = arrived.unwrap_or(Ok(false))?;
        Ok(match (hears, is_first) {
            (false, _) => Step::Deaf,
            (true, true) => Step::Heard,
            (true, false) => Step::Wait(now),
        })
    }

    async fn wait(&mut self, until: Instant) -> Result<()> {
        if self.state == Listening::Off {
            sleep_until(until).await;
            return Ok(());
        }
        if !self.is_hinted {
            tokio::select! {
                biased;
                hint = self.listener.hint() => hint?,
                () = sleep_until(until) => return Ok(()),
            }
            self.is_hinted = true;
        }
        if let Some(earliest) = self.rests_until {
            sleep_until(earliest.min(until)).await;
        }
        // one claim answers every hint that has arrived until now
        for _ in 0..MAX_KEPT_HINTS {
            match self.listener.hint().now_or_never() {
                Some(hint) => hint?,
                None => break,
            }
        }
        Ok(())
    }
}

/// Whether messages come so quickly that going to sleep between them is not worth it.
#[derive(Debug, Default)]
struct Stream {
    n_finds: u32,
    last_find: Option<Instant>,
    ends_at: Option<Instant>,
    last_look: Option<Instant>,
}

impl Stream {
    fn note(&mut self, found: Found, now: Instant) {
        if found == Found::Nothing {
            return;
        }
        let is_within = |gap| self.last_find.is_some_and(|last| now.duration_since(last) < gap);
        let (is_near, goes_on) = (is_within(STREAM_GAP), is_within(STREAM_END));
        self.n_finds = if is_near { self.n_finds.saturating_add(1) } else { 1 };
        self.last_find = Some(now);
        self.last_look = Some(now + LAST_LOOK);
        let is_dense = found == Found::Several && goes_on;
        if found == Found::More || is_dense || self.n_finds >= STREAM_LENGTH {
            self.ends_at = Some(now + STREAM_END);
        }
    }

    /// When to look again while the stream lasts.
    fn next_look(&self, found: Found, now: Instant) -> Option<Instant> {
        let lasts = self.ends_at.is_some_and(|end| now < end);
        lasts.then(|| if found == Found::More { now } else { now + STREAM_POLL })
    }
}

/// Looks without hints: seldom while there is nothing, often after there was something.
struct Polling {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Polling {
    fn new(config: &Config) -> Self {
        Self { min: config.min_poll, max: config.max_poll, next: config.min_poll }
    }

    fn note(&mut self, found: Found) {
        self.next = match found {
            Found::Nothing => (self.next * 2).min(self.max),
            Found::Some | Found::Several | Found::More => self.min,
        };
    }

    fn interval(&self, found: Found) -> Duration {
        match found {
            Found::More => Duration::ZERO,
            Found::Nothing | Found::Some | Found::Several => self.next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn polling_slows_down_while_there_is_nothing_and_is_quick_after_work() {
        let mut polling = Polling::new(&Config::default());
        let mut after = |found| {
            polling.note(found);
            polling.interval(found).as_millis()
        };
        assert_eq!([Found::Nothing; 6].map(&mut after), [100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!([Found::Some, Found::More, Found::Nothing].map(&mut after), [50, 0, 100]);
    }

    #[test]
    fn a_stream_is_polled_until_it_has_been_empty_for_a_while() {
        let start = Instant::now();
        let mut stream = Stream::default();
        let mut look = |at, found| {
            stream.note(found, start + milliseconds(at));
            stream.next_look(found, start + milliseconds(at)).map(|look| (look - start).as_millis())
        };
        assert_eq!(look(0, Found::Some), None, "one message");
        assert_eq!(look(20, Found::Some), None, "fifty a second");
        assert_eq!(look(23, Found::Some), None);
        assert_eq!(look(26, Found::Some), Some(30), "three in a row");
        assert_eq!(look(30, Found::Nothing), Some(34));
        assert_eq!(look(45, Found::Some), Some(49), "it lasts");
        assert_eq!(look(47, Found::Nothing), None, "one message alone does not prolong it");
        assert_eq!(look(90, Found::More), Some(90), "a backlog");
        assert_eq!(look(190, Found::Several), None, "one transaction with several messages");
        assert_eq!(look(200, Found::Several), Some(204), "claims that take so long that several gather");
    }
}
