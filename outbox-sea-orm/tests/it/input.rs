//! Bad and unusual input that needs a real database; the rest are cases of the conformance suite.

mod errors;
mod sessions;
mod times;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use outbox_core::{
    ClaimRequest, DeadLetterQuery, Draft, ErrorKind, Lease, Mark, Marked, Moved, Operations, Outcome,
    ProcessedStore, Repository, RepositoryExt, Settled, Settlement, TableName,
};
use outbox_sea_orm::{OutboxTable, ProcessedTable, transactor};
use sea_orm::{ConnectionTrait, TransactionTrait};
use uuid::Uuid;

use crate::support::{LEASE, PATIENCE, Site, on_each};

async fn an_id_that_is_there_leaves_the_transaction_usable(site: &Site) {
    let [known] = site.enqueue("first", 1).await[..] else { panic!("one id") };
    transactor(&site.db)
        .run(async |cx| {
            let drafts = vec![Draft::new("t", "1"), Draft::new("t", "again").id(known), Draft::new("t", "2")];
            let error = site.outbox.enqueue(cx, drafts).await.expect_err("it is there");
            assert_eq!(error.kind(), ErrorKind::AlreadyEnqueued);
            assert!(
                error
                    .to_string()
                    .ends_with(": a message with this id or dedup key is enqueued already: 1 of 3")
            );
            site.outbox.enqueue(cx, Draft::new("t", "3")).await
        })
        .await
        .expect("committed");
    assert_eq!(site.count("outbox WHERE topic = 't'").await, 3);
    assert_eq!(site.count("outbox WHERE topic = 'first'").await, 1, "it is as it was");
}

async fn an_id_of_an_open_transaction_is_waited_for(site: &Site) {
    for commit in [true, false] {
        let id = Uuid::now_v7();
        let first = site.db.begin().await.expect("begin");
        site.outbox.enqueue_in(&first, [Draft::new("t", "first").id(id)]).await.expect("enqueue");
        let outbox = site.outbox.clone();
        let second =
            tokio::spawn(async move { outbox.enqueue_autocommit([Draft::new("t", "").id(id)]).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!second.is_finished(), "nobody can know yet");
        if commit { first.commit().await } else { first.rollback().await }.expect("ended");
        match second.await.expect("joined") {
            Ok(ids) => assert_eq!((ids, commit), (vec![id], false)),
            Err(error) => assert_eq!((error.kind(), commit), (ErrorKind::AlreadyEnqueued, true)),
        }
    }
    assert_eq!(site.count("outbox").await, 2);
}

async fn a_hundred_thousand_messages_share_one_transaction(site: &Site) {
    const N: usize = 100_000;
    for commit in [false, true] {
        let drafts: Vec<Draft> = (0..N).map(|n| Draft::new("t", n.to_string()).key(n)).collect();
        let transaction = site.db.begin().await.expect("begin");
        let ids = site.outbox.enqueue_in(&transaction, drafts.clone()).await.expect("enqueue");
        assert!(ids.iter().eq(drafts.iter().map(|draft| &draft.id)), "the ids stand in order");
        if commit { transaction.commit().await } else { transaction.rollback().await }.expect("ended");
        assert_eq!(site.count("outbox").await, if commit { N as i64 } else { 0 });
    }
    let first = site.claim(1_000).await;
    let payloads: Vec<_> = first.messages.iter().map(|claimed| claimed.message.payload.clone()).collect();
    assert!(payloads.iter().eq((0..1_000).map(|n| n.to_string()).collect::<Vec<_>>().iter()), "in order");
}

async fn no_call_is_too_long_for_a_statement(site: &Site) {
    const N: usize = 40_000;
    site.enqueue("t", 2).await;
    let claim = site.claim(2).await;
    let unknown = |n| Lease { id: Uuid::new_v4(), token: Uuid::new_v4(), locator: n };
    let mut leases: Vec<Lease> = (0..N as i64).map(unknown).collect();
    // the real ones stand far apart
    leases[0] = claim.messages[0].lease;
    leases[N - 1] = claim.messages[1].lease;

    let is_real = |n: usize| n == 0 || n == N - 1;
    let right = |n, settled: &Settled| (*settled == Settled::Applied) == is_real(n);
    let extended = site.outbox.extend(leases.clone(), LEASE).await.expect("extend");
    assert!(extended.iter().enumerate().all(|(n, settled)| right(n, settled)));
    let dead = Outcome::Dead { error: "no".to_owned() };
    let settlements = leases.iter().map(|lease| Settlement::new(*lease, dead.clone())).collect();
    let settled = site.outbox.settle(settlements).await.expect("settle");
    assert!(settled.iter().enumerate().all(|(n, settled)| right(n, settled)));
    let ids: Vec<Uuid> = leases.iter().map(|lease| lease.id).collect();
    for moved in [site.outbox.redrive(ids.clone()).await, site.outbox.discard(ids).await] {
        assert_eq!(moved.expect("moved").len(), N);
    }
    assert_eq!(site.drain().await.len(), 2, "redriven, so not discarded");
}

/// Texts that are harmless as values and would not be as SQL.
const HOSTILE: [&str; 12] = [
    "'; DROP TABLE canary; --",
    "\"; DROP TABLE canary; --",
    "x'); DELETE FROM outbox; --",
    "$1",
    "?1 ?",
    "%s %n {}",
    "/* */ -- //",
    "\\'; \\x00",
    "${jndi:ldap://x}",
    "NULL",
    "‘; DROP TABLE canary; --",
    "\u{202e}😀\u{fe0f} ä\u{308}",
];

async fn hostile_values_are_nothing_but_values(site: &Site) {
    canary(site).await;
    for text in HOSTILE {
        let draft = Draft::new(text, text).key(text).header(text, text);
        let drafts = vec![draft.clone()];
        transactor(&site.db).run(async |cx| site.outbox.enqueue(cx, drafts).await).await.expect("enqueue");
        let request = ClaimRequest::new(10, LEASE).with_topics([text]);
        let claim = site.outbox.claim(request).await.expect("claim");
        let [claimed] = &claim.messages[..] else { panic!("{text}: {claim:?}") };
        let message = &claimed.message;
        assert_eq!((&*message.topic, message.key.as_deref()), (text, Some(text)));
        assert_eq!((&message.payload, &message.headers), (&draft.payload, &draft.headers));
        let dead = site.outbox.mark_dead(claimed.lease, text).await.expect("settle");
        assert_eq!(dead, Settled::Applied);
        let page = site.outbox.dead_letters(DeadLetterQuery::new(10).with_topic(text)).await.expect("list");
        assert_eq!(page.letters[0].error, text);
        assert_eq!(site.outbox.discard(vec![draft.id]).await.expect("discard"), [Moved::Applied]);
        hostile_record(site, text).await;
    }
    assert_canary(site).await;
}

async fn hostile_record(site: &Site, text: &str) {
    let id = Uuid::now_v7();
    let metadata = serde_json::json!({ text: [text] });
    let mark = || Mark::new(text, id).with_fingerprint(text).with_metadata(metadata.clone());
    let tx = transactor(&site.db);
    let first = tx.run(async |cx| site.inbox.mark_processed(cx, mark()).await).await.expect("mark");
    assert_eq!(first, Marked::First);
    let again = tx.run(async |cx| site.inbox.mark_processed(cx, mark()).await).await.expect("mark");
    let Marked::Duplicate(record) = again else { panic!("{text}") };
    assert_eq!((record.fingerprint.as_deref(), record.metadata), (Some(text), metadata));
    assert!(site.inbox.is_processed(text, id).await.expect("asked"));
}

async fn canary(site: &Site) {
    let canary = site.sql_name("canary");
    site.execute(&format!("CREATE TABLE {canary} (alive INTEGER)")).await;
    site.execute(&format!("INSERT INTO {canary} VALUES (1)")).await;
}

async fn assert_canary(site: &Site) {
    assert_eq!(site.count("canary").await, 1);
}

/// Each with CANARY where the name of the canary goes.
const NAMES: [&str; 30] = [
    "",
    " ",
    ".",
    "a.",
    ".a",
    "a.b.c",
    "a b",
    "Outbox",
    "a-b",
    "1a",
    "\"a",
    "\"a\"",
    "x\"; DROP TABLE CANARY; --",
    "x'; DROP TABLE CANARY; --",
    "x; DROP TABLE CANARY",
    "x\"(id int); DROP TABLE CANARY; --",
    "outbox--",
    "outbox/*",
    "outbox;",
    "a\0b",
    "a\nb",
    "ä",
    "‘a’",
    "а",
    "$1",
    "a\\",
    "`a`",
    "[a]",
    "a%",
    "pg_catalog.pg_class; DROP TABLE CANARY",
];

async fn hostile_names_never_reach_the_database(site: &Site) {
    canary(site).await;
    let long = "x".repeat(49);
    for name in NAMES.iter().copied().chain([&*long]) {
        let name = name.replace("CANARY", &site.sql_name("canary"));
        for name in [name.clone(), format!("app.{name}"), format!("{name}.outbox")] {
            let Ok(table) = TableName::parse(&name) else { continue };
            panic!("{name} was taken for the table {table}");
        }
    }
    assert_canary(site).await;
}

async fn reserved_words_are_names_like_any_other(site: &Site) {
    for word in ["order", "user", "select", "table", "group", "null", "end", "_", "x1"] {
        let name = if site.is_postgres() { format!("{}.{word}", site.schema()) } else { word.to_owned() };
        let outbox = OutboxTable::new(&site.db, TableName::parse(&name).expect("name"));
        outbox.migrate().await.expect("migrate");
        let inbox = ProcessedTable::new(&site.db, TableName::parse(&format!("{name}_inbox")).expect("name"));
        inbox.migrate().await.expect("migrate");
        let ids = outbox.enqueue_autocommit([Draft::new("t", "")]).await.expect("enqueue");
        let claim = outbox.claim(ClaimRequest::new(1, LEASE)).await.expect("claim");
        assert_eq!(claim.messages[0].message.id, ids[0]);
        let tx = transactor(&site.db);
        let marked = tx.run(async |cx| inbox.mark_processed(cx, Mark::new("g", ids[0])).await).await;
        assert_eq!(marked.expect("marked"), Marked::First);
        inbox.purge_before("g", Duration::ZERO, 10).await.expect("purge");
    }
}

async fn two_tables_do_not_see_each_other(site: &Site) {
    let other = OutboxTable::new(&site.db, site.name("other"));
    other.migrate().await.expect("migrate");
    let ids = site.enqueue("t", 3).await;
    other.enqueue_autocommit([Draft::new("t", "other").id(ids[0])]).await.expect("the same id elsewhere");
    assert_eq!(other.claim(ClaimRequest::new(10, LEASE)).await.expect("claim").messages.len(), 1);
    assert_eq!(site.drain().await, ids);
    let stats: BTreeMap<_, _> = other.stats().await.expect("stats").topics;
    assert_eq!(stats["t"].n_claimed, 1);
}

async fn claims_of_several_loops_are_disjoint(site: &Site) {
    let ids: BTreeSet<Uuid> = site.enqueue("t", 2_000).await.into_iter().collect();
    let loops = (0..4).map(|_| {
        let outbox = OutboxTable::new(&site.db, site.name("outbox"));
        async move {
            let mut claimed = Vec::new();
            loop {
                let claim = outbox.claim(ClaimRequest::new(50, LEASE)).await.expect("claim");
                if claim.is_empty() {
                    return claimed;
                }
                claimed.extend(claim.messages.into_iter().map(|claimed| claimed.message.id));
            }
        }
    });
    let all = tokio::time::timeout(PATIENCE, futures_util::future::join_all(loops)).await.expect("in time");
    let claimed: Vec<Uuid> = all.into_iter().flatten().collect();
    assert_eq!(claimed.len(), 2_000, "each is claimed once");
    assert_eq!(claimed.into_iter().collect::<BTreeSet<_>>(), ids);
}

async fn a_broken_statement_elsewhere_is_no_error_of_ours(site: &Site) {
    site.db.execute_unprepared("SELECT * FROM nowhere").await.expect_err("broken");
    site.enqueue("t", 1).await;
    assert_eq!(site.drain().await.len(), 1);
}

on_each! {
    on_postgres { an_id_of_an_open_transaction_is_waited_for, a_broken_statement_elsewhere_is_no_error_of_ours },
    on_mysql { an_id_of_an_open_transaction_is_waited_for, a_broken_statement_elsewhere_is_no_error_of_ours },
    on_sqlite => {
        an_id_that_is_there_leaves_the_transaction_usable,
        a_hundred_thousand_messages_share_one_transaction,
        no_call_is_too_long_for_a_statement,
        hostile_values_are_nothing_but_values,
        hostile_names_never_reach_the_database,
        reserved_words_are_names_like_any_other,
        two_tables_do_not_see_each_other,
        claims_of_several_loops_are_disjoint,
    }
}
