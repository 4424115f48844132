//! Delivers the messages of a transactional outbox to handlers, at least once.
//!
//! * [`Router`] says which handler serves which topic; handlers are closures or [`Handler`]s.
//! * [`Dispatcher`] claims, handles and settles, on any [`Repository`](outbox_core::Repository):
//!   [`run`](Dispatcher::run) until a token is cancelled, [`drain_once`](Dispatcher::drain_once) for a timer.
//! * Several messages at once go to a batch handler ([`Router::on_batch`]); a [`Limit`] bounds what some topics
//!   may use.
//! * [`Config`] bounds it, [`Observer`] sees what happens, [`Status`] tells a health endpoint, [`Report`] sums
//!   it up.
//! * [`Instrumented`] measures a storage and makes messages carry their trace; [`DepthWatch`] tells how much waits.
//!
//! # Features
//! | feature | gives |
//! |---|---|
//! | `metrics` | `MetricsObserver`: events as metrics of the `metrics` facade |
//! | `opentelemetry` | `MeterObserver`: the same with an OpenTelemetry meter; traces that go on from the enqueueing span to the handler's |
//! | `tower` | `ServiceHandler`: a `tower::Service` as handler |
//!
//! # Examples
//! ```
//! use std::time::Duration;
//! use outbox_core::MemoryRepository;
//! use outbox_dispatcher::{CancellationToken, Config, Dispatcher, HandlerResultExt, Message, Router};
//! # async fn send(_: Vec<u8>) -> Result<(), String> { Ok(()) }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let outbox = MemoryRepository::new();
//! let router = Router::new().on("order.placed", async move |message: Message| {
//!     let order: Vec<u8> = message.json().dead_letter()?; // never readable: a dead letter
//!     send(order).await?; // any error: tried again
//!     Ok(())
//! });
//! let config = Config::default().with_handler_timeout(Duration::from_secs(10));
//! let token = CancellationToken::new();
//! let running = tokio::spawn(Dispatcher::new(outbox, router).with_config(config)?.run(token.clone()));
//!
//! token.cancel(); // on SIGTERM
//! let report = running.await??;
//! assert_eq!(report.n_unsettled, 0);
//! # Ok(()) }
//! ```

mod claims;
mod config;
mod decision;
mod depth;
mod desk;
mod dispatcher;
mod handler;
mod health;
mod heartbeat;
mod held;
mod instrumented;
mod lane;
mod limit;
#[cfg(feature = "opentelemetry")]
mod meter_observer;
#[cfg(any(feature = "metrics", feature = "opentelemetry", test))]
mod metric;
#[cfg(feature = "metrics")]
mod metrics_observer;
mod observer;
mod pace;
mod pause;
mod plan;
mod report;
mod router;
mod runs;
#[cfg(any(feature = "metrics", feature = "opentelemetry"))]
mod series;
mod settler;
mod shutdown;
mod span;
mod status;
mod timer;
#[cfg(feature = "tower")]
mod tower;
#[cfg(feature = "opentelemetry")]
mod trace_context;
mod wakeup;
mod workers;

#[cfg(feature = "tower")]
pub use self::tower::ServiceHandler;
pub use config::{Config, TraceRelation};
pub use depth::DepthWatch;
pub use dispatcher::Dispatcher;
pub use instrumented::Instrumented;
pub use lane::Batching;
pub use limit::{Limit, Rate};
#[cfg(feature = "opentelemetry")]
pub use meter_observer::MeterObserver;
#[cfg(any(feature = "metrics", feature = "opentelemetry"))]
pub use metric::{ATTEMPT_BUCKETS, SECONDS_BUCKETS};
#[cfg(feature = "metrics")]
pub use metrics_observer::MetricsObserver;
pub use observer::{CallEnd, Event, Observer, TracingObserver};
pub use outbox_core::{
    Backoff, BatchHandler, BatchResult, Context, Handled, Handler, HandlerError, HandlerErrorKind,
    HandlerResult, HandlerResultExt, Jitter, Message, batch_fn, handler_fn,
};
pub use report::Report;
pub use router::Router;
pub use status::{State, Status, StatusObserver};
pub use tokio_util::sync::CancellationToken;
#[cfg(feature = "opentelemetry")]
pub use trace_context::trace_headers;
