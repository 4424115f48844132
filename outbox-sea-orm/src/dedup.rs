//! Deduplication keys: which message was the first with each, settled before anything is stored.

use std::collections::{BTreeMap, HashMap};

use outbox_core::{Draft, Error, ErrorKind, MessageId, Result};
use sea_orm::ConnectionTrait;
#[cfg(feature = "sqlite")]
use sea_orm::Value;
use sea_orm::sea_query::Values;

use crate::dialect::Dialect;
use crate::repository::OutboxTable;
use crate::row::{column, duration};

/// The most keys of a statement where each is a parameter.
const MAX_KEYS: usize = 1_000;
/// How often a key may be found to be taken and then not be there.
const MAX_ROUNDS: usize = 100;

/// Keys that nobody is known for yet, in the order of their bytes, with the ids of their first drafts.
type Wanted = BTreeMap<String, MessageId>;

/// The message that a key stands for.
enum Owner {
    /// The first draft of this call with the key.
    New(MessageId),
    /// A message that was there before.
    There(MessageId),
    /// One that was there before and may not be read.
    Hidden,
}

/// What is known of the keys of a call.
pub(crate) struct Keys(HashMap<String, Owner>);

impl Keys {
    /// Takes those keys of the drafts that are free, in the transaction of `connection`, and finds the messages of the
    /// others.
    pub(crate) async fn take(
        table: &OutboxTable,
        connection: &impl ConnectionTrait,
        drafts: &[Draft],
    ) -> Result<Self> {
        let mut wanted = wanted(drafts);
        let mut keys = Self(HashMap::with_capacity(wanted.len()));
        let mut taken = take_first(table, connection, &wanted).await?;
        for _ in 0..MAX_ROUNDS {
            keys.are_new(&mut wanted, taken);
            if wanted.is_empty() {
                return Ok(keys);
            }
            if !may_read(table, connection).await? {
                keys.0.extend(wanted.into_keys().map(|key| (key, Owner::Hidden)));
                return Ok(keys);
            }
            let found = find(table, connection, &wanted).await?;
            keys.are_there(&mut wanted, found);
            if wanted.is_empty() {
                return Ok(keys);
            }
            // those that have expired, or were given up between the two statements
            taken = take(table, connection, &wanted).await?;
        }
        Err(Error::new(ErrorKind::Contention, "enqueue").with_table(&table.name))
    }

    fn are_new(&mut self, wanted: &mut Wanted, taken: Vec<String>) {
        let taken = taken.iter().filter_map(|key| wanted.remove_entry(key));
        self.0.extend(taken.map(|(key, id)| (key, Owner::New(id))));
    }

    fn are_there(&mut self, wanted: &mut Wanted, found: Vec<(String, MessageId)>) {
        let found = found.into_iter().filter(|(key, _)| wanted.remove(key).is_some());
        self.0.extend(found.map(|(key, id)| (key, Owner::There(id))));
    }

    fn owner(&self, draft: &Draft) -> Option<&Owner> {
        self.0.get(draft.dedup_key.as_ref()?)
    }

    /// Whether the draft is to be stored.
    pub(crate) fn is_new(&self, draft: &Draft) -> bool {
        match self.owner(draft) {
            None => true,
            Some(Owner::New(id)) => *id == draft.id,
            Some(Owner::There(_) | Owner::Hidden) => false,
        }
    }

    /// The id in the place of the draft, if it may be read.
    pub(crate) fn id(&self, draft: &Draft) -> Option<MessageId> {
        match self.owner(draft) {
            None => Some(draft.id),
            Some(Owner::New(id) | Owner::There(id)) => Some(*id),
            Some(Owner::Hidden) => None,
        }
    }
}

fn wanted(drafts: &[Draft]) -> Wanted {
    let mut wanted = Wanted::new();
    for draft in drafts {
        if let Some(key) = &draft.dedup_key {
            wanted.entry(key.clone()).or_insert(draft.id);
        }
    }
    wanted
}

/// Takes what is free, by the cheapest statement that this role may send.
async fn take_first(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    wanted: &Wanted,
) -> Result<Vec<String>> {
    #[cfg(feature = "postgres")]
    if table.table()?.dialect == Dialect::Postgres
        && (wanted.len() == 1 || !may_read(table, connection).await?)
    {
        return take_each(table, connection, wanted).await;
    }
    take(table, connection, wanted).await
}

/// What the statement that takes one key needs.
#[cfg(any(feature = "postgres", feature = "mysql"))]
fn one(table: &OutboxTable, dialect: Dialect, key: &str, id: MessageId) -> Values {
    Values(vec![key.into(), id.into(), duration(dialect, table.dedup_retention).into()])
}

#[cfg(feature = "postgres")]
async fn take_each(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    wanted: &Wanted,
) -> Result<Vec<String>> {
    let sql = &table.table()?.postgres.sql.take_key;
    let mut taken = Vec::with_capacity(wanted.len());
    for (key, id) in wanted {
        let values = one(table, Dialect::Postgres, key, *id);
        if table.execute("enqueue", connection, sql, values).await? == 1 {
            taken.push(key.clone());
        }
    }
    Ok(taken)
}

/// Takes what is free or has expired.
async fn take(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    wanted: &Wanted,
) -> Result<Vec<String>> {
    match table.table()?.dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => take_by_arrays(table, connection, wanted).await,
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => take_by_rows(table, connection, wanted).await,
        #[cfg(feature = "mysql")]
        Dialect::MySql => take_one_by_one(table, connection, wanted).await,
    }
}

#[cfg(feature = "postgres")]
async fn take_by_arrays(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    wanted: &Wanted,
) -> Result<Vec<String>> {
    let keys: Vec<String> = wanted.keys().cloned().collect();
    let ids: Vec<MessageId> = wanted.values().copied().collect();
    let retention = duration(Dialect::Postgres, table.dedup_retention);
    let values = Values(vec![keys.into(), ids.into(), retention.into()]);
    keys_of(&table.query("enqueue", connection, &table.table()?.sql.take_keys, values).await?)
}

#[cfg(feature = "sqlite")]
async fn take_by_rows(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    wanted: &Wanted,
) -> Result<Vec<String>> {
    let retention = duration(Dialect::Sqlite, table.dedup_retention);
    let row = |(key, id): &(&String, &MessageId)| -> [Value; 3] {
        [key.as_str().into(), (**id).into(), retention.into()]
    };
    let rows: Vec<_> = wanted.iter().collect();
    let mut taken = Vec::with_capacity(rows.len());
    for chunk in rows.chunks(MAX_KEYS) {
        let sql = crate::sql::repeat_values(&table.table()?.sql.take_keys, chunk.len());
        let values = Values(chunk.iter().flat_map(row).collect());
        taken.extend(keys_of(&table.query("enqueue", connection, &sql, values).await?)?);
    }
    Ok(taken)
}

#[cfg(feature = "mysql")]
async fn take_one_by_one(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    wanted: &Wanted,
) -> Result<Vec<String>> {
    let sql = &table.table()?.sql.take_keys;
    let mut taken = Vec::with_capacity(wanted.len());
    for (key, id) in wanted {
        let result = crate::mysql::execute(connection, sql, one(table, Dialect::MySql, key, *id)).await;
        let result = result.map_err(|error| crate::error::from_db("enqueue", &table.name, error))?;
        if result.last_insert_id() == 0 {
            taken.push(key.clone());
        }
    }
    Ok(taken)
}

/// The messages of the keys that are honoured.
async fn find(
    table: &OutboxTable,
    connection: &impl ConnectionTrait,
    wanted: &Wanted,
) -> Result<Vec<(String, MessageId)>> {
    let keys: Vec<&String> = wanted.keys().collect();
    let mut found = Vec::with_capacity(keys.len());
    for chunk in keys.chunks(MAX_KEYS) {
        let (sql, values) = find_statement(table, chunk)?;
        for row in table.query("enqueue", connection, &sql, values).await? {
            found.push((column(&row, 0)?, column(&row, 1)?));
        }
    }
    Ok(found)
}

fn find_statement(table: &OutboxTable, keys: &[&String]) -> Result<(String, Values)> {
    let inner = table.table()?;
    let sql = &inner.sql.find_keys;
    #[cfg(any(feature = "sqlite", feature = "mysql"))]
    let each = || Values(keys.iter().map(|key| key.as_str().into()).collect());
    Ok(match inner.dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            let keys: Vec<String> = keys.iter().map(|key| (*key).clone()).collect();
            (sql.clone(), Values(vec![keys.into()]))
        }
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => (crate::sql::repeat_values(sql, keys.len()), each()),
        #[cfg(feature = "mysql")]
        Dialect::MySql => (crate::sql::repeat_list(sql, keys.len()), each()),
    })
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
fn keys_of(rows: &[sea_orm::QueryResult]) -> Result<Vec<String>> {
    rows.iter().map(|row| column(row, 0)).collect()
}

/// Whether this role may read by which message a key was taken, and take it when it has expired.
async fn may_read(table: &OutboxTable, connection: &impl ConnectionTrait) -> Result<bool> {
    match table.table()?.dialect {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => crate::postgres::reads_keys(table, connection).await,
        #[allow(unreachable_patterns, reason = "there may be no other")]
        _ => {
            let _ = connection;
            Ok(true)
        }
    }
}
