//! How many rows the server touches for each statement of the hot path, counted by the server itself.

use outbox_core::{
    BlockedQuery, ClaimRequest, Claimer, Draft, Fairness, OnDead, Operations, Outcome, Repository, Settlement,
};
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

async fn backlog(outbox: &OutboxTable, n: i64, draft: impl Fn() -> Draft) {
    for _ in 0..n / 1_000 {
        let drafts: Vec<_> = (0..1_000).map(|_| draft()).collect();
        outbox.enqueue_autocommit(drafts).await.expect("enqueue");
    }
}

/// On a server that nobody else uses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_a_key_costs_a_claim_one_page_on_mysql() {
    let Ok(server) = private(Settings::for_mysql_tests()).await else { return };
    let site = Site::mysql_at(server.url()).await;
    let outbox = OutboxTable::new(&site.db, site.name("declared")).ordered(OnDead::Continue);
    outbox.migrate().await.expect("migrate");
    backlog(&outbox, N_BYSTANDERS, || Draft::new("t", "").key("hot")).await;
    let head = outbox.claim(ClaimRequest::new(1, LEASE)).await.expect("claim");
    assert_eq!(head.messages.len(), 1);
    let other = outbox.enqueue_autocommit([Draft::new("t", "").key("other")]).await.expect("enqueue");
    assert_reads_at_most(&site, 2_000, "a claim behind a backlog", async || {
        let claim = outbox.claim(ClaimRequest::new(100, LEASE)).await.expect("claim");
        assert_eq!(claim.messages.iter().map(|claimed| claimed.message.id).collect::<Vec<_>>(), other);
    })
    .await;
}

/// On a server that nobody else uses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_keys_are_listed_without_their_backlogs_on_mysql() {
    let Ok(server) = private(Settings::for_mysql_tests()).await else { return };
    let site = Site::mysql_at(server.url()).await;
    let outbox = OutboxTable::new(&site.db, site.name("declared")).ordered(OnDead::Block);
    outbox.migrate().await.expect("migrate");
    backlog(&outbox, N_BYSTANDERS, || Draft::new("t", "").key("hot")).await;
    backlog(&outbox, N_BYSTANDERS, || Draft::new("t", "").key("free")).await;
    backlog(&outbox, N_BYSTANDERS, || Draft::new("t", "").key("later").delay(LEASE)).await;
    let claim = outbox.claim(ClaimRequest::new(2, LEASE)).await.expect("claim");
    let (hot, free): (Vec<_>, Vec<_>) =
        claim.messages.iter().partition(|claimed| claimed.message.key.as_deref() == Some("hot"));
    assert_eq!((hot.len(), free.len()), (1, 1));
    let dead = Outcome::Dead { error: "beyond help".into() };
    let _ = outbox.settle(vec![Settlement::new(hot[0].lease, dead)]).await.expect("settle");
    let _ = outbox.settle(vec![Settlement::new(free[0].lease, Outcome::Done)]).await.expect("settle");
    assert_reads_at_most(&site, 6_000, "a page of blocked keys", async || {
        let page = outbox.blocked_keys(BlockedQuery::new(100)).await.expect("blocked keys");
        let keys: Vec<_> = page.keys.iter().map(|key| (&*key.key, key.n_behind, key.is_estimate)).collect();
        assert_eq!((keys, page.next), (vec![("hot", 1_000, true), ("later", 1_000, true)], None));
    })
    .await;
    assert_reads_at_most(&site, 6_000, "a release of a head", async || {
        let released = outbox.release_head("hot".into(), hot[0].message.id).await.expect("release");
        assert_eq!(released, outbox_core::Unblocked::Applied);
    })
    .await;
}

/// On a server that nobody else uses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_a_lane_costs_a_claim_one_page_on_mysql() {
    let Ok(server) = private(Settings::for_mysql_tests()).await else { return };
    let site = Site::mysql_at(server.url()).await;
    let outbox = OutboxTable::new(&site.db, site.name("declared")).fair(Fairness::Key);
    outbox.migrate().await.expect("migrate");
    backlog(&outbox, N_BYSTANDERS, || Draft::new("t", "").key("m")).await;
    backlog(&outbox, N_BYSTANDERS, || Draft::new("unserved", "").key("m")).await;
    let claimer = Claimer::new();
    // the last ones take more than the share that the claim before has seen
    for limit in [50, 100, 100, 1, 100, 500, 500] {
        let key = |n: usize| ["a", "z"][n % 2].repeat(n + 1);
        let quiet: Vec<_> = (0..20).map(|n| Draft::new("t", "").key(key(n))).collect();
        outbox.enqueue_autocommit(quiet).await.expect("enqueue");
        let request = ClaimRequest::new(limit, LEASE).with_topics(["t"]).with_claimer(claimer.clone());
        assert_reads_at_most(&site, 3_000 + 15 * limit as i64, "a claim of turns", async || {
            let claim = outbox.claim(request).await.expect("claim");
            assert_eq!(claim.messages.len(), limit);
        })
        .await;
    }
}

/// On a server that nobody else uses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_that_all_have_a_backlog_cost_a_claim_their_share_on_mysql() {
    let Ok(server) = private(Settings::for_mysql_tests()).await else { return };
    let site = Site::mysql_at(server.url()).await;
    let outbox = OutboxTable::new(&site.db, site.name("declared")).fair(Fairness::Key);
    outbox.migrate().await.expect("migrate");
    for lane in 0..30 {
        backlog(&outbox, 1_000, || Draft::new("t", "").key(lane)).await;
    }
    let claimer = Claimer::new();
    for most in [12_000, 8_000, 8_000] {
        assert_reads_at_most(&site, most, "a claim of turns", async || {
            let request = ClaimRequest::new(90, LEASE).with_claimer(claimer.clone());
            let claim = outbox.claim(request).await.expect("claim");
            let mut n_of_lane = std::collections::BTreeMap::<_, usize>::new();
            for claimed in &claim.messages {
                *n_of_lane.entry(claimed.message.key.clone()).or_default() += 1;
            }
            assert_eq!((n_of_lane.len(), n_of_lane.into_values().max()), (30, Some(3)));
        })
        .await;
    }
}
