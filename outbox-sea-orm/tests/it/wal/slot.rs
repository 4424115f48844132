//! Slots that cannot be read.

use outbox_core::{ClaimRequest, ErrorKind, Operations, Repository, Severity, Symptom};
use outbox_testkit::server::Settings;
use uuid::Uuid;

use super::{
    Fed, LEASE, assert_empty, claim, claim_some, deliver, eventually, on, on_a_feed, on_own_server, settle,
};

/// What the next claim says that does not just wait for the slot.
async fn refusal(fed: &Fed) -> outbox_core::Error {
    eventually("the claim is refused", async || {
        fed.group.claim(ClaimRequest::new(10, LEASE)).await.err().filter(|error| !error.is_retryable())
    })
    .await
}

/// What the doctor says of the slot.
async fn symptoms(fed: &Fed) -> Vec<(Severity, String)> {
    let found = fed.group.doctor(LEASE).await.expect("doctor");
    let of_slot = found.into_iter().filter(|finding| finding.symptom == Symptom::Slot);
    of_slot.map(|finding| (finding.severity, finding.what)).collect()
}

async fn drop_slot(fed: &Fed) -> String {
    let slot: String = fed.of_group("slot").await;
    eventually("the slot is dropped", async || {
        let pid: Option<i32> = fed.of_slot("active_pid").await;
        if let Some(pid) = pid {
            fed.execute(&format!("SELECT pg_terminate_backend({pid})")).await;
        }
        let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
        sea_orm::ConnectionTrait::execute_unprepared(&fed.db, &drop).await.ok()
    })
    .await;
    slot
}

on_a_feed! { "slot":
    async fn missing_slot_is_refused_until_the_group_is_read_by_number(fed: &Fed) {
        fed.enqueue((0..10).map(|_| on("a"))).await;
        assert_eq!(deliver(&fed.group, 10).await.len(), 10);
        assert!(symptoms(fed).await.is_empty());
        let slot = drop_slot(fed).await;
        assert_eq!(symptoms(fed).await, [(Severity::Critical, format!("the replication slot {slot} of group billing is missing"))]);
        let ids = fed.enqueue((0..10).map(|_| on("b"))).await;
        let error = refusal(fed).await;
        assert_eq!(error.kind(), ErrorKind::Schema);
        let text = error.to_string();
        assert!(text.contains(&slot) && text.contains("is missing") && text.contains("resync"), "{text}");
        fed.group.resync().await.expect("resync");
        let delivered = eventually("what is new has come", async || {
            let claimed = claim_some(&fed.group, 100).await;
            settle(&fed.group, &claimed, outbox_core::Outcome::Done).await;
            let delivered: Vec<_> = claimed.iter().map(|claimed| claimed.message.id).collect();
            delivered.ends_with(&ids).then_some(delivered)
        })
        .await;
        assert!(delivered.len() <= 20, "nothing but the last moments comes again");
        assert_empty(&fed.group).await;
        fed.group.start_feed().await.expect("it can be fed again");
        let ids = fed.enqueue([on("c")]).await;
        assert_eq!(deliver(&fed.group, 1).await, ids);
    }

    async fn slot_that_nobody_reads_is_found(fed: &Fed) {
        let slot: String = fed.of_group("slot").await;
        let found = symptoms(fed).await;
        assert_eq!((found.len(), found[0].0), (1, Severity::Warning));
        assert!(found[0].1.starts_with(&format!("nobody reads the replication slot {slot}")), "{found:?}");
    }

    async fn slot_that_is_further_on_is_refused(fed: &Fed) {
        fed.enqueue([on("a")]).await;
        deliver(&fed.group, 1).await;
        let slot = drop_slot(fed).await;
        fed.enqueue([on("b")]).await;
        fed.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
        let text = refusal(fed).await.to_string();
        assert!(text.contains("further on"), "{text}");
    }

    async fn slot_lag_is_what_the_server_keeps_and_what_is_not_confirmed(fed: &Fed) {
        let slot: String = fed.of_group("slot").await;
        let lag = async || fed.group.stats().await.expect("stats").slot_lag;
        let of_server = "pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint";
        fed.execute("SELECT pg_logical_emit_message(true, 'x', repeat('x', 3000000))").await;
        let (before, found, after) =
            (fed.of_slot::<i64>(of_server).await, lag().await.expect("it is fed"), fed.of_slot::<i64>(of_server).await);
        assert_eq!((&found.slot, found.is_active), (&slot, false), "nobody has read it");
        assert!(before as u64 <= found.n_retained && found.n_retained <= after as u64, "{before} {found:?} {after}");
        assert!(3_000_000 <= found.n_unconfirmed && found.n_unconfirmed <= found.n_retained, "{found:?}");
        fed.enqueue([on("a")]).await;
        deliver(&fed.group, 1).await;
        let found = eventually("what was claimed is confirmed", async || {
            claim(&fed.group, 1).await;
            lag().await.filter(|lag| lag.n_unconfirmed < 2_000_000)
        })
        .await;
        assert!(found.is_active, "{found:?}");
        drop_slot(fed).await;
        assert_eq!(lag().await, None, "it is missing");
        fed.group.resync().await.expect("resync");
        assert_eq!(lag().await, None, "the group is read by number");
    }

    // as an exporter of metrics may: it reads the tables and nothing else
    async fn slot_lag_needs_no_rights_on_the_server(fed: &Fed) {
        let (schema, role) = (&fed.schema, format!("{}_reader", fed.schema));
        fed.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA {schema} TO {role};
            GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}; GRANT SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}"))
            .await;
        let (_, place) = fed.url.rsplit_once('@').expect("a user");
        let reader = Fed::open(&format!("postgres://{role}:x@{place}"), schema).await;
        assert!(reader.group.stats().await.expect("stats").slot_lag.is_some());
        reader.db.close().await.expect("close");
        fed.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    }

    async fn slot_of_another_plugin_is_refused(fed: &Fed) {
        let slot = drop_slot(fed).await;
        fed.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')")).await;
        let text = refusal(fed).await.to_string();
        assert!(text.contains("another plugin"), "{text}");
    }

    async fn missing_publication_is_refused(fed: &Fed) {
        let publication = publication(fed).await;
        fed.enqueue([on("a")]).await;
        deliver(&fed.group, 1).await;
        // it has arrived when the rest is passed over
        let mut ids = fed.enqueue((0..5).map(|_| on("b"))).await;
        fed.execute(&format!("DROP PUBLICATION {publication}")).await;
        ids.extend(fed.enqueue((0..5).map(|_| on("c"))).await);
        let error = refusal(fed).await;
        assert_eq!(error.kind(), ErrorKind::Schema);
        assert!(error.to_string().contains(&publication), "{error}");
        recovers(fed, &ids).await;
    }

    // from 18 on the server passes over what was committed in between
    async fn publication_made_again_is_refused(fed: &Fed) {
        fed.enqueue([on("a")]).await;
        deliver(&fed.group, 1).await;
        let publication = publication(fed).await;
        fed.execute(&format!("DROP PUBLICATION {publication}")).await;
        let ids = fed.enqueue((0..5).map(|_| on("b"))).await;
        let (schema, options) = (&fed.schema, "publish = 'insert', publish_via_partition_root = true");
        fed.execute(&format!("CREATE PUBLICATION {publication} FOR TABLE {schema}.log WITH ({options})")).await;
        // behind what became of the stream, where that was open
        let error = eventually("it is found out", async || {
            Some(refusal(fed).await).filter(|error| error.to_string().contains("made again"))
        })
        .await;
        assert_eq!(error.kind(), ErrorKind::Schema);
        recovers(fed, &ids).await;
    }
}

async fn publication(fed: &Fed) -> String {
    fed.value(&format!("SELECT 'outbox_' || '{}.log'::regclass::oid", fed.schema)).await
}

/// The group is read by number until it has these messages, and fed again.
async fn recovers(fed: &Fed, ids: &[Uuid]) {
    fed.group.resync().await.expect("resync");
    let mut delivered = Vec::new();
    eventually("nothing is lost", async || {
        delivered.extend(deliver(&fed.group, 1).await);
        ids.iter().all(|id| delivered.contains(id)).then_some(())
    })
    .await;
    fed.group.start_feed().await.expect("it is published again");
    let ids = fed.enqueue([on("c")]).await;
    assert_eq!(deliver(&fed.group, 1).await, ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalidated_slot_is_refused() {
    let settings = Settings::for_tests().with("max_slot_wal_keep_size", "1MB").with("min_wal_size", "32MB");
    let Some((_server, fed)) = on_own_server("slot::invalidated_slot_is_refused", settings).await else {
        return;
    };
    fed.start_feed().await;
    fed.enqueue([on("a")]).await;
    // nobody reads the slot
    for _ in 0..8 {
        fed.execute("SELECT pg_logical_emit_message(true, 'x', repeat('x', 100000))").await;
        fed.execute("SELECT pg_switch_wal()").await;
    }
    fed.execute("CHECKPOINT").await;
    let error = refusal(&fed).await;
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("was invalidated"), "{error}");
    fed.group.resync().await.expect("resync");
    assert_eq!(deliver(&fed.group, 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_without_logical_decoding_is_refused() {
    let settings = Settings::for_tests().with("wal_level", "replica");
    let test = "slot::server_without_logical_decoding_is_refused";
    let Some((_server, fed)) = on_own_server(test, settings).await else { return };
    let error = fed.group.start_feed().await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("wal_level"), "{error}");
    let ids = fed.enqueue([on("a")]).await;
    assert_eq!(deliver(&fed.group, 1).await, ids, "it goes on being read by number");
}
