use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use outbox_core::{Claim, Error, ErrorKind, Repository, Result, Wakeup};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::claims::Claims;
use crate::desk::Desk;
use crate::health::Health;
use crate::held::Room;
use crate::observer::Observers;
use crate::plan::Plan;
use crate::settler::Settler;
use crate::shutdown::Tasks;
use crate::wakeup::{Found, Sleeper};
use crate::workers::{Workers, start_in_time};
use crate::{Config, Event, Observer, Report, Router, TracingObserver, heartbeat};

/// Delivers the messages of one repository to the handlers of a router.
///
/// Claiming, handling and settling overlap: while `concurrency` handlers run and finished messages are
/// written in batches, the next claim is under way. It asks for as many messages as the handlers start soon:
/// up to `batch` for quick ones, no more than can be started for those that take seconds. While there is a backlog
/// of a storage that [says so](outbox_core::Claim::overlaps), two claims are under way.
///
/// It needs a tokio runtime with its timer enabled.
///
/// # Guarantees
/// * Every claimed message is settled, released, or becomes claimable again when its lease expires.
/// * A message is dead after `max_attempts` attempts, crashes included. Only what was released counts none:
///   by a stop, or because a downstream was unavailable.
/// * A panic, a time-out or an error of one message touches no other; a handler that blocks its thread stops
///   neither renewals nor settling on a runtime with several threads.
/// * Errors of the database never end a run.
///
/// # Examples
/// ```
/// use outbox_core::{Draft, MemoryRepository, Repository, Transactor};
/// use outbox_dispatcher::{Dispatcher, Message, Router};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> outbox_core::Result<()> {
/// let outbox = MemoryRepository::new();
/// let drafts = vec![Draft::new("greeting", "hello"), Draft::new("greeting", "good-bye")];
/// Transactor::over(outbox.clone()).run(async |cx| outbox.enqueue(cx, drafts).await).await?;
///
/// let router = Router::new().on("greeting", async move |message: Message| {
///     println!("{}", String::from_utf8_lossy(&message.payload));
///     Ok(())
/// });
/// let report = Dispatcher::new(outbox, router).drain_once().await?;
/// assert_eq!(report.n_done, 2);
/// # Ok(()) }
/// ```
pub struct Dispatcher<R> {
    repository: Arc<R>,
    router: Arc<Router>,
    config: Config,
    observers: Observers,
}

impl<R: Repository + Wakeup + 'static> Dispatcher<R> {
    /// A dispatcher with the default configuration that writes its events with [`tracing`].
    pub fn new(repository: R, router: Router) -> Self {
        Self {
            repository: Arc::new(repository),
            router: Arc::new(router),
            config: Config::default(),
            observers: Observers::new(TracingObserver),
        }
    }

    /// Replaces the configuration.
    ///
    /// # Errors
    /// Those of [`Config::validate`].
    pub fn with_config(mut self, config: Config) -> Result<Self> {
        config.validate()?;
        self.config = config;
        Ok(self)
    }

    /// Replaces the observer; `(TracingObserver, mine)` keeps the default one.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Observer) -> Self {
        self.observers = Observers::new(observer);
        self
    }

    /// Delivers until `token` is cancelled, then ends in order: nothing is claimed any more, running handlers
    /// have `drain_timeout` to finish, what is finished is settled, the rest is released with its attempt.
    ///
    /// The future can be spawned. It works on tasks of its own, on the runtime that polls it.
    ///
    /// # Errors
    /// [`InvalidInput`](outbox_core::ErrorKind::InvalidInput) before anything is claimed, when the router has
    /// no handler, two for one topic, or an impossible topic. Never an error of the database.
    ///
    /// # Cancel safety
    /// A future that is dropped stops at once: handlers are dropped, and the messages held are delivered
    /// again when their leases have expired. Cancel the token instead.
    #[allow(clippy::manual_async_fn, reason = "the signature promises Send and 'static")]
    pub fn run(self, token: CancellationToken) -> impl Future<Output = Result<Report>> + Send + 'static {
        async move {
            let run = Run::try_start(&self, false)?;
            joined(AbortOnDropHandle::new(tokio::spawn(run.until(token)))).await
        }
    }

    /// Works off everything that is due now and returns, for a timer or a serverless function. Retries that
    /// become due later are left to the next call; so is what pauses because a handler's downstream is
    /// unavailable. It goes on while producers add messages.
    ///
    /// # Errors
    /// [`InvalidInput`](outbox_core::ErrorKind::InvalidInput) as for [`run`](Self::run); the first error of
    /// the database, after what was delivered until then has been settled as far as possible.
    ///
    /// # Cancel safety
    /// As for [`run`](Self::run).
    pub fn drain_once(&self) -> impl Future<Output = Result<Report>> + Send + use<R> {
        let dispatcher = self.clone();
        async move {
            let run = Run::try_start(&dispatcher, true)?;
            joined(AbortOnDropHandle::new(tokio::spawn(run.once()))).await
        }
    }
}

/// Clones share the repository and the router.
impl<R> Clone for Dispatcher<R> {
    fn clone(&self) -> Self {
        Self {
            repository: Arc::clone(&self.repository),
            router: Arc::clone(&self.router),
            config: self.config.clone(),
            observers: self.observers.clone(),
        }
    }
}

impl<R> fmt::Debug for Dispatcher<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher")
            .field("router", &self.router)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

async fn joined(task: AbortOnDropHandle<Result<Report>>) -> Result<Report> {
    match task.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(Error::new(ErrorKind::Other, "run").with_source(error)),
    }
}

/// From so many messages in one claim on, they come quickly.
const SEVERAL: usize = 3;

/// One run of the claim loop and the tasks around it.
struct Run<R: Repository + Wakeup + 'static> {
    desk: Arc<Desk>,
    repository: Arc<R>,
    lanes: Vec<Claims>,
    /// Which lane claims first in the next round.
    turn: usize,
    health: Health,
    tasks: Tasks,
    /// Of the running handlers, once the token has been cancelled.
    deadline: Option<Instant>,
    vain: Vain,
}

/// What became of one claim for each lane that had room.
#[derive(Debug)]
enum Round {
    /// The best of them, and when a lane that had no room may have some.
    Claimed(Found, Option<Instant>),
    /// No lane had room; when one may have some.
    Full(Option<Instant>),
}

impl Round {
    /// Adds a lane that found something or nothing.
    fn claimed(self, found: Found) -> Self {
        match self {
            Self::Claimed(best, until) => Self::Claimed(best.max(found), until),
            Self::Full(until) => Self::Claimed(found, until),
        }
    }

    /// Adds a lane without room.
    fn full(self, at: Option<Instant>) -> Self {
        let earlier = |until: Option<Instant>| until.into_iter().chain(at).min();
        match self {
            Self::Claimed(best, until) => Self::Claimed(best, earlier(until)),
            Self::Full(until) => Self::Full(earlier(until)),
        }
    }
}

/// Looks at the time when something should have become due, that found nothing.
#[derive(Default)]
struct Vain {
    is_timed: bool,
    n_looks: u32,
}

impl Vain {
    fn note(&mut self, found: Found) {
        self.n_looks = match found {
            Found::Nothing if self.is_timed => (self.n_looks + 1).min(16),
            Found::Nothing => self.n_looks,
            Found::Some | Found::Several | Found::More => 0,
        };
    }

    /// How long to wait at least: what is said to be due and never comes must not be asked for for ever.
    fn delay(&self) -> Duration {
        match self.n_looks {
            0 => Duration::ZERO,
            n_looks => Duration::from_millis(1 << (n_looks - 1)),
        }
    }
}

impl<R: Repository + Wakeup + 'static> Run<R> {
    fn try_start(dispatcher: &Dispatcher<R>, is_once: bool) -> Result<Self> {
        let Dispatcher { repository, router, config, observers } = dispatcher.clone();
        router.validate()?;
        let plan = Plan::try_new(&router, &config)?;
        let lanes = claims(&plan, &config)?;
        let health = Health::new("claim", observers.clone());
        let desk = Arc::new(Desk::new(router, plan, config, observers));
        let tasks = Self::start_tasks(&desk, &repository, is_once);
        let (turn, deadline, vain) = (0, None, Vain::default());
        Ok(Self { desk, repository, lanes, turn, health, tasks, deadline, vain })
    }

    fn start_tasks(desk: &Arc<Desk>, repository: &Arc<R>, is_once: bool) -> Tasks {
        let (end, ends) = watch::channel(None);
        let settler = Settler::new(Arc::clone(desk), Arc::clone(repository), ends, is_once);
        let heartbeat = heartbeat::run(Arc::clone(desk), Arc::clone(repository));
        let workers = Workers::default();
        let starter = start_in_time(Arc::clone(desk), workers.clone());
        Tasks {
            workers,
            starter: AbortOnDropHandle::new(tokio::spawn(starter)),
            settler: AbortOnDropHandle::new(tokio::spawn(settler.run())),
            end,
            heartbeat: AbortOnDropHandle::new(tokio::spawn(heartbeat)),
        }
    }

    async fn until(mut self, token: CancellationToken) -> Result<Report> {
        let mut sleeper =
            Sleeper::new(Arc::clone(&self.repository), &self.desk.config, self.desk.observers.clone());
        while !token.is_cancelled() {
            match self.round(&token).await {
                _ if token.is_cancelled() => {}
                Ok(Round::Claimed(..)) if self.is_claiming() => {}
                Ok(Round::Claimed(found, until)) => self.rest(&mut sleeper, found, until, &token).await,
                Ok(Round::Full(until)) => self.wait_for_room(until, &token).await,
                Err(_) => self.wait(Instant::now() + self.health.delay(), &token).await,
            }
        }
        drop(sleeper);
        for index in 0..self.lanes.len() {
            // what they bring can be given back
            while self.lanes[index].is_under_way() {
                let _ = self.claimed(index, &token).await;
            }
        }
        Ok(self.stop().await)
    }

    async fn once(mut self) -> Result<Report> {
        let drained = self.drain().await;
        let report = self.stop().await;
        drained.map(|()| report)
    }

    /// Ends the run in order.
    async fn stop(self) -> Report {
        self.desk.observers.emit(&Event::Stopping);
        let deadline = self.deadline.unwrap_or_else(|| Instant::now() + self.desk.config.drain_timeout);
        let report = self.tasks.finish(&self.desk, deadline).await;
        self.desk.observers.emit(&Event::Stopped { report: &report });
        report
    }
}

fn claims(plan: &Plan, config: &Config) -> Result<Vec<Claims>> {
    let requests = plan.requests(config).into_iter().enumerate();
    let claiming = requests.filter_map(|(lane, request)| Some((lane, request?)));
    claiming
        .map(|(lane, request)| {
            request.validate()?;
            Ok(Claims::new(lane, request))
        })
        .collect()
}

// claiming
impl<R: Repository + Wakeup + 'static> Run<R> {
    fn is_claiming(&self) -> bool {
        self.lanes.iter().any(Claims::is_under_way)
    }

    /// Waits for one claim of each lane that has room.
    async fn round(&mut self, token: &CancellationToken) -> Result<Round> {
        if !self.is_claiming() {
            // a claim that was sent before a reason came does not answer it
            self.desk.begin_round();
        }
        let (mut round, first) = (Round::Full(None), self.turn);
        self.turn = (first + 1) % self.lanes.len();
        for index in 0..self.lanes.len() {
            let index = (first + index) % self.lanes.len();
            let room = self.send(index, token);
            round = match room {
                _ if self.lanes[index].is_under_way() => round.claimed(self.answered(index, token).await?),
                Room::Claim { .. } => round,
                Room::Full(at) => round.full(at),
                Room::Paused(until) => round.full(Some(until)),
            };
        }
        Ok(round)
    }

    /// Sends a claim where there is room and none under way, and another one beside it where they may overlap: then what waits
    /// for a disk or a network is only one of them.
    fn send(&mut self, index: usize, token: &CancellationToken) -> Room {
        let timeout = self.desk.config.claim_timeout();
        let claims = &mut self.lanes[index];
        let mut room = Room::Full(None);
        if !claims.is_under_way() {
            room = self.desk.room(claims.lane);
            if let (Room::Claim { limit, recover }, false) = (&room, token.is_cancelled()) {
                claims.send(&self.repository, timeout, *limit, *recover);
            }
        }
        if !token.is_cancelled() {
            self.send_beside(index);
        }
        room
    }

    /// Of several lanes, which wait for each other, none has two claims under way.
    fn has_place(&self, index: usize) -> bool {
        self.lanes.len() == 1 && self.lanes[index].has_place()
    }

    fn send_beside(&mut self, index: usize) {
        if !self.has_place(index) {
            return;
        }
        let claims = &mut self.lanes[index];
        if let Room::Claim { limit, recover } = self.desk.room_beside(claims.lane, claims.n_coming()) {
            claims.send(&self.repository, self.desk.config.claim_timeout(), limit, recover);
        }
    }

    /// Waits for a claim, and where it fails for the other one.
    async fn answered(&mut self, index: usize, token: &CancellationToken) -> Result<Found> {
        let found = self.claimed(index, token).await;
        while found.is_err() && self.lanes[index].is_under_way() {
            let _ = self.claimed(index, token).await;
        }
        self.health.note(&found);
        found
    }

    async fn claimed(&mut self, index: usize, token: &CancellationToken) -> Result<Found> {
        let desk = Arc::clone(&self.desk);
        let mut was_called = false;
        let answer = loop {
            let has_place = self.has_place(index);
            tokio::select! {
                biased;
                answer = self.lanes[index].next() => break answer,
                () = token.cancelled() => break self.last_claim(index).await,
                () = desk.changed(), if has_place => {
                    was_called = true;
                    self.send_beside(index);
                }
            }
        };
        if was_called {
            // there may have been other reasons
            desk.call_claim_loop();
        }
        let Some((limit, claim)) = answer else { return Ok(Found::Nothing) };
        if claim.is_err() {
            self.lanes[index].note(false, false);
        }
        Ok(self.accept(index, claim?, limit))
    }

    /// The claim that is under way when the token has been cancelled, as long as handlers may run.
    async fn last_claim(&mut self, index: usize) -> Option<(usize, Result<Claim>)> {
        self.desk.close();
        let last = Instant::now() + self.desk.config.drain_timeout;
        let deadline = *self.deadline.get_or_insert(last);
        let claims = &mut self.lanes[index];
        timeout_at(deadline, claims.next()).await.unwrap_or_else(|_| {
            claims.clear();
            Some((0, Err(Error::new(ErrorKind::Timeout, "claim"))))
        })
    }

    fn accept(&mut self, index: usize, claim: Claim, limit: usize) -> Found {
        let claims = &mut self.lanes[index];
        let found = found(&claim, limit, claims.template.max_bytes);
        claims.note(found == Found::More, claim.overlaps);
        let (lane, is_under_way) = (claims.lane, claims.is_under_way());
        let places = self.desk.accept(lane, claim, found == Found::More);
        self.tasks.workers.start(&self.desk, places);
        if is_under_way {
            return found;
        }
        match self.desk.room(lane) {
            // its rate says when to look again
            Room::Full(Some(_)) => found.min(Found::Some),
            _ => found,
        }
    }

    /// Claims until there is nothing due and nothing held.
    async fn drain(&mut self) -> Result<()> {
        // a claim without a claimer looks at the whole table
        let mut is_whole = true;
        loop {
            self.desk.check_failure()?;
            let is_last = is_whole && self.desk.is_settled();
            match self.drain_round(is_whole).await? {
                Round::Full(until) | Round::Claimed(Found::Nothing, until @ Some(_)) => {
                    self.wait_for_change(until).await;
                }
                Round::Claimed(Found::Nothing, None) if is_last => return Ok(()),
                Round::Claimed(Found::Nothing, None) => {
                    self.desk.all_settled().await?;
                    is_whole = true;
                }
                Round::Claimed(_, _) => is_whole = false,
            }
        }
    }

    async fn drain_round(&mut self, is_whole: bool) -> Result<Round> {
        self.desk.begin_round();
        let mut round = Round::Full(None);
        for index in 0..self.lanes.len() {
            round = match self.desk.room(self.lanes[index].lane) {
                Room::Claim { limit, recover } => {
                    let mut request = self.lanes[index].request(limit, recover);
                    request.claimer = request.claimer.filter(|_| !is_whole);
                    let timeout = self.desk.config.claim_timeout();
                    let claim = self.health.watch(timeout, self.repository.claim(request)).await?;
                    round.claimed(self.accept(index, claim, limit))
                }
                Room::Full(at) => round.full(at),
                // left to the next call
                Room::Paused(_) => round.claimed(Found::Nothing),
            };
        }
        Ok(round)
    }
}

fn found(claim: &Claim, limit: usize, max_bytes: Option<u64>) -> Found {
    if claim.is_empty() {
        return Found::Nothing;
    }
    let n_bytes: u64 = match max_bytes {
        Some(_) => claim.messages.iter().map(|claimed| claimed.message.payload.len() as u64).sum(),
        None => 0,
    };
    // of expired leases a claim takes one group and nothing else
    let is_part = claim.recovered || claim.n_dead > 0;
    let is_cut = max_bytes.is_some_and(|max| n_bytes >= max / 2);
    match is_part || is_cut || claim.messages.len() >= limit {
        true => Found::More,
        false if claim.messages.len() >= SEVERAL => Found::Several,
        false => Found::Some,
    }
}

// waiting
impl<R: Repository + Wakeup + 'static> Run<R> {
    async fn wait(&mut self, until: Instant, token: &CancellationToken) {
        tokio::select! {
            () = token.cancelled() => {}
            () = sleep_until(until) => {}
        }
    }

    async fn wait_for_room(&mut self, until: Option<Instant>, token: &CancellationToken) {
        tokio::select! {
            () = token.cancelled() => {}
            () = self.wait_for_change(until) => {}
        }
    }

    async fn wait_for_change(&mut self, until: Option<Instant>) {
        match until {
            Some(until) => tokio::select! {
                () = self.desk.changed() => {}
                () = sleep_until(until) => {}
            },
            None => self.desk.changed().await,
        }
    }

    /// Waits until there may be something to claim.
    async fn rest(
        &mut self,
        sleeper: &mut Sleeper<R>,
        found: Found,
        has_room: Option<Instant>,
        token: &CancellationToken,
    ) {
        let until = tokio::select! {
            () = token.cancelled() => return,
            until = sleeper.after(found) => has_room.map_or(until, |has_room| until.min(has_room)),
        };
        self.vain.note(found);
        let earliest = Instant::now() + self.vain.delay();
        loop {
            let due = self.desk.due().map(|due| due.max(earliest)).filter(|due| *due < until);
            self.vain.is_timed = due.is_some();
            tokio::select! {
                biased;
                () = token.cancelled() => return,
                () = self.desk.changed() => if self.desk.take_look() { return },
                () = sleeper.wait(due.unwrap_or(until)) => return,
            }
        }
    }
}
