//! The reference with one rule broken: each [`Bug`] overrides one method.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use outbox_core::{
    BlockedPage, BlockedQuery, Claim, ClaimRequest, Context, DeadLetterFilter, DeadLetterPage,
    DeadLetterQuery, Declaration, Draft, FailedAttempt, Finding, Lease, Mark, Marked, MemoryListener,
    MemoryRepository, MessageId, Moved, Operations, ProcessedStore, Prune, Repository, Result, Retention,
    Settled, Settlement, Stats, Transactions, Unblocked, Wakeup,
};
use outbox_testkit::{Capabilities, DeclaredHarness, Harness, OperationsHarness, ProcessedHarness, Skip};

/// What a bug remembers from call to call.
#[derive(Default)]
pub(crate) struct Notes {
    /// The lease of the last claim of each message.
    pub(crate) leases: HashMap<MessageId, Lease>,
    pub(crate) n_failures: HashMap<MessageId, u32>,
    pub(crate) highest: MessageId,
    pub(crate) n_transactions: u64,
    pub(crate) marked: HashMap<String, Vec<(String, MessageId)>>,
    pub(crate) processed: HashSet<(String, MessageId)>,
}

/// A backend with the bug `B`.
pub(crate) struct Broken<B> {
    pub(crate) store: MemoryRepository,
    notes: Arc<Mutex<Notes>>,
    bug: std::marker::PhantomData<fn() -> B>,
}

impl<B> Broken<B> {
    pub(crate) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().expect("notes")
    }

    fn new() -> Self {
        Self { store: MemoryRepository::new(), notes: Arc::default(), bug: std::marker::PhantomData }
    }
}

impl<B> Clone for Broken<B> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), notes: Arc::clone(&self.notes), bug: self.bug }
    }
}

/// The methods that can be broken; as they stand they are right.
pub(crate) trait Bug: Sized + 'static {
    fn enqueue(
        broken: &Broken<Self>,
        cx: &Context,
        drafts: Vec<Draft>,
    ) -> impl Future<Output = Result<Vec<MessageId>>> + Send {
        broken.store.enqueue(cx, drafts)
    }

    fn claim(broken: &Broken<Self>, request: ClaimRequest) -> impl Future<Output = Result<Claim>> + Send {
        broken.store.claim(request)
    }

    fn settle(
        broken: &Broken<Self>,
        settlements: Vec<Settlement>,
    ) -> impl Future<Output = Result<Vec<Settled>>> + Send {
        broken.store.settle(settlements)
    }

    fn extend(
        broken: &Broken<Self>,
        leases: Vec<Lease>,
        by: Duration,
    ) -> impl Future<Output = Result<Vec<Settled>>> + Send {
        broken.store.extend(leases, by)
    }

    fn mark_processed(
        broken: &Broken<Self>,
        cx: &Context,
        mark: Mark,
    ) -> impl Future<Output = Result<Marked>> + Send {
        broken.store.mark_processed(cx, mark)
    }

    fn commit(broken: &Broken<Self>, cx: Context) -> impl Future<Output = Result<()>> + Send {
        broken.store.commit(cx)
    }

    fn redrive(
        broken: &Broken<Self>,
        ids: Vec<MessageId>,
    ) -> impl Future<Output = Result<Vec<Moved>>> + Send {
        broken.store.redrive(ids)
    }

    fn redrive_matching(
        broken: &Broken<Self>,
        filter: DeadLetterFilter,
        limit: usize,
    ) -> impl Future<Output = Result<u64>> + Send {
        broken.store.redrive_matching(filter, limit)
    }

    fn prune(broken: &Broken<Self>, prune: Prune) -> impl Future<Output = Result<u64>> + Send {
        broken.store.prune(prune)
    }
}

/// The header by which bugs tell transactions apart.
pub(crate) const TRANSACTION: &str = "transaction";

impl<B: Bug> Transactions for Broken<B> {
    async fn begin(&self) -> Result<Context> {
        let number = {
            let mut notes = self.notes();
            notes.n_transactions += 1;
            notes.n_transactions
        };
        Ok(self.store.begin().await?.with_header(TRANSACTION, number.to_string()))
    }

    async fn commit(&self, cx: Context) -> Result<()> {
        B::commit(self, cx).await
    }

    async fn rollback(&self, cx: Context) -> Result<()> {
        self.store.rollback(cx).await
    }
}

impl<B: Bug> Repository for Broken<B> {
    async fn enqueue(&self, cx: &Context, drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        B::enqueue(self, cx, drafts).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claim> {
        let claim = B::claim(self, request).await?;
        let leases = claim.messages.iter().map(|claimed| (claimed.lease.id, claimed.lease));
        self.notes().leases.extend(leases);
        Ok(claim)
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        B::settle(self, settlements).await
    }

    async fn extend(&self, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        B::extend(self, leases, by).await
    }
}

impl<B: Bug> Wakeup for Broken<B> {
    type Listener = MemoryListener;

    async fn listen(&self) -> Result<Option<MemoryListener>> {
        self.store.listen().await
    }
}

impl<B: Bug> Operations for Broken<B> {
    async fn stats(&self) -> Result<Stats> {
        self.store.stats().await
    }

    async fn dead_letters(&self, query: DeadLetterQuery) -> Result<DeadLetterPage> {
        self.store.dead_letters(query).await
    }

    async fn redrive(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        B::redrive(self, ids).await
    }

    async fn redrive_matching(&self, filter: DeadLetterFilter, limit: usize) -> Result<u64> {
        B::redrive_matching(self, filter, limit).await
    }

    async fn discard(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        self.store.discard(ids).await
    }

    async fn discard_matching(&self, filter: DeadLetterFilter, limit: usize) -> Result<u64> {
        self.store.discard_matching(filter, limit).await
    }

    async fn blocked_keys(&self, query: BlockedQuery) -> Result<BlockedPage> {
        self.store.blocked_keys(query).await
    }

    async fn skip_head(&self, key: String, head: MessageId) -> Result<Unblocked> {
        self.store.skip_head(key, head).await
    }

    async fn release_head(&self, key: String, head: MessageId) -> Result<Unblocked> {
        self.store.release_head(key, head).await
    }

    async fn history(&self, id: MessageId) -> Result<Vec<FailedAttempt>> {
        self.store.history(id).await
    }

    async fn prune(&self, prune: Prune) -> Result<u64> {
        B::prune(self, prune).await
    }

    async fn ping(&self) -> Result<()> {
        self.store.ping().await
    }

    async fn check(&self) -> Result<()> {
        self.store.check().await
    }

    async fn doctor(&self, patience: Duration) -> Result<Vec<Finding>> {
        self.store.doctor(patience).await
    }
}

impl<B: Bug> ProcessedStore for Broken<B> {
    async fn is_processed(&self, group: &str, id: MessageId) -> Result<bool> {
        self.store.is_processed(group, id).await
    }

    async fn mark_processed(&self, cx: &Context, mark: Mark) -> Result<Marked> {
        B::mark_processed(self, cx, mark).await
    }

    async fn store_result(
        &self,
        cx: &Context,
        group: &str,
        id: MessageId,
        result: serde_json::Value,
    ) -> Result<()> {
        self.store.store_result(cx, group, id, result).await
    }

    async fn purge_before(&self, group: &str, age: Duration, limit: usize) -> Result<u64> {
        self.store.purge_before(group, age, limit).await
    }
}

impl<B: Bug> Harness for Broken<B> {
    const NAME: &'static str = "broken";
    type Repository = Self;

    async fn start() -> Result<Self, Skip> {
        Ok(Self::new())
    }

    fn repository(&self) -> &Self {
        self
    }

    async fn advance(&self, by: Duration) {
        self.store.advance(by);
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all().with_corrupt_rows(false)
    }
}

impl<B: Bug> OperationsHarness for Broken<B> {
    type Operations = Self;

    fn operations(&self) -> &Self {
        self
    }

    fn keeping(&self) -> Option<Self> {
        Some(Self { store: self.store.clone().with_retention(Retention::Keep), ..self.clone() })
    }
}

impl<B: Bug> DeclaredHarness for Broken<B> {
    async fn declared(&self, declaration: Declaration) -> Self {
        Self { store: MemoryRepository::new().declared(declaration), ..Self::new() }
    }
}

impl<B: Bug> ProcessedHarness for Broken<B> {
    type Processed = Self;

    fn processed(&self) -> &Self {
        self
    }
}
