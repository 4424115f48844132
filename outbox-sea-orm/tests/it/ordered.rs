//! Order per key, by what the server itself has written down.

mod below;
mod contended;
mod killed;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outbox_core::{
    ClaimRequest, Claimer, Declaration, Draft, Fairness, MessageId, OnDead, Operations, Outcome, Repository,
};
use outbox_sea_orm::OutboxTable;
use outbox_testkit::cases::ordered::order_survives_any_interleaving;
use outbox_testkit::{Capabilities, DeclaredHarness, Harness, OperationsHarness, Skip};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use uuid::Uuid;

use crate::harness::{MySql, Postgres};
use crate::support::{LEASE, Site, on_each, on_postgres, settle_all};

/// A server that can write down each change of a table.
trait Auditable: DeclaredHarness<Operations = OutboxTable> + Harness<Repository = OutboxTable> {
    fn schema(&self) -> &str;
    fn db(&self) -> &DatabaseConnection;
    /// The statements that make the table `trail`, and the trigger that fills it.
    fn audit(schema: &str) -> String;
}

impl Auditable for Postgres {
    fn schema(&self) -> &str {
        Self::schema(self)
    }

    fn db(&self) -> &DatabaseConnection {
        &self.tables.db
    }

    fn audit(schema: &str) -> String {
        format!(
            "CREATE TABLE {schema}.trail (number bigserial, old_seq bigint, key text, seq bigint, state int, lease uuid, old_lease uuid);
             CREATE FUNCTION {schema}.write_trail() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
               INSERT INTO {schema}.trail (old_seq, key, seq, state, lease, old_lease) VALUES
                 (OLD.seq, coalesce(NEW.key, OLD.key), NEW.seq, NEW.state, NEW.lease, OLD.lease);
               RETURN NULL;
             END$$;
             CREATE TRIGGER write_trail AFTER INSERT OR UPDATE OR DELETE ON {schema}.outbox
               FOR EACH ROW EXECUTE FUNCTION {schema}.write_trail()"
        )
    }
}

impl Auditable for MySql {
    fn schema(&self) -> &str {
        Self::schema(self)
    }

    fn db(&self) -> &DatabaseConnection {
        &self.tables.db
    }

    fn audit(schema: &str) -> String {
        let trigger = |event, values| {
            format!(
                "CREATE TRIGGER {schema}.trail_{event} AFTER {event} ON {schema}.outbox FOR EACH ROW \
                 INSERT INTO {schema}.trail (old_seq, `key`, seq, state, lease, old_lease) VALUES ({values});"
            )
        };
        format!(
            "CREATE TABLE {schema}.trail (number BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, old_seq BIGINT, `key` VARCHAR(255),
               seq BIGINT, state INT, lease BINARY(16), old_lease BINARY(16));{}{}{}",
            trigger("INSERT", "NULL, NEW.`key`, NEW.seq, NEW.state, NEW.lease, NULL"),
            trigger("UPDATE", "OLD.seq, OLD.`key`, NEW.seq, NEW.state, NEW.lease, OLD.lease"),
            trigger("DELETE", "OLD.seq, OLD.`key`, NULL, NULL, NULL, OLD.lease"),
        )
    }
}

/// A harness that remembers the tables that were made, each with a trigger that writes a trail.
struct Audited<H> {
    inner: H,
    made: Arc<Mutex<Vec<(OnDead, String)>>>,
}

impl<H: Auditable> Harness for Audited<H> {
    const NAME: &'static str = H::NAME;
    type Repository = OutboxTable;

    async fn start() -> Result<Self, Skip> {
        Ok(Self { inner: H::start().await?, made: Arc::default() })
    }

    fn repository(&self) -> &OutboxTable {
        self.inner.repository()
    }

    async fn advance(&self, by: Duration) {
        self.inner.advance(by).await;
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
}

impl<H: Auditable> OperationsHarness for Audited<H> {
    type Operations = OutboxTable;

    fn operations(&self) -> &OutboxTable {
        self.inner.operations()
    }
}

impl<H: Auditable> DeclaredHarness for Audited<H> {
    async fn declared(&self, declaration: Declaration) -> Self {
        let on_dead = declaration.ordered.expect("an ordered table");
        let inner = self.inner.declared(declaration).await;
        let schema = inner.schema().to_owned();
        inner.db().execute_unprepared(&H::audit(&schema)).await.expect("the trigger");
        self.made.lock().expect("lock").push((on_dead, schema));
        Self { inner, made: Arc::clone(&self.made) }
    }
}

/// One change of one row; no `seq` for a delete.
struct Change {
    old_seq: Option<i64>,
    key: Option<String>,
    seq: Option<i64>,
    state: Option<i32>,
    lease: Option<Uuid>,
    old_lease: Option<Uuid>,
}

impl Change {
    /// The token, where this is a claim.
    fn claim(&self) -> Option<Uuid> {
        self.lease.filter(|token| self.old_lease != Some(*token))
    }
}

async fn trail(db: &DatabaseConnection, schema: &str) -> Vec<Change> {
    let key = if db.get_database_backend() == DbBackend::MySql { "`key`" } else { "key" };
    let sql =
        format!("SELECT old_seq, {key}, seq, state, lease, old_lease FROM {schema}.trail ORDER BY number");
    let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), sql)).await.expect("trail");
    let read = |row: &sea_orm::QueryResult| Change {
        old_seq: row.try_get_by_index(0).expect("old_seq"),
        key: row.try_get_by_index(1).expect("key"),
        seq: row.try_get_by_index(2).expect("seq"),
        state: row.try_get_by_index(3).expect("state"),
        lease: row.try_get_by_index(4).expect("lease"),
        old_lease: row.try_get_by_index(5).expect("old_lease"),
    };
    rows.iter().map(read).collect()
}

/// How many claims of a message with a key there are. Panics where one takes a message and leaves an earlier one out.
fn check_order(trail: &[Change], on_dead: OnDead) -> usize {
    let mut together = HashSet::new();
    for change in trail {
        together.extend(change.claim().zip(change.key.as_ref()).zip(change.seq));
    }
    let mut rows = HashMap::<&str, BTreeMap<i64, i32>>::new();
    let mut n_claims = 0;
    for change in trail {
        let Some(key) = &change.key else { continue };
        let rows = rows.entry(key).or_default();
        if let (Some(token), Some(seq)) = (change.claim(), change.seq) {
            n_claims += 1;
            for (earlier, state) in rows.range(..seq) {
                let is_fine = together.contains(&((token, key), *earlier))
                    || *state == 2 && on_dead == OnDead::Continue;
                assert!(is_fine, "{seq} of {key} was claimed before {earlier}, which is in state {state}");
            }
        }
        if let Some(seq) = change.old_seq {
            rows.remove(&seq);
        }
        if let (Some(seq), Some(state)) = (change.seq, change.state) {
            rows.insert(seq, state);
        }
    }
    n_claims
}

async fn the_trail_shows_no_claim_out_of_order<H: Auditable>() {
    let Ok(h) = Audited::<H>::start().await else { return };
    order_survives_any_interleaving(&h).await;
    let made = h.made.lock().expect("lock").clone();
    assert_eq!(made.len(), 2);
    for (on_dead, schema) in made {
        let trail = trail(h.inner.db(), &schema).await;
        let n_claims = check_order(&trail, on_dead);
        println!("{on_dead:?}: {} changes, {n_claims} claims", trail.len());
        assert!(n_claims >= 240, "{n_claims} claims");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_shows_no_claim_out_of_order_on_postgres() {
    the_trail_shows_no_claim_out_of_order::<Postgres>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_shows_no_claim_out_of_order_on_mysql() {
    the_trail_shows_no_claim_out_of_order::<MySql>().await;
}

/// A change of a row of one key for the checks of the check.
fn change(old_seq: Option<i64>, seq: Option<i64>, state: i32, leases: [Option<u128>; 2]) -> Change {
    let [old_lease, lease] = leases.map(|lease| lease.map(Uuid::from_u128));
    Change { old_seq, key: Some("a".into()), seq, state: Some(state), lease, old_lease }
}

#[test]
#[should_panic(expected = "2 of a was claimed before 1, which is in state 0")]
fn the_check_finds_a_claim_out_of_order() {
    let stored = |seq| change(None, Some(seq), 0, [None, None]);
    let claimed = |seq, token| change(Some(seq), Some(seq), 0, [None, Some(token)]);
    assert_eq!(check_order(&[stored(1), stored(2), claimed(2, 7), claimed(1, 7)], OnDead::Block), 2);
    check_order(&[stored(1), stored(2), claimed(1, 7), claimed(2, 8)], OnDead::Block);
}

async fn a_difference_of_declarations_is_named(site: &Site) {
    let name = || site.name("declared");
    let plain = OutboxTable::new(&site.db, name());
    let blocking = plain.clone().ordered(OnDead::Block);
    blocking.migrate().await.expect("migrate");
    blocking.migrate().await.expect("once more");
    blocking.check().await.expect("check");
    let theirs = "but the table was made \"ordered, a dead letter blocks its key\"";
    for (other, ours) in [
        (plain.clone(), "plain"),
        (plain.clone().ordered(OnDead::Continue), "\"ordered, a dead letter lets its key go on\""),
    ] {
        let error = other.check().await.expect_err("differs").to_string();
        assert!(error.contains(&format!("declared {ours} here, {theirs}")), "{error}");
        let error = other.migrate().await.expect_err("differs").to_string();
        assert!(error.contains(theirs), "{error}");
    }
    let error = OutboxTable::new(&site.db, site.name("outbox")).ordered(OnDead::Block).check().await;
    assert!(error.expect_err("differs").to_string().contains("the table was made plain"));
}

async fn a_missing_index_of_order_is_named(site: &Site) {
    let table = OutboxTable::new(&site.db, site.name("declared")).ordered(OnDead::Continue);
    table.migrate().await.expect("migrate");
    let (index, table_name) = ("declared_keys", site.sql_name("declared"));
    let drop = match site.is_mysql() {
        true => format!("DROP INDEX {index} ON {table_name}"),
        false => format!("DROP INDEX {}", site.sql_name(index)),
    };
    site.execute(&drop).await;
    let error = table.check().await.expect_err("no index").to_string();
    assert!(error.contains("declared_keys is missing"), "{error}");
}

async fn an_impossible_declaration_is_reported_by_every_call(site: &Site) {
    let table = OutboxTable::new(&site.db, site.name("declared"));
    let both = table.ordered(OnDead::Block).fair(Fairness::Header("tenant".into()));
    for error in [
        both.migrate().await.expect_err("migrate"),
        both.check().await.expect_err("check"),
        both.discard(vec![MessageId::new_v4()]).await.expect_err("discard"),
    ] {
        assert_eq!(error.kind(), outbox_core::ErrorKind::Unsupported);
        assert!(error.to_string().contains("cannot be fair between headers"), "{error}");
    }
}

/// A key with a long backlog keeps the message of another waiting for two claims at the most, also while it is free.
async fn a_long_backlog_of_a_key_delays_no_other(site: &Site) {
    let table = OutboxTable::new(&site.db, site.name("declared")).ordered(OnDead::Continue);
    table.migrate().await.expect("migrate");
    let enqueue = async |key: &str, n: usize| {
        let drafts: Vec<_> = (0..n).map(|_| Draft::new("t", "").key(key)).collect();
        table.enqueue_autocommit(drafts).await.expect("enqueue")
    };
    enqueue("m", 1_000).await;
    let claimer = Claimer::new();
    let next = async || {
        let claim =
            table.claim(ClaimRequest::new(20, LEASE).with_claimer(claimer.clone())).await.expect("claim");
        settle_all(&table, &claim, Outcome::Done).await;
        claim.messages.iter().map(|claimed| claimed.message.id).collect::<Vec<_>>()
    };
    for round in 0..10 {
        let other = enqueue(["a", "z"][round % 2], 1).await;
        let taken = [next().await, next().await].concat();
        assert!(taken.contains(&other[0]), "round {round}");
    }
}

on_each! {
    on_postgres, on_mysql, on_sqlite => {
        a_difference_of_declarations_is_named,
        a_missing_index_of_order_is_named,
        a_long_backlog_of_a_key_delays_no_other,
        an_impossible_declaration_is_reported_by_every_call,
    }
}
