//! The connection is cut at every message that is sent, before the server got it and after.

use std::collections::BTreeSet;

use outbox_core::{
    ClaimRequest, Claimed, Context, Draft, Error, ErrorKind, Outcome, Repository, Result, Settlement,
};
use outbox_sea_orm::{OutboxTable, SeaOrmContext, transactor};
use outbox_testkit::proxy::{Cut, Proxy};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use uuid::Uuid;

use crate::support::{LEASE, Site, eventually};

const MAX_MESSAGES: u64 = 200;

/// A site, and the way to it that can be cut.
struct Line {
    site: Site,
    proxy: Proxy,
    db: DatabaseConnection,
    outbox: OutboxTable,
}

impl Line {
    async fn open(site: Option<Site>) -> Option<Self> {
        let site = site?;
        let (proxy, db) = site.through_proxy().await;
        let outbox = OutboxTable::new(&db, site.name("outbox"));
        Some(Self { site, proxy, db, outbox })
    }

    /// Makes the call with the connection cut at its first, second, … message until it gets through uncut.
    async fn sweep<T>(
        &self,
        cut: Cut,
        mut call: impl AsyncFnMut(u64) -> Result<T>,
        mut check: impl AsyncFnMut(u64, Result<T>),
    ) {
        for k in 1..MAX_MESSAGES {
            self.proxy.cut_at_message(k, cut);
            let result = call(k).await;
            let got_through = self.proxy.disarm();
            if let Err(error) = &result {
                assert!(error.is_retryable() || error.kind() == ErrorKind::CommitUnknown, "{error:?}");
            }
            check(k, result).await;
            if got_through {
                assert!(k > 3, "only {} messages were cut", k - 1);
                return;
            }
        }
        panic!("never got through");
    }

    /// Claims once and releases what was claimed.
    async fn claim_and_release(&self) -> Result<Vec<Uuid>> {
        let claim = self.outbox.claim(ClaimRequest::new(10, LEASE).with_max_attempts(1_000)).await?;
        let release = |claimed: &Claimed| Settlement::new(claimed.lease, Outcome::Release);
        let _ = self.outbox.settle(claim.messages.iter().map(release).collect()).await?;
        Ok(claim.messages.iter().map(|claimed| claimed.message.id).collect())
    }
}

async fn try_place(site: &Site, cx: &Context, name: &str) -> Result<()> {
    let written = cx.connection()?.execute_unprepared(&site.business(name)).await;
    written.map_err(|error| Error::new(ErrorKind::Unavailable, "write").with_source(error))?;
    site.outbox.enqueue(cx, Draft::new("placed", name.to_owned())).await.map(drop)
}

async fn a_transaction_is_whole_or_not_there(line: &Line, cut: Cut) {
    let Line { site, db, .. } = line;
    let call = async |k| {
        let name = format!("{cut:?} {k}");
        transactor(db).run(async |cx| try_place(site, cx, &name).await).await
    };
    let check = async |k, result: Result<()>| {
        // the server ends what the client has lost
        eventually("no transaction is left open", async || !site.has_idle_transaction().await).await;
        let name = format!("{cut:?} {k}");
        let n = site.count(&format!("business WHERE name = '{name}'")).await;
        let text = if site.is_postgres() {
            "convert_from(payload, 'UTF8')"
        } else {
            "CONVERT(payload USING utf8mb4)"
        };
        let n_messages = site.count(&format!("outbox WHERE {text} = '{name}'")).await;
        assert_eq!(n, n_messages, "{name} is half there");
        match result.map_err(|error| error.kind()) {
            Ok(()) => assert_eq!(n, 1, "{name} was acknowledged"),
            Err(ErrorKind::CommitUnknown) => assert_eq!(n, i64::from(cut == Cut::After), "{name}"),
            Err(_) => assert_eq!(n, 0, "{name} was refused"),
        }
    };
    line.sweep(cut, call, check).await;
}

async fn claimed_messages_come_back(line: &Line, cut: Cut) {
    let site = &line.site;
    let expected: BTreeSet<Uuid> = site.enqueue("t", 3).await.into_iter().collect();
    let check = async |_, _| {
        let mut found = BTreeSet::new();
        eventually("the messages come back", async || {
            site.expire_leases().await;
            found.extend(line.claim_and_release().await.expect("the pool has recovered"));
            found == expected
        })
        .await;
    };
    line.sweep(cut, async |_| line.claim_and_release().await, check).await;
    site.expire_leases().await;
    assert_eq!(site.drain().await.into_iter().collect::<BTreeSet<_>>(), expected, "nothing is lost");
}

async fn every_pool_recovers_at_once(line: &Line) {
    for _ in 0..5 {
        line.proxy.reset();
        eventually("the producers' pool recovers", async || {
            line.outbox.enqueue_autocommit([Draft::new("t", "")]).await.is_ok()
        })
        .await;
        eventually("the dispatchers' pool recovers", async || line.claim_and_release().await.is_ok()).await;
    }
    assert!(line.site.drain().await.len() >= 5);
}

/// Runs a test on a line of its own.
async fn on_line(site: Option<Site>, test: impl AsyncFnOnce(&Line)) {
    let Some(line) = Line::open(site).await else { return };
    test(&line).await;
    line.site.finish().await;
}

macro_rules! cut_on {
    ($database:ident) => {
        mod $database {
            use super::{Cut, Site, on_line};

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_transaction_is_whole_or_not_there() {
                on_line(Site::$database().await, async |line| {
                    super::a_transaction_is_whole_or_not_there(line, Cut::Before).await;
                    super::a_transaction_is_whole_or_not_there(line, Cut::After).await;
                })
                .await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn claimed_messages_come_back() {
                on_line(Site::$database().await, async |line| {
                    super::claimed_messages_come_back(line, Cut::Before).await;
                    super::claimed_messages_come_back(line, Cut::After).await;
                })
                .await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn every_pool_recovers_at_once() {
                on_line(Site::$database().await, super::every_pool_recovers_at_once).await;
            }
        }
    };
}

cut_on! { postgres }
cut_on! { mysql }
