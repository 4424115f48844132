//! Order per key on a log, by what the server itself has written down.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outbox_core::{
    ClaimRequest, Claimed, Claimer, Declaration, Draft, ErrorKind, Fairness, OnDead, Operations, Outcome,
    Repository, Settled, Settlement,
};
use outbox_sea_orm::LogGroup;
use outbox_testkit::cases::ordered::order_survives_any_interleaving;
use outbox_testkit::{Capabilities, DeclaredHarness, Harness, OperationsHarness, Skip};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, QueryResult, Statement};
use uuid::Uuid;

use super::Log;
use crate::support::{LEASE, settle_all};

/// The statements that make the table `trail`, and the triggers that fill it: with each message with a key that is stored, leased with a
/// range or not any more, and with each change in the group's own table.
fn audit(schema: &str) -> String {
    format!(
        "CREATE TABLE {schema}.trail (number bigserial, kind text, old_seq bigint, key text, seq bigint, state int, lease uuid, old_lease uuid);
         CREATE FUNCTION {schema}.places(r {schema}.log_ranges, OUT seq bigint, OUT key text, OUT is_done boolean)
         RETURNS SETOF record LANGUAGE sql AS $$
           SELECT l.seq, l.key, coalesce(get_bit(r.done, (row_number() OVER (ORDER BY l.seq) - 1)::integer), 0) = 1
             FROM {schema}.log AS l
            WHERE l.seq > r.from_seq AND l.seq <= r.to_seq AND l.state = 0 AND (r.topics IS NULL OR l.topic = ANY (r.topics))$$;
         CREATE FUNCTION {schema}.write_log() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
           INSERT INTO {schema}.trail (kind, key, seq) VALUES ('stored', NEW.key, NEW.seq);
           RETURN NULL;
         END$$;
         CREATE FUNCTION {schema}.write_ranges() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
           IF TG_OP = 'INSERT' THEN
             INSERT INTO {schema}.trail (kind, key, seq, lease)
             SELECT 'leased', p.key, p.seq, NEW.token FROM {schema}.places(NEW) AS p WHERE NOT p.is_done;
           ELSE
             INSERT INTO {schema}.trail (kind, key, seq, old_lease)
             SELECT 'ended', p.key, p.seq, OLD.token FROM {schema}.places(OLD) AS p
              WHERE NOT p.is_done AND (TG_OP = 'DELETE' OR EXISTS (SELECT FROM {schema}.places(NEW) AS n WHERE n.seq = p.seq AND n.is_done));
           END IF;
           RETURN NULL;
         END$$;
         CREATE FUNCTION {schema}.write_own() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
           INSERT INTO {schema}.trail (kind, old_seq, key, seq, state, lease, old_lease) VALUES
             ('own', OLD.seq, coalesce(NEW.key, OLD.key), NEW.seq, NEW.state, NEW.lease, OLD.lease);
           RETURN NULL;
         END$$;
         CREATE TRIGGER write_log AFTER INSERT ON {schema}.log FOR EACH ROW EXECUTE FUNCTION {schema}.write_log();
         CREATE TRIGGER write_ranges AFTER INSERT OR UPDATE OR DELETE ON {schema}.log_ranges
           FOR EACH ROW EXECUTE FUNCTION {schema}.write_ranges();
         CREATE TRIGGER write_own AFTER INSERT OR UPDATE OR DELETE ON {schema}.log_group_billing
           FOR EACH ROW EXECUTE FUNCTION {schema}.write_own()"
    )
}

/// A harness that remembers the logs that were made, each with triggers that write a trail.
struct Audited {
    inner: Log,
    made: Arc<Mutex<Vec<(OnDead, String)>>>,
}

impl Harness for Audited {
    const NAME: &'static str = Log::NAME;
    type Repository = LogGroup;

    async fn start() -> Result<Self, Skip> {
        Ok(Self { inner: Log::start().await?, made: Arc::default() })
    }

    fn repository(&self) -> &LogGroup {
        self.inner.repository()
    }

    async fn advance(&self, by: Duration) {
        self.inner.advance(by).await;
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
}

impl OperationsHarness for Audited {
    type Operations = LogGroup;

    fn operations(&self) -> &LogGroup {
        self.inner.operations()
    }
}

impl DeclaredHarness for Audited {
    async fn declared(&self, declaration: Declaration) -> Self {
        let on_dead = declaration.ordered.expect("an ordered log");
        let inner = self.inner.declared(declaration).await;
        inner.execute(&audit(&inner.schema)).await;
        self.made.lock().expect("lock").push((on_dead, inner.schema.clone()));
        Self { inner, made: Arc::clone(&self.made) }
    }
}

/// What has become of one message.
enum Event {
    Stored,
    Leased(Uuid),
    Ended(Uuid),
    /// Its number before, and its state and lease now; no state when it is gone.
    Own {
        old_seq: Option<i64>,
        state: Option<i32>,
        lease: Option<Uuid>,
        old_lease: Option<Uuid>,
    },
}

struct Entry {
    key: Option<String>,
    seq: Option<i64>,
    event: Event,
}

impl Entry {
    fn read(row: &QueryResult) -> Self {
        let uuid = |index| row.try_get_by_index::<Option<Uuid>>(index).expect("a token");
        let event = match &*row.try_get_by_index::<String>(0).expect("kind") {
            "stored" => Event::Stored,
            "leased" => Event::Leased(uuid(5).expect("a token")),
            "ended" => Event::Ended(uuid(6).expect("a token")),
            _ => Event::Own {
                old_seq: row.try_get_by_index(1).expect("old_seq"),
                state: row.try_get_by_index(4).expect("state"),
                lease: uuid(5),
                old_lease: uuid(6),
            },
        };
        Self { key: row.try_get_by_index(2).expect("key"), seq: row.try_get_by_index(3).expect("seq"), event }
    }
}

async fn trail(db: &DatabaseConnection, schema: &str) -> Vec<Entry> {
    let sql = format!(
        "SELECT kind, old_seq, key, seq, state, lease, old_lease FROM {schema}.trail ORDER BY number"
    );
    let rows = db.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await.expect("trail");
    rows.iter().map(Entry::read).collect()
}

/// The first number that the group's own table draws, for what is redriven: behind what waits there, whatever is not read yet.
const REDRIVEN: i64 = 1 << 61;

/// Where a message is that is not over.
#[derive(Debug, PartialEq)]
enum Place {
    Unread,
    Range(Uuid),
    Own(i32),
}

/// What the trail tells of one log.
struct Trail {
    on_dead: OnDead,
    /// Which messages were claimed with which token, in the log or in the group's own table.
    claims: HashSet<(Uuid, i64)>,
    /// Those of the log: a message takes its lease along into the group's own table.
    of_log: HashSet<(Uuid, i64)>,
    places: HashMap<String, BTreeMap<i64, Place>>,
}

impl Trail {
    fn of(entries: &[Entry], on_dead: OnDead) -> Self {
        let of_log: HashSet<_> = entries
            .iter()
            .filter_map(|entry| match entry.event {
                Event::Leased(token) => Some((token, entry.seq?)),
                _ => None,
            })
            .collect();
        let own = entries.iter().filter_map(|entry| match entry.event {
            Event::Own { lease: Some(token), old_lease, .. } if old_lease != Some(token) => {
                Some((token, entry.seq?))
            }
            _ => None,
        });
        Self { on_dead, claims: own.chain(of_log.iter().copied()).collect(), of_log, places: HashMap::new() }
    }

    /// Panics where a claim takes a message and leaves an earlier one out.
    fn check(&self, key: &str, token: Uuid, seq: i64) {
        for (earlier, place) in self.places.get(key).into_iter().flat_map(|places| places.range(..seq)) {
            let is_fine = self.claims.contains(&(token, *earlier))
                || *place == Place::Own(2) && self.on_dead == OnDead::Continue
                || *place == Place::Unread && seq >= REDRIVEN;
            assert!(is_fine, "{seq} of {key} was claimed before {earlier}, which is at {place:?}");
        }
    }

    /// How many claims it was.
    fn follow(&mut self, key: &str, entry: &Entry) -> usize {
        let claim = match entry.event {
            Event::Leased(token) => Some(token),
            Event::Own { lease: Some(token), old_lease, .. } if old_lease != Some(token) => {
                Some(token).filter(|token| entry.seq.is_some_and(|seq| !self.of_log.contains(&(*token, seq))))
            }
            _ => None,
        };
        if let (Some(token), Some(seq)) = (claim, entry.seq) {
            self.check(key, token, seq);
        }
        let places = self.places.entry(key.to_owned()).or_default();
        match (&entry.event, entry.seq) {
            (Event::Stored, Some(seq)) => drop(places.insert(seq, Place::Unread)),
            (Event::Leased(token), Some(seq)) => drop(places.insert(seq, Place::Range(*token))),
            (Event::Ended(token), Some(seq)) if places.get(&seq) == Some(&Place::Range(*token)) => {
                places.remove(&seq);
            }
            (Event::Own { old_seq, state, .. }, seq) => {
                old_seq.and_then(|old_seq| places.remove(&old_seq));
                seq.zip(*state).and_then(|(seq, state)| places.insert(seq, Place::Own(state)));
            }
            _ => {}
        }
        usize::from(claim.is_some())
    }
}

/// How many claims of a message with a key there are.
fn check_order(entries: &[Entry], on_dead: OnDead) -> usize {
    let mut trail = Trail::of(entries, on_dead);
    let of_keys = entries.iter().filter_map(|entry| Some((entry.key.as_deref()?, entry)));
    of_keys.map(|(key, entry)| trail.follow(key, entry)).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_of_a_log_shows_no_claim_out_of_order() {
    let Ok(h) = Audited::start().await else { return };
    order_survives_any_interleaving(&h).await;
    let made = h.made.lock().expect("lock").clone();
    assert_eq!(made.len(), 2);
    for (on_dead, schema) in made {
        let entries = trail(&h.inner.db, &schema).await;
        let n_claims = check_order(&entries, on_dead);
        let is_leased = |entry: &&Entry| matches!(entry.event, Event::Leased(_));
        let n_leased = entries.iter().filter(is_leased).count();
        println!("{on_dead:?}: {} entries, {n_claims} claims, {n_leased} of them of the log", entries.len());
        assert!(n_claims >= 240 && n_leased >= 8, "{n_claims} claims, {n_leased} of the log");
    }
}

const N_KEYS: usize = 150;
const N_ROUNDS: usize = 12;

/// A source of chance.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn outcome(&mut self) -> Outcome {
        let error = || "by chance".to_owned();
        match self.below(40) {
            0 => Outcome::Release,
            1 => Outcome::Dead { error: error() },
            2 => Outcome::Retry { after: Duration::from_millis(self.below(5)), error: error() },
            _ => Outcome::Done,
        }
    }
}

/// What has ended, dead letters included.
type Ended = Arc<Mutex<HashSet<Uuid>>>;

/// Claims and settles until every message has ended. Some claims are lost.
async fn deliver(group: LogGroup, ended: Ended, mut random: Random) {
    let claimer = Claimer::new();
    while ended.lock().expect("lock").len() < N_KEYS * N_ROUNDS {
        let is_lost = random.below(12) == 0;
        let lease = if is_lost { Duration::from_millis(20) } else { LEASE };
        let request = ClaimRequest::new(1 + random.below(40) as usize, lease).with_claimer(claimer.clone());
        let claim = group.claim(request.with_max_attempts(1_000)).await.expect("claim");
        if claim.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        } else if !is_lost {
            settle_by_chance(&group, &claim.messages, &ended, &mut random).await;
        }
    }
}

/// What stands behind a message that comes again is released.
async fn settle_by_chance(group: &LogGroup, claimed: &[Claimed], ended: &Ended, random: &mut Random) {
    let (mut stopped, mut settlements) = (HashSet::new(), Vec::new());
    for Claimed { message, lease } in claimed {
        let is_stopped = stopped.contains(&message.key);
        let outcome = if is_stopped { Outcome::Release } else { random.outcome() };
        match outcome {
            Outcome::Release | Outcome::Retry { .. } => stopped.insert(message.key.clone()),
            _ => ended.lock().expect("lock").insert(message.id),
        };
        settlements.push(Settlement::new(*lease, outcome));
    }
    let settled = group.settle(settlements).await.expect("settle");
    assert!(settled.iter().all(|settled| *settled == Settled::Applied), "nobody else may have it");
}

/// Many keys, of which most messages succeed: they come and go between the log and the group's own table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_come_and_go_in_order() {
    let Ok(h) = Audited::start().await else { return };
    let h = h.declared(Declaration::new().ordered(OnDead::Continue)).await;
    let ended = Ended::default();
    let seed = Uuid::new_v4().as_u64_pair().0;
    println!("seed {seed}");
    let spawn = |number: u64| {
        // two of one process, and two that share nothing with it
        let stranger = || h.inner.log.group("billing").expect("a name");
        let group = if number < 2 { h.inner.group.clone() } else { stranger() };
        tokio::spawn(deliver(group, Arc::clone(&ended), Random(seed.wrapping_add(number))))
    };
    let delivering: Vec<_> = (0..4).map(spawn).collect();
    for n in 0..N_ROUNDS * N_KEYS / 10 {
        enqueue(&h.inner, (0..10).map(|k| format!("key {}", (n * 10 + k) % N_KEYS))).await;
    }
    for delivering in delivering {
        delivering.await.expect("delivered");
    }
    let entries = trail(&h.inner.db, &h.inner.schema).await;
    let n_claims = check_order(&entries, OnDead::Continue);
    let n_leased = entries.iter().filter(|entry| matches!(entry.event, Event::Leased(_))).count();
    println!("{} entries, {n_claims} claims, {n_leased} of them of the log", entries.len());
    assert!(n_leased * 10 > n_claims, "{n_claims} claims, {n_leased} of the log");
    h.inner.finish().await;
}

#[test]
#[should_panic(expected = "2 of a was claimed before 1, which is at Unread")]
fn the_check_of_a_log_finds_a_claim_out_of_order() {
    let entry = |seq, event| Entry { key: Some("a".into()), seq: Some(seq), event };
    let token = Uuid::from_u128(7);
    let stored = || [entry(1, Event::Stored), entry(2, Event::Stored)];
    let both = stored().into_iter().chain([entry(2, Event::Leased(token)), entry(1, Event::Leased(token))]);
    assert_eq!(check_order(&both.collect::<Vec<_>>(), OnDead::Block), 2);
    let one = stored().into_iter().chain([entry(2, Event::Leased(token))]);
    check_order(&one.collect::<Vec<_>>(), OnDead::Block);
}

fn ordered() -> Declaration {
    Declaration::new().ordered(OnDead::Continue)
}

async fn enqueue(log: &Log, keys: impl IntoIterator<Item = String>) {
    let drafts: Vec<Draft> = keys.into_iter().map(|key| Draft::new("t", "x").key(key)).collect();
    log.log.enqueue_autocommit(drafts).await.expect("enqueue");
}

/// Where every message succeeds and no key is claimed twice at a time, nothing is copied.
async fn keys_that_succeed_stay_in_the_log(log: &Log) {
    for _ in 0..3 {
        enqueue(log, (0..500).map(|n| format!("key {}", n % 300))).await;
        let claim = log.group.claim(ClaimRequest::new(1_000, LEASE)).await.expect("claim");
        assert_eq!(claim.messages.len(), 500);
        assert_eq!(log.count("log_group_billing").await, 0);
        settle_all(&log.group, &claim, Outcome::Done).await;
    }
}

/// A claim waits a little for the one before, so that its keys stay in the log; not for long.
async fn a_claim_waits_for_the_one_before_it(log: &Log) {
    let request = ClaimRequest::new(10, LEASE).with_claimer(Claimer::new());
    let claim = async || log.group.claim(request.clone()).await.expect("claim");
    // a busy machine may settle too late
    let mut tries = 1..=20;
    let second = loop {
        let n_try = tries.next().expect("one of the tries finds every key in the log");
        enqueue(log, (0..20).map(|n| format!("key {} of try {n_try}", n % 10))).await;
        let first = claim().await;
        let (second, ()) = tokio::join!(claim(), async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            settle_all(&log.group, &first, Outcome::Done).await;
        });
        assert_eq!(first.messages.len(), 10);
        if log.count("log_group_billing").await == 0 {
            assert_eq!(second.messages.len(), 10);
            break second;
        }
        let mut rest = second;
        while !rest.is_empty() {
            settle_all(&log.group, &rest, Outcome::Done).await;
            rest = claim().await;
        }
        // none waits for a while
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    enqueue(log, [second.messages[0].message.key.clone().expect("a key"), "another".into()]).await;
    let third = tokio::time::timeout(Duration::from_secs(10), claim()).await.expect("in time");
    let keys: Vec<_> = third.messages.iter().map(|claimed| claimed.message.key.as_deref()).collect();
    assert_eq!(keys, [Some("another")], "the second is not settled yet");
    settle_all(&log.group, &second, Outcome::Done).await;
    settle_all(&log.group, &third, Outcome::Done).await;
    let last = claim().await;
    assert_eq!(last.messages.len(), 1);
    settle_all(&log.group, &last, Outcome::Done).await;
}

/// A message that has moved with the lease of its range is settled and extended under the lease that its claimer has.
async fn claimed_message_keeps_its_lease_when_its_key_moves(log: &Log) {
    enqueue(log, ["a".into(), "b".into(), "a".into()]).await;
    let first = log.group.claim(ClaimRequest::new(2, LEASE)).await.expect("claim");
    assert_eq!(first.messages.len(), 2);
    assert!(log.group.claim(ClaimRequest::new(10, LEASE)).await.expect("claim").is_empty(), "a is claimed");
    assert_eq!(log.count("log_group_billing").await, 2);
    let leases = || first.messages.iter().map(|claimed| claimed.lease).collect::<Vec<_>>();
    let extended = log.group.extend(leases(), 2 * LEASE).await.expect("extend");
    assert_eq!(extended, [outbox_core::Settled::Applied; 2]);
    log.advance(LEASE).await;
    assert!(log.group.claim(ClaimRequest::new(10, LEASE)).await.expect("claim").is_empty(), "still");
    settle_all(&log.group, &first, Outcome::Done).await;
    let stale = leases().into_iter().map(|lease| Settlement::new(lease, Outcome::Done)).collect();
    assert_eq!(log.group.settle(stale).await.expect("settle"), [outbox_core::Settled::LeaseLost; 2]);
    let rest = log.group.claim(ClaimRequest::new(10, LEASE)).await.expect("claim");
    assert_eq!(rest.messages.len(), 1);
    settle_all(&log.group, &rest, Outcome::Done).await;
}

/// A later message of a run that is released or fails before the earlier one has ended comes after it.
async fn run_that_is_settled_from_its_end_keeps_its_order(log: &Log) {
    let retry = Outcome::Retry { after: Duration::ZERO, error: "no".into() };
    for outcome in [Outcome::Release, retry] {
        enqueue(log, ["a".into(), "a".into()]).await;
        let run = log.group.claim(ClaimRequest::new(2, LEASE)).await.expect("claim").messages;
        let settle = async |lease, outcome| {
            let settled = log.group.settle(vec![Settlement::new(lease, outcome)]).await.expect("settle");
            assert_eq!(settled, [Settled::Applied]);
        };
        settle(run[1].lease, outcome).await;
        let early = log.group.claim(ClaimRequest::new(10, LEASE)).await.expect("claim");
        assert!(early.is_empty(), "the first one is claimed: {early:?}");
        settle(run[0].lease, Outcome::Done).await;
        let rest = log.group.claim(ClaimRequest::new(10, LEASE)).await.expect("claim");
        assert_eq!(
            rest.messages.iter().map(|claimed| claimed.message.id).collect::<Vec<_>>(),
            [run[1].message.id]
        );
        settle_all(&log.group, &rest, Outcome::Done).await;
    }
}

/// Topics that a group does not want hold none of its keys, and groups do not hold each other's.
async fn keys_are_held_by_what_the_group_wants(log: &Log) {
    let only = log.register(outbox_sea_orm::Subscription::new("only").with_topics(["wanted"])).await;
    let drafts = ["other", "wanted", "wanted"].map(|topic| Draft::new(topic, "x").key("a"));
    log.log.enqueue_autocommit(drafts).await.expect("enqueue");
    let claim = |group: &LogGroup, limit| {
        let group = group.clone();
        async move { group.claim(ClaimRequest::new(limit, LEASE)).await.expect("claim") }
    };
    assert_eq!(claim(&log.group, 1).await.messages.len(), 1);
    let wanted = claim(&only, 10).await;
    assert_eq!(wanted.messages.len(), 2);
    settle_all(&only, &wanted, Outcome::Done).await;
    assert!(claim(&log.group, 10).await.is_empty());
    assert!(claim(&only, 10).await.is_empty());
}

/// What was declared is compared, and what a log cannot be is refused.
async fn the_order_of_a_log_is_compared(log: &Log) {
    log.group.check().await.expect("check");
    let other = log.log.clone().ordered(OnDead::Block);
    for error in [
        other.check().await.expect_err("differs"),
        other.migrate().await.expect_err("differs"),
        other.group("billing").expect("a name").check().await.expect_err("differs"),
    ] {
        assert!(
            error
                .to_string()
                .contains("but the table was made \"ordered, a dead letter lets its key go on\""),
            "{error}"
        );
    }
    let fair = log.log.clone().declared(Declaration::new().fair(Fairness::Key));
    assert_eq!(fair.migrate().await.expect_err("fair").kind(), ErrorKind::Unsupported);
}

/// Makes tests of cases on ordered logs of their own.
macro_rules! on_ordered_logs {
    ($($case:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let Ok(log) = super::Log::with(super::ordered()).await else { return };
                super::$case(&log).await;
                outbox_testkit::Harness::finish(log).await;
            })*
        }

        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(&super::Log::on_sqlite(super::ordered()).await).await;
            })*
        }
    };
}

on_ordered_logs! {
    keys_that_succeed_stay_in_the_log, a_claim_waits_for_the_one_before_it, claimed_message_keeps_its_lease_when_its_key_moves,
    run_that_is_settled_from_its_end_keeps_its_order, keys_are_held_by_what_the_group_wants, the_order_of_a_log_is_compared
}
