//! The repository without the dispatcher: claim and settle in turns, to see what each of the two costs.

use std::path::Path;
use std::time::Duration;

use outbox_core::{ClaimRequest, Claimer, Draft, Outcome, Repository as _, Settled, Settlement};

use crate::error::Result;
use crate::load::{BATCH, TOPIC};
use crate::ours::Ours;
use crate::side::Side;
use crate::site::Site;

const LEASE: Duration = Duration::from_secs(30);

/// A table that is drained by hand.
pub(crate) struct Bare(Ours);

impl Side for Bare {
    async fn create(site: &Site) -> Result<Self> {
        Ours::create(site).await.map(Self)
    }

    async fn enqueue_batches(&self, batches: Vec<Vec<Draft>>) -> Result<()> {
        self.0.enqueue_batches(batches).await
    }

    async fn enqueue_singles(&self, parts: Vec<Vec<Draft>>) -> Result<()> {
        self.0.enqueue_singles(parts).await
    }

    async fn drain(&self, n_messages: u64) -> Result<()> {
        let request = ClaimRequest::new(BATCH, LEASE).with_topics([TOPIC]).with_claimer(Claimer::new());
        let mut n_done = 0;
        while n_done < n_messages {
            let claim = self.0.outbox.claim(request.clone()).await?;
            let done = claim.messages.iter().map(|claimed| Settlement::new(claimed.lease, Outcome::Done));
            let settled = self.0.outbox.settle(done.collect()).await?;
            n_done += settled.iter().filter(|settled| **settled == Settled::Applied).count() as u64;
            if settled.is_empty() {
                return Err(format!("nothing to claim after {n_done} of {n_messages}").into());
            }
        }
        Ok(())
    }

    fn file(&self) -> Option<&Path> {
        self.0.file()
    }

    async fn remove(self) -> Result<()> {
        self.0.remove().await
    }
}
