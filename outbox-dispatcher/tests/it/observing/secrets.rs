//! Nothing that a message carries reaches an event, a log line, a span or a label.

use std::sync::{Arc, Mutex};

use outbox_core::{Draft, HandlerResultExt, Transactor};
use outbox_dispatcher::{
    CancellationToken, DepthWatch, Dispatcher, Event, HandlerResult, Instrumented, Message, Observer, Router,
    TracingObserver,
};
use outbox_testkit::secrets::{TOKEN, assert_clean, find};
use tokio::time::sleep;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::support::*;

/// Everything as text.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<String>>);

impl Seen {
    fn add(&self, text: &str) {
        *self.0.lock().expect("seen") += text;
    }

    fn text(&self) -> String {
        self.0.lock().expect("seen").clone()
    }
}

impl std::io::Write for Seen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.add(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Observer for Seen {
    fn on(&self, event: &Event<'_>) {
        self.add(&format!("{event:?}\n"));
    }

    fn times_handlers(&self) -> bool {
        true
    }
}

fn secret(topic: &str) -> Draft {
    Draft::new(topic, format!("payload {TOKEN}"))
        .key(TOKEN)
        .header("authorization", TOKEN)
        .header("traceparent", TOKEN)
        .header("tracestate", format!("a={TOKEN}"))
}

fn router() -> Router {
    let json = async |_: serde_json::Value| Ok(());
    let hangs = async |_: Message| -> HandlerResult {
        sleep(seconds(1_000)).await;
        Ok(())
    };
    Router::new()
        .on("works", async |_: Message| Ok(()))
        .on("fails", async |_: Message| Err("no")?)
        .on("dies", async |_: Message| Err("no").dead_letter())
        .on("away", async |message: Message| match message.attempt {
            1 => Err("no").retry_after(seconds(1)),
            _ => Ok(()),
        })
        .on("panics", async |message: Message| panic!("{}", String::from_utf8_lossy(&message.payload)))
        .on("hangs", hangs)
        .on_json("json", json)
        .dead_letter_unknown()
}

#[tokio::test(start_paused = true)]
async fn nothing_of_a_message_is_seen() {
    let seen = Seen::default();
    let log = seen.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(move || log.clone())
        .finish();
    let _log = tracing::subscriber::set_default(subscriber);
    let store = Store::new();
    let observer = (TracingObserver, seen.clone());
    let outbox = Instrumented::new(store.clone()).with_observer(observer.clone());
    let topics = ["works", "fails", "dies", "away", "panics", "hangs", "json", "unknown"];
    let tx = Transactor::over(store.memory.clone());
    tx.run(async |cx| outbox.enqueue(cx, topics.map(secret)).await).await.expect("enqueue");
    let token = CancellationToken::new();
    let dispatcher = Dispatcher::new(outbox, router()).with_observer(observer.clone());
    let dispatcher = dispatcher
        .with_config(config().with_max_attempts(2).with_handler_timeout(seconds(10)))
        .expect("config");
    let running = tokio::spawn(dispatcher.run(token.clone()));
    until_async(async || store.n_left().await == 0).await;
    DepthWatch::new(store.memory.clone(), observer).look(seconds(1)).await.expect("memory");
    token.cancel();
    running.await.expect("joined").expect("report");
    let text = seen.text();
    for part in
        ["new", "Handled {", "Depth {", "Enqueued {", "Called {", "timed_out", "panicked", "dead letter"]
    {
        assert!(text.contains(part), "{part} is missing");
    }
    assert_clean("an observer, the log or a span", &text);
    assert!(find(&format!("{:?}", secret("t").payload)).is_some(), "the watch works");
}
