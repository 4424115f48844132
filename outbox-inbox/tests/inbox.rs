//! The rules of the inbox, on the in-memory reference.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use outbox_core::{
    ClaimRequest, Claimed, Context, Delivery, Draft, Error, ErrorKind, Handler, HandlerError,
    HandlerErrorKind, Mark, Marked, MemoryRepository, Message, MessageId, Operations, ProcessedStore,
    Repository, Result, Transactions, Transactor, handler_fn,
};
use outbox_inbox::{Config, Inbox, Incoming, Processed};
use serde_json::{Value, json};
use uuid::Uuid;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn inbox(store: &MemoryRepository) -> Inbox<MemoryRepository> {
    Inbox::new(store.clone(), "ledger").expect("legal group")
}

/// The effect of a handler: a message in the same store.
async fn effect(store: &MemoryRepository, cx: &Context) -> Result<()> {
    store.enqueue(cx, vec![Draft::new("effect", "x")]).await.map(drop)
}

async fn n_effects(store: &MemoryRepository) -> u64 {
    store.stats().await.expect("stats").total().n_pending
}

fn kind_and_text(error: &Error) -> (ErrorKind, String) {
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn a_duplicate_is_not_processed_again() {
    let store = MemoryRepository::new();
    let (inbox, id) = (inbox(&store), Uuid::now_v7());
    let process = async || inbox.process(id, async |cx| effect(&store, cx).await).await.expect("processed");
    assert!(!inbox.is_processed(id).await.expect("asked"));
    assert_eq!(process().await.fresh(), Some(()));
    assert!(inbox.is_processed(id).await.expect("asked"));
    assert!(process().await.is_duplicate());
    assert_eq!(n_effects(&store).await, 1);
}

#[tokio::test]
async fn each_group_processes_a_message_once() {
    let store = MemoryRepository::new();
    let id = Uuid::now_v7();
    for group in ["ledger", "mail", "ledger"] {
        let inbox = Inbox::new(store.clone(), group).expect("legal group");
        inbox.process(id, async |cx| effect(&store, cx).await).await.expect("processed");
    }
    assert_eq!(n_effects(&store).await, 2);
}

#[tokio::test]
async fn the_record_of_the_first_processing_comes_back() {
    let store = MemoryRepository::new();
    let inbox = inbox(&store);
    let incoming = Incoming::from_source("stripe", "evt_1").fingerprint("f");
    inbox.process(incoming.clone(), async |_| Ok::<_, Error>(())).await.expect("fresh");
    let again = inbox.process(incoming.metadata(json!({})), async |_| Ok::<_, Error>(())).await;
    let Processed::Duplicate(record) = again.expect("duplicate") else { panic!("processed again") };
    assert_eq!(record.metadata, json!({ "source": "stripe", "source_id": "evt_1" }));
    assert_eq!(record.fingerprint.as_deref(), Some("f"));
    assert_eq!(record.result, None);
}

#[tokio::test]
async fn a_failing_handler_leaves_neither_mark_nor_effect() {
    let store = MemoryRepository::new();
    let (inbox, id) = (inbox(&store), Uuid::now_v7());
    let failed = inbox.process(id, async |cx| {
        effect(&store, cx).await?;
        Err::<(), Box<dyn std::error::Error>>("refused".into())
    });
    assert_eq!(failed.await.expect_err("failed").to_string(), "refused");
    assert_eq!((n_effects(&store).await, inbox.is_processed(id).await.expect("asked")), (0, false));

    inbox.process(id, async |cx| effect(&store, cx).await).await.expect("fresh");
    assert_eq!(n_effects(&store).await, 1);
}

#[tokio::test]
async fn a_panicking_handler_leaves_neither_mark_nor_effect() {
    let store = MemoryRepository::new();
    let (inbox, id) = (inbox(&store), Uuid::now_v7());
    let (task_store, task_inbox) = (store.clone(), inbox.clone());
    let task = tokio::spawn(async move {
        let f = async |cx: &Context| -> Result<()> {
            effect(&task_store, cx).await?;
            panic!("on purpose")
        };
        task_inbox.process(id, f).await
    });
    assert!(task.await.expect_err("panicked").is_panic());
    assert_eq!((n_effects(&store).await, inbox.is_processed(id).await.expect("asked")), (0, false));
}

/// Drops `future` at its `k`-th pending poll; whether it was still running then.
async fn cancelled_at<F: Future>(k: usize, future: F) -> bool {
    let mut future = pin!(future);
    let mut n_pending = 0;
    poll_fn(|task| match future.as_mut().poll(task) {
        Poll::Ready(_) => Poll::Ready(false),
        Poll::Pending => {
            n_pending += 1;
            if n_pending == k { Poll::Ready(true) } else { Poll::Pending }
        }
    })
    .await
}

#[tokio::test]
async fn a_cancelled_process_leaves_neither_mark_nor_effect() {
    let store = MemoryRepository::new();
    let (inbox, id) = (inbox(&store), Uuid::now_v7());
    let process = async || {
        inbox
            .process(id, async |cx| {
                tokio::task::yield_now().await;
                effect(&store, cx).await?;
                tokio::task::yield_now().await;
                Ok::<_, Error>(())
            })
            .await
    };
    for k in 1..=2 {
        assert!(cancelled_at(k, process()).await, "nothing was cancelled at {k}");
        assert_eq!((n_effects(&store).await, inbox.is_processed(id).await.expect("asked")), (0, false));
    }
    assert!(!cancelled_at(3, process()).await);
    assert_eq!(n_effects(&store).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_duplicates_take_effect_once() {
    let store = MemoryRepository::new();
    let id = Uuid::now_v7();
    let n_runs = Arc::new(AtomicUsize::new(0));
    let tasks = (0..16).map(|_| {
        let (store, inbox, n_runs) = (store.clone(), inbox(&store), n_runs.clone());
        tokio::spawn(async move {
            let f = async |cx: &Context| {
                n_runs.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
                effect(&store, cx).await
            };
            inbox.process(id, f).await.expect("processed").is_duplicate()
        })
    });
    let mut n_duplicates = 0;
    for task in tasks.collect::<Vec<_>>() {
        n_duplicates += usize::from(task.await.expect("joined"));
    }
    assert_eq!((n_runs.load(Ordering::Relaxed), n_duplicates, n_effects(&store).await), (1, 15, 1));
}

#[tokio::test]
async fn a_waiting_duplicate_is_processed_when_the_first_rolls_back() {
    let store = MemoryRepository::new();
    let (inbox, id) = (inbox(&store), Uuid::now_v7());
    let first = store.begin().await.expect("begun");
    inbox.process_in(&first, id, async |cx| effect(&store, cx).await).await.expect("fresh");

    let mut second = pin!(inbox.process(id, async |cx| effect(&store, cx).await));
    assert!(cancelled_at(1, second.as_mut()).await, "the duplicate did not wait");
    store.rollback(first).await.expect("rolled back");
    assert!(!second.await.expect("processed").is_duplicate());
    assert_eq!(n_effects(&store).await, 1);
}

#[tokio::test]
async fn the_callers_transaction_decides_over_mark_and_effect() {
    let store = MemoryRepository::new();
    let (inbox, id) = (inbox(&store), Uuid::now_v7());
    let tx = Transactor::over(&store);
    let refused = tx.run(async |cx| {
        inbox.process_in(cx, id, async |cx| effect(&store, cx).await).await?;
        Err::<(), _>(Error::new(ErrorKind::Other, "later"))
    });
    refused.await.expect_err("rolled back");
    assert_eq!(n_effects(&store).await, 0);

    let twice = tx.run(async |cx| {
        let first = inbox.process_in(cx, id, async |cx| effect(&store, cx).await).await?;
        let second = inbox.process_in(cx, id, async |cx| effect(&store, cx).await).await?;
        Ok::<_, Error>((first.is_duplicate(), second.is_duplicate()))
    });
    assert_eq!(twice.await.expect("committed"), (false, true));
    assert_eq!(n_effects(&store).await, 1);
}

#[tokio::test]
async fn a_swallowed_failure_commits_no_mark_without_its_effect() {
    let store = MemoryRepository::new();
    let (inbox, id) = (inbox(&store), Uuid::now_v7());
    let failing = async || Err::<(), _>(Error::new(ErrorKind::Other, "effect"));
    let swallowed = Transactor::over(&store)
        .run(async |cx| {
            let _ = inbox.process_in(cx, id, async |_| failing().await).await;
            Ok::<_, Error>(())
        })
        .await;
    assert_eq!(swallowed.expect_err("doomed").kind(), ErrorKind::TransactionDoomed);
    let dropped = Transactor::over(&store)
        .run(async |cx| {
            let process = inbox.process_in(cx, id, async |_| std::future::pending::<Result<()>>().await);
            assert!(cancelled_at(1, process).await, "the effect takes long");
            Ok::<_, Error>(())
        })
        .await;
    assert_eq!(dropped.expect_err("doomed").kind(), ErrorKind::TransactionDoomed);
    assert!(!inbox.is_processed(id).await.expect("read"));
}

#[tokio::test]
async fn a_missing_or_foreign_transaction_is_an_error_of_its_own() {
    let inbox = inbox(&MemoryRepository::new());
    let kind = async |cx: &Context| {
        let processed = inbox.process_in(cx, Uuid::now_v7(), async |_| Ok::<_, Error>(())).await;
        processed.expect_err("no own transaction").kind()
    };
    assert_eq!(kind(&Context::new()).await, ErrorKind::NoTransaction);
    let foreign = MemoryRepository::new().begin().await.expect("begun");
    assert_eq!(kind(&foreign).await, ErrorKind::ForeignTransaction);
}

#[tokio::test]
async fn another_fingerprint_is_a_conflict_and_the_transaction_stays_usable() {
    let store = MemoryRepository::new();
    let (inbox, id) = (inbox(&store), Uuid::from_u128(7));
    let with = |fingerprint: &str| Incoming::new(id).fingerprint(fingerprint);
    inbox.process(with("a"), async |_| Ok::<_, Error>(())).await.expect("fresh");
    inbox.process(id, async |_| Ok::<_, Error>(())).await.expect("not compared");

    let tx = Transactor::over(&store);
    let kept = tx.run(async |cx| {
        let conflict = inbox.process_in(cx, with("b"), async |cx| effect(&store, cx).await).await;
        effect(&store, cx).await?;
        Ok::<_, Error>(conflict.expect_err("conflict"))
    });
    assert_eq!(
        kind_and_text(&kept.await.expect("committed")),
        (
            ErrorKind::Conflict,
            "process: the message was processed before with another fingerprint: \
             00000000-0000-0000-0000-000000000007 in group ledger"
                .to_owned()
        )
    );
    assert_eq!(n_effects(&store).await, 1);
}

#[tokio::test]
async fn a_stored_result_answers_a_duplicate() {
    let store = MemoryRepository::new();
    let (inbox, id) = (inbox(&store), Uuid::now_v7());
    for _delivery in 0..2 {
        let balance = inbox.process_stored(id, async |_| Ok::<_, Error>(vec![105_u64, 7])).await;
        assert_eq!(balance.expect("processed").into_value().expect("decoded"), Some(vec![105, 7]));
    }
    let other_type = inbox.process(id, async |_| Ok::<_, Error>(String::new())).await.expect("duplicate");
    let error = other_type.into_value().expect_err("no string");
    assert_eq!(
        kind_and_text(&error),
        (ErrorKind::Undecodable, "process: cannot be decoded: the stored result".to_owned())
    );
}

#[tokio::test]
async fn a_duplicate_without_a_stored_result_has_no_value() {
    let (inbox, id) = (inbox(&MemoryRepository::new()), Uuid::now_v7());
    inbox.process(id, async |_| Ok::<_, Error>(1)).await.expect("fresh");
    let again = inbox.process_stored(id, async |_| Ok::<_, Error>(2)).await.expect("duplicate");
    assert_eq!(again.into_value().expect("nothing to decode"), None);
}

#[tokio::test]
async fn a_result_that_cannot_be_stored_rolls_back() {
    let store = MemoryRepository::new();
    let (inbox, id) = (inbox(&store), Uuid::now_v7());
    let text = async |result: Value| {
        let f = async |cx: &Context| effect(&store, cx).await.map(|()| result);
        inbox.process_stored(id, f).await.expect_err("refused").to_string()
    };
    assert_eq!(text(json!("x".repeat(70_000))).await, "invalid result: 70002 bytes of JSON, max 65536");
    assert_eq!(text(json!(["\0"])).await, "invalid result: NUL (U+0000) at $[0] cannot be stored");
    assert_eq!((n_effects(&store).await, inbox.is_processed(id).await.expect("asked")), (0, false));
}

#[tokio::test]
async fn bad_input_is_refused_before_the_transaction_is_touched() {
    let store = MemoryRepository::new();
    let inbox = inbox(&store);
    let incoming = || Incoming::new(Uuid::now_v7());
    let deep = (0..70).fold(json!(1), |inner, _| json!({ "a": inner }));
    let cases = [
        (Incoming::new(Uuid::nil()), "invalid id: must not be the nil UUID"),
        (incoming().fingerprint(""), "invalid fingerprint: must not be empty"),
        (incoming().fingerprint("f".repeat(256)), "invalid fingerprint: 256 bytes, max 255"),
        (incoming().metadata(json!(7)), "invalid metadata: must be a JSON object"),
        (incoming().metadata(json!({ "k": "\0" })), "invalid metadata: NUL (U+0000) at $.k cannot be stored"),
        (incoming().metadata(deep), "invalid metadata: nested deeper than 64"),
        (
            incoming().metadata(json!({ "k": "x".repeat(5_000_000) })),
            "invalid metadata: 5000008 bytes of JSON, max 65536",
        ),
    ];
    let cx = store.begin().await.expect("begun");
    for (incoming, text) in cases {
        let refused = inbox.process_in(&cx, incoming, async |cx| effect(&store, cx).await).await;
        assert_eq!(kind_and_text(&refused.expect_err("refused")), (ErrorKind::InvalidInput, text.to_owned()));
    }
    effect(&store, &cx).await.expect("usable");
    store.commit(cx).await.expect("committed");
    assert_eq!(n_effects(&store).await, 1);
}

#[test]
fn a_group_or_configuration_out_of_bounds_is_refused() {
    let group = |group: &str| Inbox::new(MemoryRepository::new(), group).expect_err("refused").to_string();
    assert_eq!(group(""), "invalid group: must not be empty");
    assert_eq!(group(&"g".repeat(300)), "invalid group: 300 bytes, max 255");
    assert_eq!(group("a\0"), "invalid group: contains NUL (U+0000)");
    let config = Config::default().with_retention(DAY);
    let refused = inbox(&MemoryRepository::new()).with_config(config).expect_err("refused");
    assert_eq!(refused.to_string(), "retention (1day) must exceed redelivery_horizon (14days)");
}

#[tokio::test]
async fn purge_removes_old_records_in_bounded_steps() {
    let store = MemoryRepository::new();
    let config = Config::default().with_purge_step(10);
    let inbox = inbox(&store).with_config(config).expect("legal");
    let process =
        async |id: MessageId| inbox.process(id, async |_| Ok::<_, Error>(())).await.expect("processed");
    let old = Uuid::now_v7();
    process(old).await;
    for _ in 0..24 {
        process(Uuid::now_v7()).await;
    }
    store.advance(29 * DAY);
    assert_eq!(inbox.purge().await.expect("purged"), 0);
    let young = Uuid::now_v7();
    process(young).await;
    store.advance(2 * DAY);

    assert_eq!(inbox.purge().await.expect("purged"), 10);
    let n_pauses = AtomicUsize::new(0);
    let pause = async || {
        n_pauses.fetch_add(1, Ordering::Relaxed);
    };
    assert_eq!(inbox.purge_all(pause).await.expect("purged"), 15);
    assert_eq!(n_pauses.load(Ordering::Relaxed), 1);
    assert!(process(young).await.is_duplicate());
    assert!(!process(old).await.is_duplicate(), "the window is over");
}

mod wrap {
    use super::*;

    /// A message as a dispatcher would hand it out.
    async fn delivered(store: &MemoryRepository, draft: Draft) -> Message {
        Transactor::over(store).run(async |cx| store.enqueue(cx, vec![draft]).await).await.expect("enqueued");
        let claim = store.claim(ClaimRequest::new(1, Duration::from_secs(30)).with_topics(["t"])).await;
        let Claimed { message, .. } = claim.expect("claimed").messages.remove(0);
        message
    }

    fn crediting(store: &MemoryRepository) -> impl Handler {
        let store = store.clone();
        inbox(&store).wrap(handler_fn(async move |cx: Context, _| Ok(effect(&store, &cx).await?)))
    }

    #[tokio::test]
    async fn a_redelivered_message_takes_effect_once() {
        let store = MemoryRepository::new();
        let message = delivered(&store, Draft::new("t", "x").key("k")).await;
        let handler = crediting(&store);
        for _delivery in 0..3 {
            handler.handle(Context::new(), message.clone()).await.expect("delivered");
        }
        assert_eq!(n_effects(&store).await, 1);
        let record = inbox(&store).process(&message, async |_| Ok::<_, Error>(())).await.expect("duplicate");
        let Processed::Duplicate(record) = record else { panic!("processed again") };
        assert_eq!(record.metadata, json!({ "topic": "t", "key": "k" }));
    }

    #[tokio::test]
    async fn the_handler_sees_the_transaction_the_trace_and_its_run() {
        let store = MemoryRepository::new();
        let message = delivered(&store, Draft::new("t", "x")).await;
        let deadline = std::time::Instant::now();
        let outer =
            Context::new().with_header("traceparent", "00-abc").with_delivery(Delivery::new(Some(deadline)));
        let handler = inbox(&store).wrap(handler_fn(async move |cx: Context, _| {
            let current = Context::current()?;
            for cx in [&cx, &current] {
                assert!(cx.has_transaction());
                assert_eq!(cx.headers().get("traceparent").map(String::as_str), Some("00-abc"));
                assert_eq!(cx.deadline(), Some(deadline));
            }
            Ok(())
        }));
        handler.handle(outer, message).await.expect("delivered");
    }

    #[tokio::test]
    async fn the_handlers_error_rolls_back_and_keeps_its_meaning() {
        let store = MemoryRepository::new();
        let message = delivered(&store, Draft::new("t", "x")).await;
        let handler = inbox(&store).wrap({
            let store = store.clone();
            handler_fn(async move |cx: Context, _| {
                effect(&store, &cx).await?;
                Err(HandlerError::retry_after(DAY, "tomorrow"))
            })
        });
        let error = handler.handle(Context::new(), message.clone()).await.expect_err("failed");
        assert_eq!((error.kind(), error.text()), (HandlerErrorKind::RetryAfter(DAY), "tomorrow".to_owned()));
        assert_eq!(n_effects(&store).await, 0);
        crediting(&store).handle(Context::new(), message).await.expect("delivered");
        assert_eq!(n_effects(&store).await, 1);
    }

    #[tokio::test]
    async fn an_id_used_for_another_message_is_a_dead_letter_and_no_silent_loss() {
        let store = MemoryRepository::new();
        let message = delivered(&store, Draft::new("t", "placed")).await;
        let handler = crediting(&store);
        handler.handle(Context::new(), message.clone()).await.expect("delivered");
        let reused = Message { payload: "cancelled".into(), ..message };
        let error = handler.handle(Context::new(), reused).await.expect_err("conflict");
        assert_eq!(error.kind(), HandlerErrorKind::DeadLetter);
        assert!(error.text().contains("with another fingerprint"), "{error}");
        assert_eq!(n_effects(&store).await, 1);
    }

    #[tokio::test]
    async fn messages_can_be_identified_by_a_header() {
        let store = MemoryRepository::new();
        let handler = inbox(&store)
            .wrap({
                let store = store.clone();
                handler_fn(async move |cx: Context, _| Ok(effect(&store, &cx).await?))
            })
            .identified_by(|message| {
                Incoming::from_source("orders", message.header("event-id").unwrap_or_default())
            });
        for event in ["7", "7", "8"] {
            let message = delivered(&store, Draft::new("t", "x").header("event-id", event)).await;
            handler.handle(Context::new(), message).await.expect("delivered");
        }
        assert_eq!(n_effects(&store).await, 2);
    }

    #[tokio::test]
    async fn an_inbox_around_an_inbox_joins_its_transaction() {
        let store = MemoryRepository::new();
        let message = delivered(&store, Draft::new("t", "x")).await;
        let audit = Inbox::new(store.clone(), "audit").expect("legal group");
        let failing = handler_fn(async |_, _| Err("refused".into()));
        let error = audit.wrap(inbox(&store).wrap(failing)).handle(Context::new(), message.clone()).await;
        assert_eq!(error.expect_err("failed").text(), "refused");
        assert!(!audit.is_processed(message.id).await.expect("asked"));

        audit.wrap(crediting(&store)).handle(Context::new(), message.clone()).await.expect("delivered");
        assert!(audit.is_processed(message.id).await.expect("asked"));
        assert_eq!(n_effects(&store).await, 1);
    }

    /// Answers one call with an error.
    struct Failing {
        store: MemoryRepository,
        at: &'static str,
        kind: ErrorKind,
    }

    impl Failing {
        fn answer(&self, call: &'static str) -> Result<()> {
            if self.at == call { Err(Error::new(self.kind, call)) } else { Ok(()) }
        }
    }

    impl Transactions for Failing {
        async fn begin(&self) -> Result<Context> {
            self.answer("begin")?;
            self.store.begin().await
        }

        async fn commit(&self, cx: Context) -> Result<()> {
            self.answer("commit")?;
            self.store.commit(cx).await
        }

        async fn rollback(&self, cx: Context) -> Result<()> {
            self.store.rollback(cx).await
        }
    }

    impl ProcessedStore for Failing {
        async fn is_processed(&self, group: &str, id: MessageId) -> Result<bool> {
            self.store.is_processed(group, id).await
        }

        async fn mark_processed(&self, cx: &Context, mark: Mark) -> Result<Marked> {
            self.answer("mark")?;
            self.store.mark_processed(cx, mark).await
        }

        async fn store_result(&self, cx: &Context, group: &str, id: MessageId, result: Value) -> Result<()> {
            self.store.store_result(cx, group, id, result).await
        }

        async fn purge_before(&self, group: &str, age: Duration, limit: usize) -> Result<u64> {
            self.store.purge_before(group, age, limit).await
        }
    }

    #[tokio::test]
    async fn an_error_of_the_storage_is_not_counted_as_the_handlers() {
        use HandlerErrorKind::{Retry, Unavailable};
        let store = MemoryRepository::new();
        let message = delivered(&store, Draft::new("t", "x")).await;
        for (at, kind, expected) in [
            ("begin", ErrorKind::Unavailable, Unavailable),
            ("mark", ErrorKind::Contention, Unavailable),
            ("mark", ErrorKind::Schema, Retry),
            ("commit", ErrorKind::CommitUnknown, Unavailable),
            ("commit", ErrorKind::TransactionDoomed, Retry),
        ] {
            let failing = Failing { store: store.clone(), at, kind };
            let inbox = Inbox::new(failing, "ledger").expect("legal group");
            let handler = inbox.wrap(handler_fn(async |_, _| Ok(())));
            let error = handler.handle(Context::new(), message.clone()).await.expect_err("failed");
            assert_eq!(error.kind(), expected, "{kind:?} at {at}");
            assert!(!inbox.is_processed(message.id).await.expect("asked"));
        }
    }
}
