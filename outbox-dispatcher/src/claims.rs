//! The claims of one lane that are under way.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use outbox_core::{Claim, ClaimRequest, Claimer, Repository, Result};

use crate::health::within;

/// Which claimer a claim has, and what came of it.
type Answer = (usize, Result<Claim>);

/// At most one, or two where the storage says that they do not get in each other's way.
pub(crate) struct Claims {
    pub(crate) lane: usize,
    pub(crate) template: ClaimRequest,
    /// Each for one claim at a time.
    claimers: [Claimer; 2],
    /// What the claims of these claimers that are under way were asked.
    sent: [Option<Sent>; 2],
    under_way: FuturesUnordered<Pin<Box<dyn Future<Output = Answer> + Send>>>,
    may_overlap: bool,
}

struct Sent {
    limit: usize,
    recover: bool,
}

impl Claims {
    pub(crate) fn new(lane: usize, template: ClaimRequest) -> Self {
        Self {
            lane,
            template,
            claimers: [Claimer::new(), Claimer::new()],
            sent: [None, None],
            under_way: FuturesUnordered::new(),
            may_overlap: false,
        }
    }

    /// A request for a claim that is waited for before the next one.
    pub(crate) fn request(&self, limit: usize, recover: bool) -> ClaimRequest {
        self.request_by(0, limit, recover)
    }

    fn request_by(&self, claimer: usize, limit: usize, recover: bool) -> ClaimRequest {
        let mut request = self.template.clone().with_recover(recover);
        request.limit = limit;
        request.with_claimer(self.claimers[claimer].clone())
    }

    pub(crate) fn is_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Whether a second claim may be sent beside the one that is under way.
    pub(crate) fn has_place(&self) -> bool {
        self.under_way.len() == 1 && self.may_overlap
    }

    /// How many messages may come.
    pub(crate) fn n_coming(&self) -> usize {
        self.sent.iter().flatten().map(|sent| sent.limit).sum()
    }

    /// Whether the last claim brought as much as it could, and the storage reads on while another claim is under way.
    pub(crate) fn note(&mut self, is_full: bool, overlaps: bool) {
        self.may_overlap = is_full && overlaps;
    }

    /// Sends a claim. One at a time recovers, so that what it finds is worked on alone.
    pub(crate) fn send<R: Repository + 'static>(
        &mut self,
        repository: &Arc<R>,
        timeout: Duration,
        limit: usize,
        recover: bool,
    ) {
        let recover = recover && !self.sent.iter().flatten().any(|sent| sent.recover);
        let claimer = usize::from(self.sent[0].is_some());
        let (request, repository) = (self.request_by(claimer, limit, recover), Arc::clone(repository));
        self.sent[claimer] = Some(Sent { limit, recover });
        let call = async move { (claimer, within(timeout, "claim", repository.claim(request)).await) };
        self.under_way.push(Box::pin(call));
    }

    /// What became of the claim that is answered first, and its limit; `None` where none is under way.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn next(&mut self) -> Option<(usize, Result<Claim>)> {
        let (claimer, answer) = self.under_way.next().await?;
        let limit = self.sent[claimer].take().map_or(0, |sent| sent.limit);
        Some((limit, answer))
    }

    /// Drops what is under way.
    pub(crate) fn clear(&mut self) {
        self.under_way.clear();
        self.sent = [None, None];
    }
}
