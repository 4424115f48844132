//! How a service with an outbox is tested: a small one, and its tests.
//!
//! `cargo test --test testing`

use std::time::Duration;

use outbox_core::{
    Context, Draft, HandlerErrorKind, HandlerResult, HandlerResultExt, MemoryRepository, Message, Repository,
    TableName, Transactor, handler_fn,
};
use outbox_dispatcher::{Dispatcher, Router};
use outbox_examples::{AnyError, orders};
use outbox_sea_orm::{OutboxTable, SeaOrmContext, transactor};
use outbox_testkit::{Recorder, Rehearsal, assert_enqueued, drain, refute_enqueued};
use sea_orm::{DatabaseConnection, DatabaseTransaction, EntityTrait, PaginatorTrait, TransactionTrait};
use serde_json::json;

const DAY: Duration = Duration::from_secs(86_400);

// ---------------------------------------------------------------- the service

/// Takes orders.
struct Shop {
    outbox: OutboxTable,
}

impl Shop {
    /// Joins the transaction on the context.
    async fn place(&self, cx: &Context, item: &str) -> Result<i64, AnyError> {
        let order = orders::place(cx, item).await?;
        let placed = Draft::json("order.placed", &json!({ "order": order.id, "item": item }))?.key(order.id);
        let reminder = Draft::json("payment.reminder", &order.id)?.key(order.id).delay(DAY);
        self.outbox.enqueue(cx, [placed.header("tenant", "acme"), reminder]).await?;
        Ok(order.id)
    }

    /// Begins a transaction of its own, in whatever it is given.
    async fn ship<C>(&self, db: &C, order: i64) -> Result<(), AnyError>
    where
        C: TransactionTrait<Transaction = DatabaseTransaction>,
    {
        let txn = db.begin().await?;
        orders::ship(&txn, order).await?;
        self.outbox.enqueue_in(&txn, Draft::json("order.shipped", &order)?.key(order)).await?;
        txn.commit().await?;
        Ok(())
    }
}

#[derive(serde::Deserialize)]
struct OrderPlaced {
    item: String,
}

/// The handler of `order.placed`.
async fn send_parcel(_: Context, message: Message) -> HandlerResult {
    let event: OrderPlaced = message.json().dead_letter()?;
    match &*event.item {
        "piano" => Err("too heavy for one parcel")?,
        _ => Ok(()),
    }
}

// ---------------------------------------------------------------- its tests

async fn shop() -> Result<(DatabaseConnection, Shop), AnyError> {
    let db = sea_orm::Database::connect("sqlite::memory:").await?;
    let outbox = OutboxTable::new(&db, TableName::parse("shop.outbox")?);
    outbox.migrate().await?;
    orders::create_table(&db).await?;
    Ok((db, Shop { outbox }))
}

/// On SeaORM, in a transaction that is rolled back at the end: many such tests can share one database.
#[tokio::test]
async fn an_order_and_its_messages_belong_together() -> Result<(), AnyError> {
    let (db, shop) = shop().await?;
    let rehearsal = Rehearsal::begin(&shop.outbox).await?;
    let cx = rehearsal.context();

    let order = shop.place(cx, "lamp").await?;
    let event = json!({ "item": "lamp" }); // what the payload has at least
    assert_enqueued!(
        rehearsal,
        topic = "order.placed",
        key = order,
        json = event,
        header = ("tenant", "acme")
    );
    assert_enqueued!(rehearsal, topic = "payment.reminder", key = order, delay = DAY);
    refute_enqueued!(rehearsal, topic = "order.shipped");
    assert_eq!(orders::Entity::find().count(cx.connection()?).await?, 1);

    // code that begins transactions of its own gets SeaORM's transaction: its own is then a savepoint
    shop.ship(cx.transaction_raw()?, order).await?;
    assert_enqueued!(rehearsal, topic = "order.shipped", json = order);

    rehearsal.end().await?;
    assert_eq!(orders::Entity::find().count(&db).await?, 0);
    refute_enqueued!(shop.outbox);
    Ok(())
}

/// A handler by itself, on the outbox in memory, without a database and without sleeping.
#[tokio::test]
async fn a_piano_is_not_sent() -> Result<(), AnyError> {
    let outbox = MemoryRepository::new();
    let drafts = vec![
        Draft::json("order.placed", &json!({ "item": "lamp" }))?,
        Draft::json("order.placed", &json!({ "item": "piano" }))?,
        Draft::new("order.placed", "no JSON"),
    ];
    Transactor::over(&outbox).run(async |cx| outbox.enqueue(cx, drafts).await).await?;

    let deliveries = drain(&outbox, &handler_fn(send_parcel)).await?;
    let failures: Vec<_> = deliveries.iter().map(|delivery| delivery.failure.clone()).collect();
    assert_eq!(failures[0], None);
    assert_eq!(failures[1].as_ref().map(|failure| &*failure.text), Some("too heavy for one parcel"));
    assert_eq!(failures[2].as_ref().map(|failure| failure.kind), Some(HandlerErrorKind::DeadLetter));

    outbox.advance(Duration::from_secs(60));
    let again = drain(&outbox, &handler_fn(send_parcel)).await?;
    assert_eq!((again.len(), again[0].message.attempt), (1, 2));
    Ok(())
}

/// The whole way on SeaORM: what is committed is delivered by the service's own router.
#[tokio::test]
async fn a_committed_order_reaches_its_handler() -> Result<(), AnyError> {
    let (db, shop) = shop().await?;
    let order = transactor(&db).run(async |cx| shop.place(cx, "lamp").await).await?;
    assert_enqueued!(shop.outbox, topic = "order.placed", key = order);

    let recorder = Recorder::over(handler_fn(send_parcel));
    let router = Router::new().route("order.placed", recorder.clone());
    let report = Dispatcher::new(shop.outbox.clone(), router).drain_once().await?;
    assert_eq!((report.n_done, report.n_retried), (1, 0));
    assert_eq!(recorder.messages()[0].key, Some(order.to_string()));
    refute_enqueued!(shop.outbox, topic = "order.placed");
    assert_enqueued!(shop.outbox, topic = "payment.reminder");
    Ok(())
}
