//! What is ready again below the floor of claims by number.

use outbox_core::Settlement;

use super::contended::{LIMIT, Loop, batch, keys};
use super::*;

async fn a_retried_message_comes_again_amid_a_backlog(site: &Site) {
    let claims = Loop::new(site).await;
    claims.enqueue(["m".to_owned()]).await;
    claims.enqueue((0..100).flat_map(|_| [batch("1"), batch("2")].concat())).await;
    let mut n_claims = 0;
    while n_claims < 2 {
        let claim = claims.claim_with(100).await;
        assert_eq!(claim.messages.len(), LIMIT, "there are always others");
        let outcome = |key: Option<&str>| match key {
            Some("m") => Outcome::Retry { after: Duration::from_millis(10), error: "again".into() },
            _ => Outcome::Done,
        };
        n_claims += keys(&claim).iter().filter(|key| *key == "m").count();
        let settlements = claim.messages.iter().map(|claimed| {
            let outcome = outcome(claimed.message.key.as_deref());
            Settlement::new(claimed.lease, outcome)
        });
        claims.table.settle(settlements.collect()).await.expect("settle");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

on_postgres! { a_retried_message_comes_again_amid_a_backlog }
