//! A repository whose calls fail as a seeded plan says.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outbox_core::{
    BlockedPage, BlockedQuery, Claim, ClaimRequest, Context, DeadLetterFilter, DeadLetterPage,
    DeadLetterQuery, Draft, Error, ErrorKind, FailedAttempt, Finding, Lease, Mark, Marked, MessageId, Moved,
    Operations, ProcessedStore, Prune, Repository, Result, Settled, Settlement, Stats, Transactions,
    Unblocked, Wakeup,
};
use serde_json::Value;
use tokio::time::sleep;

use crate::random::Random;

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call does not reach the storage.
    Before(ErrorKind),
    /// The call takes effect and its answer is lost.
    After(ErrorKind),
    /// The call takes this much longer.
    Delay(Duration),
    /// The call never ends; it can only be dropped.
    Hang,
}

/// How often which faults happen.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FaultPlan {
    /// Where the random numbers start: the same seed gives the same faults for the same calls in order.
    pub seed: u64,
    /// The share of calls, 0 to 1, that do not reach the storage.
    pub before: f64,
    /// The share of calls, 0 to 1, whose answer is lost.
    pub after: f64,
    /// The errors to choose from.
    pub kinds: Vec<ErrorKind>,
    /// The longest random delay of a call.
    pub max_delay: Duration,
}

impl FaultPlan {
    /// No faults.
    pub fn none() -> Self {
        Self {
            seed: 0,
            before: 0.0,
            after: 0.0,
            kinds: vec![ErrorKind::Unavailable],
            max_delay: Duration::ZERO,
        }
    }

    /// Of each ten calls one fails before and one after it took effect, by faults that retrying heals.
    pub fn seeded(seed: u64) -> Self {
        let kinds =
            vec![ErrorKind::Unavailable, ErrorKind::Timeout, ErrorKind::Contention, ErrorKind::ReadOnly];
        Self { seed, before: 0.1, after: 0.1, kinds, max_delay: Duration::ZERO }
    }

    /// Sets the share of calls that do not reach the storage.
    #[must_use]
    pub fn with_before(mut self, share: f64) -> Self {
        self.before = share;
        self
    }

    /// Sets the share of calls whose answer is lost.
    #[must_use]
    pub fn with_after(mut self, share: f64) -> Self {
        self.after = share;
        self
    }

    /// Sets the errors to choose from.
    #[must_use]
    pub fn with_kinds(mut self, kinds: impl IntoIterator<Item = ErrorKind>) -> Self {
        self.kinds = kinds.into_iter().collect();
        self
    }

    /// Sets the longest random delay of a call.
    #[must_use]
    pub fn with_max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = delay;
        self
    }
}

/// A repository whose calls fail by plan. Clones share the plan.
///
/// # Examples
/// ```
/// use outbox_core::{ClaimRequest, ErrorKind, MemoryRepository, Repository};
/// use outbox_testkit::faulty::{Fault, FaultPlan, FaultyRepository};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let outbox = FaultyRepository::new(MemoryRepository::new(), FaultPlan::none());
/// outbox.fail_next("claim", Fault::Before(ErrorKind::Timeout));
/// let request = ClaimRequest::new(10, std::time::Duration::from_secs(30));
/// assert_eq!(outbox.claim(request.clone()).await.unwrap_err().kind(), ErrorKind::Timeout);
/// assert!(outbox.claim(request).await.is_ok());
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FaultyRepository<R> {
    inner: R,
    faults: Arc<Mutex<Faults>>,
}

#[derive(Debug)]
struct Faults {
    plan: FaultPlan,
    random: Random,
    scripted: VecDeque<(&'static str, Fault)>,
    n_faults: u64,
}

impl Faults {
    /// What happens to this call: a delay, and a fault.
    fn draw(&mut self, operation: &'static str) -> (Duration, Option<Fault>) {
        if let Some(place) = self.scripted.iter().position(|(scripted, _)| *scripted == operation) {
            self.n_faults += 1;
            return (Duration::ZERO, self.scripted.remove(place).map(|(_, fault)| fault));
        }
        let (delay, chance) = (self.random.up_to(self.plan.max_delay), self.random.fraction());
        let fault = self.choose(chance);
        self.n_faults += u64::from(fault.is_some());
        (delay, fault)
    }

    fn choose(&mut self, chance: f64) -> Option<Fault> {
        if self.plan.kinds.is_empty() || chance >= self.plan.before + self.plan.after {
            return None;
        }
        let kind = self.plan.kinds[self.random.below(self.plan.kinds.len())];
        Some(if chance < self.plan.before { Fault::Before(kind) } else { Fault::After(kind) })
    }
}

impl<R> FaultyRepository<R> {
    /// Lets calls of `inner` fail by `plan`.
    pub fn new(inner: R, plan: FaultPlan) -> Self {
        let random = Random::from_seed(plan.seed);
        let faults = Faults { plan, random, scripted: VecDeque::new(), n_faults: 0 };
        Self { inner, faults: Arc::new(Mutex::new(faults)) }
    }

    /// The repository behind the faults, for a look at the truth.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The repository without the faults.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Replaces the plan; scripted faults stay.
    pub fn set_plan(&self, plan: FaultPlan) {
        let mut faults = self.faults();
        faults.random = Random::from_seed(plan.seed);
        faults.plan = plan;
    }

    /// The next call of `operation`, the name of a method, has this fault; called twice, the next but one as
    /// well.
    pub fn fail_next(&self, operation: &'static str, fault: Fault) {
        self.faults().scripted.push_back((operation, fault));
    }

    /// How many calls had a fault so far.
    pub fn n_faults(&self) -> u64 {
        self.faults().n_faults
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let (delay, fault) = self.faults().draw(operation);
        if !delay.is_zero() {
            sleep(delay).await;
        }
        match fault {
            None => call.await,
            Some(Fault::Before(kind)) => Err(injected(kind, operation)),
            Some(Fault::After(kind)) => {
                let _ = call.await?;
                Err(injected(kind, operation))
            }
            Some(Fault::Delay(delay)) => {
                sleep(delay).await;
                call.await
            }
            Some(Fault::Hang) => std::future::pending().await,
        }
    }
}

fn injected(kind: ErrorKind, operation: &'static str) -> Error {
    Error::new(kind, operation).with_detail("injected")
}

impl<R: Repository> Repository for FaultyRepository<R> {
    async fn enqueue(&self, cx: &Context, drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        self.call("enqueue", self.inner.enqueue(cx, drafts)).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claim> {
        self.call("claim", self.inner.claim(request)).await
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        self.call("settle", self.inner.settle(settlements)).await
    }

    async fn extend(&self, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        self.call("extend", self.inner.extend(leases, by)).await
    }
}

impl<R: Transactions> Transactions for FaultyRepository<R> {
    async fn begin(&self) -> Result<Context> {
        self.call("begin", self.inner.begin()).await
    }

    async fn commit(&self, cx: Context) -> Result<()> {
        self.call("commit", self.inner.commit(cx)).await
    }

    async fn rollback(&self, cx: Context) -> Result<()> {
        self.call("rollback", self.inner.rollback(cx)).await
    }
}

impl<R: Wakeup> Wakeup for FaultyRepository<R> {
    type Listener = R::Listener;

    async fn listen(&self) -> Result<Option<R::Listener>> {
        self.call("listen", self.inner.listen()).await
    }
}

impl<R: Operations> Operations for FaultyRepository<R> {
    async fn stats(&self) -> Result<Stats> {
        self.call("stats", self.inner.stats()).await
    }

    async fn dead_letters(&self, query: DeadLetterQuery) -> Result<DeadLetterPage> {
        self.call("dead_letters", self.inner.dead_letters(query)).await
    }

    async fn redrive(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        self.call("redrive", self.inner.redrive(ids)).await
    }

    async fn redrive_matching(&self, filter: DeadLetterFilter, limit: usize) -> Result<u64> {
        self.call("redrive_matching", self.inner.redrive_matching(filter, limit)).await
    }

    async fn discard(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        self.call("discard", self.inner.discard(ids)).await
    }

    async fn discard_matching(&self, filter: DeadLetterFilter, limit: usize) -> Result<u64> {
        self.call("discard_matching", self.inner.discard_matching(filter, limit)).await
    }

    async fn blocked_keys(&self, query: BlockedQuery) -> Result<BlockedPage> {
        self.call("blocked_keys", self.inner.blocked_keys(query)).await
    }

    async fn skip_head(&self, key: String, head: MessageId) -> Result<Unblocked> {
        self.call("skip_head", self.inner.skip_head(key, head)).await
    }

    async fn release_head(&self, key: String, head: MessageId) -> Result<Unblocked> {
        self.call("release_head", self.inner.release_head(key, head)).await
    }

    async fn history(&self, id: MessageId) -> Result<Vec<FailedAttempt>> {
        self.call("history", self.inner.history(id)).await
    }

    async fn prune(&self, prune: Prune) -> Result<u64> {
        self.call("prune", self.inner.prune(prune)).await
    }

    async fn ping(&self) -> Result<()> {
        self.call("ping", self.inner.ping()).await
    }

    async fn check(&self) -> Result<()> {
        self.call("check", self.inner.check()).await
    }

    async fn doctor(&self, patience: Duration) -> Result<Vec<Finding>> {
        self.call("doctor", self.inner.doctor(patience)).await
    }
}

impl<R: ProcessedStore> ProcessedStore for FaultyRepository<R> {
    async fn is_processed(&self, group: &str, id: MessageId) -> Result<bool> {
        self.call("is_processed", self.inner.is_processed(group, id)).await
    }

    async fn mark_processed(&self, cx: &Context, mark: Mark) -> Result<Marked> {
        self.call("mark_processed", self.inner.mark_processed(cx, mark)).await
    }

    async fn store_result(&self, cx: &Context, group: &str, id: MessageId, result: Value) -> Result<()> {
        self.call("store_result", self.inner.store_result(cx, group, id, result)).await
    }

    async fn purge_before(&self, group: &str, age: Duration, limit: usize) -> Result<u64> {
        self.call("purge_before", self.inner.purge_before(group, age, limit)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outbox_core::MemoryRepository;

    fn request() -> ClaimRequest {
        ClaimRequest::new(10, Duration::from_secs(60))
    }

    async fn kinds(plan: FaultPlan) -> Vec<Option<ErrorKind>> {
        let faulty = FaultyRepository::new(MemoryRepository::new(), plan);
        let mut kinds = Vec::new();
        for _ in 0..200 {
            kinds.push(faulty.claim(request()).await.err().map(|error| error.kind()));
        }
        assert_eq!(kinds.iter().flatten().count() as u64, faulty.n_faults());
        kinds
    }

    #[tokio::test]
    async fn same_seed_gives_the_same_faults() {
        assert_eq!(kinds(FaultPlan::seeded(7)).await, kinds(FaultPlan::seeded(7)).await);
        assert_ne!(kinds(FaultPlan::seeded(7)).await, kinds(FaultPlan::seeded(8)).await);
        assert!(kinds(FaultPlan::none()).await.iter().all(Option::is_none));
    }

    #[tokio::test]
    async fn fault_before_changes_nothing_and_fault_after_does() {
        let faulty = FaultyRepository::new(MemoryRepository::new(), FaultPlan::none());
        let cx = faulty.begin().await.expect("begin");
        faulty.enqueue(&cx, vec![Draft::new("topic", "x")]).await.expect("enqueue");
        faulty.fail_next("commit", Fault::After(ErrorKind::CommitUnknown));
        assert_eq!(faulty.commit(cx).await.expect_err("fault").kind(), ErrorKind::CommitUnknown);
        faulty.fail_next("claim", Fault::Before(ErrorKind::Timeout));
        faulty.claim(request()).await.expect_err("fault");
        assert_eq!(faulty.claim(request()).await.expect("claim").messages.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn call_can_hang_or_take_longer() {
        let faulty = FaultyRepository::new(MemoryRepository::new(), FaultPlan::none());
        faulty.fail_next("ping", Fault::Hang);
        assert!(tokio::time::timeout(Duration::from_secs(3600), faulty.ping()).await.is_err());
        faulty.fail_next("ping", Fault::Delay(Duration::from_secs(10)));
        let started = tokio::time::Instant::now();
        faulty.ping().await.expect("ping");
        assert_eq!(started.elapsed(), Duration::from_secs(10));
    }
}
