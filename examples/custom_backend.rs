//! A backend of your own, here a `Vec`: implement these traits, and the dispatcher delivers from it. This toy
//! breaks some rules, as `outbox_testkit::conformance!` would tell. `cargo run --example custom_backend`

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outbox_core::*;
use outbox_dispatcher::{Dispatcher, Router};
use tokio::sync::Mutex;
use uuid::Uuid;

#[derive(Clone, Default)]
struct Spool(Arc<Mutex<Vec<Row>>>); // on a context: what the transaction will add

struct Row {
    message: Message,
    due_at: Option<Instant>, // for a claimed one the end of its lease, for a finished one never
    token: Uuid,
}

/// Ends a lease, or with its own token renews it.
fn put_back(rows: &mut [Row], lease: Lease, token: Uuid, due_in: Option<Duration>) -> Settled {
    let Some(row) = rows.iter_mut().find(|row| row.token == lease.token) else { return Settled::LeaseLost };
    (row.token, row.due_at) = (token, due_in.map(|due_in| Instant::now() + due_in));
    Settled::Applied
}

#[expect(clippy::disallowed_methods, reason = "this storage has no clock but the host's")]
fn row(Draft { id, topic, key, payload, headers, delay, .. }: Draft) -> Row {
    let created_at = SystemTime::now().into();
    let message = Message { id, topic, key, payload, headers, created_at, attempt: 0, fence: 0 };
    Row { message, due_at: Some(Instant::now() + delay), token: Uuid::nil() }
}

impl Transactions for Spool {
    async fn begin(&self) -> Result<Context> {
        Ok(Context::new().with_transaction(Arc::new(Spool::default())))
    }
    async fn commit(&self, cx: Context) -> Result<()> {
        self.0.lock().await.append(&mut *cx.transaction::<Spool>()?.0.lock().await);
        Ok(())
    }
    async fn rollback(&self, _: Context) -> Result<()> {
        Ok(())
    }
}

impl Repository for Spool {
    async fn enqueue(&self, cx: &Context, drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        validate_drafts(&drafts, &Limits::default())?;
        refuse_dedup_keys(&drafts)?;
        let ids = drafts.iter().map(|draft| draft.id).collect();
        cx.transaction::<Spool>()?.0.lock().await.extend(drafts.into_iter().map(row));
        Ok(ids)
    }
    async fn claim(&self, ClaimRequest { limit, lease, topics, .. }: ClaimRequest) -> Result<Claim> {
        let (mut rows, mut taken, now) = (self.0.lock().await, Claim::default(), Instant::now());
        let is_served = |row: &Row| topics.as_ref().is_none_or(|topics| topics.contains(&row.message.topic));
        let due = rows.iter_mut().filter(|row| row.due_at.is_some_and(|due_at| due_at <= now));
        for row in due.filter(|row| is_served(row)).take(limit) {
            row.message.attempt += 1;
            (row.due_at, row.token) = (Some(now + lease), Uuid::new_v4());
            let lease = Lease { id: row.message.id, token: row.token, locator: 0 };
            taken.messages.push(Claimed { message: row.message.clone(), lease });
        }
        Ok(taken)
    }
    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        let due_in = |outcome| match outcome {
            Outcome::Done | Outcome::Dead { .. } => None,
            Outcome::Retry { after, .. } => Some(after),
            Outcome::Release => Some(Duration::ZERO),
        };
        let mut rows = self.0.lock().await;
        let settle = |one: Settlement| put_back(&mut rows, one.lease, Uuid::nil(), due_in(one.outcome));
        Ok(settlements.into_iter().map(settle).collect())
    }
    async fn extend(&self, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        let mut rows = self.0.lock().await;
        Ok(leases.into_iter().map(|lease| put_back(&mut rows, lease, lease.token, Some(by))).collect())
    }
}

impl Wakeup for Spool {
    type Listener = NoListener;
    async fn listen(&self) -> Result<Option<NoListener>> {
        Ok(None)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let spool = Spool::default();
    let drafts = ["3", "0", "no JSON"].map(|payload| Draft::new("number", payload)).to_vec();
    Transactor::over(&spool).run(async |cx| spool.enqueue(cx, drafts).await).await?;
    let router = Router::new().on_json("number", async |n: u32| (n > 0).then_some(()).ok_or("zero".into()));
    let report = Dispatcher::new(spool, router).drain_once().await?;
    println!("{report:?}");
    assert_eq!((report.n_done, report.n_retried, report.n_dead), (1, 1, 1));
    Ok(())
}
