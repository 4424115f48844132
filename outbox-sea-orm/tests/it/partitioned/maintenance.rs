//! Partitions that are made ahead and dropped when their time is over.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures_util::future::join_all;
use outbox_core::{Partition, Prune};
use sea_orm::{ConnectionTrait, TransactionTrait};

use super::*;

/// Sessions whose days begin elsewhere, and whose times are written by abbreviations that the server reads otherwise:
/// IST as Israel's, CST as Chicago's.
const SESSIONS: [[(&str, &str); 2]; 3] = [
    [("TimeZone", "Asia/Kolkata"), ("DateStyle", "SQL, DMY")],
    [("TimeZone", "Asia/Shanghai"), ("DateStyle", "German")],
    [("TimeZone", "Pacific/Kiritimati"), ("DateStyle", "Postgres, MDY")],
];

fn names(partitions: &[Partition]) -> Vec<&str> {
    partitions.iter().map(|partition| &*partition.name).collect()
}

/// What the partitions should be called, from the current one on.
async fn expected(site: &Site, interval: PartitionInterval, n: u32) -> Vec<String> {
    let unit = interval.as_str();
    site.values(&format!(
        "SELECT to_char(date_trunc('{unit}', now() AT TIME ZONE 'UTC') + n * interval '1 {unit}', '\"parts_done\"YYYYMMDDHH24')
           FROM generate_series(0, {n}) AS n ORDER BY n"
    ))
    .await
}

async fn partitions_are_made_ahead_whatever_the_session(site: &Site) {
    let table = parts(site, PartitionInterval::Hour).await;
    let made = table.maintain(Maintenance::new().with_ahead(4).dry_run()).await.expect("dry run").created;
    assert_eq!(made.len(), 1, "migrate made the current one and three ahead: {made:?}");
    for (interval, settings) in INTERVALS.into_iter().zip(SESSIONS.iter().cycle()) {
        site.execute(&format!("DROP TABLE {}", site.sql_name("parts"))).await;
        let db = site.connect(Pool { settings, ..Pool::of(2) }).await;
        let table = OutboxTable::new(&db, site.name("parts")).partitioned(interval);
        table.migrate().await.expect("migrate");
        let ahead = table.maintain(Maintenance::new().with_ahead(5)).await.expect("maintain").created;
        let expected = expected(site, interval, 5).await;
        assert_eq!(names(&ahead), expected[4..], "{interval:?}");
        assert!(ahead[0].ends_at == ahead[1].starts_at && ahead[0].starts_at < ahead[0].ends_at);
        assert_eq!(
            table.maintain(Maintenance::new().with_ahead(5)).await.expect("again"),
            Default::default()
        );
        end(&table, 1, Outcome::Done).await;
        assert_eq!(places(site, "state = 3").await, [&expected[0]["parts_".len()..]], "{interval:?}");
        assert_eq!(found(&table).await, []);
        let bound = format!(
            "SELECT count(*) FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent = '{}_done_all'::regclass
                AND set_config('TimeZone', 'UTC', false) <> '' AND set_config('DateStyle', 'ISO', false) <> ''
                AND pg_get_expr(c.relpartbound, c.oid) ~ 'FROM \\(''[-0-9]+ [0-9]+:00:00\\+00''\\) TO \\(''[-0-9]+ [0-9]+:00:00\\+00''\\)'",
            site.sql_name("parts")
        );
        assert_eq!(site.value::<i64>(&bound).await, 6, "{interval:?}");
    }
}

async fn several_processes_maintain_at_once(site: &Site) {
    let table = parts(site, PartitionInterval::Hour).await;
    for hours_ago in [30, 40, 50] {
        old_partition(site, hours_ago, 10).await;
    }
    let maintain = async || {
        let db = site.connect(Pool::of(1)).await;
        let table = OutboxTable::new(&db, site.name("parts")).partitioned(PartitionInterval::Hour);
        table.maintain(Maintenance::new().with_ahead(10).drop_after(DAY)).await.expect("maintain")
    };
    let done = join_all((0..6).map(|_| maintain())).await;
    let n_created: usize = done.iter().map(|done| done.created.len()).sum();
    let dropped: BTreeSet<_> = done.iter().flat_map(|done| names(&done.dropped)).collect();
    assert_eq!((n_created, dropped.len()), (7, 3));
    assert_eq!(done.iter().map(|done| done.dropped.len()).sum::<usize>(), 3, "each once");
    assert_eq!(n_done(&table).await, 0);
}

/// No partition for the time of a delivery: it is settled all the same, and the next interval is in order.
async fn a_late_run_breaks_no_settlement(site: &Site) {
    let table = OutboxTable::new(&site.db, site.name("parts")).partitioned(PartitionInterval::Hour);
    site.execute(&table.ddl().expect("ddl")).await;
    let findings = found(&table).await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].what.contains("no partition is made"), "{findings:?}");
    end(&table, 3, Outcome::Done).await;
    assert_eq!(places(site, "state = 3").await, ["done_rest"]);
    let findings = found(&table).await;
    assert!(findings[1].what.contains("fits nowhere else") && findings[1].severity == Severity::Warning);
    let made = table.maintain(Maintenance::new().with_ahead(3)).await.expect("maintain").created;
    let expected = expected(site, PartitionInterval::Hour, 3).await;
    assert!(expected.ends_with(&names(&made).iter().map(ToString::to_string).collect::<Vec<_>>()));
    assert_eq!(made.len(), 3, "the current interval stays in the rest");
    end(&table, 2, Outcome::Done).await;
    assert_eq!(places(site, "state = 3").await, ["done_rest"]);
    assert_eq!(table.prune(Prune::done(Duration::ZERO).dry_run()).await.expect("count"), 5);
    assert_eq!(table.prune(Prune::done(Duration::ZERO)).await.expect("prune"), 5, "row by row");
    assert_eq!(found(&table).await, []);
    assert_eq!(
        table.maintain(Maintenance::new()).await.expect("again").created.len(),
        1,
        "now it can be made"
    );
}

async fn only_what_is_finished_and_old_is_dropped(site: &Site) {
    let table = parts(site, PartitionInterval::Hour).await;
    for (hours_ago, n) in [(50, 2_000), (49, 0), (3, 20)] {
        old_partition(site, hours_ago, n).await;
    }
    let name = site.sql_name("parts");
    site.execute(&format!(
        "CREATE TABLE {}.mine PARTITION OF {name}_done_all FOR VALUES FROM ('2000-01-01Z') TO ('2000-01-02Z')",
        site.schema()
    ))
    .await;
    end(&table, 4, Outcome::Dead { error: "no".into() }).await;
    enqueue(&table, 4).await;
    claim(&table, 2).await;
    site.execute(&format!(
        "UPDATE {name} SET created_at = created_at - interval '10 years', dead_at = dead_at - interval '10 years' WHERE state < 3"
    ))
    .await;
    let aged = Maintenance::new().drop_after(DAY);
    let told = table.maintain(aged.clone().dry_run()).await.expect("dry run");
    assert_eq!(told.dropped.len(), 2);
    assert_eq!(n_done(&table).await, 2_020, "it was a dry run");
    let maintained = table.maintain(aged.clone()).await.expect("maintain");
    assert_eq!(maintained, told);
    assert_eq!(table.maintain(aged).await.expect("again"), Default::default());
    let total = table.stats().await.expect("stats").total();
    assert_eq!((total.n_pending + total.n_claimed, total.n_dead, total.n_done), (4, 4, 20));
    site.count("mine").await;
}

async fn prune_drops_whole_partitions_where_it_can(site: &Site) {
    let table = parts(site, PartitionInterval::Hour).await;
    for (hours_ago, n) in [(50, 1_500), (40, 300), (30, 400)] {
        old_partition(site, hours_ago, n).await;
    }
    let name = site.sql_name("parts");
    site.execute(&format!(
        "INSERT INTO {name} (id, topic, payload, state, done_at)
         SELECT gen_random_uuid(), 't', '', 3, now() - interval '20 days' FROM generate_series(1, 500)"
    ))
    .await;
    end(&table, 5, Outcome::Done).await;
    let prune = || Prune::done(DAY);
    for expected in [1_500, 1_000, 200, 0] {
        assert_eq!(table.prune(prune().dry_run()).await.expect("count"), expected);
        assert_eq!(table.prune(prune()).await.expect("prune"), expected);
    }
    let left = format!("SELECT count(*) FROM pg_inherits WHERE inhparent = '{name}_done_all'::regclass");
    assert_eq!(site.value::<i64>(&left).await, 5, "the rest, the current one, three ahead");
    assert_eq!(n_done(&table).await, 5);
}

/// A place is unique within a partition only: the rows of all three have the same ones.
async fn rows_at_the_same_place_of_other_partitions_stay(site: &Site) {
    let table = parts(site, PartitionInterval::Hour).await;
    for hours_ago in [2, 3, 4] {
        old_partition(site, hours_ago, 10).await;
    }
    // in the middle of the oldest one, which is not over by then
    let sql = "SELECT extract(epoch FROM now() - date_trunc('hour', now(), 'UTC') + interval '3 hours 20 minutes')::bigint";
    let age = Duration::from_secs(site.value::<i64>(sql).await.unsigned_abs());
    assert_eq!(table.prune(Prune::done(age).with_limit(4)).await.expect("prune"), 4);
    let name = site.sql_name("parts");
    let left = format!("SELECT count(*) FROM {name} WHERE state = 3 GROUP BY tableoid ORDER BY 1");
    assert_eq!(site.values::<i64>(&left).await, [6, 10, 10]);
    assert_eq!(table.prune(Prune::done(age).dry_run()).await.expect("count"), 6);
}

/// Who reads delivered messages for long holds maintenance up, not settlements, and not for long.
async fn maintenance_gives_up_where_it_would_hold_others_up(site: &Site) {
    let table = parts(site, PartitionInterval::Hour).await;
    old_partition(site, 50, 10).await;
    let reader = site.db.begin().await.expect("begin");
    let name = site.sql_name("parts");
    reader.execute_unprepared(&format!("SELECT count(*) FROM {name}")).await.expect("read");
    let aged = Maintenance::new().drop_after(DAY);
    let error = table.maintain(aged.clone()).await.expect_err("held up");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Timeout, true), "{error}");
    end(&table, 1, Outcome::Done).await;
    reader.rollback().await.expect("end");
    assert_eq!(table.maintain(aged).await.expect("maintain").dropped.len(), 1);
}

/// Three processes maintain a table that is held up for longer than one waits: the second in the queue goes on when the
/// table is free, and another table's maintenance waits for none of them.
async fn maintenance_waits_for_its_turn_at_its_own_table(site: &Site) {
    let table = parts(site, PartitionInterval::Hour).await;
    old_partition(site, 50, 10).await;
    let reader = site.db.begin().await.expect("begin");
    let name = site.sql_name("parts");
    reader.execute_unprepared(&format!("SELECT count(*) FROM {name}")).await.expect("read");
    let n_ended = AtomicUsize::new(0);
    let maintain = async || {
        let db = site.connect(Pool::of(1)).await;
        let table = OutboxTable::new(&db, site.name("parts")).partitioned(PartitionInterval::Hour);
        let maintained = table.maintain(Maintenance::new().drop_after(DAY)).await;
        n_ended.fetch_add(1, Relaxed);
        maintained
    };
    let others = async {
        let db = site.connect(Pool { settings: &[("statement_timeout", "1s")], ..Pool::of(1) }).await;
        let table = OutboxTable::new(&db, site.name("others")).partitioned(PartitionInterval::Hour);
        let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                       AND pid IN (SELECT pid FROM pg_stat_activity WHERE application_name LIKE '{}%'))";
        eventually("two wait for their turn", async || site.value(&waits.replace("{}", site.schema())).await)
            .await;
        table.migrate().await.expect("migrate");
        table.prune(Prune::done(DAY)).await.expect("prune");
    };
    let ends = async {
        eventually("the first gives up", async || n_ended.load(Relaxed) > 0).await;
        // the third has waited as long
        tokio::time::sleep(Duration::from_millis(500)).await;
        reader.rollback().await.expect("end");
    };
    let (done, (), ()) = tokio::join!(join_all((0..3).map(|_| maintain())), others, ends);
    let n_failed = done.iter().filter(|done| done.is_err()).count();
    assert!(n_failed <= 1, "only the first waits in vain: {done:?}");
    assert_eq!(table.maintain(Maintenance::new().drop_after(DAY)).await.expect("again").dropped, []);
}

async fn out_of_bounds_is_refused(site: &Site) {
    let table = parts(site, PartitionInterval::Hour).await;
    for (maintenance, field) in [
        (Maintenance::new().with_ahead(101), "n_ahead"),
        (Maintenance::new().drop_after(Duration::MAX), "drop_after"),
    ] {
        let error = table.maintain(maintenance).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(field), "{error}");
    }
    let error = site.outbox.maintain(Maintenance::new()).await.expect_err("plain");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

on_postgres! {
    partitions_are_made_ahead_whatever_the_session, several_processes_maintain_at_once, a_late_run_breaks_no_settlement,
    only_what_is_finished_and_old_is_dropped, prune_drops_whole_partitions_where_it_can,
    rows_at_the_same_place_of_other_partitions_stay, maintenance_gives_up_where_it_would_hold_others_up,
    maintenance_waits_for_its_turn_at_its_own_table, out_of_bounds_is_refused
}
