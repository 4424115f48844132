//! From reading by number to the WAL and back.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use outbox_core::{ClaimRequest, ErrorKind, MessageId, OnDead, Operations, Outcome, Repository, TableName};
use outbox_sea_orm::{OutboxLog, Subscription, WalFeed};
use sea_orm::{ConnectOptions, Database, TransactionTrait};
use tokio::time::timeout;

use super::{
    Fed, LEASE, MIN_VERSION, PATIENCE, assert_empty, claim, claim_some, deliver, eventually, on, on_a_feed,
    server, settle, version,
};
use crate::faults::Random;

/// Commits, rolls back and keeps open for a while.
async fn produce(fed: &Fed, random: &Random, stop: &AtomicBool, committed: &Mutex<HashSet<MessageId>>) {
    while !stop.load(Relaxed) {
        let txn = fed.db.begin().await.expect("begin");
        let drafts: Vec<_> = (0..=random.below(20)).map(|_| on("a")).collect();
        let mut ids = fed.log.enqueue_in(&txn, drafts).await.expect("enqueue");
        tokio::time::sleep(random.millis(if random.below(20) == 0 { 200 } else { 3 })).await;
        ids.extend(fed.log.enqueue_in(&txn, [on("a")]).await.expect("enqueue"));
        if random.below(5) == 0 {
            txn.rollback().await.expect("roll back");
        } else {
            txn.commit().await.expect("commit");
            committed.lock().expect("not poisoned").extend(ids);
        }
        tokio::time::sleep(random.millis(10)).await;
    }
}

/// Delivers until everything is delivered that was committed when it was stopped.
async fn consume(
    group: &outbox_sea_orm::LogGroup,
    stop: &AtomicBool,
    committed: &Mutex<HashSet<MessageId>>,
    delivered: &Mutex<Vec<MessageId>>,
) {
    let mut stopped = None;
    let is_all = || {
        let delivered: HashSet<_> = delivered.lock().expect("not poisoned").iter().copied().collect();
        committed.lock().expect("not poisoned").is_subset(&delivered)
    };
    while !(stop.load(Relaxed) && is_all()) {
        let stopped = stopped.get_or_insert_with(std::time::Instant::now);
        if !stop.load(Relaxed) {
            *stopped = std::time::Instant::now();
        }
        assert!(stopped.elapsed() < PATIENCE, "not everything comes");
        let claimed = claim(group, 200).await;
        settle(group, &claimed, Outcome::Done).await;
        if claimed.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let ids = claimed.iter().map(|claimed| claimed.message.id);
        delivered.lock().expect("not poisoned").extend(ids);
    }
}

on_a_feed! { "switch":
    async fn switching_under_load_loses_and_repeats_nothing(fed: &Fed) {
        let (random, stop, done) = (Random::start(), AtomicBool::new(false), AtomicBool::new(false));
        let (committed, delivered) = (Mutex::default(), Mutex::default());
        let second = fed.another();
        let switching = async {
            for _ in 0..3 {
                tokio::time::sleep(random.millis(1_500)).await;
                fed.group.stop_feed().await.expect("stop");
                tokio::time::sleep(random.millis(700)).await;
                fed.group.start_feed().await.expect("start");
            }
            stop.store(true, Relaxed);
        };
        let producing = async {
            let produce = || produce(fed, &random, &stop, &committed);
            tokio::join!(produce(), produce(), produce());
            done.store(true, Relaxed);
        };
        let consume = |group| consume(group, &done, &committed, &delivered);
        tokio::join!(switching, producing, consume(&fed.group), consume(&second));
        assert_empty(&fed.group).await;
        let delivered = delivered.into_inner().expect("not poisoned");
        let unique: HashSet<_> = delivered.iter().copied().collect();
        let committed = committed.into_inner().expect("not poisoned");
        println!("{} messages", committed.len());
        assert_eq!(committed.difference(&unique).count(), 0, "lost");
        assert_eq!(unique.difference(&committed).count(), 0, "never committed");
        assert_eq!(unique.len(), delivered.len(), "twice");
    }

    async fn what_is_open_while_the_feed_starts_is_read_by_number(fed: &Fed) {
        fed.group.stop_feed_alone().await;
        let open = fed.db.begin().await.expect("begin");
        let early = fed.log.enqueue_in(&open, [on("early")]).await.expect("enqueue");
        let starting = {
            let group = fed.group.clone();
            tokio::spawn(async move { group.start_feed().await })
        };
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!starting.is_finished(), "a slot is made when whoever writes has ended");
        let after = fed.enqueue([on("after")]).await;
        assert_empty(&fed.group).await;
        open.commit().await.expect("commit");
        starting.await.expect("joined").expect("started");
        let last = fed.enqueue([on("last")]).await;
        assert_eq!(deliver(&fed.group, 3).await, [early, after, last].concat());
        assert_empty(&fed.group).await;
    }

    async fn open_transaction_holds_back_only_what_is_enqueued_after_it(fed: &Fed) {
        fed.group.stop_feed_alone().await;
        let ids = fed.enqueue((0..20).map(|_| on("before"))).await;
        // always the same session: from one that it does not know a reader learns nothing while a transaction is open
        let mut options = ConnectOptions::new(&fed.url);
        options.max_connections(1).sqlx_logging(false);
        let db = Database::connect(options).await.expect("connect");
        let log = OutboxLog::new(&db, fed.log.name().clone()).with_shared_pool();
        let group = log.group("billing").expect("name").with_feed(WalFeed::new());
        assert_eq!(claim(&group, 1).await.len(), 1);
        let open = fed.db.begin().await.expect("begin");
        fed.log.enqueue_in(&open, [on("open")]).await.expect("enqueue");
        // it looks whether it is fed
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        fed.enqueue([on("after")]).await;
        assert_eq!(deliver(&group, 19).await, ids[1..]);
        assert_empty(&group).await;
        open.commit().await.expect("commit");
        assert_eq!(deliver(&group, 2).await.len(), 2);
    }

    async fn statistics_count_what_a_feed_that_ends_leaves(fed: &Fed) {
        let open = fed.db.begin().await.expect("begin");
        fed.log.enqueue_in(&open, [on("a")]).await.expect("enqueue");
        let stopping = {
            let group = fed.group.clone();
            tokio::spawn(async move { group.stop_feed().await })
        };
        eventually("it ends", async || fed.of_group::<Option<i64>>("fed_upto").await).await;
        fed.enqueue([on("after")]).await;
        let is_seen = "SELECT coalesce(bool_and(pg_visible_in_snapshot(l.xmin::text::xid8, g.fed_snapshot)), false)
                         FROM {s}.log AS l, {s}.log_groups AS g WHERE g.fed_snapshot IS NOT NULL"
            .replace("{s}", &fed.schema);
        eventually("the feed has passed over it", async || {
            assert_empty(&fed.group).await;
            fed.value::<bool>(&is_seen).await.then_some(())
        })
        .await;
        assert_eq!(fed.group.stats().await.expect("stats").total().n_pending, 1);
        open.commit().await.expect("commit");
        deliver(&fed.group, 2).await;
        stopping.await.expect("joined").expect("stopped");
    }

    async fn resync_lets_go_of_the_slot_that_this_process_reads(fed: &Fed) {
        fed.enqueue([on("a")]).await;
        assert_eq!(claim_some(&fed.group, 10).await.len(), 1);
        assert!(fed.of_slot::<bool>("active").await);
        let slot: String = fed.of_group("slot").await;
        timeout(Duration::from_secs(10), fed.group.resync()).await.expect("nobody else claims").expect("resync");
        let left = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
        assert_eq!(fed.value::<i64>(&left).await, 0);
    }

    async fn claim_without_a_feed_is_refused(fed: &Fed) {
        fed.enqueue([on("a")]).await;
        let plain = fed.log.group("billing").expect("name");
        let error = eventually("it is refused", async || {
            // until the slot has taken over, it is read by number
            let _ = claim(&fed.group, 1).await;
            plain.claim(ClaimRequest::new(1, LEASE)).await.err()
        })
        .await;
        assert_eq!(error.kind(), ErrorKind::Schema);
        assert!(error.to_string().contains("with_feed"), "{error}");
    }

    async fn starting_twice_is_starting_once(fed: &Fed) {
        let before: String = fed.of_slot("confirmed_flush_lsn::text").await;
        let (a, b) = (fed.another(), fed.another());
        let (a, b) = tokio::join!(a.start_feed(), b.start_feed());
        a.and(b).expect("started");
        assert_eq!(fed.of_slot::<String>("confirmed_flush_lsn::text").await, before);
    }

    async fn removed_group_leaves_no_slot(fed: &Fed) {
        let other = fed.log.register(Subscription::new("other")).await.expect("register").with_feed(WalFeed::new());
        other.start_feed().await.expect("start");
        let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%other'
                        AND slot_name LIKE 'outbox_%_' || '{s}.log_group_other'::regclass::oid || '_other'";
        assert_eq!(fed.value::<i64>(&slots.replace("{s}", &fed.schema)).await, 1);
        let name: String =
            fed.value(&format!("SELECT slot FROM {}.log_groups WHERE name = 'other'", fed.schema)).await;
        assert!(fed.log.unregister("other").await.expect("unregister"));
        let left = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}'");
        assert_eq!(fed.value::<i64>(&left).await, 0);
    }

    async fn ordered_log_is_refused(fed: &Fed) {
        let name = TableName::parse(&format!("{}.ordered", fed.schema)).expect("name");
        let log = OutboxLog::new(&fed.db, name).ordered(OnDead::Block);
        log.migrate().await.expect("migrate");
        let group = log.register(Subscription::new("g")).await.expect("register").with_feed(WalFeed::new());
        assert_eq!(group.start_feed().await.expect_err("refused").kind(), ErrorKind::Unsupported);
    }

    async fn role_without_replication_is_refused(fed: &Fed) {
        let other = fed.log.register(Subscription::new("other")).await.expect("register");
        let role = format!("r_{}", fed.schema);
        fed.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'secret'")).await;
        let refused = other.clone().with_feed(WalFeed::new().with_login(&role, "secret"));
        let error = refused.start_feed().await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        let wrong = other.clone().with_feed(WalFeed::new().with_login(&role, "wrong-password"));
        let error = wrong.start_feed().await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert!(!format!("{error:?} {:?}", WalFeed::new().with_login(&role, "wrong-password")).contains("wrong-password"));
        fed.execute(&format!("ALTER ROLE {role} REPLICATION")).await;
        refused.start_feed().await.expect("it may now");
        let ids = fed.enqueue([on("a")]).await;
        assert_eq!(deliver(&refused, 1).await, ids);
        drop(refused);
        fed.log.unregister("other").await.expect("unregister");
        fed.execute(&format!("DROP ROLE {role}")).await;
    }
}

trait StopAlone {
    async fn stop_feed_alone(&self);
}

impl StopAlone for outbox_sea_orm::LogGroup {
    /// Stops the feed while nobody else claims.
    async fn stop_feed_alone(&self) {
        let claiming = async {
            loop {
                assert!(claim(self, 10).await.is_empty());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            stopped = self.stop_feed() => stopped.expect("stop"),
            () = claiming => {}
        }
    }
}

/// Before 14 it is refused, and the group goes on being read by number.
#[tokio::test(flavor = "multi_thread")]
async fn feed_needs_version_14() {
    let Ok(server) = server().await else { return };
    let fed = Fed::polled(server.url()).await;
    let started = fed.group.start_feed().await;
    if version(&fed.db).await < MIN_VERSION {
        let error = started.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("PostgreSQL 14"), "{error}");
    } else {
        started.expect("started");
    }
    let ids = fed.enqueue((0..10).map(|_| on("a"))).await;
    assert_eq!(deliver(&fed.group, 10).await, ids);
    outbox_testkit::Harness::finish(fed).await;
}
