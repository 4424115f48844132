//! Handlers in tests: run them over what is due, and see what they were given.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outbox_core::{
    Claim, ClaimRequest, Claimed, Context, Handler, HandlerError, HandlerErrorKind, HandlerResult, Message,
    Outcome, Repository, Result, Settlement,
};

/// Long enough that nobody else claims what a test is handling.
const LEASE: Duration = Duration::from_secs(3600);
/// The limit of a [`ClaimRequest`] that does not say otherwise, and of a dispatcher.
const MAX_ATTEMPTS: u32 = 5;
/// When a failed message is due again that does not say so itself.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// A message that was given to a handler, and what the handler said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The message as the handler got it.
    pub message: Message,
    /// Why it was not delivered; `None` when it was.
    pub failure: Option<Failure>,
}

/// Why a handler did not deliver a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the error asks for.
    pub kind: HandlerErrorKind,
    /// The text that is stored with the message.
    pub text: String,
}

impl Delivery {
    fn new(message: Message, answer: &HandlerResult) -> Self {
        let failure = |error: &HandlerError| Failure { kind: error.kind(), text: error.text() };
        Self { message, failure: answer.as_ref().err().map(failure) }
    }
}

/// Gives every message that is due, of every topic, to `handler`, one after another, until nothing is due, and
/// returns what it said to each. It never sleeps.
///
/// What the handler enqueues is delivered as well. Each message is settled as a dispatcher would: done; dead when
/// the error says so or the fifth attempt failed; otherwise due again after the time that the error asks for, or
/// after a minute. When a downstream is unavailable, it ends and gives back what is left. A panic of the handler is
/// the test's. To run a whole `Router`, use `Dispatcher::drain_once`.
///
/// # Errors
/// Those of the storage.
///
/// # Examples
/// ```
/// use outbox_core::{Context, Draft, HandlerErrorKind, MemoryRepository, Message, Repository, Transactor, handler_fn};
/// use outbox_testkit::drain;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> outbox_core::Result<()> {
/// let outbox = MemoryRepository::new();
/// let drafts = vec![Draft::new("greeting", "hello"), Draft::new("greeting", "")];
/// Transactor::over(&outbox).run(async |cx| outbox.enqueue(cx, drafts).await).await?;
///
/// let greet = handler_fn(async |_: Context, message: Message| match message.payload.len() {
///     0 => Err("nothing to say")?,
///     _ => Ok(()),
/// });
/// let deliveries = drain(&outbox, &greet).await?;
/// assert_eq!(deliveries[0].failure, None);
/// let failure = deliveries[1].failure.as_ref().unwrap();
/// assert_eq!((failure.kind, &*failure.text), (HandlerErrorKind::Retry, "nothing to say"));
/// # Ok(()) }
/// ```
pub async fn drain(outbox: &impl Repository, handler: &impl Handler) -> Result<Vec<Delivery>> {
    let mut deliveries = Vec::new();
    loop {
        let request = ClaimRequest::new(100, LEASE).with_max_attempts(MAX_ATTEMPTS);
        let claim = outbox.claim(request).await?;
        if claim.is_empty() || !work_off(claim, outbox, handler, &mut deliveries).await? {
            return Ok(deliveries);
        }
    }
}

/// Handles what was claimed, and says whether to go on. On an ordered table, what comes behind a message of its key
/// that is not done goes back.
async fn work_off(
    claim: Claim,
    outbox: &impl Repository,
    handler: &impl Handler,
    deliveries: &mut Vec<Delivery>,
) -> Result<bool> {
    let mut stopped = HashSet::new();
    let mut waiting = claim.messages.into_iter();
    while let Some(claimed) = waiting.next() {
        let key = claimed.message.key.clone().filter(|_| claim.ordered);
        if key.as_ref().is_some_and(|key| stopped.contains(key)) {
            settle(outbox, [Settlement::new(claimed.lease, Outcome::Release)]).await?;
            continue;
        }
        let (delivery, outcome) = deliver(handler, &claimed).await;
        settle(outbox, [Settlement::new(claimed.lease, outcome.clone())]).await?;
        deliveries.push(delivery);
        match outcome {
            Outcome::Done => {}
            Outcome::Release => {
                settle(outbox, waiting.map(|claimed| Settlement::new(claimed.lease, Outcome::Release)))
                    .await?;
                return Ok(false);
            }
            Outcome::Retry { .. } | Outcome::Dead { .. } => stopped.extend(key),
        }
    }
    Ok(true)
}

async fn deliver(handler: &impl Handler, claimed: &Claimed) -> (Delivery, Outcome) {
    let message = claimed.message.clone();
    let answer = handler.handle(Context::with_trace_of(&message.headers), message.clone()).await;
    let delivery = Delivery::new(message, &answer);
    let outcome = match &delivery.failure {
        None => Outcome::Done,
        Some(failure) => outcome(failure, delivery.message.attempt >= MAX_ATTEMPTS),
    };
    (delivery, outcome)
}

fn outcome(failure: &Failure, is_last: bool) -> Outcome {
    let error = failure.text.clone();
    match failure.kind {
        HandlerErrorKind::Unavailable => Outcome::Release,
        HandlerErrorKind::DeadLetter => Outcome::Dead { error },
        _ if is_last => Outcome::Dead { error },
        HandlerErrorKind::RetryAfter(after) => Outcome::Retry { after, error },
        _ => Outcome::Retry { after: RETRY_AFTER, error },
    }
}

async fn settle(outbox: &impl Repository, settlements: impl IntoIterator<Item = Settlement>) -> Result<()> {
    // a lease lost within the hour means that the test claimed beside us
    outbox.settle(settlements.into_iter().collect()).await.map(drop)
}

/// A handler that remembers what it was given. Clones share what they remember.
///
/// # Examples
/// ```
/// use outbox_core::{Draft, MemoryRepository, Repository, Transactor};
/// use outbox_testkit::{Recorder, drain};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> outbox_core::Result<()> {
/// # let outbox = MemoryRepository::new();
/// # let drafts = vec![Draft::new("greeting", "hello")];
/// # Transactor::over(&outbox).run(async |cx| outbox.enqueue(cx, drafts).await).await?;
/// let recorder = Recorder::new(); // or Recorder::over(my_handler)
/// drain(&outbox, &recorder).await?;
/// assert_eq!(recorder.messages()[0].payload, "hello");
/// # Ok(()) }
/// ```
pub struct Recorder<H = Accepting> {
    handler: Arc<H>,
    deliveries: Arc<Mutex<Vec<Delivery>>>,
}

/// The handler of [`Recorder::new`]: everything is delivered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accepting;

impl Handler for Accepting {
    async fn handle(&self, _: Context, _: Message) -> HandlerResult {
        Ok(())
    }
}

impl Recorder {
    /// Says that everything is delivered.
    pub fn new() -> Self {
        Self::over(Accepting)
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl<H> Recorder<H> {
    /// Says what `handler` says.
    pub fn over(handler: H) -> Self {
        Self { handler: Arc::new(handler), deliveries: Arc::default() }
    }

    /// The handler.
    pub fn get_ref(&self) -> &H {
        &self.handler
    }

    /// What was handled, in the order in which it ended. A handler that was cut off is not among it.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The messages of [`deliveries`](Self::deliveries).
    pub fn messages(&self) -> Vec<Message> {
        self.deliveries().into_iter().map(|delivery| delivery.message).collect()
    }
}

impl<H> Clone for Recorder<H> {
    fn clone(&self) -> Self {
        Self { handler: Arc::clone(&self.handler), deliveries: Arc::clone(&self.deliveries) }
    }
}

impl<H> fmt::Debug for Recorder<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("n_deliveries", &self.deliveries().len()).finish_non_exhaustive()
    }
}

impl<H: Handler> Handler for Recorder<H> {
    async fn handle(&self, cx: Context, message: Message) -> HandlerResult {
        let answer = self.handler.handle(cx, message.clone()).await;
        let delivery = Delivery::new(message, &answer);
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner).push(delivery);
        answer
    }
}

#[cfg(test)]
mod tests {
    use outbox_core::{
        DeadLetterQuery, Draft, HandlerResultExt, MemoryRepository, OnDead, Operations, Transactor,
        handler_fn,
    };

    use super::*;

    async fn enqueue(outbox: &MemoryRepository, drafts: Vec<Draft>) {
        let stored: Result<_> =
            Transactor::over(outbox).run(async |cx| outbox.enqueue(cx, drafts).await).await;
        stored.expect("enqueue");
    }

    async fn filled(topics: &[&str]) -> MemoryRepository {
        let outbox = MemoryRepository::new();
        enqueue(&outbox, topics.iter().map(|topic| Draft::new(*topic, "")).collect()).await;
        outbox
    }

    /// Says what the topic is called.
    fn obeying() -> Recorder<impl Handler> {
        Recorder::over(handler_fn(async |_: Context, message: Message| {
            let failed: Result<(), &str> = Err("refused");
            match &*message.topic {
                "retry" => Ok(failed?),
                "later" => failed.retry_after(Duration::from_secs(3600)),
                "dead" => failed.dead_letter(),
                "unavailable" => failed.unavailable(),
                _ => Ok(()),
            }
        }))
    }

    fn topics(deliveries: &[Delivery]) -> Vec<&str> {
        deliveries.iter().map(|delivery| &*delivery.message.topic).collect()
    }

    #[tokio::test]
    async fn each_message_is_tried_once_and_settled_as_the_handler_asks() {
        let outbox = filled(&["retry", "fine", "later", "dead"]).await;
        let deliveries = drain(&outbox, &obeying()).await.expect("drain");
        assert_eq!(topics(&deliveries), ["retry", "fine", "later", "dead"]);
        let failed: Vec<_> = deliveries.iter().map(|delivery| delivery.failure.is_some()).collect();
        assert_eq!(failed, [true, false, true, true]);
        let total = outbox.stats().await.expect("stats").total();
        assert_eq!((total.n_pending, total.n_due, total.n_dead), (2, 0, 1));

        outbox.advance(RETRY_AFTER);
        let again = drain(&outbox, &obeying()).await.expect("drain");
        assert_eq!((topics(&again), again[0].message.attempt), (vec!["retry"], 2));
    }

    #[tokio::test]
    async fn a_message_is_dead_after_its_fifth_attempt() {
        let outbox = filled(&["retry"]).await;
        for _ in 0..5 {
            assert_eq!(drain(&outbox, &obeying()).await.expect("drain").len(), 1);
            outbox.advance(RETRY_AFTER);
        }
        let dead = outbox.dead_letters(DeadLetterQuery::new(1)).await.expect("dead letters");
        assert_eq!(dead.letters[0].error, "refused");
    }

    #[tokio::test]
    async fn an_unavailable_downstream_ends_it_and_costs_no_attempt() {
        let outbox = filled(&["fine", "unavailable", "fine"]).await;
        let deliveries = drain(&outbox, &obeying()).await.expect("drain");
        assert_eq!(topics(&deliveries), ["fine", "unavailable"]);
        let total = outbox.stats().await.expect("stats").total();
        assert_eq!((total.n_due, total.n_claimed, total.highest_attempt), (2, 0, 0));
    }

    #[tokio::test]
    async fn behind_a_failed_message_of_an_ordered_table_its_key_waits() {
        let outbox = MemoryRepository::new().ordered(OnDead::Block);
        let drafts = [("retry", "a"), ("fine", "a"), ("fine", "b")];
        enqueue(&outbox, drafts.map(|(topic, key)| Draft::new(topic, "").key(key)).into()).await;
        let keys = |deliveries: &[Delivery]| -> String {
            deliveries.iter().filter_map(|delivery| delivery.message.key.clone()).collect()
        };
        assert_eq!(keys(&drain(&outbox, &obeying()).await.expect("drain")), "ab");
        outbox.advance(RETRY_AFTER);
        let again = drain(&outbox, &Recorder::new()).await.expect("drain");
        assert_eq!((keys(&again), topics(&again)), ("aa".into(), vec!["retry", "fine"]));
    }

    #[tokio::test]
    async fn what_a_handler_enqueues_is_delivered_as_well() {
        let outbox = filled(&["first"]).await;
        let chain = handler_fn({
            let outbox = outbox.clone();
            async move |_: Context, message: Message| {
                if message.topic == "first" {
                    enqueue(&outbox, vec![Draft::new("second", "")]).await;
                }
                Ok(())
            }
        });
        assert_eq!(topics(&drain(&outbox, &chain).await.expect("drain")), ["first", "second"]);
    }

    #[tokio::test]
    async fn clones_share_what_they_remember() {
        let recorder = obeying();
        drain(&filled(&["fine", "dead"]).await, &recorder.clone()).await.expect("drain");
        assert_eq!(recorder.messages().len(), 2);
        let failure = Failure { kind: HandlerErrorKind::DeadLetter, text: "refused".into() };
        assert_eq!(recorder.deliveries()[1].failure, Some(failure));
    }
}
