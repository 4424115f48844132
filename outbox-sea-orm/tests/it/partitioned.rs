//! A table whose rows are in partitions by what became of them.

mod maintenance;
mod moving;

use std::collections::BTreeSet;
use std::time::Duration;

use outbox_core::{
    ClaimRequest, Claimed, DeadLetterFilter, Declaration, Draft, ErrorKind, Finding, Maintenance,
    MemoryRepository, MessageId, Moved, OnDead, Operations, Outcome, PartitionInterval, Prune, Repository,
    Severity, Symptom, TopicStats, Unblocked,
};
use outbox_sea_orm::OutboxTable;

use crate::support::{
    LEASE, Log, Pool, Site, eventually, on_mysql, on_postgres, on_sqlite, run_logged, settle_all,
};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const INTERVALS: [PartitionInterval; 4] =
    [PartitionInterval::Hour, PartitionInterval::Day, PartitionInterval::Week, PartitionInterval::Month];

/// The table `parts`, made.
async fn parts(site: &Site, interval: PartitionInterval) -> OutboxTable {
    let table = OutboxTable::new(&site.db, site.name("parts")).partitioned(interval);
    table.migrate().await.expect("migrate");
    table
}

/// The same, ordered.
async fn ordered_parts(site: &Site) -> OutboxTable {
    let table = OutboxTable::new(&site.db, site.name("parts")).ordered(OnDead::Block);
    let table = table.partitioned(PartitionInterval::Day);
    table.migrate().await.expect("migrate");
    table
}

async fn enqueue(table: &OutboxTable, n: usize) -> Vec<MessageId> {
    let drafts: Vec<Draft> = (0..n).map(|_| Draft::new("t", "x")).collect();
    table.enqueue_autocommit(drafts).await.expect("enqueue")
}

async fn claim(table: &OutboxTable, limit: usize) -> Vec<Claimed> {
    let request = ClaimRequest::new(limit, LEASE).with_max_attempts(1_000);
    table.claim(request).await.expect("claim").messages
}

/// Enqueues and ends `n` messages.
async fn end(table: &OutboxTable, n: usize, outcome: Outcome) -> Vec<MessageId> {
    let ids = enqueue(table, n).await;
    let claim = table.claim(ClaimRequest::new(n, LEASE)).await.expect("claim");
    assert_eq!(claim.messages.len(), n);
    settle_all(table, &claim, outcome).await;
    ids
}

/// Where rows are: the partitions without the name of their table, each once, in order.
async fn places(site: &Site, condition: &str) -> Vec<String> {
    let table = site.sql_name("parts");
    let sql = format!(
        "SELECT DISTINCT substr(c.relname, 7) FROM {table} AS m JOIN pg_class AS c ON c.oid = m.tableoid WHERE {condition} ORDER BY 1"
    );
    site.values(&sql).await
}

/// Makes a partition of delivered messages for some hours before now, and puts `n` rows there.
async fn old_partition(site: &Site, hours_ago: u32, n: usize) {
    let (table, schema) = (site.sql_name("parts"), site.schema());
    site.execute(&format!(
        "DO $$DECLARE begins timestamptz := date_trunc('hour', now(), 'UTC') - interval '{hours_ago} hours';
         BEGIN
           EXECUTE format('CREATE TABLE {schema}.%I PARTITION OF {table}_done_all FOR VALUES FROM (%L) TO (%L)',
                          'parts_done' || to_char(begins AT TIME ZONE 'UTC', 'YYYYMMDDHH24'), begins, begins + interval '1 hour');
           INSERT INTO {table} (id, topic, payload, state, done_at)
           SELECT gen_random_uuid(), 't', '', 3, begins + interval '10 minutes' FROM generate_series(1, {n});
         END$$"
    ))
    .await;
}

async fn n_done(table: &OutboxTable) -> u64 {
    table.stats().await.expect("stats").total().n_done
}

async fn found(table: &OutboxTable) -> Vec<Finding> {
    let found = table.doctor(HOUR).await.expect("doctor");
    found.into_iter().filter(|finding| finding.symptom == Symptom::Partition).collect()
}

async fn a_message_is_where_its_state_is(site: &Site) {
    let table = parts(site, PartitionInterval::Day).await;
    end(&table, 1, Outcome::Dead { error: "no".into() }).await;
    end(&table, 1, Outcome::Done).await;
    end(&table, 1, Outcome::Retry { after: HOUR, error: "later".into() }).await;
    enqueue(&table, 2).await;
    claim(&table, 1).await;
    assert_eq!(places(site, "state IN (0, 1)").await, ["pending"]);
    assert_eq!(places(site, "state = 2").await, ["dead_all"]);
    let today: String =
        site.value("SELECT to_char(now() AT TIME ZONE 'UTC', '\"done\"YYYYMMDD\"00\"')").await;
    assert_eq!(places(site, "state = 3").await, [today]);
    let total = table.stats().await.expect("stats").total();
    assert_eq!((total.n_pending, total.n_claimed, total.n_dead, total.n_done), (2, 1, 1, 1));
}

/// The server says which partitions it looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_and_settlements_touch_what_waits_only() {
    let name = "partitioned::claims_and_settlements_touch_what_waits_only";
    run_logged(name, async |site, log| {
        for declared in [Declaration::new(), Declaration::new().ordered(OnDead::Block)] {
            touch_what_waits_only(site, log, declared.partitioned(PartitionInterval::Day)).await;
        }
    })
    .await;
}

async fn touch_what_waits_only(site: &Site, log: &Log, declared: Declaration) {
    let settings = [
        ("session_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
        ("auto_explain.log_level", "notice"),
    ];
    let db = site.connect(Pool { settings: &settings, logs: true, ..Pool::of(2) }).await;
    let is_ordered = declared.ordered.is_some();
    let name = if is_ordered { "ordered" } else { "parts" };
    let table = OutboxTable::new(&db, site.name(name)).declared(declared);
    table.migrate().await.expect("migrate");
    log.take();
    let outcomes = [
        Outcome::Done,
        Outcome::Release,
        Outcome::Retry { after: Duration::ZERO, error: "no".into() },
        Outcome::Dead { error: "no".into() },
    ];
    for outcome in outcomes {
        end(&table, 1, outcome).await;
    }
    let again = claim(&table, 10).await;
    assert_eq!(again.len(), 2, "released and retried");
    let lost = format!("UPDATE {} SET leased_until = leased_until - interval '1 day'", site.sql_name(name));
    site.execute(&lost).await;
    assert!(!claim(&table, 10).await.is_empty(), "recovered");
    site.execute(&lost).await;
    let buried = table.claim(ClaimRequest::new(10, LEASE).with_max_attempts(1)).await.expect("claim");
    assert!(buried.n_dead > 0);
    let text = log.take();
    let plans: Vec<&str> = text.split("sqlx::postgres::notice: duration: ").skip(1).collect();
    for marker in
        ["AS picked", "pg_lock", "seq = due.fresh", "'lease expired in attempt '", "WITH done AS", "kept AS"]
    {
        let is_there = plans.iter().any(|plan| plan.contains(marker));
        assert!(
            is_there || is_ordered && ["AS picked", "pg_lock", "WITH done AS"].contains(&marker),
            "{marker}"
        );
    }
    for plan in plans.iter().filter(|plan| plan.contains("UPDATE ") || plan.contains("DELETE ")) {
        assert!(!plan.contains(&format!(" on {name}_done")), "{plan}");
        // what a dead letter blocks is looked for among the dead
        assert!(is_ordered || !plan.contains(&format!(" on {name}_dead")), "{plan}");
    }
}

async fn claims_are_heap_only_updates(site: &Site) {
    let table = parts(site, PartitionInterval::Day).await;
    enqueue(&table, 5_000).await;
    for _ in 0..5 {
        let claim = table.claim(ClaimRequest::new(1_000, LEASE)).await.expect("claim");
        assert_eq!(claim.messages.len(), 1_000);
    }
    let updates = async |column: &str| -> i64 {
        let id = format!("'{}_pending'::regclass", site.sql_name("parts"));
        site.value(&format!("SELECT {column} FROM pg_stat_user_tables WHERE relid = {id}")).await
    };
    drop(table);
    eventually("the statistics arrive", async || updates("n_tup_upd").await >= 5_000).await;
    let (hot, all) = (updates("n_tup_hot_upd").await, updates("n_tup_upd").await);
    assert!(hot * 10 >= all * 9, "{hot} of {all}");
}

/// Several dead letters may have one id; one of them is made pending at a time.
async fn dead_letters_of_one_id_come_back_one_by_one(site: &Site) {
    let table = parts(site, PartitionInterval::Day).await;
    let id = enqueue(&table, 1).await[0];
    for _ in 0..2 {
        let claimed = table.claim(ClaimRequest::new(1, LEASE)).await.expect("claim");
        settle_all(&table, &claimed, Outcome::Dead { error: "no".into() }).await;
        let _ = table.enqueue_autocommit([Draft::new("t", "x").id(id)]).await.expect("its id is free");
    }
    assert_eq!(table.redrive(vec![id]).await.expect("redrive"), [Moved::NotDead], "its id is in use");
    assert_eq!(table.redrive_matching(DeadLetterFilter::default(), 10).await.expect("redrive"), 0);
    let claimed = table.claim(ClaimRequest::new(10, LEASE)).await.expect("claim");
    assert_eq!(claimed.messages.len(), 1);
    settle_all(&table, &claimed, Outcome::Done).await;
    for expected in [1, 0] {
        assert_eq!(table.redrive_matching(DeadLetterFilter::default(), 10).await.expect("redrive"), expected);
    }
    assert_eq!(claim(&table, 10).await.len(), 1);
    assert_eq!(table.stats().await.expect("stats").total().n_dead, 1);
}

/// Deduplication keys stand in a table of their own, which nothing partitions.
async fn a_key_is_honoured_when_its_message_has_left(site: &Site) {
    let table = parts(site, PartitionInterval::Hour).await;
    let keyed = || Draft::new("t", "x").dedup_key("k");
    let first = table.enqueue_autocommit(keyed()).await.expect("enqueue");
    let claim = table.claim(ClaimRequest::new(1, LEASE)).await.expect("claim");
    settle_all(&table, &claim, Outcome::Done).await;
    assert_eq!(table.enqueue_autocommit(keyed()).await.expect("kept"), first);
    site.execute(&format!("UPDATE {} SET done_at = done_at - interval '2 days'", site.sql_name("parts")))
        .await;
    assert_eq!(table.prune(Prune::done(DAY)).await.expect("prune"), 1);
    assert_eq!(table.enqueue_autocommit(keyed()).await.expect("gone"), first);
    assert_eq!(table.stats().await.expect("stats").total(), TopicStats::default());
}

async fn a_dead_head_whose_id_is_in_use_stays(site: &Site) {
    let table = ordered_parts(site).await;
    let enqueue = async |draft: Draft| table.enqueue_autocommit(draft).await.expect("enqueue")[0];
    let settle = async |outcome: Outcome| {
        let claimed = table.claim(ClaimRequest::new(10, LEASE)).await.expect("claim");
        assert_eq!(claimed.messages.len(), 1);
        settle_all(&table, &claimed, outcome).await;
    };
    let release = async |head| table.release_head("a".into(), head).await.expect("release");
    let id = enqueue(Draft::new("t", "").key("a")).await;
    settle(Outcome::Dead { error: "no".into() }).await;
    enqueue(Draft::new("t", "").key("b").id(id)).await;
    assert_eq!(release(id).await, Unblocked::NotBlocking);
    settle(Outcome::Done).await;
    assert_eq!(release(id).await, Unblocked::Applied);
    settle(Outcome::Done).await;
}

async fn history_of_a_kept_message_is_found(site: &Site) {
    let table = parts(site, PartitionInterval::Day).await;
    let id = end(&table, 1, Outcome::Retry { after: Duration::ZERO, error: "first".into() }).await[0];
    let claim = table.claim(ClaimRequest::new(1, LEASE)).await.expect("claim");
    settle_all(&table, &claim, Outcome::Done).await;
    let history = table.history(id).await.expect("history");
    assert_eq!(history.iter().map(|failed| &*failed.error).collect::<Vec<_>>(), ["first"]);
}

async fn a_sample_counts_all_partitions(site: &Site) {
    let table = parts(site, PartitionInterval::Day).await;
    let name = site.sql_name("parts");
    site.execute(&format!(
        "INSERT INTO {name} (id, topic, payload, state, done_at)
         SELECT gen_random_uuid(), 't', convert_to(repeat('x', 200), 'UTF8'), 3, now() FROM generate_series(1, 60000)"
    ))
    .await;
    enqueue(&table, 10).await;
    let mut counts = BTreeSet::new();
    for _ in 0..4 {
        let stats = table.stats().await.expect("stats");
        assert!(stats.is_estimate);
        assert_eq!(stats.total().n_pending, 10);
        assert!((40_000..80_000).contains(&stats.total().n_done), "{}", stats.total().n_done);
        counts.insert(stats.total().n_done);
    }
    assert!(counts.len() > 1, "all was read: {counts:?}");
}

/// The whole declaration is written down and compared.
async fn a_difference_of_intervals_is_named(site: &Site) {
    let table = parts(site, PartitionInterval::Day).await;
    table.check().await.expect("check");
    table.migrate().await.expect("once more");
    let other = OutboxTable::new(&site.db, site.name("parts")).partitioned(PartitionInterval::Hour);
    let error = other.check().await.expect_err("differs").to_string();
    let theirs = "but the table was made \"partitioned by the day\"";
    assert!(error.contains(&format!("declared \"partitioned by the hour\" here, {theirs}")), "{error}");
}

async fn a_partition_that_is_gone_is_named(site: &Site) {
    let table = parts(site, PartitionInterval::Day).await;
    let name = site.sql_name("parts");
    site.execute(&format!("ALTER TABLE {name} DETACH PARTITION {name}_dead_all")).await;
    let error = table.check().await.expect_err("gone").to_string();
    assert!(error.contains("partition parts_dead_all is missing"), "{error}");
}

/// Other databases have none.
async fn refused(table: OutboxTable) {
    let table = table.partitioned(PartitionInterval::Day);
    for error in [
        table.migrate().await.expect_err("migrate"),
        table.check().await.expect_err("check"),
        table.maintain(Maintenance::new()).await.expect_err("maintain"),
        table.enqueue_autocommit([Draft::new("t", "x")]).await.expect_err("enqueue"),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
}

async fn partitions_are_refused(site: &Site) {
    refused(OutboxTable::new(&site.db, site.name("parts"))).await;
}

#[tokio::test]
async fn memory_refuses_partitions() {
    let memory = MemoryRepository::new().declared(Declaration::new().partitioned(PartitionInterval::Day));
    let error = memory.claim(ClaimRequest::new(1, LEASE)).await.expect_err("claim");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// docs/upgrading.md has these statements.
async fn a_plain_table_becomes_a_partitioned_one(site: &Site) {
    let guide = include_str!("../../../docs/upgrading.md");
    let steps: Vec<&str> =
        guide.split("```sql").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let [before, after] = ["SET SCHEMA", "setval"].map(|word| {
        let step = steps.iter().find(|step| step.contains(word)).expect("a step");
        step.replace("\"orders\"", site.schema()).replace("\"before\"", &format!("{}_before", site.schema()))
    });
    let plain = OutboxTable::new(&site.db, site.name("outbox")).with_retention(outbox_core::Retention::Keep);
    end(&plain, 3, Outcome::Done).await;
    end(&plain, 2, Outcome::Dead { error: "no".into() }).await;
    let waiting = enqueue(&plain, 3).await;
    let keyed = || Draft::new("t", "x").dedup_key("k");
    let waiting = [waiting, plain.enqueue_autocommit(keyed()).await.expect("enqueue")].concat();
    site.execute(&before).await;
    let table = OutboxTable::new(&site.db, site.name("outbox")).partitioned(PartitionInterval::Day);
    table.migrate().await.expect("migrate");
    site.execute(&after).await;
    table.check().await.expect("check");
    let total = table.stats().await.expect("stats").total();
    assert_eq!((total.n_pending, total.n_dead, total.n_done), (4, 2, 3));
    assert_eq!(table.enqueue_autocommit(keyed()).await.expect("a repeat"), waiting[3..]);
    let new = enqueue(&table, 1).await;
    let claimed: Vec<_> = claim(&table, 10).await.iter().map(|claimed| claimed.message.id).collect();
    assert_eq!(claimed, [waiting, new].concat());
}

on_postgres! {
    a_message_is_where_its_state_is, claims_are_heap_only_updates, dead_letters_of_one_id_come_back_one_by_one,
    a_key_is_honoured_when_its_message_has_left, a_dead_head_whose_id_is_in_use_stays, history_of_a_kept_message_is_found, a_sample_counts_all_partitions, a_difference_of_intervals_is_named,
    a_partition_that_is_gone_is_named, a_plain_table_becomes_a_partitioned_one
}

on_sqlite! { partitions_are_refused }

on_mysql! { partitions_are_refused }
