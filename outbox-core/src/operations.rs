use std::future::Future;
use std::time::Duration;

use crate::{
    BlockedPage, BlockedQuery, DeadLetterFilter, DeadLetterPage, DeadLetterQuery, FailedAttempt, Finding,
    MessageId, Moved, Prune, Result, Stats, Unblocked,
};

/// What an operator needs to see and to do.
///
/// # Errors
/// [`PermissionDenied`](crate::ErrorKind::PermissionDenied) of every operation that the database's role may not do.
pub trait Operations: Send + Sync {
    /// Counts the messages by what they wait for. Its cost is bounded: it counts up to
    /// [`MAX_COUNTED`](crate::MAX_COUNTED) messages of each state, and projects a sample where there are more.
    ///
    /// # Errors
    /// Those of the storage.
    fn stats(&self) -> impl Future<Output = Result<Stats>> + Send;

    /// One page of dead letters, in the order in which their messages were enqueued or last redriven.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field.
    fn dead_letters(&self, query: DeadLetterQuery) -> impl Future<Output = Result<DeadLetterPage>> + Send;

    /// Makes dead letters pending again, as new arrivals with all their attempts; answers in the order of `ids`.
    /// Where a dead letter [blocks](crate::OnDead::Block) its key, it keeps its place in it.
    ///
    /// # Errors
    /// Those of the storage.
    fn redrive(&self, ids: Vec<MessageId>) -> impl Future<Output = Result<Vec<Moved>>> + Send;

    /// As [`redrive`](Self::redrive) for the first `limit` (1 to [`MAX_BATCH`](crate::MAX_BATCH)) dead letters that
    /// match; how many it made pending. Fewer than `limit`: there are no more.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field.
    fn redrive_matching(
        &self,
        filter: DeadLetterFilter,
        limit: usize,
    ) -> impl Future<Output = Result<u64>> + Send;

    /// Removes dead letters for good; answers in the order of `ids`.
    ///
    /// # Errors
    /// Those of the storage.
    fn discard(&self, ids: Vec<MessageId>) -> impl Future<Output = Result<Vec<Moved>>> + Send;

    /// As [`discard`](Self::discard) for the first `limit` (1 to [`MAX_BATCH`](crate::MAX_BATCH)) dead letters that
    /// match; how many it removed. Fewer than `limit`: there are no more.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field.
    fn discard_matching(
        &self,
        filter: DeadLetterFilter,
        limit: usize,
    ) -> impl Future<Output = Result<u64>> + Send;

    /// One page of the keys of an ordered table of which no message can be claimed now, and why. A page looks at a
    /// bounded number of keys.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where the table is not declared
    /// [ordered](crate::Declaration::ordered); [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field.
    fn blocked_keys(&self, query: BlockedQuery) -> impl Future<Output = Result<BlockedPage>> + Send;

    /// Removes the first message of a key for good, if it is `head` and a dead letter that blocks or one that waits for
    /// its time; the next one of the key can be claimed then. Naming the head that was seen keeps a repeated call from
    /// removing the next one as well.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where the table is not declared ordered.
    fn skip_head(&self, key: String, head: MessageId) -> impl Future<Output = Result<Unblocked>> + Send;

    /// Makes the first message of a key claimable at once and at its place, if it is `head` and a dead letter that
    /// blocks, which gets all its attempts again, or one that waits for its time, which keeps the attempts it has had.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where the table is not declared ordered.
    fn release_head(&self, key: String, head: MessageId) -> impl Future<Output = Result<Unblocked>> + Send;

    /// The last [`MAX_HISTORY`](crate::MAX_HISTORY) failed attempts of a stored message, whatever its state, the
    /// oldest first. Empty where none failed and where there is no such message.
    ///
    /// # Errors
    /// Those of the storage.
    fn history(&self, id: MessageId) -> impl Future<Output = Result<Vec<FailedAttempt>>> + Send;

    /// Removes, or counts, messages that ended, or keys that expired, long enough ago; how many. Fewer than the limit: there are
    /// no more.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the field.
    fn prune(&self, prune: Prune) -> impl Future<Output = Result<u64>> + Send;

    /// Whether the storage answers.
    ///
    /// # Errors
    /// Those of the storage.
    fn ping(&self) -> impl Future<Output = Result<()>> + Send;

    /// Whether the table is there, complete and of the right version.
    ///
    /// # Errors
    /// [`Schema`](crate::ErrorKind::Schema), whose text names what is missing and what to do.
    fn check(&self) -> impl Future<Output = Result<()>> + Send;

    /// Looks for what makes the storage slow or unsafe without being an error: [`Symptom`](crate::Symptom) lists it.
    /// Nothing is found in a healthy one. A transaction or a snapshot elsewhere may be `patience` old; 5 minutes is
    /// a good value.
    ///
    /// # Errors
    /// Those of the storage. What [`check`](Self::check) would report is a finding here.
    fn doctor(&self, patience: Duration) -> impl Future<Output = Result<Vec<Finding>>> + Send;
}
