//! What the server does for each statement of the hot path, told by the server itself.

use std::time::Duration;

use outbox_core::{
    Claim, ClaimRequest, Claimed, Claimer, Declaration, Draft, ErrorKind, Fairness, OnDead, Operations,
    Outcome, Repository, Settled, Settlement,
};
use outbox_sea_orm::OutboxTable;
use sea_orm::{ConnectionTrait, TransactionTrait};

use crate::support::{LEASE, Log, Pool, Site, eventually, on_postgres, run_logged, settle_all};

/// Each statement is reported with its plan and what it did, as a notice to the client.
const EXPLAIN: &[(&str, &str)] = &[
    ("session_preload_libraries", "auto_explain"),
    ("auto_explain.log_min_duration", "0"),
    ("auto_explain.log_analyze", "on"),
    ("auto_explain.log_buffers", "on"),
    ("auto_explain.log_timing", "off"),
    ("auto_explain.log_level", "notice"),
];

/// What a statement is known by.
const STATEMENTS: [(&str, &str); 9] = [
    ("claim", "AS picked"),
    ("look", "pg_lock"),
    ("walk over leases", "min(leased_until)"),
    ("promote", "seq = due.fresh"),
    ("bury", "'lease expired in attempt '"),
    ("recover", "head AS"),
    ("extend", "extended AS"),
    ("settle what is done", "WITH done AS"),
    ("settle the rest", "kept AS"),
];

/// A statement on the outbox and what the server did.
struct Plan {
    text: String,
}

impl Plan {
    fn all(log: &str, site: &Site) -> Vec<Self> {
        let table = format!("\"{}\".\"outbox\"", site.schema());
        let reports = log.split("sqlx::postgres::notice: duration: ").skip(1);
        reports.filter(|text| text.contains(&table)).map(|text| Self { text: text.to_owned() }).collect()
    }

    fn is(&self, marker: &str) -> bool {
        self.text.contains(marker)
    }

    /// The lines that say how rows of the outbox are found.
    fn scans(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter(|line| line.contains(" Scan ") && line.contains(" on outbox"))
    }

    fn assert_walks_an_index(&self, case: &str) {
        for scan in self.scans() {
            let is_good = scan.contains(" using outbox_") || scan.contains("Tid Scan");
            assert!(is_good, "{case}: {scan} in\n{}", self.text);
        }
    }

    /// How many rows were sorted at the most.
    fn n_sorted(&self) -> u64 {
        let sorts = self.text.lines().filter(|line| line.contains("->  Sort "));
        sorts.filter_map(|line| number_behind(line, "actual rows=")).max().unwrap_or(0)
    }

    /// How many pages were looked at.
    fn n_pages(&self) -> u64 {
        // the first of these lines is that of the whole statement
        let line = self.text.lines().find(|line| line.contains("Buffers: shared")).expect("buffers");
        ["hit=", "read="].iter().filter_map(|word| number_behind(line, word)).sum()
    }
}

fn number_behind(line: &str, word: &str) -> Option<u64> {
    let (_, rest) = line.split_once(word)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Adds 20,000 ready, 5,000 parked and 5,000 dead rows.
async fn fill(site: &Site) {
    let outbox = site.sql_name("outbox");
    let row = "gen_random_uuid(), 't', convert_to(repeat('x', 200), 'UTF8')";
    site.execute(&format!(
        "ALTER TABLE {outbox} SET (autovacuum_enabled = off);
         INSERT INTO {outbox} (id, topic, payload) SELECT {row} FROM generate_series(1, 20000);
         INSERT INTO {outbox} (id, topic, payload, state, available_at)
         SELECT {row}, 1, now() + interval '1 day' FROM generate_series(1, 5000);
         INSERT INTO {outbox} (id, topic, payload, state, dead_at)
         SELECT {row}, 2, now() FROM generate_series(1, 5000)"
    ))
    .await;
}

fn request(limit: usize) -> ClaimRequest {
    ClaimRequest::new(limit, LEASE)
}

/// A settlement of each kind but done.
fn mixed(claim: &Claim) -> Vec<Settlement> {
    let error = String::new;
    let outcomes = [
        Outcome::Retry { after: LEASE, error: error() },
        Outcome::Dead { error: error() },
        Outcome::Release,
        Outcome::Done,
    ];
    let outcomes = outcomes.iter().cycle().cloned();
    claim
        .messages
        .iter()
        .zip(outcomes)
        .map(|(claimed, outcome)| Settlement::new(claimed.lease, outcome))
        .collect()
}

/// Makes each statement of the hot path run.
async fn run_everything(site: &Site, outbox: &OutboxTable) {
    let claimer = Claimer::new();
    let claim =
        async |limit| outbox.claim(request(limit).with_claimer(claimer.clone())).await.expect("claim");
    for _ in 0..3 {
        let claimed = claim(100).await;
        let leases = claimed.messages.iter().map(|claimed: &Claimed| claimed.lease).collect();
        let extended = outbox.extend(leases, LEASE).await.expect("extend");
        assert_eq!(extended, [Settled::Applied; 100]);
        settle_all(outbox, &claimed, Outcome::Done).await;
    }
    let _ = outbox.settle(mixed(&claim(100).await)).await.expect("settle");
    let table = site.sql_name("outbox");
    site.execute(&format!(
        "UPDATE {table} SET available_at = now()
          WHERE id IN (SELECT id FROM {table} WHERE state = 1 ORDER BY available_at LIMIT 100)"
    ))
    .await;
    let expired = claim(50).await;
    assert_eq!(expired.messages.len(), 50);
    site.expire_leases().await;
    site.execute(&format!("UPDATE {table} SET attempts = 5 WHERE seq % 2 = 0 AND lease IS NOT NULL")).await;
    // without a claimer it looks at everything
    let recovered = outbox.claim(request(100)).await.expect("claim");
    assert!(recovered.recovered && recovered.n_dead > 0);
    let _ = outbox.claim(request(100).with_recover(false)).await.expect("claim");
}

async fn every_statement_walks_an_index(site: &Site, log: &Log, case: &str, prepare: &str) {
    let db = site.connect(Pool { settings: EXPLAIN, ..Pool::of(2) }).await;
    let outbox = OutboxTable::new(&db, site.name("outbox"));
    site.execute(&format!("TRUNCATE {}", site.sql_name("outbox"))).await;
    if prepare == "empty" {
        // the plans are made now, and kept
        assert!(outbox.claim(request(100)).await.expect("claim").is_empty());
    }
    fill(site).await;
    if prepare == "analyse" {
        site.execute(&format!("ANALYZE {}", site.sql_name("outbox"))).await;
    }
    log.take();
    run_everything(site, &outbox).await;
    let plans = Plan::all(&log.take(), site);
    for (name, marker) in STATEMENTS {
        assert!(plans.iter().any(|plan| plan.is(marker)), "{case}: no plan of {name}");
    }
    for plan in &plans {
        plan.assert_walks_an_index(case);
        assert!(plan.n_sorted() <= 1_000, "{case}: a backlog is sorted in\n{}", plan.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_statement_walks_an_index_on_postgres() {
    run_logged("plans::every_statement_walks_an_index_on_postgres", async |site, log| {
        every_statement_walks_an_index(site, log, "never analysed", "").await;
        every_statement_walks_an_index(site, log, "planned on an empty table", "empty").await;
        every_statement_walks_an_index(site, log, "analysed", "analyse").await;
    })
    .await;
}

/// An enqueue announces each row to concurrent ones of the same id only where there can be one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_nobody_can_have_is_not_looked_for_on_postgres() {
    run_logged("plans::an_id_that_nobody_can_have_is_not_looked_for_on_postgres", async |site, log| {
        let db = site.connect(Pool { settings: EXPLAIN, ..Pool::of(1) }).await;
        let outbox = OutboxTable::new(&db, site.name("outbox"));
        let draft = || Draft::new("t", "");
        let cloned = draft();
        let kept = cloned.clone();
        for (drafts, is_looked_for) in [
            (vec![draft()], false),
            (vec![draft(), draft().key(1)], false),
            (vec![draft(), cloned], true),
            (vec![draft().id(uuid::Uuid::now_v7())], true),
        ] {
            log.take();
            outbox.enqueue_autocommit(drafts).await.expect("enqueue");
            let plans = Plan::all(&log.take(), site);
            assert_eq!(plans[0].is("Conflict Resolution"), is_looked_for, "{}", plans[0].text);
        }
        let again = outbox.enqueue_autocommit(kept).await.expect_err("refused");
        assert_eq!(again.kind(), ErrorKind::AlreadyEnqueued);
    })
    .await;
}

/// A million messages that nobody serves must not be read one by one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_look_does_not_read_the_rows_of_other_topics_on_postgres() {
    run_logged(
        "plans::a_first_look_does_not_read_the_rows_of_other_topics_on_postgres",
        async |site, log| {
            for _ in 0..3 {
                fill(site).await;
            }
            site.enqueue("served", 1).await;
            let db = site.connect(Pool { settings: EXPLAIN, ..Pool::of(1) }).await;
            let outbox = OutboxTable::new(&db, site.name("outbox"));
            log.take();
            let request = request(10).with_topics(["served", "unheard of"]).with_recover(false);
            assert_eq!(outbox.claim(request).await.expect("claim").messages.len(), 1);
            let plans = Plan::all(&log.take(), site);
            let look = plans.iter().find(|plan| plan.is("pg_lock")).expect("a look");
            // 60,000 rows fill 3,500 pages, the first 10,000 of them, which are read, 600
            assert!(look.n_pages() < 2_000, "{} pages in\n{}", look.n_pages(), look.text);
        },
    )
    .await;
}

/// Delivers `n` messages in full batches.
async fn deliver(outbox: &OutboxTable, claimer: &Claimer, n: usize) {
    let mut left = n;
    while left > 0 {
        let claim =
            outbox.claim(request(left.min(1_000)).with_claimer(claimer.clone())).await.expect("claim");
        assert!(!claim.is_empty(), "{left} are left");
        settle_all(outbox, &claim, Outcome::Done).await;
        left -= claim.messages.len();
    }
}

/// The most pages that claims of 100 messages look at, and looks, after whatever happened before.
async fn pages_of_claims(site: &Site, log: &Log, outbox: &OutboxTable, claimer: &Claimer) -> (u64, u64) {
    log.take();
    for _ in 0..10 {
        let claim = outbox.claim(request(100).with_claimer(claimer.clone())).await.expect("claim");
        assert_eq!(claim.messages.len(), 100);
        settle_all(outbox, &claim, Outcome::Done).await;
        // so that some of the claims look first, which they do every second
        tokio::time::sleep(Duration::from_millis(130)).await;
    }
    let plans = Plan::all(&log.take(), site);
    let most = |marker| {
        let pages = plans.iter().filter(|plan| plan.is(marker)).map(Plan::n_pages);
        pages.max().expect("a plan")
    };
    (most("AS picked"), most("pg_lock"))
}

/// A snapshot that is held open elsewhere keeps every delivered row, and its index entry, where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_delivered_history_costs_a_claim_nothing_on_postgres() {
    run_logged("plans::a_long_delivered_history_costs_a_claim_nothing_on_postgres", async |site, log| {
        let snapshot = site.db.begin().await.expect("begin");
        let hold = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1";
        snapshot.execute_unprepared(hold).await.expect("a snapshot");
        for _ in 0..3 {
            fill(site).await;
        }
        let db = site.connect(Pool { settings: EXPLAIN, ..Pool::of(2) }).await;
        let outbox = OutboxTable::new(&db, site.name("outbox"));
        let claimer = Claimer::new();
        deliver(&outbox, &claimer, 2_000).await;
        let before = pages_of_claims(site, log, &outbox, &claimer).await;
        deliver(&outbox, &claimer, 50_000).await;
        let after = pages_of_claims(site, log, &outbox, &claimer).await;
        println!("pages of a claim and of a look: {before:?}, after 50,000 messages {after:?}");
        // a connection that makes a statement for the first time reads some pages of the catalog as well
        assert!(after.0 <= before.0 + 100, "claims: {before:?} {after:?}");
        assert!(after.1 <= before.1 + 100, "looks: {before:?} {after:?}");
    })
    .await;
}

/// The most pages that the statements of one `stats` look at.
async fn pages_of_stats(site: &Site, log: &Log, outbox: &OutboxTable) -> u64 {
    log.take();
    assert!(outbox.stats().await.expect("stats").is_estimate);
    let plans = Plan::all(&log.take(), site);
    assert_eq!(plans.len(), 2, "one statement counts, one projects");
    plans.iter().map(Plan::n_pages).sum()
}

/// Statistics read as much of a large table as of a larger one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_read_a_bounded_part_of_the_table_on_postgres() {
    run_logged("plans::statistics_read_a_bounded_part_of_the_table_on_postgres", async |site, log| {
        let db = site.connect(Pool { settings: EXPLAIN, ..Pool::of(2) }).await;
        let outbox = OutboxTable::new(&db, site.name("outbox"));
        let mut pages = Vec::new();
        for n_fills in [1, 1, 4] {
            for _ in 0..n_fills {
                fill(site).await;
            }
            pages.push(pages_of_stats(site, log, &outbox).await);
        }
        println!("pages of statistics on 30,000, 60,000 and 180,000 rows: {pages:?}");
        assert!(pages[2] <= pages[1] + 1_000 && pages[2] < 20_000, "{pages:?}");
    })
    .await;
}

async fn a_claim_is_a_heap_only_update(site: &Site) {
    fill(site).await;
    let victim = site.victim().await;
    let claimer = Claimer::new();
    for _ in 0..5 {
        let claim = victim.outbox.claim(request(1_000).with_claimer(claimer.clone())).await.expect("claim");
        assert_eq!(claim.messages.len(), 1_000);
        settle_all(&victim.outbox, &claim, Outcome::Done).await;
    }
    // a session reports what it did when it ends
    victim.end(site).await;
    let updates = async |column: &str| -> i64 {
        let id = format!("'{}'::regclass", site.sql_name("outbox"));
        site.value(&format!("SELECT {column} FROM pg_stat_user_tables WHERE relid = {id}")).await
    };
    eventually("the statistics arrive", async || updates("n_tup_upd").await >= 5_000).await;
    let (hot, all) = (updates("n_tup_hot_upd").await, updates("n_tup_upd").await);
    assert!(hot * 10 >= all * 9, "{hot} of {all}");
}

/// What `synchronous_commit` was for each kind of statement.
async fn only_a_relaxed_table_does_not_wait_for_the_disk(site: &Site) {
    let [table, seen] = ["outbox", "seen"].map(|name| site.sql_name(name));
    site.execute(&format!(
        "CREATE TABLE {seen} (command text, setting text);
         CREATE FUNCTION {seen}() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
           INSERT INTO {seen} VALUES (TG_OP, current_setting('synchronous_commit'));
           RETURN NULL;
         END $$;
         CREATE TRIGGER seen AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {seen}()"
    ))
    .await;
    let relaxed = site.outbox.clone().with_relaxed_commit();
    for (outbox, expected) in
        [(&site.outbox, "DELETE on, INSERT on, UPDATE on"), (&relaxed, "DELETE off, INSERT on, UPDATE off")]
    {
        outbox.enqueue_autocommit(Draft::new("t", "")).await.expect("enqueue");
        let claim = outbox.claim(request(1)).await.expect("claim");
        settle_all(outbox, &claim, Outcome::Done).await;
        let read = format!("SELECT string_agg(DISTINCT command || ' ' || setting, ', ') FROM {seen}");
        assert_eq!(site.value::<String>(&read).await, expected);
        site.execute(&format!("DELETE FROM {seen}")).await;
    }
}

/// Plans that nobody would choose.
const FORCED: [&[(&str, &str)]; 7] = [
    &[],
    &[("enable_tidscan", "off")],
    &[("enable_indexscan", "off"), ("enable_indexonlyscan", "off")],
    &[("enable_hashjoin", "off"), ("enable_mergejoin", "off"), ("enable_material", "off")],
    &[("enable_nestloop", "off")],
    &[("enable_sort", "off"), ("enable_indexscan", "off"), ("enable_tidscan", "off")],
    &[("plan_cache_mode", "force_custom_plan"), ("enable_tidscan", "off"), ("enable_hashjoin", "off")],
];

async fn no_plan_exceeds_the_limit(site: &Site) {
    fill(site).await;
    for settings in FORCED {
        let db = site.connect(Pool { settings, ..Pool::of(2) }).await;
        let outbox = OutboxTable::new(&db, site.name("outbox"));
        // the shared pool has none of our own settings
        for outbox in [outbox.clone(), outbox.with_shared_pool()] {
            claim_within_limits(site, &outbox, &format!("{settings:?}")).await;
        }
    }
}

async fn claim_within_limits(site: &Site, outbox: &OutboxTable, case: &str) {
    let leased = async || site.count("outbox WHERE lease IS NOT NULL").await as usize;
    let requests = [
        request(10),
        request(10).with_topics(["t", "u"]),
        request(10).with_max_bytes(1_000_000),
        request(1_000).with_max_bytes(2_100),
    ];
    for request in requests {
        let before = leased().await;
        let claim = outbox.claim(request.clone()).await.expect("claim");
        assert_eq!(claim.messages.len(), 10, "{case}: {request:?}");
        assert_eq!(leased().await - before, 10, "{case}: {request:?}");
        assert!(claim.messages.is_sorted_by_key(|claimed| claimed.lease.locator));
    }
    site.expire_leases().await;
    let recovered = outbox.claim(request(10).with_max_attempts(3)).await.expect("claim");
    assert_eq!((recovered.messages.len(), recovered.recovered), (8, true), "{case}: a group of eight");
    site.execute(&format!("DELETE FROM {} WHERE lease IS NOT NULL", site.sql_name("outbox"))).await;
}

/// 20,000 rows of a key whose first is held, and a row of each of 100 other keys.
async fn a_backlog_of_a_key_costs_a_claim_nothing(site: &Site, log: &Log) {
    let db = site.connect(Pool { settings: EXPLAIN, ..Pool::of(2) }).await;
    let outbox = OutboxTable::new(&db, site.name("ordered")).ordered(OnDead::Block);
    outbox.migrate().await.expect("migrate");
    assert!(outbox.claim(request(100)).await.expect("claim").is_empty(), "the plans are made now, and kept");
    let table = site.sql_name("ordered");
    let insert = async |key: &str, n: usize| {
        site.execute(&format!(
            "INSERT INTO {table} (id, topic, key, payload)
             SELECT gen_random_uuid(), 't', {key}, convert_to(repeat('x', 200), 'UTF8') FROM generate_series(1, {n}) AS n"
        ))
        .await
    };
    insert("'m'", 20_000).await;
    let claimer = Claimer::new();
    let claim =
        async |limit| outbox.claim(request(limit).with_claimer(claimer.clone())).await.expect("claim");
    assert_eq!(claim(1).await.messages.len(), 1);
    insert("(n * 7919 % 100)::text || 'n'", 100).await;
    log.take();
    assert_eq!(claim(50).await.messages.len(), 50);
    let plans: Vec<_> =
        log.take().split("sqlx::postgres::notice: duration: ").skip(1).map(str::to_owned).collect();
    let plan = plans.iter().find(|text| text.contains("is_stopped")).expect("the plan of the claim");
    let plan =
        Plan { text: plan.replace("on ordered", "on outbox").replace("using ordered_", "using outbox_") };
    plan.assert_walks_an_index("ordered");
    assert!(plan.n_pages() < 2_500, "{} pages in\n{}", plan.n_pages(), plan.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_a_key_costs_a_claim_nothing_on_postgres() {
    run_logged("plans::a_backlog_of_a_key_costs_a_claim_nothing_on_postgres", async |site, log| {
        a_backlog_of_a_key_costs_a_claim_nothing(site, log).await;
    })
    .await;
}

/// The plan of the one claim on a fair table that the log has.
fn plan_of_a_share(log: &Log) -> Plan {
    let log = log.take();
    let plans = log.split("sqlx::postgres::notice: duration: ").skip(1);
    let plan = plans.filter(|text| text.contains("share AS")).last().expect("the plan of the claim");
    Plan { text: plan.replace("on fair", "on outbox").replace("using fair_", "using outbox_") }
}

/// 20,000 rows of a key, as many of it in a topic that is not served, and a row of each of 100 other keys.
async fn a_backlog_of_a_lane_costs_a_claim_nothing(site: &Site, log: &Log) {
    let db = site.connect(Pool { settings: EXPLAIN, ..Pool::of(2) }).await;
    let outbox = OutboxTable::new(&db, site.name("fair")).fair(Fairness::Key);
    outbox.migrate().await.expect("migrate");
    assert!(outbox.claim(request(100)).await.expect("claim").is_empty(), "the plans are made now, and kept");
    let table = site.sql_name("fair");
    let insert = async |topic: &str, key: &str, n: usize| {
        site.execute(&format!(
            "INSERT INTO {table} (id, topic, key, payload)
             SELECT gen_random_uuid(), '{topic}', {key}, convert_to(repeat('x', 200), 'UTF8') FROM generate_series(1, {n}) AS n"
        ))
        .await
    };
    insert("t", "'m'", 20_000).await;
    insert("unserved", "'m'", 20_000).await;
    insert("t", "(n * 7919 % 100)::text || 'n'", 100).await;
    let claimer = Claimer::new();
    for (limit, topics) in [(50, None), (50, Some(["t"])), (1_000, Some(["t"])), (200, Some(["t"]))] {
        log.take();
        let mut request = request(limit).with_claimer(claimer.clone());
        request.topics = topics.map(|topics| topics.map(str::to_owned).to_vec());
        assert_eq!(outbox.claim(request).await.expect("claim").messages.len(), limit);
        let plan = plan_of_a_share(log);
        plan.assert_walks_an_index("fair");
        assert!(plan.n_sorted() <= 1_000, "a backlog is sorted in\n{}", plan.text);
        let most = 1_000 + 25 * limit as u64;
        assert!(plan.n_pages() < most, "{} pages in\n{}", plan.n_pages(), plan.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_a_lane_costs_a_claim_nothing_on_postgres() {
    run_logged("plans::a_backlog_of_a_lane_costs_a_claim_nothing_on_postgres", async |site, log| {
        a_backlog_of_a_lane_costs_a_claim_nothing(site, log).await;
    })
    .await;
}

/// The plan was made when there was nothing, and the server knew.
async fn settling_reads_what_it_settles(site: &Site, log: &Log, declared: Declaration) {
    let db = site.connect(Pool { settings: EXPLAIN, ..Pool::of(2) }).await;
    let outbox = OutboxTable::new(&db, site.name("declared")).declared(declared);
    outbox.migrate().await.expect("migrate");
    let table = site.sql_name("declared");
    site.execute(&format!("ALTER TABLE {table} SET (autovacuum_enabled = off)")).await;
    let deliver = async |n: usize| {
        site.execute(&format!(
            "INSERT INTO {table} (id, topic, key, payload)
             SELECT gen_random_uuid(), 't', n * 7919 % 5000, convert_to(repeat('x', 200), 'UTF8') FROM generate_series(1, {n}) AS n"
        ))
        .await;
        let claim = outbox.claim(request(100)).await.expect("claim");
        assert_eq!(claim.messages.len(), n.min(100));
        settle_all(&outbox, &claim, Outcome::Done).await;
    };
    deliver(1).await;
    site.execute(&format!("VACUUM ANALYZE {table}")).await;
    deliver(1).await;
    log.take();
    deliver(20_000).await;
    let plans: Vec<_> =
        log.take().split("sqlx::postgres::notice: duration: ").skip(1).map(str::to_owned).collect();
    let text = plans.iter().find(|text| text.contains("WITH done AS")).expect("the plan of the settlement");
    let plan = Plan { text: text.clone() };
    assert!(plan.n_pages() < 2_500, "{} pages in\n{text}", plan.n_pages());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settling_on_an_ordered_table_reads_what_it_settles_on_postgres() {
    run_logged("plans::settling_on_an_ordered_table_reads_what_it_settles_on_postgres", async |site, log| {
        settling_reads_what_it_settles(site, log, Declaration::new().ordered(OnDead::Block)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settling_on_a_fair_table_reads_what_it_settles_on_postgres() {
    run_logged("plans::settling_on_a_fair_table_reads_what_it_settles_on_postgres", async |site, log| {
        settling_reads_what_it_settles(site, log, Declaration::new().fair(Fairness::Key)).await;
    })
    .await;
}

/// 20,000 rows of 5,000 keys: full batches are claimed by number, and each reads a few rows of its own batch.
async fn many_keys_are_claimed_by_number(site: &Site, log: &Log) {
    let db = site.connect(Pool { settings: EXPLAIN, ..Pool::of(2) }).await;
    let outbox = OutboxTable::new(&db, site.name("ordered")).ordered(OnDead::Block);
    outbox.migrate().await.expect("migrate");
    site.execute(&format!(
        "INSERT INTO {} (id, topic, key, payload)
         SELECT gen_random_uuid(), 't', n * 7919 % 5000, convert_to(repeat('x', 200), 'UTF8') FROM generate_series(1, 20000) AS n",
        site.sql_name("ordered")
    ))
    .await;
    let claimer = Claimer::new();
    log.take();
    for _ in 0..40 {
        let claim = outbox.claim(request(100).with_claimer(claimer.clone())).await.expect("claim");
        assert_eq!(claim.messages.len(), 100);
        settle_all(&outbox, &claim, Outcome::Done).await;
    }
    let plans: Vec<_> =
        log.take().split("sqlx::postgres::notice: duration: ").skip(1).map(str::to_owned).collect();
    let fronts: Vec<_> = plans.iter().filter(|text| text.contains("near AS MATERIALIZED")).collect();
    assert_eq!(fronts.len(), 39, "only the first claim walks");
    for text in fronts {
        let plan =
            Plan { text: text.replace("on ordered", "on outbox").replace("using ordered_", "using outbox_") };
        plan.assert_walks_an_index("ordered");
        assert!(plan.n_pages() < 2_500, "{} pages in\n{}", plan.n_pages(), plan.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keys_are_claimed_by_number_on_postgres() {
    run_logged("plans::many_keys_are_claimed_by_number_on_postgres", async |site, log| {
        many_keys_are_claimed_by_number(site, log).await;
    })
    .await;
}

async fn no_claim_promotes_more_than_its_share(site: &Site) {
    fill(site).await;
    let table = site.sql_name("outbox");
    site.execute(&format!(
        "DELETE FROM {table} WHERE state = 0; UPDATE {table} SET available_at = now() WHERE state = 1"
    ))
    .await;
    for left in [4_000, 3_000, 2_000] {
        let claim = site.claim(500).await;
        assert_eq!(claim.messages.len(), 500);
        assert_eq!(site.count("outbox WHERE state = 1").await, left, "a thousand at a time");
    }
}

on_postgres! { only_a_relaxed_table_does_not_wait_for_the_disk, a_claim_is_a_heap_only_update, no_plan_exceeds_the_limit, no_claim_promotes_more_than_its_share }
