//! The keys of an ordered table, for who operates it.

use outbox_core::{BlockedPage, BlockedQuery, MAX_BEHIND, MessageId, Result};
use sea_orm::sea_query::Values;
use sea_orm::{QueryResult, Value};

use super::walk::after;
use crate::dialect::Dialect;
use crate::operations::blocked_key;
use crate::repository::{Ordered, OutboxTable};
use crate::row::column;

/// The first of a key is counted with those behind it, and one more tells that there are more.
const MAX_COUNTED: i64 = MAX_BEHIND as i64 + 2;

/// Keys with a message that is claimed, waits or is a dead letter that blocks.
struct Held(Vec<QueryResult>);

impl Held {
    /// Those of the first `n` such messages from a key on.
    async fn read(
        table: &OutboxTable,
        operation: &'static str,
        ordered: &Ordered,
        from: &str,
        n: usize,
    ) -> Result<Self> {
        let (blocks, n) = (Value::from(i16::from(ordered.blocks)), Value::from(n as i64));
        let (count, page) = ([MAX_COUNTED.into(), (MAX_COUNTED - 1).into()], [from.into(), n.clone()]);
        let values =
            [&[blocks.clone()][..], &count, &count, &count, &page, &page, &[blocks], &page, &[n.clone(), n]];
        let sql = &ordered.keys.blocked_keys;
        Ok(Self(table.query(operation, table.hot()?, sql, Values(values.concat())).await?))
    }

    /// Of how many messages.
    fn n_read(&self) -> Result<usize> {
        let counts = self.0.iter().map(|row| column::<i64>(row, 8).map(|n| n as usize));
        counts.sum()
    }
}

/// See [`Operations::blocked_keys`](outbox_core::Operations::blocked_keys). A page looks at keys of which a message is claimed,
/// waits or is a dead letter that blocks; the others can go on.
pub(crate) async fn blocked(
    table: &OutboxTable,
    operation: &'static str,
    ordered: &Ordered,
    query: BlockedQuery,
) -> Result<BlockedPage> {
    let mut page = BlockedPage::default();
    let mut from = query.from.unwrap_or_default();
    let mut n_left = query.limit;
    loop {
        let n = n_left + 1;
        let held = Held::read(table, operation, ordered, &from, n).await?;
        let (looked_at, next) = held.0.split_at(held.0.len().min(n_left));
        for row in looked_at {
            page.keys.extend(blocked_key(Dialect::MySql, row)?);
        }
        n_left -= looked_at.len();
        page.next = next.first().map(|row| column(row, 0)).transpose()?;
        match looked_at.last() {
            Some(last) if page.next.is_none() && held.n_read()? >= n => {
                from = after(&column::<String>(last, 0)?)
            }
            _ => return Ok(page),
        }
    }
}

/// Whether this is the first message of a key that may be blocked. It stays the first as long as it is there: docs/decisions/020.
pub(crate) async fn is_head(
    table: &OutboxTable,
    operation: &'static str,
    ordered: &Ordered,
    key: &str,
    head: MessageId,
) -> Result<bool> {
    let held = Held::read(table, operation, ordered, key, 1).await?;
    let Some(row) = held.0.first() else { return Ok(false) };
    Ok(column::<String>(row, 0)? == key && column::<MessageId>(row, 1)? == head)
}
