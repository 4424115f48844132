//! The partitions of a log by time.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use outbox_core::{
    ClaimRequest, Draft, ErrorKind, Finding, Maintained, Maintenance, MessageId, Operations, Outcome,
    Partition, PartitionInterval, Repository, Symptom,
};
use outbox_sea_orm::{LogGroup, OutboxLog, OutboxTable, Start, Subscription};
use sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};
use tokio::time::sleep;

use crate::support::{LEASE, Pool, Site, on_postgres, settle_all};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// Sessions whose days begin elsewhere, and whose times are written otherwise.
const SESSIONS: [[(&str, &str); 2]; 5] = [
    [("TimeZone", "Asia/Tokyo"), ("DateStyle", "ISO")],
    [("TimeZone", "America/New_York"), ("DateStyle", "SQL, MDY")],
    [("TimeZone", "Asia/Kolkata"), ("DateStyle", "SQL, DMY")],
    [("TimeZone", "Pacific/Kiritimati"), ("DateStyle", "Postgres, MDY")],
    [("TimeZone", "America/New_York"), ("DateStyle", "German")],
];
const INTERVALS: [PartitionInterval; 5] = [
    PartitionInterval::Day,
    PartitionInterval::Hour,
    PartitionInterval::Minute,
    PartitionInterval::Week,
    PartitionInterval::Month,
];

fn log_at(db: &DatabaseConnection, site: &Site, interval: PartitionInterval) -> OutboxLog {
    OutboxLog::new(db, site.name("events")).partitioned(interval)
}

async fn parted(site: &Site, interval: PartitionInterval) -> OutboxLog {
    let log = log_at(&site.db, site, interval);
    log.migrate().await.expect("migrate");
    log
}

async fn register(log: &OutboxLog, name: &str) -> LogGroup {
    log.register(Subscription::new(name).with_start(Start::Beginning)).await.expect("register")
}

async fn enqueue(log: &OutboxLog, n: usize) -> Vec<MessageId> {
    let drafts: Vec<Draft> = (0..n).map(|_| Draft::new("t", "x")).collect();
    log.enqueue_autocommit(drafts).await.expect("enqueue")
}

/// Delivers everything as `outcome` and returns what was delivered.
async fn drain(group: &LogGroup, outcome: Outcome) -> Vec<MessageId> {
    let mut ids = Vec::new();
    loop {
        let claim = group.claim(ClaimRequest::new(100, LEASE)).await.expect("claim");
        if claim.is_empty() {
            return ids;
        }
        settle_all(group, &claim, outcome.clone()).await;
        ids.extend(claim.messages.iter().map(|claimed| claimed.message.id));
    }
}

/// What attaches a partition of an hour, for some hours before now, as maintenance would have made it.
fn attach(site: &Site, hours_ago: u32) -> String {
    let (log, schema) = (site.sql_name("events"), site.schema());
    format!(
        "DO $$DECLARE begins timestamptz := date_trunc('hour', now(), 'UTC') - interval '{hours_ago} hours';
         name text := '{schema}.events_p' || to_char(begins AT TIME ZONE 'UTC', 'YYYYMMDDHH24MI');
         BEGIN
           EXECUTE format('CREATE TABLE %s (LIKE {log} INCLUDING ALL EXCLUDING IDENTITY EXCLUDING INDEXES)', name);
           EXECUTE format('ALTER TABLE {log} ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)', name, begins, begins + interval '1 hour');
         END$$"
    )
}

/// What enqueues `n` messages some hours before now.
fn enqueue_then(site: &Site, hours_ago: u32, n: usize) -> String {
    format!(
        "INSERT INTO {} (id, topic, payload, created_at) SELECT gen_random_uuid(), 't', 'x', \
         date_trunc('hour', now(), 'UTC') - interval '{hours_ago} hours' + interval '10 minutes' FROM generate_series(1, {n})",
        site.sql_name("events")
    )
}

/// Partitions of hours before now, with messages in each.
async fn old_partitions(site: &Site, hours: &[u32], n: usize) {
    for &hours_ago in hours {
        site.execute(&attach(site, hours_ago)).await;
        site.execute(&enqueue_then(site, hours_ago, n)).await;
    }
}

fn names(partitions: &[Partition]) -> Vec<&str> {
    partitions.iter().map(|partition| &*partition.name).collect()
}

/// Who holds each partition that stays.
fn held(maintained: &Maintained) -> Vec<Vec<&str>> {
    maintained.held.iter().map(|held| held.groups.iter().map(String::as_str).collect()).collect()
}

/// What the partitions should be called, from the current one on.
async fn expected(site: &Site, interval: PartitionInterval, n: u32) -> Vec<String> {
    let unit = interval.as_str();
    site.values(&format!(
        "SELECT to_char(date_trunc('{unit}', now() AT TIME ZONE 'UTC') + n * interval '1 {unit}', '\"events_p\"YYYYMMDDHH24MI')
           FROM generate_series(0, {n}) AS n ORDER BY n"
    ))
    .await
}

/// The partitions in which messages are, each once, in order.
async fn places(site: &Site) -> Vec<String> {
    let log = site.sql_name("events");
    site.values(&format!("SELECT DISTINCT tableoid::regclass::text FROM {log} ORDER BY 1")).await
}

async fn partitions_are_made_ahead_whatever_the_session(site: &Site) {
    for (interval, settings) in INTERVALS.into_iter().zip(&SESSIONS) {
        let db = site.connect(Pool { settings, ..Pool::of(2) }).await;
        let log = log_at(&db, site, interval);
        // not over the end of an interval
        let mut before = expected(site, interval, 5).await;
        let ahead = loop {
            log.migrate().await.expect("migrate");
            let ahead = log.maintain(Maintenance::new().with_ahead(5)).await.expect("maintain").created;
            let now = expected(site, interval, 5).await;
            if std::mem::replace(&mut before, now.clone()) == now {
                break ahead;
            }
            site.execute(&drop_log(site)).await;
        };
        assert_eq!(names(&ahead), before[4..], "{interval:?}");
        assert!(ahead[0].ends_at == ahead[1].starts_at && ahead[0].starts_at < ahead[0].ends_at);
        let ids = enqueue(&log, 2).await;
        let full = |name: &String| format!("{}.{name}", site.schema());
        let current: Vec<String> = expected(site, interval, 1).await.iter().map(full).collect();
        assert!(
            current.starts_with(&places(site).await) || before[0] != current[0],
            "{interval:?} {settings:?}"
        );
        assert_eq!(drain(&register(&log, "all").await, Outcome::Done).await, ids);
        let bounds = format!(
            "SELECT count(*) FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent = '{}'::regclass
                AND set_config('TimeZone', 'UTC', false) <> '' AND set_config('DateStyle', 'ISO', false) <> ''
                AND pg_get_expr(c.relpartbound, c.oid) ~ 'FROM \\(''[-0-9]+ [0-9]+:[0-9]+:00\\+00''\\) TO \\(''[-0-9]+ [0-9]+:[0-9]+:00\\+00''\\)'",
            site.sql_name("events")
        );
        assert!(site.value::<i64>(&bounds).await >= 6, "{interval:?}");
        site.execute(&drop_log(site)).await;
    }
}

fn drop_log(site: &Site) -> String {
    let log = site.sql_name("events");
    format!("DROP TABLE IF EXISTS {log}, {log}_groups, {log}_ranges, {log}_group_all, {log}_group_all_dedup")
}

async fn several_dispatchers_maintain_at_once(site: &Site) {
    let log = parted(site, PartitionInterval::Hour).await;
    let group = register(&log, "all").await;
    old_partitions(site, &[50, 40, 30], 10).await;
    assert_eq!(drain(&group, Outcome::Done).await.len(), 30);
    let maintain = async || {
        let log = log_at(&site.connect(Pool::of(1)).await, site, PartitionInterval::Hour);
        log.maintain(Maintenance::new().with_ahead(10).drop_after(DAY)).await.expect("maintain")
    };
    let done = join_all((0..6).map(|_| maintain())).await;
    let n_created: usize = done.iter().map(|done| done.created.len()).sum();
    let dropped: BTreeSet<_> = done.iter().flat_map(|done| names(&done.dropped)).collect();
    assert!((7..=8).contains(&n_created) && dropped.len() == 3, "{done:?}");
    assert_eq!(done.iter().map(|done| done.dropped.len()).sum::<usize>(), 3, "each once");
    assert_eq!(site.count("events").await, 0);
}

/// No partition for the time of an enqueue: it is enqueued and delivered all the same, and the next interval is in order.
async fn a_late_run_breaks_no_producer(site: &Site) {
    let log = log_at(&site.db, site, PartitionInterval::Hour);
    site.execute(&log.ddl().expect("ddl")).await;
    let group = register(&log, "all").await;
    assert!(found(&group).await[0].what.contains("no partition is made"));
    let ids = enqueue(&log, 3).await;
    let maintain = async |age| log.maintain(Maintenance::new().drop_after(age)).await.expect("maintain");
    let maintained = maintain(HOUR).await;
    let ahead = expected(site, PartitionInterval::Hour, 3).await;
    assert_eq!(names(&maintained.created), ahead[1..], "the current interval stays in the default partition");
    let more = enqueue(&log, 2).await;
    assert_eq!(places(site).await, [format!("{}_default", site.sql_name("events"))]);
    assert!(found(&group).await[0].what.contains("fits nowhere else"));
    assert_eq!(maintain(Duration::ZERO).await.n_removed, 0, "the group has not read them");
    assert_eq!(drain(&group, Outcome::Done).await, [ids, more].concat());
    assert_eq!(maintain(HOUR).await.n_removed, 0, "they are not old enough");
    assert_eq!(maintain(Duration::ZERO).await.n_removed, 5);
    assert_eq!(found(&group).await, []);
    assert_eq!(names(&maintain(HOUR).await.created), ahead[..1], "now it can be made");
}

async fn found(group: &LogGroup) -> Vec<Finding> {
    let found = group.doctor(HOUR).await.expect("doctor");
    found.into_iter().filter(|finding| finding.symptom == Symptom::Partition).collect()
}

async fn only_what_every_group_has_read_is_dropped(site: &Site) {
    let log = parted(site, PartitionInterval::Hour).await;
    let (billing, shipping) = (register(&log, "billing").await, register(&log, "shipping").await);
    old_partitions(site, &[50, 40, 3], 10).await;
    let aged = || Maintenance::new().drop_after(DAY);
    let maintain = async || log.maintain(aged()).await.expect("maintain");
    let maintained = maintain().await;
    assert_eq!(held(&maintained), [["billing", "shipping"]; 2]);
    assert!(maintained.dropped.is_empty());
    assert_eq!(drain(&billing, Outcome::Done).await.len(), 30);
    assert_eq!(held(&maintain().await), [["shipping"]; 2]);
    let first = shipping.claim(ClaimRequest::new(10, LEASE)).await.expect("claim");
    let next = shipping.claim(ClaimRequest::new(10, LEASE)).await.expect("claim");
    assert_eq!(drain(&shipping, Outcome::Done).await.len(), 10, "of the last partition");
    assert_eq!(held(&maintain().await), [["shipping"]; 2], "it has a claim there");
    settle_all(&shipping, &first, Outcome::Done).await;
    let told = log.maintain(aged().dry_run()).await.expect("dry run");
    assert_eq!((told.dropped.len(), held(&told)), (1, vec![vec!["shipping"]]));
    assert_eq!(maintain().await, told);
    settle_all(&shipping, &next, Outcome::Done).await;
    assert_eq!(maintain().await.dropped.len(), 1);
    assert_eq!(maintain().await, Maintained::default());
    assert_eq!(site.count("events").await, 10, "not old enough");
    register(&log, "late").await;
    assert_eq!(maintain().await, Maintained::default());
}

/// A group that wants nothing of what is there does not hold it once it has looked; one that is gone neither.
async fn a_group_that_passes_over_holds_nothing(site: &Site) {
    let log = parted(site, PartitionInterval::Hour).await;
    let other = Subscription::new("other").with_topics(["other"]).with_start(Start::Beginning);
    let other = log.register(other).await.expect("register");
    register(&log, "gone").await;
    old_partitions(site, &[50], 10).await;
    let maintain = async || log.maintain(Maintenance::new().drop_after(DAY)).await.expect("maintain");
    assert_eq!(held(&maintain().await), [["gone", "other"]]);
    assert!(drain(&other, Outcome::Done).await.is_empty());
    assert_eq!(held(&maintain().await), [["gone"]]);
    assert!(log.unregister("gone").await.expect("unregister"));
    assert_eq!(maintain().await.dropped.len(), 1);
}

/// What has failed, waits or was lost needs its partition no more.
async fn what_failed_outlives_its_partition(site: &Site) {
    let log = parted(site, PartitionInterval::Hour).await;
    let group = register(&log, "all").await;
    old_partitions(site, &[50], 4).await;
    let outcomes = [
        Outcome::Retry { after: Duration::ZERO, error: "no".into() },
        Outcome::Dead { error: "no".into() },
        Outcome::Release,
    ];
    for outcome in outcomes {
        let claim = group
            .claim(ClaimRequest::new(1, LEASE).with_claimer(outbox_core::Claimer::new()))
            .await
            .expect("claim");
        settle_all(&group, &claim, outcome).await;
    }
    let lost = group.claim(ClaimRequest::new(1, Duration::from_millis(1))).await.expect("claim");
    assert_eq!(lost.messages.len(), 1);
    let maintain = async || log.maintain(Maintenance::new().drop_after(DAY)).await.expect("maintain");
    let mut delivered = drain(&group, Outcome::Done).await;
    assert_eq!(maintain().await.dropped.len(), 1);
    assert_eq!(site.count("events").await, 0);
    let dead = group.stats().await.expect("stats").total().n_dead;
    assert_eq!(group.redrive_matching(Default::default(), 10).await.expect("redrive"), dead);
    delivered.extend(drain(&group, Outcome::Done).await);
    assert_eq!(delivered.len(), 4);
}

/// A producer that writes into the partition and has not committed when maintenance looks: what it commits is delivered.
async fn dropping_locks_first_and_looks_then(site: &Site) {
    for settings in [&[][..], &[("default_transaction_isolation", "repeatable read")]] {
        let log =
            log_at(&site.connect(Pool { settings, ..Pool::of(2) }).await, site, PartitionInterval::Hour);
        log.migrate().await.expect("migrate");
        let group = register(&parted(site, PartitionInterval::Hour).await, "all").await;
        old_partitions(site, &[50], 3).await;
        assert_eq!(drain(&group, Outcome::Done).await.len(), 3);
        let producer = site.db.begin().await.expect("begin");
        producer.execute_unprepared(&enqueue_then(site, 50, 1)).await.expect("enqueue");
        let aged = Maintenance::new().drop_after(DAY);
        let maintaining = tokio::spawn(async move { log.maintain(aged).await });
        sleep(Duration::from_millis(200)).await;
        assert!(!maintaining.is_finished(), "it waits for the producer");
        producer.commit().await.expect("commit");
        let maintained = maintaining.await.expect("a task").expect("maintain");
        assert_eq!((held(&maintained), maintained.dropped.len()), (vec![vec!["all"]], 0));
        assert_eq!(drain(&group, Outcome::Done).await.len(), 1);
        site.execute(&drop_log(site)).await;
    }
}

/// Who has enqueued and stays open holds maintenance up, producers not for long, and claims not at all.
async fn maintenance_gives_up_where_it_would_hold_others_up(site: &Site) {
    let log = parted(site, PartitionInterval::Hour).await;
    let group = register(&log, "all").await;
    old_partitions(site, &[50], 3).await;
    assert_eq!(drain(&group, Outcome::Done).await.len(), 3);
    let producer = site.db.begin().await.expect("begin");
    log.enqueue_in(&producer, [Draft::new("t", "x")]).await.expect("enqueue");
    let ahead = log.maintain(Maintenance::new().with_ahead(7)).await.expect("partitions are made meanwhile");
    assert!(ahead.created.len() >= 4, "{ahead:?}");
    let error = log.maintain(Maintenance::new().drop_after(DAY)).await.expect_err("held up");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Timeout, true), "{error}");
    producer.commit().await.expect("commit");
    enqueue(&log, 1).await;
    let maintained = log.maintain(Maintenance::new().drop_after(DAY)).await.expect("maintain");
    assert_eq!(maintained.dropped.len(), 1);
    assert_eq!(drain(&group, Outcome::Done).await.len(), 2);
}

/// A producer that writes while the partition of its time is made gets there, or to the default partition, and does not fail.
async fn making_the_current_partition_fails_no_producer(site: &Site) {
    let log = log_at(&site.db, site, PartitionInterval::Week);
    site.execute(&log.ddl().expect("ddl")).await;
    let group = register(&log, "all").await;
    let current = log.maintain(Maintenance::new()).await.expect("maintain").created.swap_remove(0);
    site.execute(&format!("DROP TABLE {}", site.sql_name(&current.name))).await;
    let open = site.db.begin().await.expect("begin");
    open.execute_unprepared(&enqueue_then(site, 1_000, 1)).await.expect("into the default partition");
    let maintaining = tokio::spawn({
        let log = log.clone();
        async move { log.maintain(Maintenance::new()).await }
    });
    sleep(Duration::from_millis(100)).await;
    let producing = tokio::spawn(async move { log.enqueue_autocommit([Draft::new("t", "x")]).await });
    sleep(Duration::from_millis(100)).await;
    open.commit().await.expect("commit");
    producing.await.expect("a task").expect("enqueue");
    let made = maintaining.await.expect("a task").expect("maintain").created;
    assert_eq!(made, [current]);
    assert_eq!(drain(&group, Outcome::Done).await.len(), 2);
}

/// Only what maintenance has made is dropped.
async fn partitions_made_by_hand_stay(site: &Site) {
    let log = parted(site, PartitionInterval::Hour).await;
    let name = site.sql_name("events");
    site.execute(&format!(
        "CREATE TABLE {}.mine PARTITION OF {name} FOR VALUES FROM ('2000-01-01Z') TO ('2000-01-02Z')",
        site.schema()
    ))
    .await;
    let maintained = log.maintain(Maintenance::new().drop_after(DAY)).await.expect("maintain");
    assert!(maintained.dropped.is_empty(), "{maintained:?}");
    assert_eq!(site.count("mine").await, 0);
}

async fn the_declaration_of_a_log_is_compared(site: &Site) {
    let log = parted(site, PartitionInterval::Day).await;
    log.migrate().await.expect("once more");
    log.check().await.expect("check");
    let error =
        log.clone().partitioned(PartitionInterval::Hour).check().await.expect_err("differs").to_string();
    let theirs = "but the table was made \"partitioned by the day\"";
    assert!(error.contains(&format!("declared \"partitioned by the hour\" here, {theirs}")), "{error}");
    let plain = OutboxLog::new(&site.db, site.name("events"));
    let error = plain.maintain(Maintenance::new()).await.expect_err("not declared");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    for (maintenance, field) in [
        (Maintenance::new().with_ahead(101), "n_ahead"),
        (Maintenance::new().drop_after(Duration::MAX), "drop_after"),
    ] {
        let error = log.maintain(maintenance).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(field), "{error}");
    }
    site.execute(&format!("DROP TABLE {}_default", site.sql_name("events"))).await;
    let error = log.check().await.expect_err("gone").to_string();
    assert!(error.contains("partition events_default is missing"), "{error}");
    let queue = OutboxTable::new(&site.db, site.name("parts")).partitioned(PartitionInterval::Minute);
    let error = queue.migrate().await.expect_err("too short");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("partitioned"), "{error}");
}

on_postgres! {
    partitions_are_made_ahead_whatever_the_session, several_dispatchers_maintain_at_once, a_late_run_breaks_no_producer,
    only_what_every_group_has_read_is_dropped, a_group_that_passes_over_holds_nothing, what_failed_outlives_its_partition,
    dropping_locks_first_and_looks_then, maintenance_gives_up_where_it_would_hold_others_up, partitions_made_by_hand_stay,
    the_declaration_of_a_log_is_compared, making_the_current_partition_fails_no_producer
}
