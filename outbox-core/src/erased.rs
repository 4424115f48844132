use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::{
    Claim, ClaimRequest, Context, Draft, Lease, Listener, MessageId, Readiness, Repository, Result, Settled,
    Settlement, Wakeup,
};

type Boxed<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// The object-safe twin of [`Repository`] and [`Wakeup`], implemented for everything that has both.
pub trait DynRepository: Send + Sync {
    /// See [`Repository::enqueue`].
    fn enqueue_dyn<'a>(&'a self, cx: &'a Context, drafts: Vec<Draft>) -> Boxed<'a, Vec<MessageId>>;
    /// See [`Repository::claim`].
    fn claim_dyn(&self, request: ClaimRequest) -> Boxed<'_, Claim>;
    /// See [`Repository::settle`].
    fn settle_dyn(&self, settlements: Vec<Settlement>) -> Boxed<'_, Vec<Settled>>;
    /// See [`Repository::extend`].
    fn extend_dyn(&self, leases: Vec<Lease>, by: Duration) -> Boxed<'_, Vec<Settled>>;
    /// See [`Wakeup::listen`].
    fn listen_dyn(&self) -> Boxed<'_, Option<DynListener>>;
}

impl<R: Repository + Wakeup> DynRepository for R {
    fn enqueue_dyn<'a>(&'a self, cx: &'a Context, drafts: Vec<Draft>) -> Boxed<'a, Vec<MessageId>> {
        Box::pin(self.enqueue(cx, drafts))
    }

    fn claim_dyn(&self, request: ClaimRequest) -> Boxed<'_, Claim> {
        Box::pin(self.claim(request))
    }

    fn settle_dyn(&self, settlements: Vec<Settlement>) -> Boxed<'_, Vec<Settled>> {
        Box::pin(self.settle(settlements))
    }

    fn extend_dyn(&self, leases: Vec<Lease>, by: Duration) -> Boxed<'_, Vec<Settled>> {
        Box::pin(self.extend(leases, by))
    }

    fn listen_dyn(&self) -> Boxed<'_, Option<DynListener>> {
        Box::pin(async { Ok(self.listen().await?.map(|listener| DynListener(Box::new(listener)))) })
    }
}

/// Any repository behind one type, for programs that choose the backend at run time.
///
/// # Examples
/// ```
/// use outbox_core::{ArcRepository, MemoryRepository};
/// let outbox: ArcRepository = ArcRepository::new(MemoryRepository::new());
/// ```
#[derive(Clone)]
pub struct ArcRepository(Arc<dyn DynRepository>);

impl ArcRepository {
    /// Erases the type of `repository`.
    pub fn new(repository: impl Repository + Wakeup + 'static) -> Self {
        Self(Arc::new(repository))
    }
}

impl fmt::Debug for ArcRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ArcRepository")
    }
}

impl Repository for ArcRepository {
    async fn enqueue(&self, cx: &Context, drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        self.0.enqueue_dyn(cx, drafts).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claim> {
        self.0.claim_dyn(request).await
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        self.0.settle_dyn(settlements).await
    }

    async fn extend(&self, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        self.0.extend_dyn(leases, by).await
    }
}

impl Wakeup for ArcRepository {
    type Listener = DynListener;

    async fn listen(&self) -> Result<Option<DynListener>> {
        self.0.listen_dyn().await
    }
}

trait ErasedListener: Send {
    fn prepare_dyn(&mut self) -> Boxed<'_, Readiness>;
    fn hint_dyn(&mut self) -> Boxed<'_, ()>;
    fn stand_down_dyn(&mut self) -> Boxed<'_, ()>;
    fn probe_dyn(&mut self) -> Boxed<'_, bool>;
}

impl<L: Listener> ErasedListener for L {
    fn prepare_dyn(&mut self) -> Boxed<'_, Readiness> {
        Box::pin(self.prepare())
    }

    fn hint_dyn(&mut self) -> Boxed<'_, ()> {
        Box::pin(self.hint())
    }

    fn stand_down_dyn(&mut self) -> Boxed<'_, ()> {
        Box::pin(self.stand_down())
    }

    fn probe_dyn(&mut self) -> Boxed<'_, bool> {
        Box::pin(self.probe())
    }
}

/// The listener of an [`ArcRepository`].
pub struct DynListener(Box<dyn ErasedListener>);

impl fmt::Debug for DynListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DynListener")
    }
}

impl Listener for DynListener {
    async fn prepare(&mut self) -> Result<Readiness> {
        self.0.prepare_dyn().await
    }

    async fn hint(&mut self) -> Result<()> {
        self.0.hint_dyn().await
    }

    async fn stand_down(&mut self) -> Result<()> {
        self.0.stand_down_dyn().await
    }

    async fn probe(&mut self) -> Result<bool> {
        self.0.probe_dyn().await
    }
}
