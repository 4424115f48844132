//! What a fed group delivers, in which order, and what it writes.

use std::time::Duration;

use outbox_core::{
    ClaimRequest, Listener, Operations, Outcome, Readiness, Repository, Settlement, Symptom, TopicStats,
    Wakeup,
};
use outbox_sea_orm::{LogGroup, Subscription};
use sea_orm::{ConnectionTrait, DatabaseTransaction, TransactionTrait};
use tokio::time::timeout;

use super::{LEASE, PATIENCE, assert_empty, claim, claim_some, deliver, eventually, on, on_a_feed, settle};

/// A transaction that has enqueued and stays open, past which a message was delivered.
async fn delivered_past(fed: &super::Fed) -> DatabaseTransaction {
    fed.enqueue([on("a")]).await;
    deliver(&fed.group, 1).await;
    let late = fed.db.begin().await.expect("begin");
    fed.log.enqueue_in(&late, [on("late")]).await.expect("enqueue");
    fed.enqueue([on("b")]).await;
    deliver(&fed.group, 1).await;
    late
}

on_a_feed! { "delivery":
    async fn messages_come_in_the_order_of_the_commits(fed: &Fed) {
        let late = fed.db.begin().await.expect("begin");
        let held = fed.log.enqueue_in(&late, [on("late"), on("late")]).await.expect("enqueue");
        let first = fed.enqueue([on("a"), on("b")]).await;
        assert_eq!(deliver(&fed.group, 2).await, first, "an open transaction holds nobody back");
        late.commit().await.expect("commit");
        assert_eq!(deliver(&fed.group, 2).await, held);
        assert_empty(&fed.group).await;
    }

    async fn open_transaction_is_not_said_to_hold_back(fed: &Fed) {
        let late = delivered_past(fed).await;
        assert_eq!(fed.group.stats().await.expect("stats").held_back, None);
        let found = fed.group.doctor(Duration::ZERO).await.expect("doctor");
        assert!(found.iter().all(|finding| finding.symptom != Symptom::OpenTransaction), "{found:?}");
        late.rollback().await.expect("roll back");
    }

    async fn statistics_leave_out_what_was_delivered_past_an_open_transaction(fed: &Fed) {
        let late = fed.db.begin().await.expect("begin");
        fed.log.enqueue_in(&late, [on("late")]).await.expect("enqueue");
        fed.enqueue([on("a"), on("a")]).await;
        deliver(&fed.group, 2).await;
        let total = async |group: &LogGroup| group.stats().await.expect("stats").total();
        eventually("nothing is left", async || (total(&fed.group).await == TopicStats::default()).then_some(())).await;
        fed.enqueue([on("a"), on("a"), on("a")]).await;
        let elsewhere = fed.log.group("billing").expect("name");
        for group in [&fed.group, &elsewhere] {
            let total = total(group).await;
            assert_eq!((total.n_pending, total.n_due), (3, 3));
            assert!(total.oldest_due.is_some());
        }
        late.commit().await.expect("commit");
        assert_eq!(total(&fed.group).await.n_pending, 4);
        deliver(&fed.group, 4).await;
        assert_eq!(total(&fed.group).await, TopicStats::default());
    }

    async fn statistics_elsewhere_follow_the_claims_past_an_open_transaction(fed: &Fed) {
        let late = fed.db.begin().await.expect("begin");
        fed.log.enqueue_in(&late, [on("late")]).await.expect("enqueue");
        let elsewhere = fed.log.group("billing").expect("name");
        for _ in 0..2 {
            fed.enqueue([on("a"), on("a")]).await;
            deliver(&fed.group, 2).await;
            eventually("nothing is left", async || {
                assert_eq!(claim(&fed.group, 1).await.len(), 0);
                elsewhere.stats().await.expect("stats").topics.is_empty().then_some(())
            })
            .await;
        }
        late.rollback().await.expect("roll back");
    }

    async fn what_is_put_aside_counts_once_past_an_open_transaction(fed: &Fed) {
        let late = fed.db.begin().await.expect("begin");
        fed.log.enqueue_in(&late, [on("late")]).await.expect("enqueue");
        fed.enqueue([on("a").delay(LEASE), on("a")]).await;
        deliver(&fed.group, 1).await;
        assert_eq!(fed.count("log_group_billing").await, 1);
        eventually("it counts once", async || {
            let total = fed.group.stats().await.expect("stats").total();
            ((total.n_pending, total.n_due) == (1, 0)).then_some(())
        })
        .await;
        late.rollback().await.expect("roll back");
    }

    async fn what_is_rolled_back_is_not_delivered(fed: &Fed) {
        let txn = fed.db.begin().await.expect("begin");
        fed.log.enqueue_in(&txn, [on("gone")]).await.expect("enqueue");
        txn.rollback().await.expect("roll back");
        let txn = fed.db.begin().await.expect("begin");
        let kept = fed.log.enqueue_in(&txn, [on("kept")]).await.expect("enqueue");
        let savepoint = txn.begin().await.expect("savepoint");
        fed.log.enqueue_in(&savepoint, [on("gone")]).await.expect("enqueue");
        savepoint.rollback().await.expect("roll back to it");
        txn.commit().await.expect("commit");
        assert_eq!(deliver(&fed.group, 1).await, kept);
        assert_empty(&fed.group).await;
    }

    async fn prepared_transaction_is_delivered_when_it_is_committed(fed: &Fed) {
        let gid = &fed.schema;
        let txn = fed.db.begin().await.expect("begin");
        let ids = fed.log.enqueue_in(&txn, [on("a"), on("b")]).await.expect("enqueue");
        txn.execute_unprepared(&format!("PREPARE TRANSACTION '{gid}'")).await.expect("prepare");
        txn.rollback().await.expect("it is the server's now");
        let other = fed.enqueue([on("c")]).await;
        assert_eq!(deliver(&fed.group, 1).await, other);
        assert_empty(&fed.group).await;
        fed.execute(&format!("COMMIT PREPARED '{gid}'")).await;
        assert_eq!(deliver(&fed.group, 2).await, ids);
    }

    async fn group_passes_over_what_it_does_not_want(fed: &Fed) {
        fed.log.register(Subscription::new("billing").with_topics(["b", "c"])).await.expect("topics");
        let ids = fed.enqueue([on("a"), on("b"), on("a").delay(LEASE), on("c")]).await;
        assert_eq!(deliver(&fed.group, 2).await, [ids[1], ids[3]]);
        fed.log.register(Subscription::new("billing").with_topics(["a"])).await.expect("topics");
        let ids = fed.enqueue([on("a"), on("b")]).await;
        assert_eq!(deliver(&fed.group, 1).await, ids[..1], "new topics count for what comes");
        assert_eq!(fed.count("log_group_billing").await, 0);
    }

    async fn what_a_claim_does_not_serve_waits_in_the_own_table(fed: &Fed) {
        let ids = fed.enqueue([on("a"), on("b"), on("a").delay(LEASE)]).await;
        let only_b = ClaimRequest::new(10, LEASE).with_topics(["b"]);
        let claimed = eventually("it is claimed", async || {
            let claimed = fed.group.claim(only_b.clone()).await.expect("claim").messages;
            (!claimed.is_empty()).then_some(claimed)
        })
        .await;
        assert_eq!(claimed[0].message.id, ids[1]);
        settle(&fed.group, &claimed, Outcome::Done).await;
        assert_eq!(fed.count("log_group_billing").await, 2);
        assert_eq!(deliver(&fed.group, 1).await, ids[..1]);
    }

    async fn what_fails_or_expires_comes_again(fed: &Fed) {
        let ids = fed.enqueue((0..10).map(|_| on("a"))).await;
        let mut claimed = Vec::new();
        while claimed.len() < 10 {
            claimed.extend(claim_some(&fed.group, 10).await);
        }
        settle(&fed.group, &claimed[..3], Outcome::Done).await;
        let retry = Outcome::Retry { error: "not now".into(), after: Duration::from_millis(1) };
        settle(&fed.group, &claimed[3..5], retry).await;
        settle(&fed.group, &claimed[5..6], Outcome::Dead { error: "never".into() }).await;
        fed.execute(&format!("UPDATE {}.log_ranges SET leased_until = now() - interval '1 s'", fed.schema)).await;
        let again = ClaimRequest::new(100, LEASE);
        let mut found = Vec::new();
        eventually("the rest is claimed", async || {
            found.extend(fed.group.claim(again.clone()).await.expect("claim").messages);
            (found.len() == 6).then_some(())
        })
        .await;
        let mut found: Vec<_> = found.iter().map(|claimed| claimed.message.id).collect();
        found.sort_by_key(|id| ids.iter().position(|known| known == id));
        assert_eq!(found, [&ids[3..5], &ids[6..]].concat());
        assert_eq!(fed.group.stats().await.expect("stats").total().n_dead, 1);
    }

    async fn range_with_gaps_gives_up_its_own_messages_only(fed: &Fed) {
        // two transactions with every other number
        let (even, odd) = (fed.db.begin().await.expect("begin"), fed.db.begin().await.expect("begin"));
        let (mut in_even, mut in_odd) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            in_even.extend(fed.log.enqueue_in(&even, [on("even")]).await.expect("enqueue"));
            in_odd.extend(fed.log.enqueue_in(&odd, [on("odd")]).await.expect("enqueue"));
        }
        even.commit().await.expect("commit");
        let mut claimed = Vec::new();
        while claimed.len() < 5 {
            claimed.extend(claim_some(&fed.group, 5).await);
        }
        odd.commit().await.expect("commit");
        assert_eq!(deliver(&fed.group, 5).await, in_odd);
        settle(&fed.group, &claimed[1..2], Outcome::Done).await;
        fed.execute(&format!("UPDATE {}.log_ranges SET leased_until = now() - interval '1 s'", fed.schema)).await;
        let mut found = Vec::new();
        eventually("the rest is claimed", async || {
            found.extend(claim(&fed.group, 100).await);
            (found.len() == 4).then_some(())
        })
        .await;
        let mut found: Vec<_> = found.iter().map(|claimed| claimed.message.id).collect();
        found.sort_by_key(|id| in_even.iter().position(|known| known == id));
        assert_eq!(found, [&in_even[..1], &in_even[2..]].concat());
    }

    async fn success_writes_no_row_and_the_position_follows(fed: &Fed) {
        fed.enqueue((0..500).map(|_| on("a"))).await;
        assert_eq!(deliver(&fed.group, 500).await.len(), 500);
        for table in ["log_ranges", "log_group_billing"] {
            assert_eq!(fed.count(table).await, 0);
        }
        eventually("the position is at the end", async || {
            assert_eq!(claim(&fed.group, 1).await.len(), 0);
            let last: i64 = fed.value(&format!("SELECT max(seq) FROM {}.log", fed.schema)).await;
            (fed.of_group::<i64>("position").await == last).then_some(())
        })
        .await;
        assert!(fed.group.stats().await.expect("stats").topics.is_empty());
    }

    async fn position_stays_below_what_is_not_committed(fed: &Fed) {
        let late = fed.db.begin().await.expect("begin");
        let held = fed.log.enqueue_in(&late, [on("late")]).await.expect("enqueue");
        let number: i64 = fed.value(&format!("SELECT nextval('{}.log_seq_seq')", fed.schema)).await;
        fed.enqueue((0..10).map(|_| on("a"))).await;
        deliver(&fed.group, 10).await;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert_empty(&fed.group).await;
        assert!(fed.of_group::<i64>("position").await < number);
        late.commit().await.expect("commit");
        assert_eq!(deliver(&fed.group, 1).await, held);
    }

    async fn claim_gives_no_hint(fed: &Fed) {
        fed.enqueue([on("a")]).await;
        deliver(&fed.group, 1).await;
        let by_notification = fed.log.group("billing").expect("name");
        let mut listener = by_notification.listen().await.expect("listen").expect("on PostgreSQL");
        eventually("it may sleep", async || {
            (listener.prepare().await.expect("prepare") == Readiness::Sleep).then_some(())
        })
        .await;
        fed.enqueue([on("a")]).await;
        timeout(PATIENCE, listener.hint()).await.expect("the enqueue gives one").expect("hint");
        deliver(&fed.group, 1).await;
        assert!(timeout(Duration::from_millis(300), listener.hint()).await.is_err(), "the claim gives none");
    }

    async fn claims_are_wanted_until_statistics_say_all_and_no_longer(fed: &Fed) {
        let mut listener = fed.group.listen().await.expect("listen").expect("on PostgreSQL");
        let mut hint = async |patience| timeout(patience, listener.hint()).await.is_ok();
        let late = delivered_past(fed).await;
        let elsewhere = fed.log.group("billing").expect("name");
        eventually("nothing is left", async || {
            assert!(hint(PATIENCE).await, "a claim is wanted");
            assert_eq!(claim(&fed.group, 1).await.len(), 0);
            elsewhere.stats().await.expect("stats").topics.is_empty().then_some(())
        })
        .await;
        late.rollback().await.expect("roll back");
        eventually("no claim is wanted", async || {
            let is_wanted = hint(Duration::from_secs(3)).await;
            assert_eq!(claim(&fed.group, 1).await.len(), 0);
            (!is_wanted).then_some(())
        })
        .await;
    }

    async fn lease_of_one_message_is_none_of_another(fed: &Fed) {
        fed.enqueue([on("a"), on("a")]).await;
        let mut claimed = Vec::new();
        while claimed.len() < 2 {
            claimed.extend(claim_some(&fed.group, 2).await);
        }
        let mixed = outbox_core::Lease { locator: claimed[1].lease.locator, ..claimed[0].lease };
        let settled = fed.group.settle(vec![Settlement::new(mixed, Outcome::Done)]).await.expect("settle");
        assert_eq!(settled, [outbox_core::Settled::LeaseLost]);
        settle(&fed.group, &claimed, Outcome::Done).await;
    }
}
