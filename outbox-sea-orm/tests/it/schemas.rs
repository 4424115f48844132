//! One process that serves the outboxes of several schemas: a dispatcher for each, and one bound for all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use outbox_core::Result;
use outbox_dispatcher::{CancellationToken, Config, Dispatcher, Message, Report, Router};
use outbox_sea_orm::OutboxTable;
use sea_orm::DatabaseConnection;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::support::{Pool, Site, eventually};

const N_PLACES: usize = 2;
const BACKLOG: usize = 2_000;

/// What the handlers of all schemas have in common.
struct Process {
    places: Arc<Semaphore>,
    token: CancellationToken,
    n_delivered: Arc<AtomicUsize>,
}

impl Process {
    /// Serves one schema; every handler waits for one of the common places.
    fn serve(&self, outbox: OutboxTable) -> (Arc<AtomicUsize>, JoinHandle<Result<Report>>) {
        let (places, n_all) = (Arc::clone(&self.places), Arc::clone(&self.n_delivered));
        let n_own = Arc::new(AtomicUsize::new(0));
        let n_delivered = Arc::clone(&n_own);
        let router = Router::new().on("t", async move |_: Message| {
            let _place = places.acquire().await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
            n_all.fetch_add(1, Relaxed);
            n_own.fetch_add(1, Relaxed);
            Ok(())
        });
        let config = Config::default().with_concurrency(8).with_operation_timeout(Duration::from_secs(1));
        let dispatcher = Dispatcher::new(outbox, router).with_config(config).expect("config");
        (n_delivered, tokio::spawn(dispatcher.run(self.token.clone())))
    }
}

fn shared(db: &DatabaseConnection, site: &Site) -> OutboxTable {
    OutboxTable::new(db, site.name("outbox")).with_shared_pool()
}

/// A backlog elsewhere delays a message by a few handlers, a database that does not answer by nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_serves_many_schemas_fairly_and_one_that_is_away_holds_up_none() {
    let Some(loud) = Site::postgres().await else { return };
    let (quiet, away) =
        (Site::postgres().await.expect("a server"), Site::postgres().await.expect("a server"));
    let (proxy, db_away) = away.through_proxy().await;
    loud.enqueue("t", BACKLOG).await;
    away.enqueue("t", 1).await;
    proxy.blackhole(true);
    let process = Process {
        places: Arc::new(Semaphore::new(N_PLACES)),
        token: CancellationToken::new(),
        n_delivered: Arc::default(),
    };
    let db = loud.connect(Pool::of(4)).await;
    let (n_loud, loud_run) = process.serve(shared(&db, &loud));
    let (n_quiet, quiet_run) = process.serve(shared(&db, &quiet));
    let (n_away, away_run) = process.serve(shared(&db_away, &away));
    eventually("the backlog is worked off", async || n_loud.load(Relaxed) > 100).await;
    quiet.enqueue("t", 1).await;
    eventually("the only message of a schema is delivered", async || n_quiet.load(Relaxed) == 1).await;
    assert!(n_loud.load(Relaxed) < BACKLOG, "it waited for the backlog");
    assert_eq!(n_away.load(Relaxed), 0);
    proxy.blackhole(false);
    eventually("all are delivered", async || process.n_delivered.load(Relaxed) == BACKLOG + 2).await;
    process.token.cancel();
    for run in [loud_run, quiet_run, away_run] {
        let report = run.await.expect("no panic").expect("report");
        assert_eq!((report.n_retried, report.n_dead, report.n_lease_lost), (0, 0, 0));
    }
    for site in [loud, quiet, away] {
        site.finish().await;
    }
}
