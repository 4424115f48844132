//! A business table, as every service has one.

use outbox_core::Context;
use outbox_sea_orm::SeaOrmContext;
use sea_orm::entity::prelude::*;
use sea_orm::{ActiveValue::Set, DatabaseConnection, Schema};

use crate::AnyError;

/// An order.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "customer_order")]
pub struct Model {
    /// Made by the database.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// What was ordered.
    pub item: String,
    /// Whether the parcel is on its way.
    pub shipped: bool,
}

/// None.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// Creates the table.
///
/// # Errors
/// Those of SeaORM.
pub async fn create_table(db: &DatabaseConnection) -> Result<(), DbErr> {
    let schema = Schema::new(db.get_database_backend());
    db.execute(&schema.create_table_from_entity(Entity)).await.map(drop)
}

/// Inserts an order with any connection or transaction.
///
/// # Errors
/// Those of SeaORM.
pub async fn insert(db: &impl ConnectionTrait, item: &str) -> Result<Model, DbErr> {
    ActiveModel { item: Set(item.to_owned()), shipped: Set(false), ..Default::default() }.insert(db).await
}

/// Business logic that takes part in the transaction on the context: it need not know who opened it.
///
/// # Errors
/// Those of the context and of SeaORM.
pub async fn place(cx: &Context, item: &str) -> Result<Model, AnyError> {
    Ok(insert(cx.connection()?, item).await?)
}

/// Marks an order as shipped, with any connection or transaction.
///
/// # Errors
/// Those of SeaORM.
pub async fn ship(db: &impl ConnectionTrait, id: i64) -> Result<(), DbErr> {
    let shipped = ActiveModel { id: Set(id), shipped: Set(true), ..Default::default() };
    shipped.update(db).await.map(drop)
}
