use std::time::Duration;

use outbox_core::{
    BlockedPage, BlockedQuery, DeadLetterFilter, DeadLetterPage, DeadLetterQuery, FailedAttempt, Finding,
    HeldBack, MAX_COUNTED, MessageId, Moved, Operations, Prune, Result, Severity, Stats, Symptom, Unblocked,
};
use sea_orm::sea_query::Values;

use super::LogGroup;

impl Operations for LogGroup {
    /// What is in the group's own table, and in the log behind what the group has read; who keeps it from reading on, and, with the
    /// cargo feature `wal`, how far its replication slot is behind. What a group that is fed from the WAL has delivered past a transaction that
    /// stays open is left out up to 2 s late, or as late as it takes to deliver what had been committed when the
    /// feed looked.
    async fn stats(&self) -> Result<Stats> {
        #[cfg(feature = "wal")]
        super::feed::settle_position(self).await?;
        let mut stats = self.own.stats().await?;
        let values = Values(vec![self.name().into(), (MAX_COUNTED as i64 + 1).into()]);
        let of_log = Stats::new(self.log.table.counts(&self.sql.log_stats, values).await?.topics());
        stats.is_estimate |= of_log.total().n_pending > MAX_COUNTED as u64;
        for (topic, of_log) in of_log.topics {
            let sum = stats.topics.entry(topic).or_default();
            *sum = std::mem::take(sum).plus(&of_log);
        }
        stats.held_back = super::claim::held_back(self).await?;
        #[cfg(feature = "wal")]
        {
            stats.slot_lag = super::feed::slot_lag(self).await?;
        }
        Ok(stats)
    }

    async fn dead_letters(&self, query: DeadLetterQuery) -> Result<DeadLetterPage> {
        self.own.dead_letters(query).await
    }

    async fn redrive(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        self.own.redrive(ids).await
    }

    async fn redrive_matching(&self, filter: DeadLetterFilter, limit: usize) -> Result<u64> {
        self.own.redrive_matching(filter, limit).await
    }

    async fn discard(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        self.own.discard(ids).await
    }

    async fn discard_matching(&self, filter: DeadLetterFilter, limit: usize) -> Result<u64> {
        self.own.discard_matching(filter, limit).await
    }

    /// Reads on in the log while all that is there waits for its key, as a claim does: it moves the position and copies what waits to the
    /// group's own table, so it needs the rights of a dispatcher, and a primary. What stands behind a message that can be claimed is not
    /// counted until that is.
    async fn blocked_keys(&self, query: BlockedQuery) -> Result<BlockedPage> {
        if self.order().is_some() {
            super::claim::read_ahead(self).await?;
        }
        self.own.blocked_keys(query).await
    }

    async fn skip_head(&self, key: String, head: MessageId) -> Result<Unblocked> {
        self.own.skip_head(key, head).await
    }

    async fn release_head(&self, key: String, head: MessageId) -> Result<Unblocked> {
        self.own.release_head(key, head).await
    }

    async fn history(&self, id: MessageId) -> Result<Vec<FailedAttempt>> {
        self.own.history(id).await
    }

    async fn prune(&self, prune: Prune) -> Result<u64> {
        self.own.prune(prune).await
    }

    async fn ping(&self) -> Result<()> {
        self.log.table.ping().await
    }

    async fn check(&self) -> Result<()> {
        self.log.check().await?;
        self.own.check().await
    }

    /// Of the group's own table, and of the log which transaction holds it back and whether partitions are made. It needs a
    /// connection for the listener.
    async fn doctor(&self, patience: Duration) -> Result<Vec<Finding>> {
        let mut found = self.own.doctor(patience).await?;
        let held_back = super::claim::held_back(self).await?;
        found.extend(held_back.filter(|held| held.open_for >= patience).map(open_transaction));
        #[cfg(feature = "postgres")]
        if self.dialect == crate::dialect::Dialect::Postgres {
            #[cfg(feature = "wal")]
            found.extend(super::feed::findings(self).await?);
            found.extend(crate::partitions::findings(&self.log.table, self.log.partitions().as_ref()).await?);
        }
        Ok(found)
    }
}

fn open_transaction(HeldBack { n_numbers, by, open_for }: HeldBack) -> Finding {
    let open_for = Duration::from_secs(open_for.as_secs());
    Finding::new(
        Severity::Warning,
        Symptom::OpenTransaction,
        format!(
            "{by} has enqueued and kept its transaction open for {open_for:?}: up to {n_numbers} messages are not read before it ends"
        ),
        "end it (pg_terminate_backend, ROLLBACK PREPARED), and set idle_in_transaction_session_timeout for what leaves \
         transactions open",
    )
}
