//! Claims beside sessions that lock or change what they are about to take, on PostgreSQL.

use std::collections::HashMap;

use outbox_core::Claim;
use sea_orm::{DatabaseTransaction, TransactionTrait};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::support::{PATIENCE, Pool, eventually};

pub(super) const LIMIT: usize = 10;

/// The table `declared`, made, and a claim loop on it.
pub(super) struct Loop {
    pub(super) table: OutboxTable,
    claimer: Claimer,
}

impl Loop {
    pub(super) async fn new(site: &Site) -> Self {
        let table = OutboxTable::new(&site.db, site.name("declared")).ordered(OnDead::Block);
        table.migrate().await.expect("migrate");
        Self { table, claimer: Claimer::new() }
    }

    pub(super) async fn enqueue(&self, keys: impl IntoIterator<Item = String>) {
        let drafts: Vec<_> = keys.into_iter().map(|key| Draft::new("t", "").key(key)).collect();
        self.table.enqueue_autocommit(drafts).await.expect("enqueue");
    }

    pub(super) async fn claim_with(&self, max_attempts: u32) -> Claim {
        let request = ClaimRequest::new(LIMIT, LEASE).with_max_attempts(max_attempts);
        let claim = self.table.claim(request.with_claimer(self.claimer.clone()));
        timeout(PATIENCE, claim).await.expect("it waits for nobody").expect("claim")
    }

    /// The keys of what was claimed and delivered.
    async fn deliver(&self) -> Vec<String> {
        let claim = self.claim_with(100).await;
        settle_all(&self.table, &claim, Outcome::Done).await;
        keys(&claim)
    }
}

pub(super) fn keys(claim: &Claim) -> Vec<String> {
    claim.messages.iter().filter_map(|claimed| claimed.message.key.clone()).collect()
}

/// As many keys as one claim takes, in their order.
pub(super) fn batch(name: &str) -> Vec<String> {
    (0..LIMIT).map(|number| format!("{name} {number}")).collect()
}

/// Locks the first row of the key `m`, or one behind it, for as long as the transaction is open.
async fn lock(site: &Site, place: usize) -> DatabaseTransaction {
    let transaction = site.db.begin().await.expect("begin");
    let table = site.sql_name("declared");
    let seq = format!("SELECT seq FROM {table} WHERE key = 'm' ORDER BY seq OFFSET {place} LIMIT 1");
    let sql = format!("SELECT FROM {table} WHERE seq = ({seq}) FOR UPDATE");
    transaction.execute_unprepared(&sql).await.expect("lock");
    transaction
}

/// Changes the first row of the key `m`.
async fn set_first(site: &Site, change: &str) {
    let table = site.sql_name("declared");
    let first = format!("SELECT min(seq) FROM {table} WHERE key = 'm'");
    assert_eq!(site.execute(&format!("UPDATE {table} SET {change} WHERE seq = ({first})")).await, 1);
}

async fn a_claim_by_number_takes_nothing_behind_a_locked_row(site: &Site) {
    let claims = Loop::new(site).await;
    claims.enqueue([batch("1"), vec!["m".into(), "m".into()], batch("2")].concat()).await;
    assert_eq!(claims.deliver().await, batch("1"), "a full batch, so the next claim goes by number");
    let other = lock(site, 0).await;
    assert_eq!(claims.deliver().await, batch("2")[..LIMIT - 1], "the second one is left where it is");
    other.rollback().await.expect("unlock");
    assert_eq!(claims.deliver().await, ["m", "m", "2 9"]);
}

/// A role whose statements wait at each row while somebody holds the advisory lock 1010 alone.
async fn make_slow_role(site: &Site) -> String {
    let (schema, table) = (site.schema(), site.sql_name("declared"));
    let role = format!("{schema}_slow");
    site.execute(&format!(
        "CREATE ROLE {role} NOLOGIN; GRANT USAGE ON SCHEMA {schema} TO {role};
         GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {role};
         ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
         CREATE POLICY slow ON {table} TO {role} USING (pg_advisory_xact_lock_shared(1010)::text = '')"
    ))
    .await;
    role
}

/// What a claim sees and what it locks may be two versions of a row.
async fn a_claim_by_number_takes_nothing_behind_a_row_that_changes(site: &Site) {
    let mut claims = Loop::new(site).await;
    claims.enqueue([batch("1"), vec!["m".into(), "m".into()], batch("2")].concat()).await;
    let role = make_slow_role(site).await;
    let db = site.connect(Pool { settings: &[("role", &role)], ..Pool::of(2) }).await;
    claims.table = OutboxTable::new(&db, site.name("declared")).ordered(OnDead::Block);
    assert_eq!(claims.deliver().await, batch("1"));
    let other = site.db.begin().await.expect("begin");
    other.execute_unprepared("SELECT pg_advisory_xact_lock(1010)").await.expect("lock");
    let claim = tokio::spawn(async move { claims.deliver().await });
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '{}%' AND wait_event = 'advisory'",
        site.schema()
    );
    eventually("it waits", async || site.value::<i64>(&waiting).await > 0).await;
    set_first(site, "fence = fence + 1").await;
    other.rollback().await.expect("unlock");
    assert_eq!(claim.await.expect("joined"), batch("2")[..LIMIT - 1]);
    site.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

async fn a_run_ends_before_a_locked_row(site: &Site) {
    let claims = Loop::new(site).await;
    claims.enqueue(vec!["m".to_owned(); 5]).await;
    let other = lock(site, 2).await;
    assert_eq!(claims.deliver().await, ["m", "m"]);
    assert_eq!(site.count("declared").await, 3);
    other.rollback().await.expect("unlock");
    assert_eq!(claims.deliver().await, ["m", "m", "m"]);
}

async fn nothing_is_recovered_behind_a_locked_row(site: &Site) {
    let claims = Loop::new(site).await;
    claims.enqueue(["m".to_owned(), "m".to_owned()]).await;
    assert_eq!(claims.claim_with(100).await.messages.len(), 2);
    let table = site.sql_name("declared");
    site.execute(&format!("UPDATE {table} SET leased_until = now() - interval '1 hour'")).await;
    let recover = async || claims.table.claim(ClaimRequest::new(LIMIT, LEASE)).await.expect("claim");
    let other = lock(site, 0).await;
    assert_eq!(keys(&recover().await), [""; 0]);
    other.rollback().await.expect("unlock");
    assert_eq!(keys(&recover().await), ["m", "m"]);
}

async fn a_claim_by_number_hands_out_nothing_behind_what_it_would_bury(site: &Site) {
    let claims = Loop::new(site).await;
    claims.enqueue([batch("1"), vec!["m".into(), "m".into()], batch("2")].concat()).await;
    assert_eq!(claims.deliver().await, batch("1"));
    set_first(site, "attempts = 1").await;
    assert_eq!(keys(&claims.claim_with(1).await), batch("2"));
    assert_eq!(claims.claim_with(1).await.n_dead, 1);
    assert_eq!(keys(&claims.claim_with(1).await), [""; 0], "the dead letter blocks");
}

/// A claim by number does not look again below what it has found to be over with, but for what is ready again.
async fn a_claim_by_number_waits_for_what_is_ready_again_below_it(site: &Site) {
    let claims = Loop::new(site).await;
    claims.enqueue([vec!["m".into()], batch("1"), batch("2"), batch("3")].concat()).await;
    set_first(site, "state = 1, available_at = now() + interval '1 hour'").await;
    claims.enqueue([vec!["m".into()], batch("4")].concat()).await;
    for name in ["1", "2", "3"] {
        assert_eq!(claims.deliver().await, batch(name));
    }
    set_first(site, "state = 0").await;
    assert_eq!(claims.deliver().await, batch("4"));
    assert_eq!(claims.deliver().await, ["m", "m"]);
}

const N_KEYS: usize = 5;
const N_PER_KEY: usize = 400;

/// What has been delivered of each key.
type Delivered = Arc<Mutex<HashMap<String, usize>>>;

/// Claims and delivers until everything is, and checks that each key goes on where it stood.
async fn deliver_in_order(table: OutboxTable, claimer: Option<Claimer>, delivered: Delivered) {
    while delivered.lock().expect("lock").values().sum::<usize>() < N_KEYS * N_PER_KEY {
        let mut request = ClaimRequest::new(LIMIT, LEASE);
        request.claimer = claimer.clone();
        let claim = table.claim(request).await.expect("claim");
        for message in claim.messages.iter().map(|claimed| &claimed.message) {
            let mut delivered = delivered.lock().expect("lock");
            let n = delivered.entry(message.key.clone().expect("a key")).or_default();
            assert_eq!(message.payload, n.to_string().as_bytes(), "of {:?}", message.key);
            *n += 1;
        }
        settle_all(&table, &claim, Outcome::Done).await;
    }
}

/// Makes new versions of some of the rows that are claimed next, as claims and releases do, until it is dropped.
async fn change_rows(site: &Site) {
    let table = site.sql_name("declared");
    let first =
        format!("SELECT ctid FROM {table} WHERE state = 0 ORDER BY seq LIMIT 20 FOR UPDATE SKIP LOCKED");
    loop {
        site.execute(&format!(
            "UPDATE {table} SET fence = fence + 1 WHERE ctid = ANY (ARRAY({first})) AND lease IS NULL AND random() < 0.3"
        ))
        .await;
    }
}

async fn in_order_while_rows_change(site: &Site, by_number: bool) {
    let claims = Loop::new(site).await;
    let draft = |number: usize| {
        Draft::new("t", (number / N_KEYS).to_string()).key(format!("key {}", number % N_KEYS))
    };
    let drafts: Vec<_> = (0..N_KEYS * N_PER_KEY).map(draft).collect();
    claims.table.enqueue_autocommit(drafts).await.expect("enqueue");
    let (delivered, mut tasks) = (Delivered::default(), JoinSet::new());
    for _ in 0..2 {
        let claimer = by_number.then(Claimer::new);
        tasks.spawn(deliver_in_order(claims.table.clone(), claimer, Arc::clone(&delivered)));
    }
    tokio::select! {
        () = change_rows(site) => {}
        _ = tasks.join_all() => {}
    }
}

async fn claims_by_number_keep_the_order_while_rows_change(site: &Site) {
    in_order_while_rows_change(site, true).await;
}

async fn walks_keep_the_order_while_rows_change(site: &Site) {
    in_order_while_rows_change(site, false).await;
}

on_postgres! {
    a_claim_by_number_takes_nothing_behind_a_locked_row,
    a_claim_by_number_takes_nothing_behind_a_row_that_changes,
    a_run_ends_before_a_locked_row,
    nothing_is_recovered_behind_a_locked_row,
    a_claim_by_number_hands_out_nothing_behind_what_it_would_bury,
    a_claim_by_number_waits_for_what_is_ready_again_below_it,
    claims_by_number_keep_the_order_while_rows_change,
    walks_keep_the_order_while_rows_change,
}
