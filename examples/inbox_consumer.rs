//! A consumer that gets every message at least once and takes effect exactly once.
//!
//! `cargo run --example inbox_consumer`

use outbox_core::{Context, Draft, ErrorKind, Message, Operations, TableName, handler_fn};
use outbox_dispatcher::{Dispatcher, Router};
use outbox_examples::{AnyError, Scratch, orders};
use outbox_inbox::{Config, Inbox, Incoming};
use outbox_sea_orm::{OutboxTable, ProcessedTable, SeaOrmContext};
use sea_orm::{DatabaseConnection, EntityTrait, PaginatorTrait};
use uuid::Uuid;

/// By itself: a webhook whose sender repeats it until it gets our answer.
async fn webhook(inbox: &Inbox<ProcessedTable>, event: &str, item: &str) -> Result<i64, AnyError> {
    let incoming = Incoming::from_source("shop-frontend", event).fingerprint(item);
    let processed = inbox.process_stored(incoming, async |cx| {
        let order = orders::place(cx, item).await?;
        Ok::<_, AnyError>(order.id)
    });
    // the first answer was stored: a repeated request gets the same one
    Ok(processed.await?.into_value()?.ok_or("processed without a result")?)
}

/// As middleware: the handler writes in the inbox's transaction and fails after its first write once.
async fn ship(cx: Context, message: Message) -> Result<(), AnyError> {
    orders::ship(cx.connection()?, message.json()?).await?;
    orders::place(&cx, "thank-you card").await?;
    if message.attempt == 1 {
        return Err("the parcel service did not answer".into());
    }
    Ok(())
}

async fn n_orders(db: &DatabaseConnection) -> Result<u64, AnyError> {
    Ok(orders::Entity::find().count(db).await?)
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let scratch = Scratch::new()?;
    let db = scratch.connect().await?;
    let outbox = OutboxTable::new(&db, TableName::parse("shop.outbox")?);
    let processed = ProcessedTable::new(&db, TableName::parse("shop.processed")?);
    outbox.migrate().await?;
    processed.migrate().await?;
    orders::create_table(&db).await?;
    let day = std::time::Duration::from_secs(86_400);
    let config = Config::default().with_redelivery_horizon(30 * day).with_retention(90 * day);
    let inbox = Inbox::new(processed, "shipping")?.with_config(config)?;

    // the same webhook three times: one order, three times the same answer
    let order = webhook(&inbox, "evt-1", "lamp").await?;
    assert_eq!(webhook(&inbox, "evt-1", "lamp").await?, order);
    assert_eq!(webhook(&inbox, "evt-1", "lamp").await?, order);
    assert_eq!(n_orders(&db).await?, 1);
    // the same name with another content is a conflict, not a duplicate
    let conflict = webhook(&inbox, "evt-1", "desk").await.expect_err("must be refused");
    println!("conflict: {conflict}");
    let kind = conflict.downcast_ref::<outbox_core::Error>().map(outbox_core::Error::kind);
    assert_eq!(kind, Some(ErrorKind::Conflict));

    // the first attempt fails, the second delivers; a second message with the same event is a duplicate
    let event = Uuid::now_v7().to_string();
    for _ in 0..2 {
        let draft = Draft::json("order.paid", &order)?.key(order).header("event-id", &event);
        outbox.enqueue_autocommit(draft).await?;
    }
    let handler =
        inbox.wrap(handler_fn(async |cx, message| Ok(ship(cx, message).await?))).identified_by(|message| {
            Incoming::from_source("shop", message.header("event-id").unwrap_or_default())
        });
    deliver(outbox, Router::new().route("order.paid", handler)).await?;

    assert!(orders::Entity::find_by_id(order).one(&db).await?.is_some_and(|order| order.shipped));
    assert_eq!(n_orders(&db).await?, 2, "one order and one card");
    println!("delivered, {} orders", n_orders(&db).await?);
    println!("forgot {} old records", inbox.purge().await?);
    Ok(())
}

/// Until the outbox is empty.
async fn deliver(outbox: OutboxTable, router: Router) -> Result<(), AnyError> {
    let dispatcher = Dispatcher::new(outbox.clone(), router);
    while outbox.stats().await?.total().n_pending > 0 {
        dispatcher.drain_once().await?;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    Ok(())
}
