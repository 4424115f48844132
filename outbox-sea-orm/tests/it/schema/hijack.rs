//! Somebody else's tables of the same name stand before ours in the search path.

use std::time::Duration;

use outbox_core::{
    ClaimRequest, DeadLetterQuery, Draft, Listener, Mark, Marked, Operations, Outcome, ProcessedStore, Prune,
    Readiness, Repository, Result, Settlement, TableName, Wakeup,
};
use outbox_sea_orm::{OutboxTable, ProcessedTable, transactor};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use uuid::Uuid;

use crate::support::{LEASE, OwnDatabase, PATIENCE, value};

/// The same tables with their own sequence, in a schema that comes first.
const EVIL: &str = "CREATE SCHEMA evil; CREATE TABLE evil.outbox (LIKE public.outbox INCLUDING ALL); \
    CREATE TABLE evil.inbox (LIKE public.inbox INCLUDING ALL); \
    CREATE TABLE evil.outbox_dedup (LIKE public.outbox_dedup INCLUDING ALL); \
    CREATE FUNCTION evil.outbox_notify() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'evil'; END$$";

/// Every statement that there is.
async fn use_everything(outbox: &OutboxTable, inbox: &ProcessedTable, db: &DatabaseConnection) -> Result<()> {
    let mut listener = outbox.listen().await?.expect("a listener");
    while listener.prepare().await? != Readiness::Sleep {}
    let ids = transactor(db)
        .run(async |cx| {
            let delayed = Draft::new("t", "later").delay(Duration::from_millis(1));
            let drafts = vec![Draft::new("t", "1"), Draft::new("t", "2"), Draft::new("t", "3"), delayed];
            outbox.enqueue(cx, drafts).await
        })
        .await?;
    listener.hint().await?;
    listener.stand_down().await?;
    settle_each(outbox).await?;
    use_keys(outbox).await?;
    assert_eq!(outbox.stats().await?.total().n_dead, 1);
    let letters = outbox.dead_letters(DeadLetterQuery::new(10)).await?.letters;
    let _ = outbox.redrive(letters.iter().map(|letter| letter.message.id).collect()).await?;
    let _ = outbox.discard(ids.clone()).await?;
    use_inbox(inbox, db, ids[0]).await
}

/// Of one draft and of several, new and repeated, with delays so that no claim sees them.
async fn use_keys(outbox: &OutboxTable) -> Result<()> {
    let keyed = |key: &str| Draft::new("t", "").delay(LEASE).dedup_key(key);
    let first = outbox.enqueue_autocommit(keyed("a")).await?;
    assert_eq!(outbox.enqueue_autocommit(keyed("a")).await?, first);
    assert_eq!(outbox.enqueue_autocommit([keyed("b"), keyed("a")]).await?[1], first[0]);
    assert_eq!(outbox.prune(Prune::dedup_keys().dry_run()).await?, 0);
    assert_eq!(outbox.prune(Prune::dedup_keys()).await?, 0);
    Ok(())
}

async fn settle_each(outbox: &OutboxTable) -> Result<()> {
    let claim = outbox.claim(ClaimRequest::new(3, LEASE)).await?;
    let leases: Vec<_> = claim.messages.iter().map(|claimed| claimed.lease).collect();
    let _ = outbox.extend(leases.clone(), LEASE).await?;
    let outcomes = [
        Outcome::Release,
        Outcome::Retry { after: Duration::ZERO, error: String::new() },
        Outcome::Dead { error: String::new() },
    ];
    let settlements =
        leases.into_iter().zip(outcomes).map(|(lease, outcome)| Settlement::new(lease, outcome));
    let settled = outbox.settle(settlements.collect()).await?;
    assert_eq!(settled, [outbox_core::Settled::Applied; 3]);
    Ok(())
}

async fn use_inbox(inbox: &ProcessedTable, db: &DatabaseConnection, id: Uuid) -> Result<()> {
    transactor(db)
        .run(async |cx| {
            assert_eq!(inbox.mark_processed(cx, Mark::new("g", id)).await?, Marked::First);
            inbox.store_result(cx, "g", id, serde_json::json!(1)).await
        })
        .await?;
    assert!(inbox.is_processed("g", id).await?);
    assert_eq!(inbox.purge_before("g", Duration::ZERO, 10).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_schema_first_in_the_search_path_changes_nothing_on_postgres() {
    let Some(database) = OwnDatabase::create().await else { return };
    let db = database.connect(&[("search_path", "evil, public")]).await;
    let name = |name: &str| TableName::parse(name).expect("name");
    let outbox = OutboxTable::new(&db, name("outbox"));
    let inbox = ProcessedTable::new(&db, name("inbox"));
    outbox.migrate().await.expect("migrate");
    inbox.migrate().await.expect("migrate");
    db.execute_unprepared(EVIL).await.expect("evil");

    let used = tokio::time::timeout(PATIENCE, use_everything(&outbox, &inbox, &db)).await;
    used.expect("a hint of another table").expect("as ever");
    outbox.check().await.expect("check");
    inbox.check().await.expect("check");
    assert_eq!(
        value::<i64>(
            &db,
            "SELECT (SELECT count(*) FROM evil.outbox) + (SELECT count(*) FROM evil.inbox) \
                  + (SELECT count(*) FROM evil.outbox_dedup)"
        )
        .await,
        0
    );
    let drawn =
        "SELECT pg_sequence_last_value(pg_get_serial_sequence('evil.outbox', 'seq')::regclass) IS NULL";
    assert!(value::<bool>(&db, drawn).await, "a number was drawn from the wrong sequence");
    assert!(value::<i64>(&db, "SELECT count(*) FROM public.outbox").await > 0);
    drop((db, outbox, inbox));
    database.drop().await;
}
