use std::fmt;
use std::sync::Arc;

use outbox_core::{
    Context, Error, ErrorKind, Mark, Marked, MessageId, Processed as Record, ProcessedStore, Result,
    Transactions, Transactor,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Config, Incoming};

/// Processes each message of one consumer group with its database effect exactly once.
///
/// A cheap handle: clones share the store.
///
/// # Guarantees
/// * The record and what the handler writes with its context commit together or not at all.
/// * A duplicate that arrives while the first is still being processed waits for it, then sees
///   [`Processed::Duplicate`], or is processed itself when the first was rolled back.
/// * Nothing is retried in the process: a failure rolls back and is returned.
pub struct Inbox<S> {
    store: Arc<S>,
    group: Arc<str>,
    config: Config,
}

impl<S> Inbox<S> {
    /// An inbox for one consumer group, with the default [`Config`].
    ///
    /// A message is processed once **per group**. Let only sources of which each keeps its ids unique share
    /// a group, or name messages by [`Incoming::from_source`]: whoever can choose an id can make a message
    /// of the same group look like a duplicate.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a group that is empty, longer than
    /// [`MAX_NAME_BYTES`](outbox_core::MAX_NAME_BYTES) or has control characters.
    pub fn new(store: S, group: impl Into<String>) -> Result<Self> {
        let group = group.into();
        Mark::validate_group(&group)?;
        Ok(Self { store: Arc::new(store), group: group.into(), config: Config::default() })
    }

    /// Replaces the configuration.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput), see [`Config::validate`].
    pub fn with_config(mut self, config: Config) -> Result<Self> {
        config.validate()?;
        self.config = config;
        Ok(self)
    }

    /// The consumer group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The store.
    pub fn get_ref(&self) -> &S {
        &self.store
    }
}

impl<S: ProcessedStore> Inbox<S> {
    /// Processes a message in the transaction on `cx`: marks it, and runs `f` unless it was marked before.
    ///
    /// The caller ends the transaction. When `f` fails, the mark is in the transaction already, so that is doomed
    /// ([`Context::doom`]): a [`Transactor`] does not commit it even if the caller swallows the error. To go on
    /// with other work, put this call in a savepoint of the backend's. Whoever commits without a transactor
    /// asks [`Context::is_doomed`].
    ///
    /// # Errors
    /// The error of `f`, or as for [`process`](Self::process).
    ///
    /// # Cancel safety
    /// A dropped future dooms the transaction like an error of `f`.
    ///
    /// # Examples
    /// ```
    /// # use outbox_core::{Context, Error, MemoryRepository, MessageId, Transactor};
    /// # use outbox_inbox::Inbox;
    /// # async fn example(store: MemoryRepository, inbox: Inbox<MemoryRepository>, ids: [MessageId; 2]) -> Result<(), Error> {
    /// // two messages in one transaction: both take effect or none
    /// Transactor::over(&store)
    ///     .run(async |cx| {
    ///         for id in ids {
    ///             inbox.process_in(cx, id, async |cx| credit(cx, 5).await).await?;
    ///         }
    ///         Ok(())
    ///     })
    ///     .await
    /// # }
    /// # async fn credit(_: &Context, _: u64) -> Result<(), Error> { Ok(()) }
    /// ```
    pub async fn process_in<T, E, F>(
        &self,
        cx: &Context,
        incoming: impl Into<Incoming>,
        f: F,
    ) -> Result<Processed<T>, E>
    where
        F: AsyncFnOnce(&Context) -> Result<T, E>,
        E: From<Error>,
    {
        self.mark_and_run(cx, self.mark(incoming)?, f).await
    }

    /// Stores the result of a message that this transaction has marked, for the duplicates to come.
    /// [`process_stored`](Self::process_stored) does it for you.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) when the value cannot be written as JSON, or exceeds
    /// [`MAX_METADATA_BYTES`](outbox_core::MAX_METADATA_BYTES); those of the storage.
    pub async fn store_result(
        &self,
        cx: &Context,
        id: MessageId,
        value: &(impl Serialize + ?Sized),
    ) -> Result<()> {
        let value = serde_json::to_value(value)
            .map_err(|_| Error::invalid("result", "the value cannot be written as JSON"))?;
        self.store.store_result(cx, &self.group, id, value).await
    }

    /// Whether the message is marked now. Advisory: the answer may be outdated when it arrives, so use it
    /// to save work, never to decide.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn is_processed(&self, id: MessageId) -> Result<bool> {
        self.store.is_processed(&self.group, id).await
    }

    fn mark(&self, incoming: impl Into<Incoming>) -> Result<Mark> {
        let mark = incoming.into().into_mark(&self.group);
        mark.validate()?;
        Ok(mark)
    }

    async fn mark_and_run<T, E, F>(&self, cx: &Context, mark: Mark, f: F) -> Result<Processed<T>, E>
    where
        F: AsyncFnOnce(&Context) -> Result<T, E>,
        E: From<Error>,
    {
        let seen = mark.clone();
        let mut half_done = HalfDone(Some(cx));
        let marked = self.store.mark_processed(cx, mark).await;
        if !matches!(marked, Ok(Marked::First)) {
            half_done.0 = None;
        }
        match marked? {
            Marked::First => {
                let value = f(cx).await?;
                half_done.0 = None;
                Ok(Processed::Fresh(value))
            }
            Marked::Duplicate(record) => Ok(Processed::Duplicate(same_message(&seen, record)?)),
        }
    }
}

/// Dooms the transaction unless it was taken out: then mark and effect are both in it, or neither.
struct HalfDone<'a>(Option<&'a Context>);

impl Drop for HalfDone<'_> {
    fn drop(&mut self) {
        if let Some(cx) = self.0 {
            cx.doom();
        }
    }
}

impl<S: ProcessedStore + Transactions> Inbox<S> {
    /// Processes a message in a transaction of its own: marks it first, runs `f` with the transaction on
    /// the context unless it was marked before, and commits both. An error, a panic or a dropped future
    /// rolls both back.
    ///
    /// `incoming` is a [`MessageId`], a `&`[`Message`](outbox_core::Message) or an [`Incoming`]. The error
    /// type must be known: see [`Transactor::run`].
    ///
    /// # Guarantees
    /// The effects of at most one run of `f` commit for a group and id, until the record is purged.
    ///
    /// # Errors
    /// The error of `f`; [`InvalidInput`](ErrorKind::InvalidInput) before any statement;
    /// [`Conflict`](ErrorKind::Conflict) when the id was processed with another fingerprint (two that are
    /// given and differ; `f` is not run); [`CommitUnknown`](ErrorKind::CommitUnknown) when the answer to
    /// the commit was lost: process it again, a duplicate then says that it had committed; those of the
    /// storage.
    ///
    /// # Cancel safety
    /// Safe at every await: a dropped future leaves neither mark nor effect, or, when the commit had begun,
    /// both.
    ///
    /// # Examples
    /// ```
    /// # use outbox_core::{Context, Error, MemoryRepository, MessageId};
    /// # use outbox_inbox::{Inbox, Incoming};
    /// # async fn credit(_: &Context, _: u64) -> Result<(), Error> { Ok(()) }
    /// # async fn example(inbox: Inbox<MemoryRepository>, id: MessageId) -> Result<(), Error> {
    /// inbox.process(id, async |cx| credit(cx, 5).await).await?;
    ///
    /// let incoming = Incoming::new(id).fingerprint("v1:5").metadata(serde_json::json!({ "from": "bank" }));
    /// let processed = inbox.process(incoming, async |cx| credit(cx, 5).await).await?;
    /// assert!(processed.is_duplicate());
    /// # Ok(()) }
    /// ```
    pub async fn process<T, E, F>(&self, incoming: impl Into<Incoming>, f: F) -> Result<Processed<T>, E>
    where
        F: AsyncFnOnce(&Context) -> Result<T, E>,
        E: From<Error>,
    {
        let mark = self.mark(incoming)?;
        Transactor::over(&*self.store).run(async |cx| self.mark_and_run(cx, mark, f).await).await
    }

    /// Like [`process`](Self::process), and stores what `f` returns with the record, so that a duplicate
    /// can be answered like the first one: [`Processed::into_value`].
    ///
    /// # Errors
    /// As for [`process`](Self::process), and for [`store_result`](Self::store_result); each rolls back.
    ///
    /// # Cancel safety
    /// As for [`process`](Self::process).
    ///
    /// # Examples
    /// ```
    /// # use outbox_core::{Context, Error, MemoryRepository, MessageId};
    /// # use outbox_inbox::Inbox;
    /// # async fn credit(_: &Context, _: u64) -> Result<u64, Error> { Ok(105) }
    /// # async fn example(inbox: Inbox<MemoryRepository>, id: MessageId) -> Result<(), Error> {
    /// for _delivery in 0..2 {
    ///     let processed = inbox.process_stored(id, async |cx| credit(cx, 5).await).await?;
    ///     assert_eq!(processed.into_value()?, Some(105));
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn process_stored<T, E, F>(
        &self,
        incoming: impl Into<Incoming>,
        f: F,
    ) -> Result<Processed<T>, E>
    where
        F: AsyncFnOnce(&Context) -> Result<T, E>,
        E: From<Error>,
        T: Serialize,
    {
        let incoming = incoming.into();
        let id = incoming.id;
        self.process(incoming, async |cx| {
            let value = f(cx).await?;
            self.store_result(cx, id, &value).await?;
            Ok(value)
        })
        .await
    }
}

fn same_message(mark: &Mark, record: Record) -> Result<Record> {
    match (&mark.fingerprint, &record.fingerprint) {
        (Some(now), Some(then)) if now != then => Err(Error::new(ErrorKind::Conflict, "process")
            .with_detail(format!("{} in group {}", mark.id, mark.group))),
        _ => Ok(record),
    }
}

impl<S> Clone for Inbox<S> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), group: self.group.clone(), config: self.config.clone() }
    }
}

impl<S> fmt::Debug for Inbox<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("group", &self.group)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// What became of a message. A duplicate is no error and may be ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Processed<T> {
    /// It was processed now; with what the handler returned.
    Fresh(T),
    /// It was processed before; with the record of that. The handler was not run.
    Duplicate(Record),
}

impl<T> Processed<T> {
    /// Whether the message was processed before.
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Duplicate(_))
    }

    /// What the handler returned, if it was run.
    pub fn fresh(self) -> Option<T> {
        match self {
            Self::Fresh(value) => Some(value),
            Self::Duplicate(_) => None,
        }
    }

    /// What the handler returned, now or in the first processing; `None` for a duplicate whose first
    /// processing stored no result.
    ///
    /// # Errors
    /// [`Undecodable`](ErrorKind::Undecodable) when the stored result is not a `T`.
    pub fn into_value(self) -> Result<Option<T>>
    where
        T: DeserializeOwned,
    {
        match self {
            Self::Fresh(value) => Ok(Some(value)),
            Self::Duplicate(record) => record.result.map(decode).transpose(),
        }
    }
}

fn decode<T: DeserializeOwned>(result: serde_json::Value) -> Result<T> {
    // the cause would quote the value
    serde_json::from_value(result)
        .map_err(|_| Error::new(ErrorKind::Undecodable, "process").with_detail("the stored result"))
}
