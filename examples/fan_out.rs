//! One message, several consumers: a log with a group for each of them.
//!
//! `cargo run --example fan_out` in memory; `DATABASE_URL=postgres://… cargo run --example fan_out` on a PostgreSQL.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use outbox_core::{Draft, HandlerResult, Message, Operations, TableName};
use outbox_dispatcher::{Dispatcher, Router};
use outbox_examples::AnyError;
use outbox_sea_orm::{LogGroup, OutboxLog, Start, Subscription};
use sea_orm::{ConnectionTrait, Database, DbBackend, TransactionTrait};

const N_ORDERS: usize = 100;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let url = std::env::var("DATABASE_URL").unwrap_or_else(|_| "sqlite::memory:".to_owned());
    let db = Database::connect(url).await?;
    let schema = format!("fan_out_{}", uuid::Uuid::new_v4().simple());
    let log = OutboxLog::new(&db, TableName::parse(&format!("{schema}.log"))?);
    log.migrate().await?;
    let billing = log.register(Subscription::new("billing").with_topics(["order.placed"])).await?;
    let audit = log.register(Subscription::new("audit")).await?;

    let txn = db.begin().await?;
    for order in 0..N_ORDERS {
        let drafts = [Draft::json("order.placed", &order)?, Draft::json("order.shipped", &order)?];
        log.enqueue_in(&txn, drafts).await?;
    }
    txn.commit().await?;

    let n_billed = deliver(billing, &["order.placed"]).await?;
    let n_audited = deliver(audit, &["order.placed", "order.shipped"]).await?;

    // a consumer that comes later may read what there is
    let search = log.register(Subscription::new("search").with_start(Start::Beginning)).await?;
    let n_found = deliver(search, &["order.placed", "order.shipped"]).await?;
    println!("billing had {n_billed} orders, audit {n_audited} events, search {n_found}");
    assert_eq!((n_billed, n_audited, n_found), (N_ORDERS, 2 * N_ORDERS, 2 * N_ORDERS));
    if db.get_database_backend() == DbBackend::Postgres {
        db.execute_unprepared(&format!("DROP SCHEMA {schema} CASCADE")).await?;
    }
    Ok(())
}

/// Delivers what is due to one group; how many messages its handlers had.
async fn deliver(group: LogGroup, topics: &[&str]) -> Result<usize, AnyError> {
    let n_handled = Arc::new(AtomicUsize::new(0));
    let router = topics.iter().fold(Router::new(), |router, topic| {
        let n_handled = Arc::clone(&n_handled);
        router.on(*topic, async move |_: Message| -> HandlerResult {
            n_handled.fetch_add(1, SeqCst);
            Ok(())
        })
    });
    let report = Dispatcher::new(group.clone(), router).drain_once().await?;
    assert_eq!(report.n_done, n_handled.load(SeqCst) as u64);
    assert!(group.stats().await?.topics.is_empty(), "something waits that the group does not want");
    Ok(n_handled.load(SeqCst))
}
