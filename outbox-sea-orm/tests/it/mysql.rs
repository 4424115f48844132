//! What only MySQL and MariaDB have.

mod doctor;
mod plans;
mod tables;

use std::time::Duration;

use outbox_core::{
    ClaimRequest, Claimer, Draft, ErrorKind, Fairness, Limits, Mark, Marked, Operations, Outcome,
    ProcessedStore, Repository, Settlement,
};
use outbox_sea_orm::{OutboxTable, ProcessedTable, transactor};
use outbox_testkit::server::{Settings, private};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};
use uuid::Uuid;

use crate::support::{LEASE, Pool, Site, mysql_user, mysql_user_name, on_mysql};

/// Seconds from the server's now to a time in nanoseconds since 1970.
async fn seconds_to(site: &Site, nanoseconds: &str) -> f64 {
    let now = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))";
    let sql = format!("SELECT ({nanoseconds} DIV 1000 - {now}) / 1e6 FROM {}", site.sql_name("outbox"));
    site.value(&sql).await
}

async fn now(site: &Site) -> chrono::DateTime<chrono::Utc> {
    site.value("SELECT UTC_TIMESTAMP(6)").await
}

fn assert_about(seconds: f64, expected: f64) {
    assert!((seconds - expected).abs() < 30.0, "{seconds} instead of {expected}");
}

async fn the_time_zone_of_a_session_changes_nothing(site: &Site) {
    let hour = Duration::from_secs(3_600);
    let outbox_table = site.sql_name("outbox");
    for zone in ["+00:00", "+09:00", "-05:00", "+13:00"] {
        site.execute(&format!("DELETE FROM {outbox_table}")).await;
        let db = site.connect(Pool { settings: &[("timezone", zone)], ..Pool::of(2) }).await;
        let outbox = OutboxTable::new(&db, site.name("outbox"));
        outbox.enqueue_autocommit([Draft::new("t", "").delay(hour)]).await.expect("enqueue");
        assert_about(seconds_to(site, "due").await, 3_600.0);
        assert!(outbox.claim(ClaimRequest::new(1, hour)).await.expect("claim").is_empty());
        site.execute(&format!("UPDATE {outbox_table} SET due = due - 3600000000000")).await;
        let claim = outbox.claim(ClaimRequest::new(1, hour)).await.expect("claim");
        assert_about(seconds_to(site, "due").await, 3_600.0);
        let age = now(site).await - claim.messages[0].message.created_at;
        assert_about(age.as_seconds_f64(), 0.0);
        let retry = Outcome::Retry { after: hour, error: String::new() };
        let _ = outbox.settle(vec![Settlement::new(claim.messages[0].lease, retry)]).await.expect("settle");
        assert_about(seconds_to(site, "due").await, 3_600.0);
        assert!(outbox.stats().await.expect("stats").total().oldest_due.is_none());
        the_record_in(site, &db).await;
    }
}

async fn the_record_in(site: &Site, db: &sea_orm::DatabaseConnection) {
    let inbox = ProcessedTable::new(db, site.name("inbox"));
    let id = Uuid::now_v7();
    let mark =
        async || transactor(db).run(async |cx| inbox.mark_processed(cx, Mark::new("g", id)).await).await;
    assert_eq!(mark().await.expect("mark"), Marked::First);
    let Marked::Duplicate(record) = mark().await.expect("mark") else { panic!("marked twice") };
    assert_about((now(site).await - record.processed_at).as_seconds_f64(), 0.0);
    assert_eq!(inbox.purge_before("g", Duration::from_secs(60), 10).await.expect("purge"), 0, "too young");
    assert_eq!(inbox.purge_before("g", Duration::ZERO, 10).await.expect("purge"), 1);
}

async fn a_call_larger_than_a_packet_is_several_statements(site: &Site) {
    let drafts: Vec<Draft> = (0..20).map(|n| Draft::new("t", vec![n; 1_000_000])).collect();
    let ids = site.outbox.enqueue_autocommit(drafts).await.expect("enqueue");
    let mut found = Vec::new();
    while found.len() < ids.len() {
        let claim = site.claim(7).await;
        for claimed in claim.messages {
            assert_eq!(claimed.message.payload.len(), 1_000_000);
            assert!(claimed.message.payload.iter().all(|byte| usize::from(*byte) == found.len()));
            found.push(claimed.message.id);
        }
    }
    assert_eq!(found, ids);
}

async fn a_message_larger_than_a_packet_is_refused_before_it_is_sent(site: &Site) {
    let packet: i64 = site.value("SELECT CAST(@@max_allowed_packet AS SIGNED)").await;
    let large = usize::try_from(packet).expect("a size");
    let outbox = site.outbox.clone().with_limits(Limits::default().with_max_payload(2 * large));
    transactor(&site.db)
        .run(async |cx| {
            outbox.enqueue(cx, Draft::new("t", "before")).await?;
            let error = outbox.enqueue(cx, Draft::new("t", vec![0; large])).await.expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let text = error.to_string();
            assert!(text.contains(&format!("the server's max_allowed_packet is {packet}")), "{text}");
            outbox.enqueue(cx, Draft::new("t", "after")).await.map(drop)
        })
        .await
        .expect("the transaction goes on");
    assert_eq!(site.count("outbox").await, 2);
}

async fn a_space_at_the_end_makes_another_name(site: &Site) {
    let drafts = vec![Draft::new("t", "").key("k"), Draft::new("t ", "").key("k ")];
    let ids = site.outbox.enqueue_autocommit(drafts).await.expect("enqueue");
    assert_eq!(site.outbox.stats().await.expect("stats").topics.len(), 2);
    let claim = site.outbox.claim(ClaimRequest::new(10, LEASE).with_topics(["t "])).await.expect("claim");
    assert_eq!(claim.messages.iter().map(|claimed| claimed.message.id).collect::<Vec<_>>(), ids[1..]);
    assert_eq!(claim.messages[0].message.key.as_deref(), Some("k "));
    for group in ["g", "g "] {
        let mark = Mark::new(group, ids[0]);
        let marked = transactor(&site.db).run(async |cx| site.inbox.mark_processed(cx, mark).await).await;
        assert_eq!(marked.expect("marked"), Marked::First, "{group:?}");
    }
}

/// An index entry has room for the beginning of a long header only.
async fn a_long_header_counts_up_to_its_255th_character(site: &Site) {
    let outbox = OutboxTable::new(&site.db, site.name("declared")).fair(Fairness::Header("tenant".into()));
    outbox.migrate().await.expect("migrate");
    let long = "ä".repeat(2_000);
    let from = |tenant: &str| Draft::new("😀".repeat(63), "").header("tenant", tenant);
    let loud: Vec<_> = (0..300).map(|n| from(&format!("{long}{n}"))).collect();
    outbox.enqueue_autocommit(loud).await.expect("enqueue");
    let other = outbox.enqueue_autocommit(from("acme")).await.expect("enqueue")[0];
    let claimer = Claimer::new();
    let mut found = Vec::new();
    while found.len() < 301 {
        let request = ClaimRequest::new(100, LEASE).with_claimer(claimer.clone());
        let claim = outbox.claim(request).await.expect("claim");
        assert!(!claim.is_empty(), "{} were found", found.len());
        found.extend(claim.messages.iter().map(|claimed| claimed.message.id));
    }
    assert!(found[..200].contains(&other));
}

/// A first claim of ten reads 200 rows: of the second lane two are among them.
async fn a_lane_at_the_end_of_a_page_has_its_share(site: &Site) {
    let outbox = OutboxTable::new(&site.db, site.name("declared")).fair(Fairness::Key);
    outbox.migrate().await.expect("migrate");
    for (key, n) in [("a", 198), ("b", 300), ("c", 300)] {
        let drafts: Vec<_> = (0..n).map(|_| Draft::new("t", "").key(key)).collect();
        outbox.enqueue_autocommit(drafts).await.expect("enqueue");
    }
    let claim = outbox.claim(ClaimRequest::new(10, LEASE)).await.expect("claim");
    let n_of =
        |key| claim.messages.iter().filter(|claimed| claimed.message.key.as_deref() == Some(key)).count();
    assert_eq!([n_of("a"), n_of("b"), n_of("c")], [4, 3, 3]);
}

/// A connection of a new user with this privilege on the outbox.
async fn as_user(site: &Site, privilege: &str) -> DatabaseConnection {
    let privilege = format!("{privilege} ON {}.*", site.schema());
    let url = mysql_user(&site.url(), mysql_user_name(site.schema()), &privilege).await;
    let (server, _) = url.rsplit_once('/').expect("a database in the URL");
    Database::connect(ConnectOptions::new(format!("{server}/{}", site.schema()))).await.expect("connect")
}

async fn a_producer_needs_insert_only(site: &Site) {
    let db = as_user(site, "INSERT").await;
    let outbox = OutboxTable::new(&db, site.name("outbox"));
    let id = outbox.enqueue_autocommit([Draft::new("t", "")]).await.expect("enqueue")[0];
    let error = outbox.enqueue_autocommit([Draft::new("t", "").id(id)]).await.expect_err("there already");
    assert_eq!(error.kind(), ErrorKind::AlreadyEnqueued);
    let error = outbox.claim(ClaimRequest::new(1, LEASE)).await.expect_err("refused");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::PermissionDenied, false));
}

/// Duplicates that are not of the id are no repeat of a message, and the server's text on them repeats what is stored.
async fn another_unique_key_is_somebody_elses(site: &Site) {
    let outbox = site.sql_name("outbox");
    site.execute(&format!("CREATE UNIQUE INDEX of_somebody ON {outbox} (headers(64))")).await;
    let draft = || Draft::new("t", "").header("authorization", "S3CR3T");
    let error = site.outbox.enqueue_autocommit([draft(), draft()]).await.expect_err("refused");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Other, false));
    let source = std::error::Error::source(&error).map(ToString::to_string);
    assert!(!format!("{error} {error:?} {source:?}").contains("S3CR3T"), "{error:?}");
    assert!(error.to_string().contains("1062"), "{error}");
}

async fn a_lock_wait_that_ends_is_a_timeout(site: &Site) {
    let id = site.enqueue("t", 1).await[0];
    let holder = sea_orm::TransactionTrait::begin(&site.db).await.expect("begin");
    let lock = format!("SELECT seq FROM {} FOR UPDATE", site.sql_name("outbox"));
    holder.execute_unprepared(&lock).await.expect("lock");
    let result = transactor(&site.db)
        .run(async |cx| {
            use outbox_sea_orm::SeaOrmContext;
            let connection = cx.connection()?;
            connection.execute_unprepared("SET SESSION innodb_lock_wait_timeout = 1").await.expect("set");
            site.outbox.enqueue(cx, Draft::new("t", "").id(id)).await
        })
        .await;
    let error = result.expect_err("locked");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Timeout, true), "{error:?}");
}

async fn an_index_that_is_missing_is_an_error_of_the_schema(site: &Site) {
    site.execute(&format!("ALTER TABLE {} DROP INDEX outbox_agenda", site.sql_name("outbox"))).await;
    let error = site.outbox.claim(ClaimRequest::new(1, LEASE)).await.expect_err("no index");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Schema, false), "{error:?}");
    assert!(error.to_string().contains("apply schema.sql"), "{error}");
}

/// On a server of its own, for these settings are everybody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_refuses_for_a_while_is_retryable_on_mysql() {
    let Ok(server) = private(Settings::for_mysql_tests().with("max_connections", "10")).await else { return };
    let site = Site::mysql_at(server.url()).await;
    let producer = OutboxTable::new(&as_user(&site, "INSERT").await, site.name("outbox"));
    site.execute("SET GLOBAL read_only = 1").await;
    let error = producer.enqueue_autocommit([Draft::new("t", "")]).await.expect_err("refused");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::ReadOnly, true), "{error:?}");
    site.execute("SET GLOBAL read_only = 0").await;
    producer.enqueue_autocommit([Draft::new("t", "")]).await.expect("as before");

    site.execute("SET GLOBAL max_connections = 10").await;
    let mut held = Vec::new();
    let full = loop {
        match Database::connect(ConnectOptions::new(site.url())).await {
            Ok(db) => held.push(db),
            Err(error) => break error,
        }
        assert!(held.len() <= 20, "more connections than there may be");
    };
    assert!(full.to_string().contains("Too many connections"), "{full}");
    let error = site.outbox.claim(ClaimRequest::new(1, LEASE)).await.expect_err("no connection is free");
    assert!(error.is_retryable(), "{error:?}");
    drop(held);
    crate::support::eventually("claims go on", async || {
        site.outbox.claim(ClaimRequest::new(1, LEASE)).await.is_ok_and(|claim| claim.messages.len() == 1)
    })
    .await;
}

on_mysql! {
    an_index_that_is_missing_is_an_error_of_the_schema,
    the_time_zone_of_a_session_changes_nothing,
    a_call_larger_than_a_packet_is_several_statements,
    a_message_larger_than_a_packet_is_refused_before_it_is_sent,
    a_space_at_the_end_makes_another_name,
    a_long_header_counts_up_to_its_255th_character,
    a_lane_at_the_end_of_a_page_has_its_share,
    a_producer_needs_insert_only,
    another_unique_key_is_somebody_elses,
    a_lock_wait_that_ends_is_a_timeout,
}
