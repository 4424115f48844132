//! Connections that end, and WAL that is none of the group's.

use outbox_testkit::server::Settings;
use sea_orm::{ConnectionTrait, TransactionTrait};

use super::{assert_empty, claim, deliver, eventually, on, on_a_feed, on_own_server};

on_a_feed! { "faults":
    async fn lost_connection_loses_and_repeats_nothing(fed: &Fed) {
        let (mut ids, mut delivered) = (Vec::new(), Vec::new());
        for round in 0..5 {
            ids.extend(fed.enqueue((0..50).map(|_| on("a"))).await);
            delivered.extend(deliver(&fed.group, 20).await);
            let pid: Option<i32> = fed.of_slot("active_pid").await;
            if let Some(pid) = pid {
                fed.execute(&format!("SELECT pg_terminate_backend({pid})")).await;
            }
            let left = 50 * (round + 1) - delivered.len();
            delivered.extend(deliver(&fed.group, left).await);
        }
        assert_eq!(delivered, ids);
        assert_empty(&fed.group).await;
    }

    async fn quiet_log_does_not_keep_wal(fed: &Fed) {
        fed.enqueue([on("a")]).await;
        deliver(&fed.group, 1).await;
        fed.execute(&format!("CREATE TABLE {}.other (t text)", fed.schema)).await;
        let fill = format!("INSERT INTO {}.other SELECT repeat('x', 1000) FROM generate_series(1, 10000)", fed.schema);
        for _ in 0..3 {
            fed.execute(&fill).await;
        }
        let end: String = fed.value("SELECT pg_current_wal_flush_lsn()::text").await;
        fed.execute(&fill).await;
        eventually("the slot has moved on", async || {
            assert!(claim(&fed.group, 1).await.is_empty());
            fed.of_slot::<bool>(&format!("confirmed_flush_lsn >= '{end}'")).await.then_some(())
        })
        .await;
        assert_eq!(fed.of_slot::<String>("wal_status").await, "reserved");
    }

    async fn nothing_is_confirmed_that_is_not_claimed(fed: &Fed) {
        let end: String = fed.value("SELECT pg_current_wal_flush_lsn()::text").await;
        fed.enqueue((0..100).map(|_| on("a"))).await;
        // what else arrives is behind what nobody claims
        assert_eq!(claim(&fed.group, 1).await.len(), 1);
        for _ in 0..3 {
            tokio::time::sleep(std::time::Duration::from_millis(700)).await;
            assert_eq!(claim(&fed.group, 1).await.len(), 1);
        }
        let is_behind = "confirmed_flush_lsn <= (SELECT fed_lsn FROM {s}.log_groups)".replace("{s}", &fed.schema);
        assert!(fed.of_slot::<bool>(&is_behind).await);
        let is_there = format!("confirmed_flush_lsn >= '{end}'");
        eventually("what was before is confirmed", async || fed.of_slot::<bool>(&is_there).await.then_some(()))
            .await;
        assert_eq!(fed.of_group::<i64>("fed_count").await, 4, "and the rest of the transaction comes again");
        let again = fed.another();
        let pid: i32 = fed.of_slot("active_pid").await;
        fed.execute(&format!("SELECT pg_terminate_backend({pid})")).await;
        assert_eq!(deliver(&again, 96).await.len(), 96);
        assert_empty(&again).await;
    }
}

/// A commit that waits for a synchronous standby has been sent, and nobody else sees it yet.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_claimed_before_it_is_visible() {
    let settings =
        Settings::for_tests().with("synchronous_standby_names", "nobody").with("synchronous_commit", "local");
    let test = "faults::nothing_is_claimed_before_it_is_visible";
    let Some((_server, fed)) = on_own_server(test, settings).await else { return };
    fed.start_feed().await;
    let before = fed.enqueue([on("before")]).await;
    assert_eq!(deliver(&fed.group, 1).await, before);
    let txn = fed.db.begin().await.expect("begin");
    let ids = fed.log.enqueue_in(&txn, [on("a"), on("a")]).await.expect("enqueue");
    txn.execute_unprepared("SET LOCAL synchronous_commit = on").await.expect("set");
    let committing = tokio::spawn(txn.commit());
    eventually("it waits for a standby", async || {
        let n: i64 = fed.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await;
        (n == 1).then_some(())
    })
    .await;
    assert_empty(&fed.group).await;
    assert_eq!(fed.of_group::<i64>("fed_count").await, 0);
    fed.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await;
    committing.await.expect("joined").expect("it is committed here");
    assert_eq!(deliver(&fed.group, 2).await, ids);
}
