//! The ledger service: books every order exactly once, although messages come at least once.

use std::sync::Arc;
use std::time::Duration;

use outbox_core::{Context, Handler, HandlerError, HandlerResult, HandlerResultExt, Message, handler_fn};
use outbox_dispatcher::Router;
use outbox_examples::AnyError;
use outbox_inbox::Inbox;
use outbox_sea_orm::{ProcessedTable, SeaOrmContext};
use sea_orm::ActiveValue::Set;
use sea_orm::{DatabaseConnection, EntityTrait};

use crate::shop::{CARD, GIFT_CARD, INVOICE, OrderPlaced};
use crate::storage::Storage;
use crate::tables::{delivery, entry, gift_card};

/// Each handler runs inside the inbox; what it writes commits together with the mark "processed".
pub(crate) fn router(storage: &Storage, dispatcher: &str) -> Result<Router, AnyError> {
    let inbox = Inbox::new(storage.processed.clone(), "ledger")?;
    let log = Log { db: storage.db.clone(), inbox: inbox.clone(), dispatcher: dispatcher.into() };
    Ok(Router::new()
        .route(CARD, log.around(inbox.wrap(handler_fn(card))))
        .route(INVOICE, log.around(inbox.wrap(handler_fn(invoice))))
        .route(GIFT_CARD, log.around(inbox.wrap(handler_fn(gift_card)))))
}

async fn card(cx: Context, message: Message) -> HandlerResult {
    book(&cx, message.json().dead_letter()?).await
}

/// The flaky one: every third amount fails in the first attempt, after the entry was written.
async fn invoice(cx: Context, message: Message) -> HandlerResult {
    let event: OrderPlaced = message.json().dead_letter()?;
    let is_unlucky = message.attempt == 1 && event.amount_cents % 3 == 0;
    book(&cx, event).await?;
    if is_unlucky { Err("the tax service timed out".into()) } else { Ok(()) }
}

/// The poison: an unknown gift card does not get better by trying again.
async fn gift_card(cx: Context, message: Message) -> HandlerResult {
    let event: OrderPlaced = message.json().dead_letter()?;
    let code = event.gift_card.clone().unwrap_or_default();
    let is_known =
        code.starts_with("GC-") || gift_card::Entity::find_by_id(code).one(cx.connection()?).await?.is_some();
    if !is_known {
        return Err(HandlerError::dead_letter("the gift card is unknown"));
    }
    book(&cx, event).await
}

async fn book(cx: &Context, event: OrderPlaced) -> HandlerResult {
    let entry = entry::ActiveModel {
        order_id: Set(event.order_id),
        amount_cents: Set(event.amount_cents),
        ..Default::default()
    };
    entry::Entity::insert(entry).exec_without_returning(cx.connection()?).await?;
    Ok(())
}

/// Notes every delivery, apart from the handler's transaction, so that failed ones are counted too.
#[derive(Clone)]
struct Log {
    db: DatabaseConnection,
    inbox: Inbox<ProcessedTable>,
    dispatcher: Arc<str>,
}

struct Logged<H> {
    log: Log,
    handler: H,
}

impl Log {
    fn around<H: Handler>(&self, handler: H) -> Logged<H> {
        Logged { log: self.clone(), handler }
    }

    async fn note(&self, message: &Message) -> Result<(), AnyError> {
        let row = delivery::ActiveModel {
            message_id: Set(message.id),
            order_id: Set(message.key.clone().unwrap_or_default()),
            dispatcher: Set(self.dispatcher.to_string()),
            attempt: Set(message.attempt.into()),
            was_booked: Set(self.inbox.is_processed(message.id).await?),
            ..Default::default()
        };
        delivery::Entity::insert(row).exec_without_returning(&self.db).await?;
        Ok(())
    }
}

impl<H: Handler> Handler for Logged<H> {
    async fn handle(&self, cx: Context, message: Message) -> HandlerResult {
        self.log.note(&message).await.unavailable()?;
        // as long as a call over the network would take
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.handler.handle(cx, message).await
    }
}
