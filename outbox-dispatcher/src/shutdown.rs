//! The end of a run: what runs may finish, what is finished is settled, the rest is given back.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::Report;
use crate::desk::Desk;
use crate::workers::Workers;

/// How long a handler that is dropped may keep its thread.
const GRACE: Duration = Duration::from_secs(1);
/// The least time to settle in.
const MIN_SETTLING: Duration = Duration::from_secs(5);

/// The background of a run.
pub(crate) struct Tasks {
    pub(crate) workers: Workers,
    pub(crate) starter: AbortOnDropHandle<()>,
    pub(crate) settler: AbortOnDropHandle<()>,
    pub(crate) end: watch::Sender<Option<Instant>>,
    pub(crate) heartbeat: AbortOnDropHandle<()>,
}

impl Tasks {
    /// Ends the run; running handlers have until `deadline`.
    pub(crate) async fn finish(self, desk: &Desk, deadline: Instant) -> Report {
        desk.close();
        self.starter.abort();
        let _ = self.starter.await;
        let mut workers = self.workers.take();
        if !join(&mut workers, deadline).await {
            desk.give_back_running();
            join(&mut workers, Instant::now() + GRACE).await;
        }
        self.end.send_replace(Some(deadline.max(Instant::now() + MIN_SETTLING)));
        let _ = self.settler.await;
        drop(self.heartbeat);
        desk.report()
    }
}

/// Whether all have ended in time.
async fn join(workers: &mut JoinSet<()>, deadline: Instant) -> bool {
    let all = async { while workers.join_next().await.is_some() {} };
    timeout_at(deadline, all).await.is_ok()
}
