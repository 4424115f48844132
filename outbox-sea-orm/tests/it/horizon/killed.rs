//! The server is killed while random transactions are open, prepared ones among them, and recovers.

use std::sync::Mutex;

use outbox_core::{Claimed, Operations, Settled};
use outbox_testkit::server::{Server, Settings, StopMode, private};
use sea_orm::{DbErr, TransactionTrait};

use super::*;
use crate::support::eventually;

const LEASE: Duration = Duration::from_secs(2);
const N_KILLS: usize = 2;

type Done<T> = Result<T, DbErr>;

async fn run(db: &impl ConnectionTrait, sql: &str) -> Done<()> {
    db.execute_unprepared(sql).await.map(drop)
}

async fn connect_at_last(url: &str) -> DatabaseConnection {
    loop {
        let mut options = ConnectOptions::new(url);
        options.max_connections(1).sqlx_logging(false);
        if let Ok(db) = Database::connect(options).await {
            return db;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Transactions until it is told to stop, on a new connection after each that has failed; what was acknowledged.
async fn produce(world: Arc<World>, mut random: Random, ended: Arc<AtomicBool>) -> Vec<Uuid> {
    let mut acknowledged = Vec::new();
    while !ended.load(SeqCst) {
        let db = connect_at_last(&world.url).await;
        while let (false, Ok(ids)) = (ended.load(SeqCst), transaction(&world, &db, &mut random).await) {
            acknowledged.extend(ids);
        }
    }
    acknowledged
}

async fn transaction(world: &World, db: &DatabaseConnection, random: &mut Random) -> Done<Vec<Uuid>> {
    // keeps its connection, so that nothing goes on outside of a transaction that is gone
    let db = &db.begin().await?;
    let mut kept = insert(world, db, random).await?;
    if random.below(3) == 0 {
        run(db, "SAVEPOINT a").await?;
        insert(world, db, random).await?;
        run(db, "ROLLBACK TO a").await?;
    }
    random.pause(30).await;
    kept.extend(insert(world, db, random).await?);
    let commits = random.below(5) > 0;
    let verb = if commits { "COMMIT" } else { "ROLLBACK" };
    if random.below(3) == 0 {
        let name = Uuid::new_v4();
        run(db, &format!("PREPARE TRANSACTION '{name}'")).await?;
        random.pause(300).await;
        run(db, &format!("{verb} PREPARED '{name}'")).await?;
    } else {
        run(db, verb).await?;
    }
    Ok(if commits { kept } else { Vec::new() })
}

async fn insert(world: &World, db: &impl ConnectionTrait, random: &mut Random) -> Done<Vec<Uuid>> {
    let ids: Vec<Uuid> = (0..1 + random.below(4)).map(|_| Uuid::now_v7()).collect();
    run(db, &world.insert(&ids)).await?;
    random.pause(2).await;
    Ok(ids)
}

/// What loops of a group have claimed, and what was settled for good.
#[derive(Default)]
struct Trace {
    delivered: Vec<Uuid>,
    settled: HashSet<Uuid>,
    n_again: usize,
}

impl Trace {
    fn claimed(&mut self, claimed: &[Claimed]) {
        for message in claimed {
            self.n_again += usize::from(self.settled.contains(&message.message.id));
            self.delivered.push(message.message.id);
        }
    }

    fn settled(&mut self, claimed: &[Claimed], answers: &[Settled]) {
        let applied = claimed.iter().zip(answers).filter(|(_, answer)| **answer == Settled::Applied);
        self.settled.extend(applied.map(|(claimed, _)| claimed.message.id));
    }
}

/// Until the producers have ended and nothing has come for longer than a lease.
async fn deliver(group: LogGroup, ended: Arc<AtomicBool>, trace: Arc<Mutex<Trace>>) {
    let (claimer, mut last) = (Claimer::new(), Instant::now());
    while !ended.load(SeqCst) || last.elapsed() < LEASE * 2 {
        let request = ClaimRequest::new(20, LEASE).with_claimer(claimer.clone());
        let claimed = group.claim(request).await.map(|claim| claim.messages).unwrap_or_default();
        if claimed.is_empty() {
            sleep(Duration::from_millis(5)).await;
            continue;
        }
        last = Instant::now();
        trace.lock().expect("trace").claimed(&claimed);
        let done = claimed.iter().map(|claimed| Settlement::new(claimed.lease, Outcome::Done));
        if let Ok(answers) = group.settle(done.collect()).await {
            trace.lock().expect("trace").settled(&claimed, &answers);
        }
    }
}

/// Leaves prepared transactions open, kills the server, and ends them a while after it has recovered.
async fn kill(server: &Server, world: &World, random: &mut Random) {
    let db = connect_at_last(&world.url).await;
    for _ in 0..2 {
        run(&db, "BEGIN").await.expect("begin");
        insert(world, &db, random).await.expect("insert");
        run(&db, &format!("PREPARE TRANSACTION '{}'", Uuid::new_v4())).await.expect("prepare");
    }
    random.pause(50).await;
    server.stop(StopMode::Kill).await.expect("stop");
    server.restart().await.expect("restart");
    let db = connect_at_last(&world.url).await;
    let nameless = "SELECT count(*) FROM pg_locks WHERE virtualtransaction LIKE '-1/%'";
    assert!(column::<i64>(&db, nameless.into()).await[0] > 0, "nobody was prepared");
    random.pause(300).await;
    end_prepared(&db, random).await;
}

async fn end_prepared(db: &DatabaseConnection, random: &mut Random) {
    for name in column::<String>(db, "SELECT gid FROM pg_prepared_xacts".into()).await {
        random.pause(50).await;
        let verb = if random.below(3) > 0 { "COMMIT" } else { "ROLLBACK" };
        // its producer may be there again and do so itself
        let _ = run(db, &format!("{verb} PREPARED '{name}'")).await;
    }
}

async fn survive(server: &Server, seed: u64) {
    eprintln!("seed {seed}");
    let world = Arc::new(World::at(server.url()).await);
    let log = OutboxLog::new(&world.db, name(&world.schema));
    log.register(Subscription::new("g").with_start(Start::Beginning)).await.expect("register");
    let (ended, trace) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Trace>>::default());
    let shared = log.group("g").expect("name");
    let groups = [shared.clone(), shared, log.group("g").expect("name")];
    let loops = groups.map(|group| tokio::spawn(deliver(group, Arc::clone(&ended), Arc::clone(&trace))));
    let mut producers = JoinSet::new();
    for number in 0..N_PRODUCERS as u64 {
        let random = Random(seed.wrapping_mul(2 * number + 3) | 1);
        producers.spawn(produce(Arc::clone(&world), random, Arc::clone(&ended)));
    }
    let mut random = Random(seed);
    for _ in 0..N_KILLS {
        sleep(Duration::from_millis(400 + random.below(600))).await;
        kill(server, &world, &mut random).await;
    }
    sleep(Duration::from_millis(500)).await;
    ended.store(true, SeqCst);
    let acknowledged = producers.join_all().await.concat();
    end_prepared(&connect_at_last(&world.url).await, &mut random).await;
    for one in loops {
        one.await.expect("no panic");
    }
    let trace = std::mem::take(&mut *trace.lock().expect("trace"));
    check(&world, &acknowledged, &trace).await;
}

async fn check(world: &World, acknowledged: &[Uuid], trace: &Trace) {
    let db = connect_at_last(&world.url).await;
    let ids: HashSet<Uuid> =
        column(&db, format!("SELECT id FROM {}.log", world.schema)).await.into_iter().collect();
    let delivered: HashSet<Uuid> = trace.delivered.iter().copied().collect();
    eprintln!("{} stored, {} delivered, {} times", ids.len(), delivered.len(), trace.delivered.len());
    assert!(acknowledged.iter().all(|id| ids.contains(id)), "the server has lost what it has acknowledged");
    assert_eq!(ids.difference(&delivered).count(), 0, "lost of {}", ids.len());
    assert_eq!(delivered.difference(&ids).count(), 0, "never committed");
    assert_eq!(trace.n_again, 0, "settled and delivered again");
}

/// `OUTBOX_TEST_KILLS` sets how many runs, of two kills each; `OUTBOX_TEST_SEED` repeats the first one.
#[test]
fn group_loses_nothing_when_the_server_is_killed() {
    on_two_threads(async {
        let given = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
        let Ok(server) = private(Settings::for_tests()).await else { return };
        let first = given("OUTBOX_TEST_SEED").unwrap_or_else(|| Uuid::new_v4().as_u128() as u64);
        for number in 0..given("OUTBOX_TEST_KILLS").unwrap_or(2) {
            survive(&server, first.wrapping_add(2 * number) | 1).await;
        }
    });
}

/// The server has stored none of the numbers that a group knows of when it is killed, and hands them out again.
#[test]
fn numbers_that_were_never_stored_are_forgotten() {
    on_two_threads(async {
        let settings = Settings::for_tests().with("wal_writer_delay", "10s").with("autovacuum", "off");
        let Ok(server) = private(settings).await else { return };
        for _ in 0..10 {
            if let Some(n) = delivered_after_a_kill(&server).await {
                assert_eq!(n, 11, "what committed late was passed over");
                return;
            }
        }
        panic!("the server has stored every number");
    });
}

/// How many of 11 messages come, one of them late; `None` where the server has stored the numbers, as it does when a page of its
/// WAL is full.
async fn delivered_after_a_kill(server: &Server) -> Option<usize> {
    let world = World::at(server.url()).await;
    let log = OutboxLog::new(&world.db, name(&world.schema));
    let group = log.register(Subscription::new("g").with_start(Start::Beginning)).await.expect("register");
    let draw = format!(
        "SELECT nextval(pg_get_serial_sequence('{}.log', 'seq')) FROM generate_series(1, 100)",
        world.schema
    );
    run(&world.db, &format!("BEGIN; {draw}; ROLLBACK")).await.expect("roll back");
    group.stats().await.expect("now it knows of them");
    server.stop(StopMode::Kill).await.expect("stop");
    server.restart().await.expect("restart");
    let (late, db) = (connect_at_last(&world.url).await, connect_at_last(&world.url).await);
    let some = |n: usize| (0..n).map(|_| Uuid::now_v7()).collect::<Vec<_>>();
    run(&late, &format!("BEGIN; {}", world.insert(&some(1)))).await.expect("insert");
    run(&db, &world.insert(&some(10))).await.expect("insert");
    if last_number(&db, &world.schema).await >= 100 {
        run(&late, "COMMIT").await.expect("commit");
        return None;
    }
    let mut n = 0;
    let mut claim = async || {
        let claimed = group.claim(ClaimRequest::new(100, Duration::from_secs(600))).await;
        claimed.map(|claim| n += claim.messages.len()).is_ok()
    };
    eventually("the server answers", &mut claim).await;
    run(&late, "COMMIT").await.expect("commit");
    assert!(claim().await);
    Some(n)
}
