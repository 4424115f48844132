//! A backend of your own: messages in a vector, and the suite that says whether it keeps the rules.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use outbox_core::{
    Claim, ClaimRequest, Claimed, Context, Draft, Error, ErrorKind, Lease, Limits, Message, MessageId,
    NoListener, Outcome, Repository, Result, Settled, Settlement, Transactions, Wakeup, recovery_group,
    refuse_dedup_keys, validate_drafts,
};
use outbox_testkit::{Capabilities, Harness, Skip, conformance};
use uuid::Uuid;

/// The store; clones share it.
#[derive(Clone)]
struct Toy(Arc<Mutex<Table>>);

struct Table {
    /// In the order in which messages became claimable.
    rows: Vec<Row>,
    started: Instant,
    skipped: Duration,
}

struct Row {
    draft: Draft,
    created_at: Duration,
    due_at: Option<Duration>,
    lease: Option<(Uuid, Duration)>,
    attempts: u32,
    fence: i64,
    is_dead: bool,
}

impl Toy {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().expect("nobody panics with the table in hand")
    }
}

// ---- transactions: what is enqueued waits in the transaction until it commits

struct ToyTransaction {
    drafts: Mutex<Vec<Draft>>,
}

impl Transactions for Toy {
    async fn begin(&self) -> Result<Context> {
        Ok(Context::new().with_transaction(Arc::new(ToyTransaction { drafts: Mutex::default() })))
    }

    async fn commit(&self, cx: Context) -> Result<()> {
        let transaction = Arc::try_unwrap(cx.into_transaction::<ToyTransaction>()?)
            .map_err(|_| Error::new(ErrorKind::TransactionEscaped, "commit"))?;
        let mut table = self.table();
        let now = table.now();
        let drafts = transaction.drafts.into_inner().expect("nobody panics with the drafts in hand");
        table.rows.extend(drafts.into_iter().map(|draft| Row::new(draft, now)));
        Ok(())
    }

    async fn rollback(&self, cx: Context) -> Result<()> {
        cx.into_transaction::<ToyTransaction>().map(drop)
    }
}

// ---- the repository

impl Repository for Toy {
    async fn enqueue(&self, cx: &Context, mut drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        let transaction: &ToyTransaction = cx.transaction()?;
        drafts.iter_mut().for_each(|draft| cx.add_trace_headers(&mut draft.headers));
        validate_drafts(&drafts, &Limits::default())?;
        refuse_dedup_keys(&drafts)?;
        let ids: Vec<_> = drafts.iter().map(|draft| draft.id).collect();
        let (table, mut own) = (self.table(), transaction.drafts.lock().expect("drafts"));
        let n = drafts.len();
        drafts.retain(|draft| {
            let is_same = |known: &MessageId| *known == draft.id;
            !table.rows.iter().any(|row| is_same(&row.draft.id)) && !own.iter().any(|own| is_same(&own.id))
        });
        let n_new = drafts.len();
        own.extend(drafts);
        if n_new < n { Err(Error::new(ErrorKind::AlreadyEnqueued, "enqueue")) } else { Ok(ids) }
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claim> {
        request.validate()?;
        Ok(self.table().claim(&request))
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        let counts = Settlement::validate(&settlements)?;
        let mut table = self.table();
        let settle = |(settlement, counts): (Settlement, bool)| match table.leased(&settlement.lease) {
            Some(place) if counts => table.settle(place, settlement.outcome),
            _ => Settled::LeaseLost,
        };
        Ok(settlements.into_iter().zip(counts).map(settle).collect())
    }

    async fn extend(&self, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        // an extension has the bounds of a lease
        ClaimRequest::new(1, by).validate().map_err(|_| Error::invalid("by", "must be 1ms to 24h"))?;
        let mut table = self.table();
        let until = table.now() + by;
        let extend = |lease: Lease| match table.leased(&lease) {
            None => Settled::LeaseLost,
            Some(place) => {
                table.rows[place].lease = Some((lease.token, until));
                Settled::Applied
            }
        };
        Ok(leases.into_iter().map(extend).collect())
    }
}

impl Wakeup for Toy {
    type Listener = NoListener;

    async fn listen(&self) -> Result<Option<NoListener>> {
        Ok(None)
    }
}

impl Row {
    fn new(draft: Draft, now: Duration) -> Self {
        let due_at = (!draft.delay.is_zero()).then(|| now + draft.delay);
        Self { draft, created_at: now, due_at, lease: None, attempts: 0, fence: 0, is_dead: false }
    }

    fn is_ready(&self) -> bool {
        !self.is_dead && self.due_at.is_none() && self.lease.is_none()
    }

    fn is_expired(&self, now: Duration) -> bool {
        self.lease.is_some_and(|(_, until)| until <= now)
    }

    fn hand_out(&mut self, token: Uuid, until: Duration) -> Claimed {
        self.attempts += 1;
        self.fence += 1;
        self.lease = Some((token, until));
        let Draft { id, topic, key, payload, headers, .. } = self.draft.clone();
        let created_at = std::time::UNIX_EPOCH + self.created_at;
        let (attempt, fence) = (self.attempts, self.fence);
        let message =
            Message { id, topic, key, payload, headers, created_at: created_at.into(), attempt, fence };
        Claimed { message, lease: Lease { id, token, locator: 0 } }
    }
}

impl Table {
    fn now(&self) -> Duration {
        self.started.elapsed() + self.skipped
    }

    fn leased(&self, lease: &Lease) -> Option<usize> {
        let holds = |row: &Row| row.lease.is_some_and(|(token, _)| token == lease.token);
        self.rows.iter().position(|row| row.draft.id == lease.id && holds(row))
    }

    fn claim(&mut self, request: &ClaimRequest) -> Claim {
        let now = self.now();
        let mut claim = Claim::default();
        if request.recover {
            let expired = self.find(request, |row| row.is_expired(now));
            let mut live = self.bury_spent(expired, request, &mut claim);
            let attempts = live.first().map_or(0, |place| self.rows[*place].attempts);
            live.retain(|place| self.rows[*place].attempts == attempts);
            live.truncate(recovery_group(request.limit, attempts, request.max_attempts));
            self.hand_out(&live, request, now, &mut claim);
            claim.recovered = !claim.messages.is_empty();
        }
        if !claim.recovered {
            self.promote(now);
            let mut ready = self.find(request, Row::is_ready);
            ready.truncate(request.limit);
            let live = self.bury_spent(ready, request, &mut claim);
            self.hand_out(&live, request, now, &mut claim);
        }
        claim
    }

    fn find(&self, request: &ClaimRequest, is_wanted: impl Fn(&Row) -> bool) -> Vec<usize> {
        let serves = |topic| request.topics.as_ref().is_none_or(|topics| topics.contains(topic));
        let is_found = |place: &usize| {
            let row = &self.rows[*place];
            serves(&row.draft.topic) && is_wanted(row)
        };
        (0..self.rows.len()).filter(is_found).collect()
    }

    /// Makes messages out of attempts dead; what is left.
    fn bury_spent(
        &mut self,
        mut places: Vec<usize>,
        request: &ClaimRequest,
        claim: &mut Claim,
    ) -> Vec<usize> {
        places.retain(|place| {
            let row = &mut self.rows[*place];
            if row.attempts >= request.max_attempts {
                (row.is_dead, row.lease) = (true, None);
                claim.n_dead += 1;
            }
            !row.is_dead
        });
        places
    }

    fn hand_out(&mut self, places: &[usize], request: &ClaimRequest, now: Duration, claim: &mut Claim) {
        let (token, mut bytes) = (Uuid::new_v4(), 0);
        for place in places.iter().take(request.limit) {
            let row = &mut self.rows[*place];
            bytes += row.draft.payload.len() as u64;
            if !claim.messages.is_empty() && request.max_bytes.is_some_and(|max| bytes > max) {
                return;
            }
            claim.messages.push(row.hand_out(token, now + request.lease));
        }
    }

    /// What is due becomes claimable as a new arrival.
    fn promote(&mut self, now: Duration) {
        let is_due = |row: &mut Row| row.due_at.is_some_and(|due_at| due_at <= now);
        let mut due: Vec<_> = self.rows.extract_if(.., is_due).collect();
        due.sort_by_key(|row| row.due_at);
        self.rows.extend(due.into_iter().map(|row| Row { due_at: None, ..row }));
    }

    fn settle(&mut self, place: usize, outcome: Outcome) -> Settled {
        let now = self.now();
        let mut row = self.rows.remove(place);
        row.lease = None;
        match outcome {
            Outcome::Done => return Settled::Applied,
            Outcome::Retry { after, .. } => row.due_at = Some(now + after),
            Outcome::Dead { .. } => row.is_dead = true,
            Outcome::Release => row.attempts -= 1,
        }
        self.rows.push(row);
        Settled::Applied
    }
}

// ---- the suite

struct ToyHarness(Toy);

impl Harness for ToyHarness {
    const NAME: &'static str = "toy";
    type Repository = Toy;

    async fn start() -> Result<Self, Skip> {
        let (rows, started, skipped) = (Vec::new(), Instant::now(), Duration::ZERO);
        Ok(Self(Toy(Arc::new(Mutex::new(Table { rows, started, skipped })))))
    }

    fn repository(&self) -> &Toy {
        &self.0
    }

    async fn advance(&self, by: Duration) {
        self.0.table().skipped += by;
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::none().with_exact_order(true).with_unique_ids(true)
    }
}

conformance!(ToyHarness: repository);
