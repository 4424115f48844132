//! The tasks that run handlers: one for each place that has work, started by the claim loop or when a time has
//! come.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::desk::{Desk, work};

/// Clones share the tasks; the last one to be dropped aborts them.
#[derive(Clone, Default)]
pub(crate) struct Workers(Arc<Mutex<JoinSet<()>>>);

impl Workers {
    pub(crate) fn start(&self, desk: &Arc<Desk>, places: Vec<usize>) {
        if places.is_empty() {
            return;
        }
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        for place in places {
            tasks.spawn(work(Arc::clone(desk), place));
        }
    }

    /// The tasks that run now.
    pub(crate) fn take(&self) -> JoinSet<()> {
        mem::take(&mut *self.tasks())
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts what waited for a time, a rate or a place that it did not ask for.
pub(crate) async fn start_in_time(desk: Arc<Desk>, workers: Workers) {
    loop {
        let (places, alarm) = desk.start_due();
        workers.start(&desk, places);
        match alarm {
            Some(at) => tokio::select! {
                () = desk.start_called() => {}
                () = sleep_until(at) => {}
            },
            None => desk.start_called().await,
        }
    }
}
