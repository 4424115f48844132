//! The order service: one transaction writes the order and its message.

use outbox_core::{Context, Draft, Error, Transactor};
use outbox_examples::AnyError;
use outbox_sea_orm::{SeaOrm, SeaOrmContext, transactor};
use sea_orm::ActiveValue::Set;
use sea_orm::{ActiveModelTrait, DbErr, EntityTrait};
use serde::{Deserialize, Serialize};

use crate::storage::Storage;
use crate::tables::intake::Outcome;
use crate::tables::{intake, order};

const CREDIT_LIMIT_CENTS: i64 = 100_000;
/// The topics.
pub(crate) const CARD: &str = "order.card";
pub(crate) const INVOICE: &str = "order.invoice";
pub(crate) const GIFT_CARD: &str = "order.gift_card";

const MAX_ID_BYTES: usize = 40;

#[derive(Deserialize)]
struct Order {
    order_id: String,
    customer: Customer,
    payment: Payment,
    currency: String,
    lines: Vec<Line>,
}

#[derive(Deserialize)]
struct Customer {
    id: String,
}

#[derive(Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
enum Payment {
    Card,
    Invoice,
    GiftCard { code: String },
}

#[derive(Deserialize)]
struct Line {
    quantity: u32,
    unit_price_cents: u32,
}

/// The message.
#[derive(Serialize, Deserialize)]
pub(crate) struct OrderPlaced {
    pub(crate) order_id: String,
    pub(crate) amount_cents: i64,
    pub(crate) gift_card: Option<String>,
}

impl Order {
    fn parse(line: &[u8]) -> Result<Self, String> {
        let order: Self = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        if !(1..=MAX_ID_BYTES).contains(&order.order_id.len()) || order.order_id.contains(char::is_control) {
            return Err(format!("order_id must have 1 to {MAX_ID_BYTES} printable characters"));
        }
        if order.currency != "EUR" {
            return Err("currency must be EUR".to_owned());
        }
        if order.lines.is_empty() || order.lines.iter().any(|line| line.quantity == 0) {
            return Err("an order needs lines with a quantity".to_owned());
        }
        order.amount_cents().map(|_| order).ok_or("the amount is out of range".to_owned())
    }

    fn amount_cents(&self) -> Option<i64> {
        self.lines.iter().try_fold(0_i64, |sum, line| {
            let amount = i64::from(line.quantity).checked_mul(line.unit_price_cents.into())?;
            sum.checked_add(amount)
        })
    }

    fn message(&self, amount_cents: i64) -> Result<Draft, Error> {
        let (topic, gift_card) = match &self.payment {
            Payment::Card => (CARD, None),
            Payment::Invoice => (INVOICE, None),
            Payment::GiftCard { code } => (GIFT_CARD, Some(code.clone())),
        };
        let event = OrderPlaced { order_id: self.order_id.clone(), amount_cents, gift_card };
        Ok(Draft::json(topic, &event)?.key(&self.order_id))
    }
}

/// Why an order's transaction is rolled back.
enum Refusal {
    Duplicate,
    CreditLimit,
    Failed(AnyError),
}

impl<E: Into<AnyError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

pub(crate) struct Shop<'a> {
    storage: &'a Storage,
    tx: Transactor<SeaOrm>,
}

impl<'a> Shop<'a> {
    pub(crate) fn new(storage: &'a Storage) -> Self {
        Self { storage, tx: transactor(&storage.db) }
    }

    /// Takes one line of the input and notes what became of it.
    pub(crate) async fn take(&self, number: i64, line: &[u8]) -> Result<(), AnyError> {
        let (order_id, outcome, reason) = match Order::parse(line) {
            Err(reason) => (None, Outcome::Rejected, Some(reason)),
            Ok(order) => {
                let (outcome, reason) = self.place(&order).await?;
                (Some(order.order_id), outcome, reason.map(str::to_owned))
            }
        };
        self.note(intake::Model { line: number, order_id, outcome, reason }).await?;
        Ok(())
    }

    async fn place(&self, order: &Order) -> Result<(Outcome, Option<&'static str>), AnyError> {
        match self.tx.run(async |cx| self.write(cx, order).await).await {
            Ok(()) => Ok((Outcome::Committed, None)),
            Err(Refusal::Duplicate) => Ok((Outcome::Duplicate, Some("placed before"))),
            Err(Refusal::CreditLimit) => Ok((Outcome::RolledBack, Some("above the credit limit"))),
            Err(Refusal::Failed(error)) => Err(error),
        }
    }

    async fn write(&self, cx: &Context, order: &Order) -> Result<(), Refusal> {
        if order::Entity::find_by_id(&order.order_id).one(cx.connection()?).await?.is_some() {
            return Err(Refusal::Duplicate);
        }
        let amount_cents = order.amount_cents().ok_or("the amount is out of range")?;
        let row = order::ActiveModel {
            id: Set(order.order_id.clone()),
            customer: Set(order.customer.id.clone()),
            amount_cents: Set(amount_cents),
        };
        row.insert(cx.connection()?).await?;
        self.storage.outbox.enqueue(cx, order.message(amount_cents)?).await?;
        // late on purpose: the order and its message are written already, and must both vanish
        if amount_cents > CREDIT_LIMIT_CENTS { Err(Refusal::CreditLimit) } else { Ok(()) }
    }

    async fn note(&self, row: intake::Model) -> Result<(), DbErr> {
        intake::Entity::insert(intake::ActiveModel {
            line: Set(row.line),
            order_id: Set(row.order_id),
            outcome: Set(row.outcome),
            reason: Set(row.reason),
        })
        .exec_without_returning(&self.storage.db)
        .await
        .map(drop)
    }
}
