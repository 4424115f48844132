//! Writes outcomes, many in one call, until they are written.

use std::sync::Arc;
use std::time::Duration;

use outbox_core::{Error, Repository, Result, Settled, Settlement};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::desk::Desk;
use crate::health::Health;
use crate::held::Finished;

pub(crate) struct Settler<R> {
    desk: Arc<Desk>,
    repository: Arc<R>,
    health: Health,
    /// When to give up; set when nothing more is going to finish.
    end: watch::Receiver<Option<Instant>>,
    /// A failure ends the run.
    is_strict: bool,
}

impl<R: Repository> Settler<R> {
    pub(crate) fn new(
        desk: Arc<Desk>,
        repository: Arc<R>,
        end: watch::Receiver<Option<Instant>>,
        is_strict: bool,
    ) -> Self {
        let health = Health::new("settle", desk.observers.clone());
        Self { desk, repository, health, end, is_strict }
    }

    /// Settles until the end is set and nothing is left, or its time has come.
    pub(crate) async fn run(mut self) {
        while self.wait_for_batch().await {
            let batch = self.desk.take_finished();
            if !self.settle(&batch).await {
                return;
            }
        }
    }

    /// Waits for others to settle together with. False: there is nothing, and nothing will come.
    async fn wait_for_batch(&mut self) -> bool {
        while self.desk.n_finished() == 0 {
            if self.end.borrow_and_update().is_some() {
                return false;
            }
            tokio::select! {
                () = self.desk.finished_some() => {}
                _ = self.end.changed() => {}
            }
        }
        let latest = Instant::now() + self.desk.config.settle_delay;
        while !self.desk.is_settling_due() && self.end.borrow_and_update().is_none() {
            tokio::select! {
                () = self.desk.finished_some() => {}
                _ = self.end.changed() => {}
                () = sleep_until(latest) => break,
            }
        }
        true
    }

    /// Tries until it works. False: the end has come.
    async fn settle(&mut self, batch: &[Finished]) -> bool {
        let mut uncertain = false;
        loop {
            match self.try_settle(batch).await {
                Ok(mut answers) => {
                    answers.resize(batch.len(), Settled::LeaseLost);
                    self.desk.settled(batch, &answers, uncertain);
                    return true;
                }
                Err(error) => {
                    uncertain = true;
                    if !self.wait_after(error).await {
                        return false;
                    }
                }
            }
        }
    }

    async fn try_settle(&mut self, batch: &[Finished]) -> Result<Vec<Settled>> {
        let settlement =
            |finished: &Finished| Settlement::new(finished.ticket.lease, finished.outcome.clone());
        let settlements = batch.iter().map(settlement).collect();
        let limit = self.time_left().min(self.desk.config.operation_timeout);
        self.health.watch(limit, self.repository.settle(settlements)).await
    }

    fn time_left(&self) -> Duration {
        self.end.borrow().map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()))
    }

    /// Waits before the next try. False: the end has come.
    async fn wait_after(&mut self, error: Error) -> bool {
        if self.is_strict {
            self.desk.fail(error);
        }
        let again = Instant::now() + self.health.delay();
        let end = *self.end.borrow_and_update();
        tokio::select! {
            () = sleep_until(end.map_or(again, |end| end.min(again))) => {}
            _ = self.end.changed() => {}
        }
        self.time_left() > Duration::ZERO
    }
}
