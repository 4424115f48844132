use outbox_core::{Declaration, TableName};
use sea_orm::{ConnectionTrait, DbErr};
use sea_orm_migration::{MigrationName, MigrationTrait, SchemaManager};

use crate::dialect::Dialect;
use crate::sql::{Kind, create};

/// The versioned steps of an outbox and an inbox table as migrations, to be listed among those of a service. Their
/// names hold the tables' names and never change.
///
/// They do not create the schema: on PostgreSQL let a step of your own before them say
/// `CREATE SCHEMA IF NOT EXISTS orders`. ([`OutboxTable::migrate`](crate::OutboxTable::migrate) does it by itself.)
///
/// # Examples
/// ```
/// # use outbox_core::TableName;
/// # fn example() -> outbox_core::Result<()> {
/// let steps = outbox_sea_orm::migrations(&TableName::parse("orders.outbox")?, &TableName::parse("orders.inbox")?);
/// assert_eq!(steps.len(), 2);
/// # Ok(()) }
/// # example().unwrap();
/// ```
pub fn migrations(outbox: &TableName, inbox: &TableName) -> Vec<Box<dyn MigrationTrait>> {
    vec![Box::new(Create::new(Kind::Outbox, outbox)), Box::new(Create::new(Kind::Inbox, inbox))]
}

/// Version 1.
struct Create {
    name: String,
    kind: Kind,
    table: TableName,
}

impl Create {
    fn new(kind: Kind, table: &TableName) -> Self {
        Self { name: format!("{}_0001_create_{table}", kind.template()), kind, table: table.clone() }
    }
}

impl MigrationName for Create {
    fn name(&self) -> &str {
        &self.name
    }
}

#[sea_orm::prelude::async_trait::async_trait]
impl MigrationTrait for Create {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let sql = create(self.kind, dialect(connection)?, &self.table, &Declaration::new());
        connection.execute_unprepared(&sql).await.map(drop)
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let sql = crate::sql::drop(self.kind, dialect(connection)?, &self.table);
        connection.execute_unprepared(&sql).await.map(drop)
    }
}

fn dialect(connection: &impl ConnectionTrait) -> Result<Dialect, DbErr> {
    Dialect::of(connection.get_database_backend()).map_err(|error| DbErr::Migration(error.to_string()))
}
