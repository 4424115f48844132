//! Random transactions against the rule by which a log is read, and against broken forms of it: the rule loses nothing,
//! each broken form is caught. docs/decisions/071 has the argument.

mod killed;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use outbox_core::{
    ClaimRequest, Claimer, Maintenance, Outcome, PartitionInterval, Repository, Settlement, TableName,
};
use outbox_sea_orm::{LogGroup, OutboxLog, Start, Subscription};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, QueryResult, Statement,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

const N_PRODUCERS: usize = 6;
const DURATION: Duration = Duration::from_secs(5);
const MAX_ROUNDS: usize = 30;
/// How long a reader may need to come to its end when the producers have stopped.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a reader breaks the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Right,
    /// Reads whatever is there.
    NoHorizon,
    /// Looks at the locks first and at the numbers then.
    LocksBeforeLast,
    /// Takes it that a new holder drew its numbers after this poll began.
    LowOfThisPoll,
    /// Reads in the snapshot in which it asked.
    OneSnapshot,
    /// Reads first and asks then.
    ReadsFirst,
    /// Goes on behind the horizon and not behind the last row.
    CursorIsHorizon,
    /// Counts only holders that are sessions.
    NoPrepared,
}

const BROKEN: [Reader; 7] = [
    Reader::NoHorizon,
    Reader::LocksBeforeLast,
    Reader::LowOfThisPoll,
    Reader::OneSnapshot,
    Reader::ReadsFirst,
    Reader::CursorIsHorizon,
    Reader::NoPrepared,
];

/// A source of chance whose seed is printed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    async fn pause(&mut self, most: u64) {
        sleep(Duration::from_micros(self.below(most * 1_000))).await;
    }
}

async fn connect(url: &str, n_connections: u32) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(n_connections).min_connections(1).sqlx_logging(false);
    Database::connect(options).await.expect("connect")
}

async fn rows(db: &DatabaseConnection, sql: String) -> Vec<QueryResult> {
    db.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await.expect("query")
}

async fn column<T: sea_orm::TryGetable>(db: &DatabaseConnection, sql: String) -> Vec<T> {
    rows(db, sql).await.iter().map(|row| row.try_get_by_index(0).expect("a value")).collect()
}

/// A log, and a table beside it.
struct World {
    url: String,
    schema: String,
    has_prepared: bool,
    db: DatabaseConnection,
}

impl World {
    async fn create() -> Option<Self> {
        let server = match outbox_testkit::server::postgres().await {
            Ok(server) => server,
            Err(skipped) => {
                assert!(!outbox_testkit::server::required("postgres"), "postgres is required: {skipped}");
                eprintln!("skipped: horizon on postgres: {skipped}");
                return None;
            }
        };
        Some(Self::at(server.url()).await)
    }

    async fn at(url: &str) -> Self {
        let url = url.to_owned();
        let db = connect(&url, 4).await;
        let schema = format!("h_{}", Uuid::new_v4().simple());
        OutboxLog::new(&db, name(&schema)).migrate().await.expect("migrate");
        execute(&db, &format!("CREATE TABLE {schema}.other (id uuid)")).await;
        let most: Vec<String> =
            column(&db, "SELECT current_setting('max_prepared_transactions')".into()).await;
        let has_prepared = most[0] != "0";
        Self { url, schema, has_prepared, db }
    }

    /// Produces while `readers` read, and what each of them has done wrong.
    async fn run(self: &Arc<Self>, readers: &[Reader]) -> (Vec<usize>, usize) {
        let seed = Uuid::new_v4().as_u128() as u64 | 1;
        eprintln!("seed {seed}");
        let foreign = connect(&self.url, 1).await;
        let open = format!("BEGIN; INSERT INTO {}.other VALUES (gen_random_uuid())", self.schema);
        foreign.execute_unprepared(&open).await.expect("a foreign transaction");
        let ended = Arc::new(AtomicBool::new(false));
        let start = last_number(&self.db, &self.schema).await;
        let start_reading = |reader| tokio::spawn(read(Arc::clone(self), Arc::clone(&ended), reader, start));
        let reading: Vec<_> = readers.iter().copied().map(start_reading).collect();
        let mut producers = JoinSet::new();
        for number in 0..N_PRODUCERS {
            producers.spawn(produce(Arc::clone(self), Random(seed.wrapping_mul(2 * number as u64 + 3) | 1)));
        }
        let committed: HashSet<Uuid> = producers.join_all().await.concat().into_iter().collect();
        ended.store(true, SeqCst);
        let mut wrong = Vec::new();
        for reading in reading {
            wrong.push(mistakes(&committed, &reading.await.expect("a reader")));
        }
        foreign.execute_unprepared("ROLLBACK").await.expect("rollback");
        (wrong, committed.len())
    }

    async fn remove(&self) {
        self.db.execute_unprepared(&format!("DROP SCHEMA {} CASCADE", self.schema)).await.expect("drop");
    }

    fn insert(&self, ids: &[Uuid]) -> String {
        let mut sql = format!("INSERT INTO {}.log (id, topic, payload) VALUES ", self.schema);
        for (place, id) in ids.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(sql, "{comma}('{id}', 't', '')").expect("text");
        }
        sql
    }
}

fn name(schema: &str) -> TableName {
    TableName::parse(&format!("{schema}.log")).expect("name")
}

async fn last_number(db: &DatabaseConnection, schema: &str) -> i64 {
    let sql = format!(
        "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('{schema}.log', 'seq')::regclass), 0)"
    );
    column(db, sql).await[0]
}

/// Lost, read twice, or read out of order.
fn mistakes(committed: &HashSet<Uuid>, read: &[(i64, Uuid)]) -> usize {
    let unique: HashSet<Uuid> = read.iter().map(|(_, id)| *id).collect();
    let n_lost = committed.difference(&unique).count();
    let n_twice = read.len() - unique.len();
    let n_back = read.windows(2).filter(|pair| pair[1].0 <= pair[0].0).count();
    assert!(unique.is_subset(committed), "what never committed was read");
    n_lost + n_twice + n_back
}

/// Transactions of every kind for a while; what has committed.
async fn produce(world: Arc<World>, mut random: Random) -> Vec<Uuid> {
    let db = connect(&world.url, 1).await;
    let mut committed = Vec::new();
    let started = Instant::now();
    while started.elapsed() < DURATION {
        committed.extend(transaction(&world, &db, &mut random).await);
    }
    committed
}

async fn transaction(world: &World, db: &DatabaseConnection, random: &mut Random) -> Vec<Uuid> {
    let levels = ["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];
    let level = levels[random.below(4) as usize];
    execute(db, &format!("BEGIN ISOLATION LEVEL {level}")).await;
    if random.below(3) == 0 {
        execute(db, &format!("INSERT INTO {}.other VALUES (gen_random_uuid())", world.schema)).await;
        random.pause(3).await;
    }
    let mut kept = insert(world, db, random).await;
    if random.below(3) == 0 {
        execute(db, "SAVEPOINT a").await;
        let more = insert(world, db, random).await;
        if random.below(2) == 0 {
            execute(db, "ROLLBACK TO a").await;
        } else {
            kept.extend(more);
        }
    }
    let most = if random.below(10) == 0 { 60 } else { 6 };
    random.pause(most).await;
    kept.extend(insert(world, db, random).await);
    if end(world, db, random).await { kept } else { Vec::new() }
}

async fn execute(db: &DatabaseConnection, sql: &str) {
    db.execute_unprepared(sql).await.expect("execute");
}

async fn insert(world: &World, db: &DatabaseConnection, random: &mut Random) -> Vec<Uuid> {
    let ids: Vec<Uuid> = (0..1 + random.below(4)).map(|_| Uuid::now_v7()).collect();
    random.pause(2).await;
    execute(db, &world.insert(&ids)).await;
    random.pause(2).await;
    ids
}

/// Ends the transaction in one of all ways; whether it has committed.
async fn end(world: &World, db: &DatabaseConnection, random: &mut Random) -> bool {
    let commits = random.below(5) > 0;
    let verb = if commits { "COMMIT" } else { "ROLLBACK" };
    if world.has_prepared && random.below(4) == 0 {
        let name = Uuid::new_v4();
        execute(db, &format!("PREPARE TRANSACTION '{name}'")).await;
        random.pause(150).await;
        execute(db, &format!("{verb} PREPARED '{name}'")).await;
    } else {
        execute(db, verb).await;
    }
    commits
}

/// Reads until everything was read after the producers had ended.
async fn read(world: Arc<World>, ended: Arc<AtomicBool>, reader: Reader, cursor: i64) -> Vec<(i64, Uuid)> {
    let mut reading = Reading::start(&world, reader, cursor).await;
    let (mut read, mut n_quiet) = (Vec::new(), 0);
    while n_quiet < 3 {
        let was_ended = ended.load(SeqCst);
        let rows = reading.poll().await;
        n_quiet = if was_ended && rows.is_empty() { n_quiet + 1 } else { 0 };
        read.extend(rows);
    }
    read
}

/// The rule, by the letter.
struct Reading {
    db: DatabaseConnection,
    schema: String,
    reader: Reader,
    random: Random,
    cursor: i64,
    last: Option<i64>,
    horizon: i64,
    lows: HashMap<String, i64>,
}

impl Reading {
    async fn start(world: &World, reader: Reader, cursor: i64) -> Self {
        Self {
            db: connect(&world.url, 1).await,
            schema: world.schema.clone(),
            reader,
            random: Random(Uuid::new_v4().as_u128() as u64 | 1),
            cursor,
            last: None,
            horizon: cursor,
            lows: HashMap::new(),
        }
    }

    async fn poll(&mut self) -> Vec<(i64, Uuid)> {
        if self.random.below(20) == 0 {
            self.random.pause(300).await;
        }
        if self.reader == Reader::OneSnapshot {
            execute(&self.db, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class").await;
        }
        let early = if self.reader == Reader::ReadsFirst { Some(self.rows(i64::MAX).await) } else { None };
        let (last, holders) = self.ask().await;
        let horizon = self.learn(last, holders);
        self.random.pause(2).await;
        let rows: Vec<_> = match early {
            Some(rows) => rows.into_iter().take_while(|(seq, _)| *seq <= horizon).collect(),
            None => self.rows(horizon).await,
        };
        if self.reader == Reader::OneSnapshot {
            execute(&self.db, "COMMIT").await;
        }
        self.cursor = match (self.reader, rows.last()) {
            (Reader::CursorIsHorizon, _) => horizon,
            (_, Some((seq, _))) => *seq,
            (_, None) => self.cursor,
        };
        rows
    }

    async fn ask(&mut self) -> (i64, Vec<String>) {
        if self.reader == Reader::LocksBeforeLast {
            let holders = self.holders().await;
            self.random.pause(10).await;
            return (self.last_number().await, holders);
        }
        let last = self.last_number().await;
        self.random.pause(2).await;
        (last, self.holders().await)
    }

    async fn last_number(&self) -> i64 {
        last_number(&self.db, &self.schema).await
    }

    async fn holders(&self) -> Vec<String> {
        let only = if self.reader == Reader::NoPrepared {
            "AND pid IN (SELECT pid FROM pg_stat_activity)"
        } else {
            ""
        };
        let sql = format!(
            "SELECT DISTINCT virtualtransaction FROM pg_locks \
             WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' {only} \
               AND relation IN (SELECT relid FROM pg_partition_tree('{}.log')) \
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            self.schema
        );
        column(&self.db, sql).await
    }

    fn learn(&mut self, last: i64, holders: Vec<String>) -> i64 {
        let before =
            if self.reader == Reader::LowOfThisPoll { last } else { self.last.unwrap_or(self.cursor) };
        // one that was prepared may have lost the name under which it was seen
        let unknown = |holder: &str| if holder.starts_with("-1/") { self.horizon } else { before };
        let low = |holder: &String| self.lows.get(holder).copied().unwrap_or_else(|| unknown(holder));
        self.lows = holders
            .into_iter()
            .map(|holder| (low(&holder), holder))
            .map(|(low, holder)| (holder, low))
            .collect();
        self.last = Some(last);
        self.horizon = self.lows.values().copied().fold(last, i64::min);
        if self.reader == Reader::NoHorizon { i64::MAX } else { self.horizon }
    }

    async fn rows(&self, horizon: i64) -> Vec<(i64, Uuid)> {
        let sql = format!(
            "SELECT seq, id FROM {}.log WHERE seq > {} AND seq <= {horizon} ORDER BY seq LIMIT 20",
            self.schema, self.cursor
        );
        let value = |row: &QueryResult| {
            (row.try_get_by_index(0).expect("a number"), row.try_get_by_index(1).expect("an id"))
        };
        rows(&self.db, sql).await.iter().map(value).collect()
    }
}

/// The group of this crate, read by two loops; in no order, since there are two.
async fn deliver(group: LogGroup, ended: Arc<AtomicBool>) -> Vec<Uuid> {
    let (claimer, mut delivered, mut n_quiet) = (Claimer::new(), Vec::new(), 0);
    let deadline = Instant::now() + DURATION + PATIENCE;
    while n_quiet < 5 && Instant::now() < deadline {
        let was_ended = ended.load(SeqCst);
        let request = ClaimRequest::new(50, Duration::from_secs(600)).with_claimer(claimer.clone());
        let claim = group.claim(request).await.expect("claim");
        n_quiet = if was_ended && claim.is_empty() { n_quiet + 1 } else { 0 };
        let done = claim.messages.iter().map(|claimed| Settlement::new(claimed.lease, Outcome::Done));
        let _ = group.settle(done.collect()).await.expect("settle");
        delivered.extend(claim.messages.iter().map(|claimed| claimed.message.id));
        if claim.is_empty() {
            sleep(Duration::from_millis(2)).await;
        }
    }
    delivered
}

fn on_two_threads(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(test);
}

/// Runs until each of `broken` was caught, for some rounds at the most; no other reader may make a mistake in any.
async fn catch(world: &Arc<World>, right: &[Reader], broken: &[Reader]) {
    let mut left = broken.to_vec();
    for _ in 0..MAX_ROUNDS {
        let readers = [right, &left].concat();
        let (wrong, n_committed) = world.run(&readers).await;
        eprintln!("{n_committed} committed; {:?}", readers.iter().zip(&wrong).collect::<Vec<_>>());
        assert!(wrong[..right.len()].iter().all(|n_wrong| *n_wrong == 0), "{wrong:?} of {n_committed}");
        let of_broken = left.iter().zip(&wrong[right.len()..]);
        left = of_broken.filter(|(_, n_wrong)| **n_wrong == 0).map(|(reader, _)| *reader).collect();
        if left.is_empty() {
            return;
        }
    }
    panic!("{left:?} were not caught");
}

#[test]
fn rule_loses_nothing_and_every_broken_form_is_caught() {
    on_two_threads(async {
        let Some(world) = World::create().await else { return };
        let world = Arc::new(world);
        let is_possible = |reader: &Reader| *reader != Reader::NoPrepared || world.has_prepared;
        let broken: Vec<Reader> = BROKEN.into_iter().filter(is_possible).collect();
        catch(&world, &[Reader::Right, Reader::Right], &broken).await;
        world.remove().await;
    });
}

#[test]
fn group_delivers_everything_once() {
    on_two_threads(async {
        let Some(world) = World::create().await else { return };
        let world = Arc::new(world);
        let log = OutboxLog::new(&world.db, name(&world.schema));
        let group =
            log.register(Subscription::new("g").with_start(Start::Beginning)).await.expect("register");
        let ended = Arc::new(AtomicBool::new(false));
        let loops = [(); 2].map(|()| tokio::spawn(deliver(group.clone(), Arc::clone(&ended))));
        // another process knows nothing of what this one has seen
        let stranger = log.group("g").expect("name");
        let stranger = tokio::spawn(deliver(stranger, Arc::clone(&ended)));
        let mut producers = JoinSet::new();
        for _ in 0..N_PRODUCERS {
            producers.spawn(produce(Arc::clone(&world), Random(Uuid::new_v4().as_u128() as u64 | 1)));
        }
        let committed: Vec<Uuid> = producers.join_all().await.concat();
        ended.store(true, SeqCst);
        let mut delivered = stranger.await.expect("delivered");
        for one in loops {
            delivered.extend(one.await.expect("delivered"));
        }
        assert_eq!(delivered.len(), committed.len());
        assert_eq!(BTreeSet::from_iter(delivered), BTreeSet::from_iter(committed));
        world.remove().await;
    });
}

/// A clock that began to run long ago and runs fast: a minute in half a second.
const FAST_CLOCK: &str = "'2001-01-01Z'::timestamptz + (clock_timestamp() - 'START'::timestamptz) * 120";

/// Makes partitions of every other minute of a fast clock, with what is in the default partition, and lets maintenance drop those that
/// are read, and remove the rest.
async fn garden(
    log: OutboxLog,
    db: DatabaseConnection,
    clock: String,
    ended: Arc<AtomicBool>,
) -> (usize, u64) {
    let (mut n_dropped, mut n_removed) = (0, 0);
    let schema = log.name().schema().expect("a schema").to_owned();
    while !ended.load(SeqCst) {
        for n_ahead in [1, 0] {
            // a partition that is there, or a producer that is open for too long
            let _ = db
                .execute_unprepared(&format!(
                    "SET lock_timeout = '500ms'; LOCK TABLE ONLY {schema}.log IN ACCESS EXCLUSIVE MODE;
                     LOCK TABLE {schema}.log_default IN ACCESS EXCLUSIVE MODE;
                     DO $$DECLARE begins timestamptz := date_trunc('minute', {clock}, 'UTC') + interval '{n_ahead} minutes';
                     name text := '{schema}.log_p' || to_char(begins AT TIME ZONE 'UTC', 'YYYYMMDDHH24MI');
                     BEGIN
                       IF extract(minute FROM begins)::integer % 2 = 0 THEN RETURN; END IF;
                       EXECUTE format('CREATE TABLE %s (LIKE {schema}.log INCLUDING ALL EXCLUDING IDENTITY EXCLUDING INDEXES)', name);
                       EXECUTE format('WITH moved AS (DELETE FROM {schema}.log_default WHERE created_at >= %L AND created_at < %L RETURNING *)
                                       INSERT INTO %s SELECT * FROM moved', begins, begins + interval '1 minute', name);
                       EXECUTE format('ALTER TABLE {schema}.log ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
                                      name, begins, begins + interval '1 minute');
                     END$$"
                ))
                .await;
        }
        match log.maintain(Maintenance::new().drop_after(Duration::ZERO)).await {
            Ok(maintained) => {
                n_dropped += maintained.dropped.len();
                n_removed += maintained.n_removed;
            }
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
    (n_dropped, n_removed)
}

#[test]
fn partitions_come_and_go_under_load() {
    on_two_threads(async {
        let Some(world) = World::create().await else { return };
        let log = OutboxLog::new(&world.db, name(&world.schema)).partitioned(PartitionInterval::Minute);
        let start = column::<String>(&world.db, "SELECT clock_timestamp()::text".into()).await;
        let clock = FAST_CLOCK.replace("START", &start[0]);
        let scattered = format!(
            "ALTER TABLE {0}.log ALTER COLUMN created_at SET DEFAULT {clock}; \
             COMMENT ON TABLE {0}.log IS 'log schema version 1, partitioned by the minute'",
            world.schema
        );
        execute(&world.db, &scattered).await;
        let world = Arc::new(world);
        let group =
            log.register(Subscription::new("g").with_start(Start::Beginning)).await.expect("register");
        let ended = Arc::new(AtomicBool::new(false));
        let gardening =
            tokio::spawn(garden(log.clone(), connect(&world.url, 1).await, clock, Arc::clone(&ended)));
        let stranger = tokio::spawn(deliver(log.group("g").expect("name"), Arc::clone(&ended)));
        let delivering = tokio::spawn(deliver(group, Arc::clone(&ended)));
        let mut producers = JoinSet::new();
        for _ in 0..N_PRODUCERS {
            producers.spawn(produce(Arc::clone(&world), Random(Uuid::new_v4().as_u128() as u64 | 1)));
        }
        let committed: Vec<Uuid> = producers.join_all().await.concat();
        ended.store(true, SeqCst);
        let (n_dropped, n_removed) = gardening.await.expect("gardening");
        let delivered = [stranger.await.expect("delivered"), delivering.await.expect("delivered")].concat();
        eprintln!("{} committed, {n_dropped} partitions dropped, {n_removed} rows removed", committed.len());
        assert!(n_dropped > 0 && n_removed > 0, "{n_dropped} partitions, {n_removed} rows");
        assert_eq!(delivered.len(), committed.len());
        assert_eq!(BTreeSet::from_iter(delivered), BTreeSet::from_iter(committed));
        world.remove().await;
    });
}

/// What the slow one of two producers does before the fast one inserts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ahead {
    /// Begins, which draws no number.
    Nothing,
    /// Inserts a row of its own, whose session keeps numbers of the sequence for later.
    Cache,
    /// Draws a number, and inserts with it later.
    Draw,
}

/// The premise of the rule: numbers are drawn by the INSERT, under the lock that a reader watches.
#[tokio::test]
async fn rule_needs_numbers_that_the_insert_draws() {
    for ahead in [Ahead::Nothing, Ahead::Cache, Ahead::Draw] {
        let Some(world) = World::create().await else { return };
        assert_eq!(reads_late(&world, ahead).await, ahead == Ahead::Nothing, "{ahead:?}");
        world.remove().await;
    }
}

/// Whether a message is read whose producer began before, and inserted after, one that was read.
async fn reads_late(world: &World, ahead: Ahead) -> bool {
    let slow = connect(&world.url, 1).await;
    let log = format!("{}.log", world.schema);
    match ahead {
        Ahead::Nothing => {}
        Ahead::Cache => {
            execute(&slow, &format!("ALTER TABLE {log} ALTER COLUMN seq SET CACHE 20")).await;
            execute(&slow, &world.insert(&[Uuid::now_v7()])).await;
        }
        Ahead::Draw => {
            execute(&slow, &format!("ALTER TABLE {log} ALTER COLUMN seq SET GENERATED BY DEFAULT")).await;
        }
    }
    execute(&slow, "BEGIN").await;
    let early = match ahead {
        Ahead::Draw => {
            let draw = format!("SELECT nextval(pg_get_serial_sequence('{log}', 'seq'))");
            column::<i64>(&slow, draw).await.pop()
        }
        _ => None,
    };
    let (fast, late) = (Uuid::now_v7(), Uuid::now_v7());
    execute(&world.db, &world.insert(&[fast])).await;
    let mut reading = Reading::start(world, Reader::Right, 0).await;
    let read = async { while !reading.poll().await.iter().any(|(_, id)| *id == fast) {} };
    tokio::time::timeout(PATIENCE, read).await.expect("nothing keeps it from being read");
    let insert = match early {
        Some(seq) => {
            format!("INSERT INTO {log} (seq, id, topic, payload) VALUES ({seq}, '{late}', 't', '')")
        }
        None => world.insert(&[late]),
    };
    execute(&slow, &insert).await;
    execute(&slow, "COMMIT").await;
    for _ in 0..5 {
        if reading.poll().await.iter().any(|(_, id)| *id == late) {
            return true;
        }
    }
    false
}
