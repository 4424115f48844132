use outbox_core::{Declaration, TableName};
use sea_orm::{ConnectionTrait, DbErr};
use sea_orm_migration::{MigrationName, MigrationTrait, SchemaManager};

use crate::dialect::Dialect;
use crate::repository::Table;
use crate::sql::{Kind, create};

/// The versioned steps of a plain outbox table and an inbox table: [`outbox_migrations`] and [`inbox_migrations`].
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
    let mut steps = outbox_migrations(outbox, &Declaration::new());
    steps.extend(inbox_migrations(inbox));
    steps
}

/// The versioned steps of an outbox table as migrations, to be listed among those of a service. Their names hold the
/// table's name and never change.
///
/// Declare here what [`OutboxTable::declared`](crate::OutboxTable::declared) is given. A declaration that the database
/// cannot have fails the step, before any statement.
///
/// They do not create the schema: on PostgreSQL let a step of your own before them say
/// `CREATE SCHEMA IF NOT EXISTS orders`. ([`OutboxTable::migrate`](crate::OutboxTable::migrate) does it by itself.)
///
/// # Examples
/// ```
/// # use outbox_core::{Declaration, OnDead, TableName};
/// # fn example() -> outbox_core::Result<()> {
/// let ordered = Declaration::new().ordered(OnDead::Block);
/// let steps = outbox_sea_orm::outbox_migrations(&TableName::parse("orders.outbox")?, &ordered);
/// assert_eq!(steps[0].name(), "outbox_0001_create_orders.outbox");
/// # Ok(()) }
/// # example().unwrap();
/// ```
pub fn outbox_migrations(table: &TableName, declared: &Declaration) -> Vec<Box<dyn MigrationTrait>> {
    vec![Create::boxed(Kind::Outbox, table, declared)]
}

/// The versioned steps of an inbox table as migrations; see [`outbox_migrations`].
pub fn inbox_migrations(table: &TableName) -> Vec<Box<dyn MigrationTrait>> {
    vec![Create::boxed(Kind::Inbox, table, &Declaration::new())]
}

/// Version 1.
struct Create {
    name: String,
    kind: Kind,
    table: TableName,
    declared: Declaration,
}

impl Create {
    fn boxed(kind: Kind, table: &TableName, declared: &Declaration) -> Box<dyn MigrationTrait> {
        let name = format!("{}_0001_create_{table}", kind.template());
        Box::new(Self { name, kind, table: table.clone(), declared: declared.clone() })
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
        let dialect = dialect(connection)?;
        Table::new(connection.get_database_backend(), &self.table, self.declared.clone()).map_err(refused)?;
        let sql = create(self.kind, dialect, &self.table, &self.declared);
        connection.execute_unprepared(&sql).await.map(drop)
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let sql = crate::sql::drop(self.kind, dialect(connection)?, &self.table);
        connection.execute_unprepared(&sql).await.map(drop)
    }
}

fn dialect(connection: &impl ConnectionTrait) -> Result<Dialect, DbErr> {
    Dialect::of(connection.get_database_backend()).map_err(refused)
}

fn refused(error: outbox_core::Error) -> DbErr {
    DbErr::Migration(error.to_string())
}
