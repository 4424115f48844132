mod watch;

use std::collections::HashMap;
use std::future::{Future, pending};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use outbox_core::{
    Claim, ClaimRequest, Context, DeadLetterQuery, Draft, Error, ErrorKind, Lease, Listener,
    MemoryRepository, MessageId, OnDead, Operations, Readiness, Repository, Result, Settled, Settlement,
    Transactor, Wakeup,
};
use outbox_dispatcher::{
    Backoff, CancellationToken, Config, Dispatcher, Event, HandlerError, HandlerResult, Jitter, Message,
    Observer, Report, Router, TracingObserver,
};
use outbox_testkit::secrets::{Sentinel, TOKEN};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

pub(crate) const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(crate) const fn milliseconds(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// No jitter, short stops.
pub(crate) fn config() -> Config {
    let backoff = Backoff::default().with_jitter(Jitter::None);
    Config::default().with_pause(backoff.clone().with_cap(seconds(60))).with_backoff(backoff)
}

/// A memory repository that follows tokio's clock, keeps a record and fails on demand.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) memory: MemoryRepository,
    started: Instant,
    /// The memory repository's clock does not stand still.
    really_started: std::time::Instant,
    state: Arc<Mutex<State>>,
    hint: Arc<Notify>,
}

#[derive(Default)]
pub(crate) struct State {
    advanced: Duration,
    pub(crate) has_hints: bool,
    /// What the listener's probe says.
    pub(crate) is_deaf: bool,
    /// A backend that does not know what becomes due when.
    pub(crate) hides_due: bool,
    /// What prepare answers before it says sleep.
    pub(crate) looks: Vec<Duration>,
    pub(crate) failing: HashMap<&'static str, ErrorKind>,
    /// The call works, its answer is lost.
    pub(crate) loses_answers: HashMap<&'static str, u32>,
    pub(crate) hangs: HashMap<&'static str, u32>,
    /// The call fails and does nothing.
    pub(crate) fails: HashMap<&'static str, u32>,
    pub(crate) latency: Duration,
    pub(crate) random: Option<(StdRng, f64)>,
    pub(crate) calls: Vec<(Duration, &'static str)>,
    pub(crate) claims: Vec<Claimed>,
    /// No claim finds anything after so many.
    pub(crate) max_claims: Option<usize>,
    /// Says that it is ordered, and is not.
    pub(crate) says_ordered: bool,
    pub(crate) says_overlaps: bool,
    /// Claims at this moment, and those of them that recover.
    pub(crate) n_claiming: [usize; 2],
    /// The most of each at once.
    pub(crate) most_claiming: [usize; 2],
    /// The payloads of messages whose leases are lost at the next renewal.
    pub(crate) loses: Vec<String>,
    payloads: HashMap<MessageId, String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Claimed {
    pub(crate) at: Duration,
    pub(crate) recover: bool,
    pub(crate) n: usize,
    pub(crate) recovered: bool,
}

impl Store {
    #[allow(clippy::disallowed_methods, reason = "compares with the clock of the memory repository")]
    pub(crate) fn new() -> Self {
        watch::watch();
        Self {
            really_started: std::time::Instant::now(),
            memory: MemoryRepository::new(),
            started: Instant::now(),
            state: Arc::default(),
            hint: Arc::default(),
        }
    }

    pub(crate) fn with_hints(self) -> Self {
        self.state().has_hints = true;
        self
    }

    /// On a table that is declared ordered.
    pub(crate) fn ordered(mut self) -> Self {
        self.memory = self.memory.ordered(OnDead::Continue);
        self
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("state")
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Moves the store's clock to tokio's.
    pub(crate) fn sync(&self) {
        let by = {
            let mut state = self.state();
            let is = state.advanced + self.really_started.elapsed();
            let by = self.elapsed().saturating_sub(is);
            state.advanced += by;
            by
        };
        if !by.is_zero() {
            self.memory.advance(by);
        }
    }

    pub(crate) fn hint(&self) {
        self.hint.notify_one();
    }

    pub(crate) fn n_calls(&self, name: &str) -> usize {
        self.state().calls.iter().filter(|(_, call)| *call == name).count()
    }

    pub(crate) fn times_of(&self, name: &str) -> Vec<Duration> {
        self.state().calls.iter().filter(|(_, call)| *call == name).map(|(at, _)| *at).collect()
    }

    pub(crate) async fn enqueue(&self, drafts: impl IntoIterator<Item = Draft>) -> Vec<MessageId> {
        self.sync();
        let ids = self.enqueue_without_hint(drafts).await;
        self.hint();
        ids
    }

    pub(crate) async fn enqueue_without_hint(
        &self,
        drafts: impl IntoIterator<Item = Draft>,
    ) -> Vec<MessageId> {
        let drafts = drafts.into_iter().map(|draft| draft.header("authorization", TOKEN)).collect();
        let tx = Transactor::over(self.memory.clone());
        tx.run(async |cx| self.memory.enqueue(cx, drafts).await).await.expect("enqueue")
    }

    pub(crate) async fn enqueue_n(&self, topic: &str, n: usize) -> Vec<MessageId> {
        self.enqueue((0..n).map(|i| Draft::new(topic, i.to_string()))).await
    }

    /// The error texts of the dead letters.
    pub(crate) async fn dead(&self) -> Vec<String> {
        let page = self.memory.dead_letters(DeadLetterQuery::new(1_000)).await.expect("memory");
        page.letters.into_iter().map(|letter| letter.error).collect()
    }

    pub(crate) async fn n_left(&self) -> u64 {
        self.sync();
        let stats = self.memory.stats().await.expect("memory");
        stats.topics.values().map(|topic| topic.n_pending + topic.n_claimed).sum()
    }

    /// Notes a call, and lets it fail before it does anything.
    async fn enter(&self, name: &'static str) -> Result<()> {
        let (latency, hangs, kind) = {
            let mut state = self.state();
            let at = self.started.elapsed();
            state.calls.push((at, name));
            let hangs = take_one(&mut state.hangs, name);
            let fails = take_one(&mut state.fails, name).then_some(ErrorKind::Unavailable);
            let kind = state.failing.get(name).copied().or(fails).or_else(|| state.fails_at_random());
            (state.latency, hangs, kind)
        };
        if !latency.is_zero() {
            sleep(latency).await;
        }
        if hangs {
            pending::<()>().await;
        }
        self.sync();
        kind.map_or(Ok(()), |kind| Err(Error::new(kind, name)))
    }

    /// Lets a call fail after it has worked.
    fn leave<T>(&self, name: &'static str, value: T) -> Result<T> {
        let mut state = self.state();
        if take_one(&mut state.loses_answers, name) {
            return Err(Error::new(ErrorKind::Unavailable, name));
        }
        state.fails_at_random().map_or(Ok(value), |kind| Err(Error::new(kind, name)))
    }
}

impl State {
    fn fails_at_random(&mut self) -> Option<ErrorKind> {
        let (random, rate) = self.random.as_mut()?;
        random.random_bool(*rate).then_some(ErrorKind::Contention)
    }
}

fn take_claim(left: &mut Option<usize>) -> bool {
    let is_left = left.is_none_or(|left| left > 0);
    *left = left.map(|left| left.saturating_sub(1));
    is_left
}

fn take_one(counts: &mut HashMap<&'static str, u32>, name: &'static str) -> bool {
    match counts.get_mut(name) {
        Some(n) if *n > 0 => {
            *n -= 1;
            true
        }
        _ => false,
    }
}

impl Repository for Store {
    async fn enqueue(&self, cx: &Context, drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        self.memory.enqueue(cx, drafts).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claim> {
        let recover = request.recover;
        let _claiming = Claiming::start(self, recover);
        self.enter("claim").await?;
        if !take_claim(&mut self.state().max_claims) {
            return self.leave("claim", Claim::default());
        }
        let mut claim = self.memory.claim(request).await?;
        claim.ordered |= self.state().says_ordered;
        claim.overlaps |= self.state().says_overlaps;
        let payloads = claim.messages.iter().map(|outbox_core::Claimed { message, .. }| {
            (message.id, String::from_utf8_lossy(&message.payload).into_owned())
        });
        self.state().payloads.extend(payloads);
        if self.state().hides_due {
            claim.next_due_in = None;
        }
        let claimed =
            Claimed { at: self.elapsed(), recover, n: claim.messages.len(), recovered: claim.recovered };
        self.state().claims.push(claimed);
        self.leave("claim", claim)
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        assert!(!settlements.is_empty() && settlements.len() <= 1_000);
        self.enter("settle").await?;
        let settled = self.memory.settle(settlements).await?;
        self.leave("settle", settled)
    }

    async fn extend(&self, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        self.enter("extend").await?;
        let ids: Vec<_> = leases.iter().map(|lease| lease.id).collect();
        let mut extended = self.memory.extend(leases, by).await?;
        for (id, answer) in ids.iter().zip(&mut extended) {
            let state = self.state();
            if state.payloads.get(id).is_some_and(|payload| state.loses.contains(payload)) {
                *answer = Settled::LeaseLost;
            }
        }
        self.leave("extend", extended)
    }
}

/// Counts a claim while it lasts.
struct Claiming {
    store: Store,
    counts: [usize; 2],
}

impl Claiming {
    fn start(store: &Store, recover: bool) -> Self {
        let counts = [1, usize::from(recover)];
        let mut state = store.state();
        for (place, n) in counts.iter().enumerate() {
            state.n_claiming[place] += n;
            state.most_claiming[place] = state.most_claiming[place].max(state.n_claiming[place]);
        }
        drop(state);
        Self { store: store.clone(), counts }
    }
}

impl Drop for Claiming {
    fn drop(&mut self) {
        let mut state = self.store.state();
        for (place, n) in self.counts.iter().enumerate() {
            state.n_claiming[place] -= n;
        }
    }
}

impl Wakeup for Store {
    type Listener = StoreListener;

    async fn listen(&self) -> Result<Option<StoreListener>> {
        if !self.state().has_hints {
            return Ok(None);
        }
        self.enter("listen").await?;
        Ok(Some(StoreListener(self.clone())))
    }
}

pub(crate) struct StoreListener(Store);

impl Listener for StoreListener {
    async fn prepare(&mut self) -> Result<Readiness> {
        self.0.enter("prepare").await?;
        Ok(match self.0.state().looks.pop() {
            Some(after) => Readiness::Look { after },
            None => Readiness::Sleep,
        })
    }

    async fn hint(&mut self) -> Result<()> {
        self.0.hint.notified().await;
        match self.0.state().failing.get("hint") {
            Some(kind) => Err(Error::new(*kind, "hint")),
            None => Ok(()),
        }
    }

    async fn stand_down(&mut self) -> Result<()> {
        self.0.enter("stand_down").await
    }

    async fn probe(&mut self) -> Result<bool> {
        self.0.enter("probe").await?;
        Ok(!self.0.state().is_deaf)
    }
}

/// Every event as a short text.
#[derive(Clone, Default)]
pub(crate) struct Events(Arc<Mutex<Vec<String>>>);

impl Observer for Events {
    fn on(&self, event: &Event<'_>) {
        Sentinel.look(&format!("{event:?}"));
        let text = match event {
            Event::Started { .. } | Event::Handled { .. } => return,
            Event::Claimed { n_messages, n_dead, .. } => format!("claimed {n_messages}, dead {n_dead}"),
            Event::Delivered { attempt, .. } => format!("delivered {attempt}"),
            Event::Retried { attempt, after, error, .. } => {
                format!("retried {attempt} after {after:?}: {error}")
            }
            Event::Dead { attempt, error, .. } => format!("dead {attempt}: {error}"),
            Event::Released { .. } => "released".into(),
            Event::LeaseLost { .. } => "lease lost".into(),
            Event::Unconfirmed { .. } => "unconfirmed".into(),
            Event::Paused { pause, error, .. } => format!("paused {pause:?}: {error}"),
            Event::Resumed { .. } => "resumed".into(),
            Event::StorageUnavailable { operation, .. } => format!("{operation} fails"),
            Event::StorageRecovered { operation, .. } => format!("{operation} works"),
            Event::WakeupReady { again, .. } => format!("wake-up ready {again}"),
            Event::WakeupLost { .. } => "wake-up lost".into(),
            Event::WakeupDeaf => "wake-up deaf".into(),
            Event::Stopping => "stopping".into(),
            Event::Stopped { .. } => "stopped".into(),
            other => panic!("{other:?}"),
        };
        self.0.lock().expect("events").push(text);
    }
}

impl Events {
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().expect("events").clone()
    }

    pub(crate) fn matching(&self, part: &str) -> Vec<String> {
        self.all().into_iter().filter(|event| event.contains(part)).collect()
    }
}

/// A dispatcher at work.
pub(crate) struct Running {
    token: CancellationToken,
    task: JoinHandle<Result<Report>>,
    pub(crate) events: Events,
}

pub(crate) fn start(store: &Store, router: Router, config: Config) -> Running {
    let (token, events) = (CancellationToken::new(), Events::default());
    let dispatcher = Dispatcher::new(store.clone(), router).with_config(config).expect("config");
    let observer = (TracingObserver, (events.clone(), watch::metrics()));
    let task = tokio::spawn(dispatcher.with_observer(observer).run(token.clone()));
    Running { token, task, events }
}

impl Running {
    pub(crate) fn cancel(&self) {
        self.token.cancel();
    }

    pub(crate) async fn stop(self) -> Report {
        self.token.cancel();
        self.join().await
    }

    pub(crate) async fn join(self) -> Report {
        let report = self.task.await.expect("no panic").expect("report");
        assert_balanced(&report);
        report
    }

    /// Drops the run, as a crash would.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub(crate) fn assert_balanced(report: &Report) {
    let settled = report.n_done + report.n_retried + report.n_dead - report.n_dead_unclaimed;
    let rest = report.n_released + report.n_lease_lost + report.n_unconfirmed + report.n_unsettled;
    assert_eq!(report.n_claimed, settled + rest, "{report:?}");
}

/// Waits in (paused) time until `condition` holds.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        sleep(milliseconds(1)).await;
    }
    panic!("never came true");
}

pub(crate) async fn until_async<F: Future<Output = bool>>(mut condition: impl FnMut() -> F) {
    for _ in 0..100_000 {
        if condition().await {
            return;
        }
        sleep(milliseconds(1)).await;
    }
    panic!("never came true");
}

/// What handlers saw.
#[derive(Clone)]
pub(crate) struct Calls {
    started: Instant,
    calls: Arc<Mutex<Vec<Call>>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) at: Duration,
    pub(crate) payload: String,
    pub(crate) attempt: u32,
}

impl Calls {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), calls: Arc::default() }
    }

    pub(crate) fn record(&self, message: &Message) {
        self.lock().push(Call {
            at: self.started.elapsed(),
            payload: String::from_utf8_lossy(&message.payload).into_owned(),
            attempt: message.attempt,
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().expect("calls")
    }

    pub(crate) fn n(&self) -> usize {
        self.lock().len()
    }

    pub(crate) fn all(&self) -> Vec<Call> {
        self.lock().clone()
    }

    /// A router whose topic `t` records and answers with `f`.
    pub(crate) fn answering<F>(&self, f: F) -> Router
    where
        F: Fn(&Message) -> HandlerResult + Clone + Send + Sync + 'static,
    {
        let calls = self.clone();
        Router::new().on("t", async move |message: Message| {
            calls.record(&message);
            f(&message)
        })
    }

    /// A router whose topic `t` records and takes `time`.
    pub(crate) fn taking(&self, time: Duration) -> Router {
        let calls = self.clone();
        Router::new().on("t", async move |message: Message| {
            calls.record(&message);
            sleep(time).await;
            Ok(())
        })
    }
}

pub(crate) fn broken(_: &Message) -> HandlerResult {
    Err(HandlerError::from("broken"))
}

pub(crate) fn fine(_: &Message) -> HandlerResult {
    Ok(())
}

pub(crate) fn seeded(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}
