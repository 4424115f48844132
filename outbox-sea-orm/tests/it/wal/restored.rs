//! A dump of a fed group: it has the group's place in the WAL of another database.

use std::collections::HashSet;

use outbox_core::{ErrorKind, MessageId};
use outbox_testkit::Harness;

use super::failover::{assert_fed_again, deliver_for_good, refusal, resync};
use super::{Fed, claim_some, deliver, eventually, on, require_feeds, server};
use crate::log::restored::dump_and_restore;
use crate::support::OwnDatabase;

/// A fed group in a database of its own, and one to restore it into.
async fn start(test: &str) -> Option<(OwnDatabase, Fed, OwnDatabase)> {
    let server = server().await.ok()?.url();
    let (origin, copy) = (OwnDatabase::on(server).await, OwnDatabase::on(server).await);
    let fed = Fed::at(&origin.url(), "l").await;
    if let Err(skip) = require_feeds(&fed.db).await {
        skip.report(Fed::NAME, test);
        return None;
    }
    fed.start_feed().await;
    Some((origin, fed, copy))
}

/// What is in a dump.
struct Dumped {
    settled: Vec<MessageId>,
    open: HashSet<MessageId>,
}

/// Dumps the group with some messages settled, some leased and some not claimed.
async fn dump(origin: &OwnDatabase, fed: &Fed, copy: &OwnDatabase) -> Dumped {
    let settled = deliver_for_good(fed, 10).await;
    let open = fed.enqueue((0..8).map(|_| on("a"))).await.into_iter().collect();
    claim_some(&fed.group, 3).await;
    dump_and_restore(origin, copy).await;
    Dumped { settled, open }
}

/// The copy says why it cannot be fed, is read by number, and can be fed again.
async fn assert_recovers(copy: &OwnDatabase, dumped: &Dumped, reason: &str) {
    let fed = Fed::open(&copy.url(), "l").await;
    let new = fed.enqueue([on("a")]).await;
    let (taken, error) = refusal(&fed).await;
    assert!(taken.is_empty(), "{taken:?}");
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Schema, "{text}");
    assert!(text.contains(reason) && text.contains("resync"), "{text}");
    fed.execute("UPDATE l.log_ranges SET leased_until = now() - interval '1 s'").await;
    let delivered = resync(&fed).await;
    assert!(delivered.is_superset(&dumped.open) && delivered.contains(&new[0]), "lost");
    assert!(
        dumped.settled.iter().all(|id| !delivered.contains(id)),
        "what was settled for good does not come"
    );
    assert_fed_again(&fed).await;
    fed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_beside_its_origin_is_refused_until_it_is_read_by_number() {
    let test = "restored::copy_beside_its_origin_is_refused_until_it_is_read_by_number";
    let Some((origin, fed, copy)) = start(test).await else { return };
    let dumped = dump(&origin, &fed, &copy).await;
    assert_recovers(&copy, &dumped, "is of another database").await;
    assert_eq!(deliver(&fed.group, 5).await.len(), 5, "the origin goes on being fed");
    fed.finish().await;
    origin.drop().await;
    copy.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_without_its_origin_is_refused_until_it_is_read_by_number() {
    let test = "restored::copy_without_its_origin_is_refused_until_it_is_read_by_number";
    let Some((origin, fed, copy)) = start(test).await else { return };
    let dumped = dump(&origin, &fed, &copy).await;
    fed.finish().await;
    origin.drop().await;
    assert_recovers(&copy, &dumped, "is missing").await;
    copy.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removing_the_group_of_a_copy_leaves_the_slot_of_its_origin() {
    let test = "restored::removing_the_group_of_a_copy_leaves_the_slot_of_its_origin";
    let Some((origin, fed, copy)) = start(test).await else { return };
    dump(&origin, &fed, &copy).await;
    drop(fed);
    let fed = Fed::open(&origin.url(), "l").await;
    eventually("nobody reads the slot", async || (!fed.of_slot::<bool>("active").await).then_some(())).await;
    Fed::open(&copy.url(), "l").await.finish().await;
    assert_eq!(deliver(&fed.group, 5).await.len(), 5, "the origin goes on being fed");
    fed.finish().await;
    origin.drop().await;
    copy.drop().await;
}
