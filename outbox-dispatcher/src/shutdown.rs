//! The end of a run: what runs may finish, what is finished is settled, the rest is given back.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::Report;
use crate::desk::Desk;

/// How long a handler that is dropped may keep its thread.
const GRACE: Duration = Duration::from_secs(1);
/// The least time to settle in.
const MIN_SETTLING: Duration = Duration::from_secs(5);

/// The background of a run.
pub(crate) struct Tasks {
    pub(crate) workers: JoinSet<()>,
    pub(crate) settler: AbortOnDropHandle<()>,
    pub(crate) end: watch::Sender<Option<Instant>>,
    pub(crate) heartbeat: AbortOnDropHandle<()>,
}

impl Tasks {
    /// Ends the run; running handlers have until `deadline`.
    pub(crate) async fn finish(mut self, desk: &Desk, deadline: Instant) -> Report {
        desk.close();
        if !self.join_workers(deadline).await {
            desk.give_back_running();
            self.join_workers(Instant::now() + GRACE).await;
        }
        self.end.send_replace(Some(deadline.max(Instant::now() + MIN_SETTLING)));
        let _ = self.settler.await;
        drop(self.heartbeat);
        desk.report()
    }

    /// Whether all have ended in time.
    async fn join_workers(&mut self, deadline: Instant) -> bool {
        let all = async { while self.workers.join_next().await.is_some() {} };
        timeout_at(deadline, all).await.is_ok()
    }
}
