//! How ranges are leased and read.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use outbox_core::{Claim, ClaimRequest, Claimer, Draft, MessageId, Outcome, Repository};
use outbox_sea_orm::{LogGroup, OutboxLog, Start, Subscription};
use outbox_testkit::server::{Settings, StopMode, private};
use sea_orm::TransactionTrait;
use tokio::time::timeout;

use crate::support::{LEASE, Log, Pool, Site, eventually, on_postgres, run_logged, settle_all};

const EXPLAIN: &[(&str, &str)] = &[
    ("session_preload_libraries", "auto_explain"),
    ("auto_explain.log_min_duration", "0"),
    ("auto_explain.log_analyze", "on"),
    ("auto_explain.log_timing", "off"),
    ("auto_explain.log_level", "notice"),
];

async fn log(site: &Site) -> (OutboxLog, LogGroup) {
    let log = OutboxLog::new(&site.db, site.name("log"));
    log.migrate().await.expect("migrate");
    let group = log.register(Subscription::new("g").with_start(Start::Beginning)).await.expect("register");
    (log, group)
}

async fn enqueue(log: &OutboxLog, drafts: Vec<Draft>) -> Vec<MessageId> {
    log.enqueue_autocommit(drafts).await.expect("enqueue")
}

fn sized(n_messages: usize, n_bytes: usize) -> Vec<Draft> {
    (0..n_messages).map(|_| Draft::new("t", vec![7; n_bytes])).collect()
}

fn request(limit: usize) -> ClaimRequest {
    ClaimRequest::new(limit, LEASE)
}

fn ids(claim: &Claim) -> Vec<MessageId> {
    claim.messages.iter().map(|claimed| claimed.message.id).collect()
}

/// Delivers what is there.
async fn drain(group: &LogGroup, request: &ClaimRequest) -> Vec<MessageId> {
    let mut delivered = Vec::new();
    loop {
        let claim = group.claim(request.clone()).await.expect("claim");
        if claim.is_empty() {
            return delivered;
        }
        settle_all(group, &claim, Outcome::Done).await;
        delivered.extend(ids(&claim));
    }
}

/// The rows are on their way through a slow connection meanwhile.
async fn nobody_waits_while_a_range_is_read(site: &Site) {
    let (log, group) = log(site).await;
    let ids = enqueue(&log, sized(1_000, 20_000)).await;
    let (proxy, slow) = site.through_proxy().await;
    let slow = OutboxLog::new(&slow, log.name().clone()).group("g").expect("a name");
    assert!(slow.claim(request(1)).await.expect("connected").messages.len() == 1);
    proxy.delay(Duration::from_millis(20));
    let reading = tokio::spawn(async move { slow.claim(request(800)).await.expect("claim") });
    let has_moved = format!("SELECT position > 1 FROM {}", site.sql_name("log_groups"));
    let moved = eventually("the position moved", async || site.value::<bool>(&has_moved).await);
    timeout(Duration::from_secs(5), moved).await.expect("while the rows are on their way");
    let next =
        timeout(Duration::from_secs(5), group.claim(request(10))).await.expect("in time").expect("claim");
    assert!(!reading.is_finished(), "it was to be read slowly");
    assert_eq!(self::ids(&next), ids[801..811]);
    proxy.delay(Duration::ZERO);
    assert_eq!(self::ids(&reading.await.expect("read")), ids[1..801]);
}

async fn bytes_of_a_claim_are_bounded_whatever_the_last_one_had(site: &Site) {
    let (log, group) = log(site).await;
    let mut expected = enqueue(&log, sized(20, 10)).await;
    expected.extend(enqueue(&log, sized(20, 300)).await);
    let request = request(20).with_max_bytes(1_000).with_claimer(Claimer::new());
    let mut delivered = Vec::new();
    loop {
        let claim = group.claim(request.clone()).await.expect("claim");
        let n_bytes: usize = claim.messages.iter().map(|claimed| claimed.message.payload.len()).sum();
        assert!(n_bytes <= 1_000, "{n_bytes} bytes");
        if claim.is_empty() {
            break;
        }
        settle_all(&group, &claim, Outcome::Done).await;
        delivered.extend(ids(&claim));
    }
    assert_eq!(delivered.len(), 40);
    assert_eq!(BTreeSet::from_iter(delivered), BTreeSet::from_iter(expected));
    assert_eq!(site.count("log_ranges").await, 0);
}

async fn what_a_claim_is_not_for_leaves_its_range(site: &Site) {
    let (log, group) = log(site).await;
    let drafts = ["a", "b", "later", "a", "b"].map(|topic| match topic {
        "later" => Draft::new("a", "x").delay(LEASE),
        topic => Draft::new(topic, "x"),
    });
    let expected = enqueue(&log, drafts.into()).await;
    let only_a = request(10).with_topics(["a"]);
    let claim = group.claim(only_a.clone()).await.expect("claim");
    assert_eq!(ids(&claim), [expected[0], expected[3]]);
    let aside = |state| format!("log_group_g WHERE state = {state} AND lease IS NULL AND attempts = 0");
    assert_eq!((site.count(&aside(0)).await, site.count(&aside(1)).await), (2, 1));
    settle_all(&group, &claim, Outcome::Done).await;
    assert_eq!(site.count("log_ranges").await, 0);
    let others = group.claim(request(10)).await.expect("claim");
    assert_eq!(ids(&others), [expected[1], expected[4]]);
    assert!(others.messages.iter().all(|claimed| claimed.message.attempt == 1));
}

/// The claim that has leased it was killed before it put aside what it was not for.
async fn range_that_nobody_has_read_is_given_up_whole(site: &Site) {
    let (log, group) = log(site).await;
    let expected =
        enqueue(&log, vec![Draft::new("a", "x"), Draft::new("a", "x").delay(LEASE), Draft::new("a", "x")])
            .await;
    site.execute(&format!(
        "UPDATE {0} SET position = 3; INSERT INTO {1} (token, group_name, from_seq, to_seq, n, leased_until)
         VALUES (gen_random_uuid(), 'g', 0, 3, 3, now() - interval '1 s')",
        site.sql_name("log_groups"),
        site.sql_name("log_ranges")
    ))
    .await;
    assert_eq!(drain(&group, &request(10)).await, [expected[0], expected[2]]);
    assert_eq!(site.count("log_group_g WHERE state = 1 AND available_at > now() AND lease IS NULL").await, 1);
    assert_eq!(site.count("log_ranges").await, 0);
}

async fn groups_with_topics_read_their_own(site: &Site) {
    let (log, _) = log(site).await;
    let rare = log.register(Subscription::new("rare").with_topics(["b"])).await.expect("register");
    let drafts = (0..3_000).map(|number| {
        Draft::new(if number % 2 == 0 { "a" } else { "b" }, "x").delay(if number % 10 == 1 {
            LEASE
        } else {
            Duration::ZERO
        })
    });
    let expected = enqueue(&log, drafts.collect()).await;
    let wanted = |(number, id)| (number % 2 == 1 && number % 10 != 1).then_some(id);
    let expected: Vec<_> = expected.into_iter().enumerate().filter_map(wanted).collect();
    assert_eq!(drain(&rare, &request(1_000)).await, expected);
    assert_eq!(site.count("log_group_rare").await, 300);
}

async fn dispatchers_of_a_group_share_its_ranges(site: &Site) {
    let (log, _) = log(site).await;
    let expected = enqueue(&log, sized(5_000, 10)).await;
    let drained = (0..4).map(async |_| {
        let group = OutboxLog::new(&site.db, log.name().clone()).group("g").expect("a name");
        drain(&group, &request(100).with_claimer(Claimer::new())).await
    });
    let delivered = join_all(drained).await.concat();
    assert_eq!(delivered.len(), expected.len());
    assert_eq!(BTreeSet::from_iter(delivered), BTreeSet::from_iter(expected));
}

/// How far the log may be read is known while a session is there that was asked, whichever it was.
async fn another_connection_reads_on_past_an_open_transaction(site: &Site) {
    let (log, _) = log(site).await;
    let expected = enqueue(&log, sized(150, 10)).await;
    let db = site.connect(Pool::of(8)).await;
    let group = OutboxLog::new(&db, log.name().clone()).with_shared_pool().group("g").expect("a name");
    let request = request(50).with_claimer(Claimer::new());
    assert_eq!(ids(&group.claim(request.clone()).await.expect("claim")), expected[..50]);
    let producer = site.db.begin().await.expect("begin");
    log.enqueue_in(&producer, sized(1, 10)).await.expect("enqueue");
    let n_asked = db.get_postgres_connection_pool().size();
    let asked = join_all((0..n_asked).map(|_| db.begin())).await;
    assert_eq!(drain(&group, &request).await, expected[50..]);
    drop(asked);
    producer.rollback().await.expect("end");
}

/// A session that nobody else can see is known to itself, and a pool uses its connections in turn.
async fn a_role_that_sees_no_sessions_claims(site: &Site) {
    let (log, _) = log(site).await;
    let (schema, role) = (site.schema(), format!("{}_blind", site.schema()));
    site.execute(&format!(
        "CREATE ROLE {role} NOLOGIN; GRANT USAGE ON SCHEMA {schema} TO {role};
         GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {role}"
    ))
    .await;
    let db = site.connect(Pool { settings: &[("role", &role)], ..Pool::of(8) }).await;
    let group = OutboxLog::new(&db, log.name().clone()).with_shared_pool().group("g").expect("a name");
    let request = request(10).with_claimer(Claimer::new());
    // all connections, so that they come in turn
    drop(join_all((0..8).map(|_| db.begin())).await);
    for _ in 0..3 {
        let expected = enqueue(&log, sized(100, 10)).await;
        assert_eq!(drain(&group, &request).await, expected);
    }
    site.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

on_postgres!(
    nobody_waits_while_a_range_is_read,
    bytes_of_a_claim_are_bounded_whatever_the_last_one_had,
    what_a_claim_is_not_for_leaves_its_range,
    range_that_nobody_has_read_is_given_up_whole,
    groups_with_topics_read_their_own,
    dispatchers_of_a_group_share_its_ranges,
    another_connection_reads_on_past_an_open_transaction,
    a_role_that_sees_no_sessions_claims,
);

/// A claim is on disk when it returns, although its first statement does not wait for that: here nobody else writes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claim_outlives_a_crash_of_the_server_on_postgres() {
    let settings = Settings::for_tests().with("synchronous_commit", "on").with("wal_writer_delay", "10s");
    let Ok(server) = private(settings).await else { return };
    let site = Site::at(server.url(), &[]).await;
    let (log, group) = log(&site).await;
    enqueue(&log, sized(10, 10)).await;
    let claim = group.claim(request(5)).await.expect("claim");
    server.stop(StopMode::Immediate).await.expect("stop");
    server.restart().await.expect("restart");
    let db = site.connect(Pool::of(2)).await;
    let group = OutboxLog::new(&db, log.name().clone()).group("g").expect("a name");
    settle_all(&group, &claim, Outcome::Done).await;
    assert_eq!(drain(&group, &request(10)).await.len(), 5);
}

/// What the server did for the statements of a drain, in the order in which it did it.
async fn plans(site: &Site, log: &Log) -> Vec<String> {
    let db = site.connect(Pool { settings: EXPLAIN, ..Pool::of(2) }).await;
    let (outbox_log, _) = self::log(site).await;
    let group = OutboxLog::new(&db, outbox_log.name().clone()).group("g").expect("a name");
    enqueue(&outbox_log, sized(5_000, 200)).await;
    log.take();
    assert_eq!(drain(&group, &request(1_000)).await.len(), 5_000);
    let text = log.take();
    text.split("sqlx::postgres::notice: duration: ").skip(1).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_counts_by_the_index_and_reads_each_row_once() {
    run_logged("log::ranges::a_claim_counts_by_the_index_and_reads_each_row_once", async |site, log| {
        let plans = plans(site, log).await;
        let reads = |plan: &String| plan.contains("headers, created_at, state");
        let leases = |plan: &String| plan.contains("is_plain");
        let (read, leased) =
            (plans.iter().filter(|plan| reads(plan)), plans.iter().filter(|plan| leases(plan)));
        assert_eq!((read.clone().count(), leased.clone().count() >= 5), (5, true));
        for plan in read.chain(leased) {
            let scans = plan.lines().filter(|line| line.contains(" Scan ") && line.contains(" log_default"));
            for scan in scans.filter(|line| !line.contains("never executed")) {
                let is_counted = scan.contains("Index Only Scan using log_default_seq_idx");
                assert!(
                    is_counted || reads(plan) && scan.contains("Index Scan using log_default_seq_idx"),
                    "{plan}"
                );
            }
        }
    })
    .await;
}
