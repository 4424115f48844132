//! What happened, computed from the database alone.

use std::collections::{HashMap, HashSet};
use std::fmt;

use outbox_core::{DeadLetter, DeadLetterQuery, MAX_BATCH, Operations, TopicStats};
use outbox_examples::AnyError;
use sea_orm::EntityTrait;
use serde::Serialize;

use crate::storage::Storage;
use crate::tables::intake::Outcome;
use crate::tables::{delivery, entry, intake, order};

/// Every row there is.
pub(crate) struct Facts {
    lines: Vec<intake::Model>,
    orders: HashMap<String, i64>,
    entries: Vec<entry::Model>,
    deliveries: Vec<delivery::Model>,
    dead: HashSet<String>,
    outbox: TopicStats,
}

impl Facts {
    pub(crate) async fn read(storage: &Storage) -> Result<Self, AnyError> {
        let db = &storage.db;
        let orders = order::Entity::find().all(db).await?;
        let letters = dead_letters(storage).await?;
        Ok(Self {
            lines: intake::Entity::find().all(db).await?,
            orders: orders.into_iter().map(|order| (order.id, order.amount_cents)).collect(),
            entries: entry::Entity::find().all(db).await?,
            deliveries: delivery::Entity::find().all(db).await?,
            dead: letters.into_iter().filter_map(|letter| letter.message.key).collect(),
            outbox: storage.outbox.stats().await?.total(),
        })
    }

    fn n_lines(&self, outcome: Outcome) -> usize {
        self.lines.iter().filter(|line| line.outcome == outcome).count()
    }

    fn n_entries(&self) -> HashMap<&str, usize> {
        let mut counts = HashMap::new();
        for entry in &self.entries {
            *counts.entry(entry.order_id.as_str()).or_default() += 1;
        }
        counts
    }

    /// Orders with another number of effects than they should have: one, or none when dead.
    fn without_their_effect(&self) -> Vec<String> {
        let counts = self.n_entries();
        let expected = |id: &String| usize::from(!self.dead.contains(id));
        let is_wrong = |id: &&String| counts.get(id.as_str()).copied().unwrap_or(0) != expected(id);
        self.orders.keys().filter(is_wrong).cloned().collect()
    }

    /// Entries whose order was never committed, or whose amount differs.
    fn foreign_entries(&self) -> Vec<String> {
        let is_foreign =
            |entry: &&entry::Model| self.orders.get(&entry.order_id) != Some(&entry.amount_cents);
        self.entries.iter().filter(is_foreign).map(|entry| entry.order_id.clone()).collect()
    }

    /// Messages whose order was never committed, above all those of a rolled-back transaction.
    fn foreign_messages(&self) -> Vec<String> {
        let delivered = self.deliveries.iter().map(|delivery| &delivery.order_id);
        delivered.chain(&self.dead).filter(|id| !self.orders.contains_key(*id)).cloned().collect()
    }

    /// Committed orders that the shop does not know of, and the other way round.
    fn misremembered_orders(&self) -> Vec<String> {
        let committed = self.lines.iter().filter(|line| line.outcome == Outcome::Committed);
        let committed: HashSet<&String> = committed.filter_map(|line| line.order_id.as_ref()).collect();
        let orders = self.orders.keys().collect();
        committed.symmetric_difference(&orders).map(|id| id.to_string()).collect()
    }

    fn left_over(&self) -> Vec<String> {
        let n_left = self.outbox.n_pending + self.outbox.n_claimed;
        (0..n_left).map(|_| "a message".to_owned()).collect()
    }

    fn violations(&self) -> Vec<String> {
        let rules = [
            ("a committed order has exactly one ledger entry, or is dead", self.without_their_effect()),
            ("every ledger entry belongs to a committed order and has its amount", self.foreign_entries()),
            ("nothing of a transaction that rolled back is delivered", self.foreign_messages()),
            ("the shop's orders are those it saw commit", self.misremembered_orders()),
            ("nothing is left to deliver", self.left_over()),
        ];
        let broken = rules.into_iter().filter(|(_, breakers)| !breakers.is_empty());
        broken.map(|(rule, breakers)| format!("{rule}: not so for {}", list(&breakers))).collect()
    }
}

fn list(breakers: &[String]) -> String {
    let shown = breakers.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    match breakers.len().saturating_sub(3) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

pub(crate) async fn dead_letters(storage: &Storage) -> Result<Vec<DeadLetter>, AnyError> {
    let mut letters = Vec::new();
    let mut query = DeadLetterQuery::new(MAX_BATCH);
    loop {
        let page = storage.outbox.dead_letters(query.clone()).await?;
        letters.extend(page.letters);
        match page.next {
            Some(next) => query = query.with_after(next),
            None => return Ok(letters),
        }
    }
}

/// The result of a run.
#[derive(Serialize)]
pub(crate) struct Verdict {
    lines: usize,
    rejected: usize,
    duplicates: usize,
    rolled_back: usize,
    committed: usize,
    delivered: usize,
    redelivered: usize,
    suppressed: usize,
    dead: usize,
    redriven: usize,
    effects: usize,
    violations: Vec<String>,
}

impl Verdict {
    pub(crate) fn new(facts: &Facts, redriven: usize) -> Self {
        let messages: HashSet<_> = facts.deliveries.iter().map(|delivery| delivery.message_id).collect();
        Self {
            lines: facts.lines.len(),
            rejected: facts.n_lines(Outcome::Rejected),
            duplicates: facts.n_lines(Outcome::Duplicate),
            rolled_back: facts.n_lines(Outcome::RolledBack),
            committed: facts.orders.len(),
            delivered: messages.len() - facts.dead.len(),
            redelivered: facts.deliveries.len() - messages.len(),
            suppressed: facts.deliveries.iter().filter(|delivery| delivery.was_booked).count(),
            dead: facts.dead.len(),
            redriven,
            effects: facts.entries.len(),
            violations: facts.violations(),
        }
    }

    pub(crate) fn is_good(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("lines read", self.lines, ""),
            ("rejected", self.rejected, "malformed"),
            ("duplicates", self.duplicates, "the same order once more"),
            ("rolled back", self.rolled_back, "above the credit limit, after order and message were written"),
            ("committed", self.committed, "order and message in one transaction"),
            ("delivered", self.delivered, "messages handled"),
            ("redelivered", self.redelivered, "more deliveries: retries, the killed process, the redrive"),
            ("suppressed", self.suppressed, "of these, booked before: the inbox let none through"),
            ("dead", self.dead, "unknown gift cards"),
            ("redriven", self.redriven, "dead letters that an operator sent again"),
            ("effects", self.effects, "ledger entries: one for each delivered order"),
        ];
        for (name, count, remark) in rows {
            writeln!(f, "{}", format!("{name:<12}{count:>8}   {remark}").trim_end())?;
        }
        match self.violations.as_slice() {
            [] => write!(f, "every invariant holds"),
            violations => write!(f, "BROKEN  {}", violations.join("\nBROKEN  ")),
        }
    }
}
