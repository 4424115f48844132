//! The database effect of a message exactly once, where messages are delivered at least once.
//!
//! The inbox marks a message as processed in the same transaction in which its handler writes, so both
//! commit or neither does. It knows only the traits of `outbox-core`: every backend with a
//! [`ProcessedStore`](outbox_core::ProcessedStore) and [`Transactions`](outbox_core::Transactions) will do.
//!
//! * [`Inbox::process`] opens the transaction, [`Inbox::process_in`] joins the caller's.
//! * [`Inbox::wrap`] gives any [`Handler`](outbox_core::Handler) of a dispatcher the same guarantee.
//! * [`Incoming`] says how a message is named, and what is kept with its record.
//! * [`Inbox::purge`] forgets old messages; [`Config`] says when that is safe.
//!
//! # Guarantees
//! * For a group and a message id the effects of at most one handler run commit, as long as the record is
//!   kept ([`Config::retention`]). Proven by `tests/inbox.rs`.
//! * Effects outside of the transaction (a mail, another database) are **not** covered: they happen again
//!   when the transaction rolls back and the message comes back.
//!
//! # Examples
//! ```
//! use outbox_core::{Draft, Error, MemoryRepository, Repository};
//! use outbox_inbox::{Inbox, Processed};
//! # async fn example(message: outbox_core::Message) -> Result<(), Error> {
//! let store = MemoryRepository::new(); // or outbox_sea_orm::ProcessedTable
//! let inbox = Inbox::new(store.clone(), "ledger")?;
//!
//! let processed = inbox
//!     .process(&message, async |cx| {
//!         // every write with `cx` commits together with the mark
//!         store.enqueue(cx, vec![Draft::new("ledger.credited", "{}")]).await
//!     })
//!     .await?;
//! match processed {
//!     Processed::Fresh(ids) => println!("credited, announced by {ids:?}"),
//!     Processed::Duplicate(record) => println!("credited before, {}", record.processed_at),
//! }
//! # Ok(()) }
//! ```

mod config;
mod inbox;
mod incoming;
mod retention;
mod wrap;

pub use config::{Config, MAX_PURGE_STEP};
pub use inbox::{Inbox, Processed};
pub use incoming::Incoming;
pub use wrap::InboxHandler;
