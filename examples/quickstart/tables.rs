//! The business tables of the shop and of the ledger, and the log of deliveries.

use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, Schema};

pub(crate) async fn create(db: &DatabaseConnection) -> Result<(), DbErr> {
    let schema = Schema::new(db.get_database_backend());
    db.execute(&schema.create_table_from_entity(order::Entity)).await?;
    db.execute(&schema.create_table_from_entity(intake::Entity)).await?;
    db.execute(&schema.create_table_from_entity(entry::Entity)).await?;
    db.execute(&schema.create_table_from_entity(gift_card::Entity)).await?;
    db.execute(&schema.create_table_from_entity(delivery::Entity)).await?;
    Ok(())
}

/// The shop's orders.
pub(crate) mod order {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "shop_order")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub customer: String,
        pub amount_cents: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}
    impl ActiveModelBehavior for ActiveModel {}
}

/// What became of each line of the input; written by itself, after the order's transaction has ended.
pub(crate) mod intake {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "intake")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub line: i64,
        pub order_id: Option<String>,
        pub outcome: Outcome,
        pub reason: Option<String>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
    #[sea_orm(rs_type = "String", db_type = "String(StringLen::N(16))")]
    pub(crate) enum Outcome {
        #[sea_orm(string_value = "committed")]
        Committed,
        #[sea_orm(string_value = "rolled back")]
        RolledBack,
        #[sea_orm(string_value = "duplicate")]
        Duplicate,
        #[sea_orm(string_value = "rejected")]
        Rejected,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}
    impl ActiveModelBehavior for ActiveModel {}
}

/// The ledger's entries. Nothing here keeps an order from being booked twice: that is the inbox's work.
pub(crate) mod entry {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "ledger_entry")]
    pub(crate) struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub order_id: String,
        pub amount_cents: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}
    impl ActiveModelBehavior for ActiveModel {}
}

/// Gift cards that an operator honours although the shop does not know them.
pub(crate) mod gift_card {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "gift_card")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub code: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}
    impl ActiveModelBehavior for ActiveModel {}
}

/// One row for each time a message was handed to a handler, whatever came of it.
pub(crate) mod delivery {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "delivery")]
    pub(crate) struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub message_id: Uuid,
        pub order_id: String,
        pub dispatcher: String,
        pub attempt: i64,
        /// Whether its effect was there already; the inbox must not let it through.
        pub was_booked: bool,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}
    impl ActiveModelBehavior for ActiveModel {}
}
