//! What a role is not there for comes back as a missing permission, and changes nothing.

use std::time::Duration;

use outbox_core::{
    BlockedQuery, ClaimRequest, Context, DEDUP_RETENTION, DeadLetterFilter, DeadLetterQuery, Draft, Error,
    ErrorKind, Inspect, Lease, Maintenance, Mark, Operations, Outcome, ProcessedStore, Prune, Repository,
    Result, Settlement, Transactions,
};
use outbox_sea_orm::OutboxTable;
use outbox_testkit::Harness;
use uuid::Uuid;

use super::{Handles, Roles, run_with_roles};

const SECRET: &str = "S3CR3T-of-the-payload";
const HOUR: Duration = Duration::from_secs(3600);

/// Every call that there is, by its name.
async fn everything(Handles { outbox, inbox }: &Handles) -> Vec<(&'static str, Result<()>)> {
    let id = Uuid::now_v7();
    let lease = Lease { id, token: Uuid::now_v7(), locator: 1 };
    let done = || vec![Settlement::new(lease, Outcome::Done)];
    let dead = || vec![Settlement::new(lease, Outcome::Dead { error: SECRET.into() })];
    vec![
        ("enqueue", outbox.enqueue_autocommit(Draft::new("t", SECRET)).await.map(drop)),
        (
            "enqueue with a key",
            outbox.enqueue_autocommit(Draft::new("t", SECRET).dedup_key(Uuid::now_v7())).await.map(drop),
        ),
        ("claim", outbox.claim(ClaimRequest::new(1, HOUR)).await.map(drop)),
        ("settle", outbox.settle(done()).await.map(drop)),
        ("settle a failure", outbox.settle(dead()).await.map(drop)),
        ("extend", outbox.extend(vec![lease], HOUR).await.map(drop)),
        ("inspect", outbox.enqueued(&Context::new(), 1).await.map(drop)),
        ("stats", outbox.stats().await.map(drop)),
        ("dead letters", outbox.dead_letters(DeadLetterQuery::new(1)).await.map(drop)),
        ("redrive", outbox.redrive(vec![id]).await.map(drop)),
        ("redrive matching", outbox.redrive_matching(DeadLetterFilter::default(), 1).await.map(drop)),
        ("discard", outbox.discard(vec![id]).await.map(drop)),
        ("discard matching", outbox.discard_matching(DeadLetterFilter::default(), 1).await.map(drop)),
        ("history", outbox.history(id).await.map(drop)),
        ("prune", outbox.prune(Prune::done(HOUR)).await.map(drop)),
        ("count prunable", outbox.prune(Prune::dead(HOUR).dry_run()).await.map(drop)),
        ("prune keys", outbox.prune(Prune::dedup_keys()).await.map(drop)),
        ("count expired keys", outbox.prune(Prune::dedup_keys().dry_run()).await.map(drop)),
        ("is processed", inbox.is_processed("g", id).await.map(drop)),
        (
            "mark",
            in_transaction(inbox, async |cx| inbox.mark_processed(cx, Mark::new("g", id)).await.map(drop))
                .await,
        ),
        (
            "store",
            in_transaction(inbox, async |cx| inbox.store_result(cx, "g", id, SECRET.into()).await).await,
        ),
        ("purge", inbox.purge_before("g", HOUR, 1).await.map(drop)),
    ]
}

/// The calls that only an ordered and partitioned table knows.
async fn everything_of_order_and_partitions(outbox: &OutboxTable) -> Vec<(&'static str, Result<()>)> {
    let head = Uuid::now_v7();
    vec![
        ("blocked keys", outbox.blocked_keys(BlockedQuery::new(1)).await.map(drop)),
        ("skip", outbox.skip_head("k".into(), head).await.map(drop)),
        ("release", outbox.release_head("k".into(), head).await.map(drop)),
        ("maintain", outbox.maintain(Maintenance::new()).await.map(drop)),
    ]
}

async fn in_transaction(
    inbox: &impl Transactions,
    f: impl AsyncFnOnce(&Context) -> Result<()>,
) -> Result<()> {
    let cx = inbox.begin().await?;
    let result = f(&cx).await;
    inbox.rollback(cx).await?;
    result
}

fn assert_denied(name: &str, error: &Error) {
    assert_eq!(
        (error.kind(), error.is_retryable()),
        (ErrorKind::PermissionDenied, false),
        "{name}: {error:?}"
    );
    assert!(!format!("{error} {error:?}").contains(SECRET), "{name}: {error:?}");
}

async fn check<const PARTITIONED: bool>(roles: &Roles<PARTITIONED>, role: &str, allowed: &[&str]) {
    let handles = roles.handles(role).await;
    let mut calls = everything(&handles).await;
    if PARTITIONED {
        calls.extend(everything_of_order_and_partitions(&handles.outbox).await);
    }
    for (name, result) in calls {
        match result {
            Err(error) if !allowed.contains(&name) => assert_denied(name, &error),
            // there is no such message: an answer of the table, not of its guard
            Err(error) => assert_ne!(error.kind(), ErrorKind::PermissionDenied, "{role}, {name}: {error:?}"),
            Ok(()) => assert!(allowed.contains(&name), "{role} may {name}"),
        }
    }
}

async fn each_role_may_do_its_part_and_nothing_else<const PARTITIONED: bool>(roles: &Roles<PARTITIONED>) {
    check(roles, "producer", &["enqueue", "enqueue with a key"]).await;
    let operations = [
        "inspect",
        "stats",
        "dead letters",
        "redrive",
        "redrive matching",
        "discard",
        "discard matching",
        "history",
        "prune",
        "count prunable",
        "blocked keys",
        "skip",
        "release",
    ];
    let keys = ["prune keys", "count expired keys"];
    let hot = ["claim", "settle", "settle a failure", "extend"];
    // a dispatcher could do by hand what an operator does: both move the same rows
    check(roles, "dispatcher", &[&hot[..], &operations].concat()).await;
    check(roles, "admin", &[&hot[..], &operations, &keys, &["is processed", "purge"]].concat()).await;
    check(roles, "consumer", &["is processed", "mark", "store"]).await;
}

/// A producer cannot choose what the storage decides.
async fn a_producer_forges_nothing(roles: &Roles) {
    let producer = super::connect(&format!("{}_producer", roles.owner.schema())).await;
    for column in ["seq", "attempts", "fence", "dead_at", "created_at", "last_error", "leased_until"] {
        let sql = format!(
            "INSERT INTO {}.outbox (id, topic, payload, {column}) VALUES (gen_random_uuid(), 't', '', DEFAULT)",
            roles.owner.schema()
        );
        let error = sea_orm::ConnectionTrait::execute_unprepared(&producer, &sql).await.expect_err(column);
        assert!(error.to_string().contains("permission denied"), "{column}: {error}");
    }
}

/// A producer that may only insert learns that a key is taken, and stores the rest; the key is taken until it is pruned.
async fn a_producer_without_select_learns_that_a_key_is_taken(roles: &Roles) {
    let producer = roles.handles("producer").await.outbox;
    let keyed = |key: &str| Draft::new("t", "").dedup_key(key);
    producer.enqueue_autocommit([keyed("a"), keyed("a")]).await.expect("new");
    for _ in 0..2 {
        let error = producer.enqueue_autocommit(keyed("a")).await.expect_err("taken");
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::AlreadyEnqueued, false), "{error:?}");
        roles.advance(2 * DEDUP_RETENTION).await;
    }
    let cx = producer.begin().await.expect("begin");
    let call = vec![keyed("b"), keyed("a"), Draft::new("t", ""), keyed("b")];
    let error = producer.enqueue(&cx, call).await.expect_err("taken");
    assert!(error.to_string().ends_with("enqueued already: 1 of 4"), "{error}");
    producer.enqueue(&cx, keyed("c")).await.expect("the transaction goes on");
    producer.commit(cx).await.expect("commit");
    assert_eq!(roles.by_role.admin.outbox.stats().await.expect("stats").total().n_pending, 4);
    assert_eq!(roles.by_role.admin.outbox.prune(Prune::dedup_keys()).await.expect("prune"), 1);
    producer.enqueue_autocommit(keyed("a")).await.expect("new again");
}

async fn any_role_may_check_and_migrate_what_is_there(roles: &Roles) {
    for role in ["producer", "dispatcher", "consumer", "admin"] {
        let Handles { outbox, inbox } = roles.handles(role).await;
        outbox.check().await.expect(role);
        outbox.migrate().await.expect(role);
        inbox.check().await.expect(role);
        inbox.migrate().await.expect(role);
    }
}

mod postgres {
    use outbox_core::{Declaration, OnDead};

    use super::super::run_with_roles_on;
    use super::run_with_roles;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_role_may_do_its_part_and_nothing_else() {
        run_with_roles(super::each_role_may_do_its_part_and_nothing_else).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_role_may_do_its_part_of_an_ordered_partitioned_table() {
        let ordered = Declaration::new().ordered(OnDead::Block);
        run_with_roles_on::<true>(ordered, super::each_role_may_do_its_part_and_nothing_else).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_producer_forges_nothing() {
        run_with_roles(super::a_producer_forges_nothing).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_producer_without_select_learns_that_a_key_is_taken() {
        run_with_roles(super::a_producer_without_select_learns_that_a_key_is_taken).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn any_role_may_check_and_migrate_what_is_there() {
        run_with_roles(super::any_role_may_check_and_migrate_what_is_there).await;
    }
}
