//! Four ways to enqueue a message, and what a rollback does to it.
//!
//! `cargo run --example transactional_enqueue`

use outbox_core::{Context, Draft, ErrorKind, Operations, TableName};
use outbox_examples::{AnyError, Scratch, orders};
use outbox_sea_orm::{OutboxTable, transactor};
use sea_orm::{DatabaseConnection, EntityTrait, PaginatorTrait, TransactionTrait};

struct Shop {
    db: DatabaseConnection,
    outbox: OutboxTable,
}

impl Shop {
    /// (1) Your own transaction, as SeaORM users know it.
    async fn explicit(&self) -> Result<(), AnyError> {
        let txn = self.db.begin().await?;
        let order = orders::insert(&txn, "lamp").await?;
        self.outbox.enqueue_in(&txn, Draft::json("order.placed", &order.id)?.key(order.id)).await?;
        txn.commit().await?;
        Ok(())
    }

    /// (2) The transaction travels on the context: it cannot be forgotten, and a dropped request or a
    /// swallowed error cannot break it. Commits on `Ok`, rolls back on `Err`.
    async fn on_the_context(&self, item: &str) -> Result<i64, AnyError> {
        let place = async |cx: &Context| {
            let order = orders::place(cx, item).await?;
            self.outbox.enqueue(cx, Draft::json("order.placed", &order.id)?.key(order.id)).await?;
            match item {
                "dragon" => Err("we do not sell dragons".into()),
                _ => Ok(order.id),
            }
        };
        transactor(&self.db).run(place).await
    }

    /// (3) Several messages in one call, one of them for later.
    async fn many(&self) -> Result<(), AnyError> {
        let reminder = Draft::new("reminder", "pay").delay(std::time::Duration::from_secs(86_400));
        transactor(&self.db)
            .run(async |cx| {
                let order = orders::place(cx, "desk").await?;
                let placed = Draft::json("order.placed", &order.id)?.key(order.id);
                self.outbox.enqueue(cx, [placed, reminder]).await?;
                Ok(())
            })
            .await
    }

    /// (4) On its own, for those who mean it.
    async fn without_transaction(&self) -> Result<(), AnyError> {
        self.outbox.enqueue_autocommit(Draft::new("service.started", "")).await?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let scratch = Scratch::new()?;
    let db = scratch.connect().await?;
    let outbox = OutboxTable::new(&db, TableName::parse("orders.outbox")?);
    outbox.migrate().await?;
    orders::create_table(&db).await?;
    let shop = Shop { db, outbox };

    shop.explicit().await?;
    shop.on_the_context("chair").await?;
    shop.many().await?;
    shop.without_transaction().await?;

    // order and message of a transaction that fails: neither is there
    let refused = shop.on_the_context("dragon").await.expect_err("must be refused");
    println!("refused: {refused}");
    // no transaction on the context is an error; nothing is ever committed on its own instead
    let forgotten = shop.outbox.enqueue(&Context::new(), Draft::new("order.placed", "")).await;
    assert_eq!(forgotten.expect_err("must be refused").kind(), ErrorKind::NoTransaction);

    let stats = shop.outbox.stats().await?;
    println!("{} orders, messages by topic:", orders::Entity::find().count(&shop.db).await?);
    for (topic, counts) in &stats.topics {
        println!("  {topic:16} {} pending, {} due now", counts.n_pending, counts.n_due);
    }
    assert_eq!(orders::Entity::find().count(&shop.db).await?, 3);
    assert_eq!(stats.topics["order.placed"].n_due, 3);
    assert_eq!((stats.topics["reminder"].n_pending, stats.topics["reminder"].n_due), (1, 0));
    Ok(())
}
