//! How many rows the server touches for each statement of the hot path, counted by the server itself.

use outbox_core::{ClaimRequest, Draft, OnDead, Operations, Outcome, Repository, Settlement};
use outbox_sea_orm::OutboxTable;
use outbox_testkit::server::{Settings, private};

use crate::support::{LEASE, Site, settle_all};

/// Rows of each kind that a claim has no business with.
const N_BYSTANDERS: i64 = 32_768;

/// Rows that were read since the server started, by an index or not.
async fn n_read(site: &Site) -> i64 {
    let names = ["key", "next", "prev", "first", "last"].map(|name| format!("'Handler_read_{name}'"));
    let version: String = site.value("SELECT version()").await;
    let counters = match version.contains("MariaDB") {
        true => "information_schema.GLOBAL_STATUS",
        false => "performance_schema.global_status",
    };
    let names = names.join(", ");
    let sum = "CAST(SUM(VARIABLE_VALUE) AS SIGNED)";
    site.value(&format!("SELECT {sum} FROM {counters} WHERE VARIABLE_NAME IN ({names})")).await
}

/// Parked, dead and claimed rows, and some that wait on another topic.
async fn bystanders(site: &Site) {
    let outbox = site.sql_name("outbox");
    for (state, due, lease) in
        [(1, "9e18", "NULL"), (2, "1", "NULL"), (4, "9e18", "REPEAT('x', 16)"), (0, "1", "NULL")]
    {
        let columns = "id, topic, payload, headers, state, place, due, due_since, lease";
        let values = format!(
            "UNHEX(REPLACE(UUID(), '-', '')), 'elsewhere', 'x', '{{}}', {state}, 1, {due}, 1, {lease}"
        );
        site.execute(&format!("INSERT INTO {outbox} ({columns}) VALUES ({values})")).await;
        while site.count(&format!("outbox WHERE state = {state}")).await < N_BYSTANDERS {
            let copy = format!(
                "INSERT INTO {outbox} ({columns}) SELECT {values} FROM {outbox} WHERE state = {state}"
            );
            site.execute(&copy).await;
        }
    }
}

async fn assert_reads_at_most(site: &Site, most: i64, what: &str, call: impl AsyncFnOnce()) {
    let before = n_read(site).await;
    call().await;
    let n = n_read(site).await - before;
    assert!(n <= most, "{what} read {n} rows, at most {most} are its own");
}

/// On a server that nobody else uses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_walks_rows_of_others_on_mysql() {
    let Ok(server) = private(Settings::for_mysql_tests()).await else { return };
    let site = Site::mysql_at(server.url()).await;
    bystanders(&site).await;
    let idle = n_read(&site).await;
    let cost_of_asking = n_read(&site).await - idle;
    // the index holds the topic, so passing over another one costs one read each and no row; without a filter none
    let all = ClaimRequest::new(100, LEASE);
    let outbox = &site.outbox;
    assert_reads_at_most(&site, 1_000 + cost_of_asking, "a claim", async || {
        let claim = outbox.claim(all.clone()).await.expect("claim");
        assert_eq!(claim.messages.len(), 100);
        settle_all(outbox, &claim, Outcome::Release).await;
    })
    .await;
    let claim = outbox.claim(all).await.expect("claim");
    let leases: Vec<_> = claim.messages.iter().map(|claimed| claimed.lease).collect();
    assert_reads_at_most(&site, 1_000 + cost_of_asking, "extend", async || {
        let _ = outbox.extend(leases.clone(), LEASE).await.expect("extend");
    })
    .await;
    assert_reads_at_most(&site, 1_000 + cost_of_asking, "settle", async || {
        let done = leases.iter().map(|lease| Settlement::new(*lease, Outcome::Done)).collect();
        let _ = outbox.settle(done).await.expect("settle");
    })
    .await;
    assert_reads_at_most(&site, 1_000 + cost_of_asking, "redrive", async || {
        let page = outbox.dead_letters(outbox_core::DeadLetterQuery::new(100)).await.expect("list");
        let ids = page.letters.iter().map(|letter| letter.message.id).collect();
        assert_eq!(outbox.redrive(ids).await.expect("redrive").len(), 100);
    })
    .await;
}

/// On a server that nobody else uses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_read_a_bounded_part_of_the_table_on_mysql() {
    let Ok(server) = private(Settings::for_mysql_tests()).await else { return };
    let site = Site::mysql_at(server.url()).await;
    bystanders(&site).await;
    assert_reads_at_most(&site, 60_000, "statistics", async || {
        let stats = site.outbox.stats().await.expect("stats");
        assert!(stats.is_estimate);
    })
    .await;
}

/// On a server that nobody else uses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_a_key_costs_a_claim_one_page_on_mysql() {
    let Ok(server) = private(Settings::for_mysql_tests()).await else { return };
    let site = Site::mysql_at(server.url()).await;
    let outbox = OutboxTable::new(&site.db, site.name("declared")).ordered(OnDead::Continue);
    outbox.migrate().await.expect("migrate");
    let hot = |_| Draft::new("t", "").key("hot");
    for _ in 0..N_BYSTANDERS / 1_000 {
        outbox.enqueue_autocommit((0..1_000).map(hot).collect::<Vec<_>>()).await.expect("enqueue");
    }
    let head = outbox.claim(ClaimRequest::new(1, LEASE)).await.expect("claim");
    assert_eq!(head.messages.len(), 1);
    let other = outbox.enqueue_autocommit([Draft::new("t", "").key("other")]).await.expect("enqueue");
    assert_reads_at_most(&site, 2_000, "a claim behind a backlog", async || {
        let claim = outbox.claim(ClaimRequest::new(100, LEASE)).await.expect("claim");
        assert_eq!(claim.messages.iter().map(|claimed| claimed.message.id).collect::<Vec<_>>(), other);
    })
    .await;
}
