use outbox_core::{ProcessedStore, Result};

use crate::{Config, Inbox};

impl<S: ProcessedStore> Inbox<S> {
    /// Forgets at most [`purge_step`](crate::Config::purge_step) messages whose record is older than
    /// [`retention`](crate::Config::retention), and says how many: one short statement.
    ///
    /// Other groups in the same table keep theirs.
    ///
    /// # Errors
    /// Those of the storage.
    ///
    /// # Cancel safety
    /// Safe: the step happens or not.
    pub async fn purge(&self) -> Result<u64> {
        let Config { retention, purge_step, .. } = *self.config();
        self.get_ref().purge_before(self.group(), retention, purge_step).await
    }

    /// Purges step by step until nothing is old enough, with a pause after each full step, and says how
    /// many records are gone. The pause is yours, as the inbox knows no runtime.
    ///
    /// # Errors
    /// Those of the storage. What earlier steps removed stays removed.
    ///
    /// # Cancel safety
    /// Safe: steps that have finished stay, the others do not happen.
    ///
    /// # Examples
    /// ```
    /// # use outbox_core::{Error, MemoryRepository};
    /// # use outbox_inbox::Inbox;
    /// # async fn example(inbox: Inbox<MemoryRepository>) -> Result<(), Error> {
    /// use std::time::Duration;
    /// let n_purged = inbox.purge_all(async || tokio::time::sleep(Duration::from_millis(50)).await).await?;
    /// # Ok(()) }
    /// ```
    pub async fn purge_all(&self, mut pause: impl AsyncFnMut()) -> Result<u64> {
        let full_step = self.config().purge_step as u64;
        let mut total = 0;
        loop {
            let n_purged = self.purge().await?;
            total += n_purged;
            if n_purged < full_step {
                return Ok(total);
            }
            pause().await;
        }
    }
}
