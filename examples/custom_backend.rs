//! A backend of your own: implement the traits of outbox-core, and the dispatcher delivers from it.
//!
//! This toy keeps its messages in a `Vec`. Whether a backend keeps all the rules of the contract is for the
//! suite to say: `outbox_testkit::conformance!`. `cargo run --example custom_backend`

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use outbox_core::*;
use outbox_dispatcher::{Dispatcher, Router};
use uuid::Uuid;

#[derive(Clone, Default)]
struct Spool(Arc<Mutex<Vec<Row>>>);

struct Row {
    message: Message,
    due_at: Instant,
    token: Option<Uuid>,
    dead: Option<String>,
}

/// What an open transaction will add.
#[derive(Default)]
struct Pending(Mutex<Vec<Draft>>);

impl Spool {
    fn with<T>(&self, f: impl FnOnce(&mut Vec<Row>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn row(draft: Draft) -> Row {
    let Draft { id, topic, key, payload, headers, delay, .. } = draft;
    let created_at = SystemTime::now().into();
    let message = Message { id, topic, key, payload, headers, created_at, attempt: 0, fence: 0 };
    Row { message, due_at: Instant::now() + delay, token: None, dead: None }
}

impl Row {
    fn claim(&mut self, lease: Duration) -> Claimed {
        let (id, token) = (self.message.id, Uuid::new_v4());
        self.message.attempt += 1;
        self.message.fence += 1;
        (self.token, self.due_at) = (Some(token), Instant::now() + lease);
        Claimed { message: self.message.clone(), lease: Lease { id, token, locator: 0 } }
    }
}

impl Transactions for Spool {
    async fn begin(&self) -> Result<Context> {
        Ok(Context::new().with_transaction(Arc::new(Pending::default())))
    }

    async fn commit(&self, cx: Context) -> Result<()> {
        let pending = Arc::into_inner(cx.into_transaction::<Pending>()?);
        let pending = pending.ok_or(Error::new(ErrorKind::TransactionEscaped, "commit"))?.0;
        let drafts = pending.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.with(|rows| rows.extend(drafts.into_iter().map(row)));
        Ok(())
    }

    async fn rollback(&self, _: Context) -> Result<()> {
        Ok(())
    }
}

impl Repository for Spool {
    async fn enqueue(&self, cx: &Context, drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        validate_drafts(&drafts, &Limits::default())?;
        let ids = drafts.iter().map(|draft| draft.id).collect();
        cx.transaction::<Pending>()?.0.lock().unwrap_or_else(PoisonError::into_inner).extend(drafts);
        Ok(ids)
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claim> {
        request.validate()?;
        let serves = |topic| request.topics.as_ref().is_none_or(|topics| topics.contains(topic));
        let mut claim = Claim::default();
        self.with(|rows| {
            let due = |row: &&mut Row| {
                row.dead.is_none() && row.due_at <= Instant::now() && serves(&row.message.topic)
            };
            claim.messages = rows.iter_mut().filter(due).take(request.limit).map(|row| row.claim(request.lease)).collect();
        });
        Ok(claim)
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        Ok(settlements.into_iter().map(|settlement| self.with(|rows| settle(rows, settlement))).collect())
    }

    async fn extend(&self, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        let extend = |lease: &Lease| self.with(|rows| find(rows, lease).map(|row| row.due_at = Instant::now() + by));
        Ok(leases.iter().map(|lease| extend(lease).map_or(Settled::LeaseLost, |()| Settled::Applied)).collect())
    }
}

fn find<'a>(rows: &'a mut [Row], lease: &Lease) -> Option<&'a mut Row> {
    rows.iter_mut().find(|row| row.token == Some(lease.token))
}

fn settle(rows: &mut Vec<Row>, Settlement { lease, outcome }: Settlement) -> Settled {
    let Some(row) = find(rows, &lease) else { return Settled::LeaseLost };
    row.token = None;
    match outcome {
        Outcome::Done => rows.retain(|row| row.message.id != lease.id),
        Outcome::Retry { after, .. } => row.due_at = Instant::now() + after,
        Outcome::Dead { error } => row.dead = Some(error),
        Outcome::Release => row.message.attempt -= 1,
    }
    Settled::Applied
}
