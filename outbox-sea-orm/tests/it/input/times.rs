//! Times at the edges, and what the clock of the session cannot change.

use std::time::Duration;

use outbox_core::{
    DeadLetterQuery, Draft, MAX_DELAY, Mark, Marked, Operations, Outcome, ProcessedStore, Repository,
    Settlement,
};
use outbox_sea_orm::{OutboxTable, ProcessedTable, transactor};
use sea_orm::ConnectionTrait;
use uuid::Uuid;

use crate::support::{LEASE, Pool, Site, on_postgres, settle_all};

/// The driver cannot read them and panics; a script of somebody's may have written them.
const UNREADABLE: [&str; 4] = ["infinity", "-infinity", "294276-01-01Z", "4713-01-01Z BC"];

async fn unreadable_times_stop_nobody(site: &Site) {
    let outbox = site.sql_name("outbox");
    for time in UNREADABLE {
        for set in [
            format!("created_at = '{time}'"),
            format!("state = 1, available_at = '{time}'"),
            format!("lease = gen_random_uuid(), leased_until = '{time}'"),
            format!("state = 2, dead_at = '{time}'"),
            format!("state = 2, created_at = '{time}'"),
        ] {
            let ids = site.enqueue("t", 2).await;
            site.execute(&format!("UPDATE {outbox} SET {set} WHERE id = '{}'", ids[0])).await;
            site.outbox.stats().await.expect("stats");
            let letters = site.outbox.dead_letters(DeadLetterQuery::new(10)).await.expect("list").letters;
            assert_eq!(letters.len(), usize::from(set.contains("state = 2")), "{set}");
            assert!(site.drain().await.contains(&ids[1]), "{set}");
            assert!(site.claim(10).await.next_due_in.is_none_or(|due| due > LEASE), "{set}");
            site.execute(&format!("DELETE FROM {outbox}")).await;
        }
    }
}

async fn an_unreadable_time_cannot_be_stored_in_the_inbox(site: &Site) {
    let mark = Mark::new("g", Uuid::now_v7());
    let _ =
        transactor(&site.db).run(async |cx| site.inbox.mark_processed(cx, mark).await).await.expect("mark");
    for time in UNREADABLE {
        let update = format!("UPDATE {} SET processed_at = '{time}'", site.sql_name("inbox"));
        let refused = site.db.execute_unprepared(&update).await;
        let text = refused.expect_err("must be refused").to_string();
        assert!(text.contains("_times"), "{update}: {text}");
    }
}

async fn rows_of_the_year_9999_are_rows(site: &Site) {
    let last = "'9999-12-30 23:59:59.999999Z'";
    let ids = site.enqueue("t", 3).await;
    let (outbox, inbox) = (site.sql_name("outbox"), site.sql_name("inbox"));
    site.execute(&format!("UPDATE {outbox} SET created_at = {last}")).await;
    let claim = site.claim(3).await;
    assert_eq!(claim.messages.len(), 3);
    assert!(claim.messages.iter().all(|claimed| claimed.message.created_at.to_rfc3339().starts_with("9999")));
    settle_all(&site.outbox, &claim, Outcome::Dead { error: String::new() }).await;
    site.execute(&format!("UPDATE {outbox} SET dead_at = {last} WHERE id = '{}'", ids[0])).await;
    assert_eq!(site.outbox.dead_letters(DeadLetterQuery::new(10)).await.expect("list").letters.len(), 3);
    let set = format!("SET state = 1, dead_at = NULL, available_at = {last} WHERE id = '{}'", ids[1]);
    site.execute(&format!("UPDATE {outbox} {set}")).await;
    assert!(site.claim(10).await.is_empty(), "not due for a while");
    site.outbox.stats().await.expect("stats");

    let mark = || Mark::new("g", ids[0]);
    let tx = transactor(&site.db);
    let _ = tx.run(async |cx| site.inbox.mark_processed(cx, mark()).await).await.expect("mark");
    site.execute(&format!("UPDATE {inbox} SET processed_at = {last}")).await;
    let again = tx.run(async |cx| site.inbox.mark_processed(cx, mark()).await).await.expect("mark");
    assert!(
        matches!(again, Marked::Duplicate(record) if record.processed_at.to_rfc3339().starts_with("9999"))
    );
    assert_eq!(site.inbox.purge_before("g", Duration::ZERO, 10).await.expect("purge"), 0);
}

async fn the_longest_delay_is_a_delay(site: &Site) {
    site.outbox.enqueue_autocommit([Draft::new("t", "").delay(MAX_DELAY)]).await.expect("enqueue");
    assert!(site.claim(1).await.is_empty());
    site.enqueue("t", 1).await;
    let claim = site.claim(1).await;
    let retry = Outcome::Retry { after: MAX_DELAY, error: String::new() };
    settle_all(&site.outbox, &claim, retry).await;
    let days = format!(
        "SELECT min(extract(epoch FROM available_at - created_at) / 86400)::float8 FROM {}",
        site.sql_name("outbox")
    );
    assert!((site.value::<f64>(&days).await - 3_650.0).abs() < 1.0);
}

/// Seconds from the database's now to an expression, all sessions being told the zone of the caller.
async fn seconds_from_now(site: &Site, expression: &str) -> f64 {
    let outbox = site.sql_name("outbox");
    let sql = format!("SELECT extract(epoch FROM {expression} - clock_timestamp())::float8 FROM {outbox}");
    site.value(&sql).await
}

fn assert_about(seconds: f64, expected: f64) {
    assert!((seconds - expected).abs() < 30.0, "{seconds} instead of {expected}");
}

async fn the_session_in(site: &Site, zone: &str) {
    site.execute(&format!("DELETE FROM {}", site.sql_name("outbox"))).await;
    let db = site.connect(Pool { settings: &[("timezone", zone)], ..Pool::of(2) }).await;
    let outbox = OutboxTable::new(&db, site.name("outbox"));
    let hour = Duration::from_secs(3_600);
    outbox.enqueue_autocommit([Draft::new("t", "").delay(hour)]).await.expect("enqueue");
    assert_about(seconds_from_now(site, "created_at").await, 0.0);
    assert_about(seconds_from_now(site, "available_at").await, 3_600.0);
    assert!(outbox.claim(outbox_core::ClaimRequest::new(1, hour)).await.expect("claim").is_empty());

    site.execute(&format!("UPDATE {} SET available_at = now()", site.sql_name("outbox"))).await;
    let claim = outbox.claim(outbox_core::ClaimRequest::new(1, hour)).await.expect("claim");
    let age = seconds_of(site, &claim.messages[0].message.created_at.to_rfc3339()).await;
    assert_about(age, 0.0);
    assert_about(seconds_from_now(site, "leased_until").await, 3_600.0);
    let _ = outbox.extend(vec![claim.messages[0].lease], 2 * hour).await.expect("extend");
    assert_about(seconds_from_now(site, "leased_until").await, 7_200.0);

    let retry = Outcome::Retry { after: hour, error: String::new() };
    let _ = outbox.settle(vec![Settlement::new(claim.messages[0].lease, retry)]).await.expect("settle");
    assert_about(seconds_from_now(site, "available_at").await, 3_600.0);
    assert!(outbox.stats().await.expect("stats").total().oldest_due.is_none());
    the_record_in(site, &db).await;
}

async fn the_record_in(site: &Site, db: &sea_orm::DatabaseConnection) {
    let inbox = ProcessedTable::new(db, site.name("inbox"));
    let id = Uuid::now_v7();
    let mark =
        async || transactor(db).run(async |cx| inbox.mark_processed(cx, Mark::new("g", id)).await).await;
    assert_eq!(mark().await.expect("mark"), Marked::First);
    let Marked::Duplicate(record) = mark().await.expect("mark") else { panic!("marked twice") };
    assert_about(seconds_of(site, &record.processed_at.to_rfc3339()).await, 0.0);
    assert_eq!(inbox.purge_before("g", Duration::from_secs(60), 10).await.expect("purge"), 0, "too young");
    assert_eq!(inbox.purge_before("g", Duration::ZERO, 10).await.expect("purge"), 1);
}

/// Seconds from the database's now to a time that we were told.
async fn seconds_of(site: &Site, time: &str) -> f64 {
    site.value(&format!("SELECT extract(epoch FROM '{time}'::timestamptz - clock_timestamp())::float8")).await
}

async fn the_time_zone_of_a_session_changes_nothing(site: &Site) {
    for zone in ["UTC", "Asia/Tokyo", "America/New_York", "Pacific/Kiritimati"] {
        the_session_in(site, zone).await;
    }
}

async fn a_lease_is_measured_by_the_database(site: &Site) {
    site.enqueue("t", 1).await;
    let claim = site.claim(1).await;
    assert_about(seconds_from_now(site, "leased_until").await, LEASE.as_secs_f64());
    site.expire_leases().await;
    assert_eq!(site.claim(1).await.messages[0].message.attempt, claim.messages[0].message.attempt + 1);
}

on_postgres! {
    unreadable_times_stop_nobody,
    an_unreadable_time_cannot_be_stored_in_the_inbox,
    rows_of_the_year_9999_are_rows,
    the_longest_delay_is_a_delay,
    the_time_zone_of_a_session_changes_nothing,
    a_lease_is_measured_by_the_database,
}
