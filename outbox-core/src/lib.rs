//! The contract of the transactional outbox and inbox.
//!
//! A service writes its business rows and its messages in one transaction; dispatchers deliver every
//! committed message at least once; the inbox gives a consumer the database effect exactly once. This
//! crate holds what the parts agree on and names no database and no runtime:
//!
//! * [`Draft`], [`Message`]: what is enqueued and what is delivered.
//! * [`Repository`]: enqueue, claim, settle, extend; [`RepositoryExt`] for one message at a time.
//! * [`Operations`]: what an operator needs; [`Stats::diagnose`] says why messages wait. [`Wakeup`]: hints that there is
//!   something to claim. [`Inspect`]: what is waiting.
//! * [`ProcessedStore`]: the record behind the inbox.
//! * [`Context`] carries the caller's open transaction; [`Transactor`] opens and ends it.
//! * [`MemoryRepository`]: the reference implementation, also for your own tests.
//!
//! # Examples
//! ```
//! use outbox_core::{ClaimRequest, Draft, MemoryRepository, Repository, RepositoryExt, Transactor};
//! # async fn example() -> outbox_core::Result<()> {
//! let outbox = MemoryRepository::new();
//! Transactor::over(outbox.clone())
//!     .run(async |cx| outbox.enqueue(cx, vec![Draft::new("order.placed", "{}")]).await)
//!     .await?;
//!
//! let claim = outbox.claim(ClaimRequest::new(10, std::time::Duration::from_secs(30))).await?;
//! for claimed in claim.messages {
//!     let _ = outbox.mark_done(claimed.lease).await?;
//! }
//! # Ok(()) }
//! ```

mod batch;
mod blocked;
mod context;
mod dead_letters;
mod declaration;
mod delivery;
mod diagnosis;
mod erased;
mod error;
mod finding;
mod handler;
mod inspect;
mod lease;
mod maintenance;
mod memory;
mod message;
mod operations;
mod processed;
mod repository;
mod retention;
mod retry;
mod stats;
mod table;
mod transactor;
mod wakeup;

pub use batch::{BatchFn, BatchHandler, BatchResult, DynBatchHandler, Handled, batch_fn};
pub use blocked::{BlockedKey, BlockedPage, BlockedQuery, Blocker, MAX_BEHIND, Unblocked, validate_key};
pub use context::Context;
pub use dead_letters::{
    DeadLetter, DeadLetterFilter, DeadLetterPage, DeadLetterQuery, FailedAttempt, MAX_HISTORY,
    MAX_HISTORY_ERROR, Moved,
};
pub use declaration::{Declaration, Fairness, OnDead, PartitionInterval};
pub use delivery::Delivery;
pub use diagnosis::{Diagnosis, OperationsExt};
pub use erased::{ArcRepository, DynListener, DynRepository};
pub use error::{Error, ErrorKind, Result};
pub use finding::{Finding, Severity, Symptom};
pub use handler::{
    DynHandler, Handler, HandlerError, HandlerErrorKind, HandlerFn, HandlerResult, HandlerResultExt,
    handler_fn,
};
pub use inspect::{Enqueued, Inspect, validate_limit};
pub use lease::{
    Claim, ClaimRequest, Claimed, Claimer, Lease, MAX_BATCH, MAX_ERROR_BYTES, MAX_LEASE, Outcome, Settled,
    Settlement, error_text, recovery_group, validate_lease,
};
pub use maintenance::{HeldPartition, MAX_AHEAD, Maintained, Maintenance, Partition};
pub use memory::{MemoryListener, MemoryRepository};
pub use message::{
    DEDUP_RETENTION, Draft, Headers, Limits, MAX_DELAY, MAX_HEADER_BYTES, MAX_HEADERS, MAX_NAME_BYTES,
    Message, MessageId, refuse_dedup_keys, validate_dedup_retention, validate_drafts,
};
pub use operations::Operations;
pub use processed::{MAX_METADATA_BYTES, MAX_METADATA_DEPTH, Mark, Marked, Processed, ProcessedStore};
pub use repository::{Repository, RepositoryExt};
pub use retention::{Prunable, Prune, Retention};
pub use retry::{Backoff, Jitter};
pub use stats::{HeldBack, MAX_COUNTED, SlotLag, Stats, TopicStats};
pub use table::{MAX_IDENTIFIER_BYTES, TableName};
pub use transactor::{Transactions, Transactor};
pub use wakeup::{Listener, NoListener, Readiness, Wakeup};
