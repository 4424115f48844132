//! A service moves from a queue to a log while it works, by the steps of docs/operations.md.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outbox_core::{Declaration, Draft, HandlerError, OnDead, Operations, Repository};
use outbox_dispatcher::{CancellationToken, Dispatcher, HandlerResult, Message, Report, Router};
use outbox_sea_orm::{LogGroup, OutboxLog, OutboxTable, Subscription};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, TransactionTrait};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::faults::{Random, config};
use crate::support::{Site, eventually, on_postgres, value};

on_postgres!(
    producers_that_switch_one_by_one_lose_and_double_nothing,
    switch_in_the_database_keeps_the_order_of_keys
);

const N_PRODUCERS: usize = 4;
const N_KEYS: u64 = 10;

/// One database with a queue, a log, and the rows that the messages are about.
struct Service {
    db: DatabaseConnection,
    schema: String,
    queue: OutboxTable,
    log: OutboxLog,
    random: Random,
    ended: AtomicBool,
    /// How many producers write to the log.
    n_switched: AtomicUsize,
    /// Which messages of which key handlers have had, in their order.
    delivered: Mutex<BTreeMap<String, Vec<i64>>>,
}

impl Service {
    async fn create(site: &Site, declared: Declaration) -> Arc<Self> {
        let queue = OutboxTable::new(&site.db, site.name("queue")).declared(declared.clone());
        let log = OutboxLog::new(&site.db, site.name("events")).declared(declared);
        queue.migrate().await.expect("migrate");
        let schema = site.schema().to_owned();
        let rows = format!(
            "CREATE TABLE {schema}.aggregate (key text PRIMARY KEY, n bigint NOT NULL);
             INSERT INTO {schema}.aggregate SELECT k::text, 0 FROM generate_series(0, {N_KEYS} - 1) AS k;
             CREATE TABLE {schema}.switch (to_log boolean NOT NULL);
             INSERT INTO {schema}.switch VALUES (false)"
        );
        site.execute(&rows).await;
        let (random, ended) = (Random::start(), AtomicBool::new(false));
        let (n_switched, delivered) = (AtomicUsize::new(0), Mutex::default());
        Arc::new(Self { db: site.db.clone(), schema, queue, log, random, ended, n_switched, delivered })
    }

    /// Changes an aggregate and says so, again and again. `by_row`: where to is read in the transaction.
    async fn produce(self: Arc<Self>, number: usize, by_row: bool) {
        while !self.ended.load(SeqCst) {
            let txn = self.db.begin().await.expect("begin");
            let key = self.random.below(N_KEYS).to_string();
            let change =
                format!("UPDATE {}.aggregate SET n = n + 1 WHERE key = '{key}' RETURNING n", self.schema);
            let n: i64 = value(&txn, &change).await;
            let to_log =
                if by_row { self.reads_switch(&txn).await } else { number < self.n_switched.load(SeqCst) };
            let draft = Draft::json("changed", &n).expect("a draft").key(key);
            if to_log {
                self.log.enqueue_in(&txn, draft).await.expect("enqueue");
            } else {
                self.queue.enqueue_in(&txn, draft).await.expect("enqueue");
            }
            sleep(self.random.millis(5)).await;
            if self.random.below(8) == 0 { txn.rollback().await } else { txn.commit().await }
                .expect("the end");
        }
    }

    async fn reads_switch(&self, txn: &DatabaseTransaction) -> bool {
        value(txn, &format!("SELECT to_log FROM {}.switch", self.schema)).await
    }

    fn handle(&self, message: &Message) -> HandlerResult {
        if self.random.below(10) == 0 {
            return Err(HandlerError::from("by chance"));
        }
        let (key, n) = (message.key.clone().expect("a key"), message.json()?);
        self.delivered.lock().expect("delivered").entry(key).or_default().push(n);
        Ok(())
    }

    fn dispatch<R>(
        self: &Arc<Self>,
        storage: R,
        token: &CancellationToken,
    ) -> JoinHandle<outbox_core::Result<Report>>
    where
        R: Repository + outbox_core::Wakeup + Clone + 'static,
    {
        let service = Arc::clone(self);
        let router = Router::new().on("changed", async move |message: Message| service.handle(&message));
        let config = config().with_max_attempts(1_000).with_lease(Duration::from_secs(30));
        let dispatcher = Dispatcher::new(storage, router).with_config(config).expect("config");
        tokio::spawn(dispatcher.run(token.clone()))
    }

    fn start_producing(self: &Arc<Self>, by_row: bool) -> JoinSet<()> {
        (0..N_PRODUCERS).map(|number| Arc::clone(self).produce(number, by_row)).collect()
    }

    /// In all of each key, from the first to the last.
    async fn check(&self, in_order: bool) {
        let delivered = std::mem::take(&mut *self.delivered.lock().expect("delivered"));
        assert_eq!(delivered.len() as u64, N_KEYS);
        for (key, mut delivered) in delivered {
            if !in_order {
                delivered.sort_unstable();
            }
            let last: i64 =
                value(&self.db, &format!("SELECT n FROM {}.aggregate WHERE key = '{key}'", self.schema))
                    .await;
            assert_eq!(delivered, (1..=last).collect::<Vec<_>>(), "of {key}");
        }
    }
}

async fn wait_until_empty(what: &str, operations: &impl Operations) {
    eventually(what, async || operations.stats().await.expect("stats").topics.is_empty()).await;
}

async fn stop(token: CancellationToken, running: Vec<JoinHandle<outbox_core::Result<Report>>>) {
    token.cancel();
    for one in running {
        one.await.expect("no panic").expect("a report");
    }
}

async fn registered(service: &Service) -> LogGroup {
    service.log.migrate().await.expect("migrate");
    service.log.register(Subscription::new("g")).await.expect("register")
}

async fn producers_that_switch_one_by_one_lose_and_double_nothing(site: &Site) {
    let service = Service::create(site, Declaration::new()).await;
    let token = CancellationToken::new();
    let mut running = vec![service.dispatch(service.queue.clone(), &token)];
    let producers = service.start_producing(false);
    sleep(Duration::from_millis(200)).await;
    let group = registered(&service).await;
    running.push(service.dispatch(group.clone(), &token));
    for _ in 0..N_PRODUCERS {
        service.n_switched.fetch_add(1, SeqCst);
        sleep(Duration::from_millis(200)).await;
    }
    wait_until_empty("the queue is empty, and stays so", &service.queue).await;
    sleep(Duration::from_millis(200)).await;
    service.ended.store(true, SeqCst);
    producers.join_all().await;
    assert!(service.queue.stats().await.expect("stats").topics.is_empty());
    wait_until_empty("the group has delivered all", &group).await;
    stop(token, running).await;
    service.check(false).await;
}

/// A transaction that has written to the queue and commits later.
async fn late_commit(service: &Service) -> JoinHandle<()> {
    let txn = service.db.begin().await.expect("begin");
    let change = format!("UPDATE {}.aggregate SET n = n + 1 WHERE key = '0' RETURNING n", service.schema);
    let n: i64 = value(&txn, &change).await;
    assert!(!service.reads_switch(&txn).await);
    let draft = Draft::json("changed", &n).expect("a draft").key("0");
    service.queue.enqueue_in(&txn, draft).await.expect("enqueue");
    tokio::spawn(async move {
        sleep(Duration::from_secs(1)).await;
        txn.commit().await.expect("commit");
    })
}

async fn switch_in_the_database_keeps_the_order_of_keys(site: &Site) {
    let service = Service::create(site, Declaration::new().ordered(OnDead::Block)).await;
    let (old, new) = (CancellationToken::new(), CancellationToken::new());
    let of_queue = vec![service.dispatch(service.queue.clone(), &old)];
    let producers = service.start_producing(true);
    sleep(Duration::from_millis(300)).await;
    let group = registered(&service).await;
    let late = late_commit(&service).await;
    let switch =
        format!("BEGIN; LOCK TABLE {0}.switch; UPDATE {0}.switch SET to_log = true; COMMIT", service.schema);
    service.db.execute_unprepared(&switch).await.expect("switch");
    wait_until_empty("the queue is empty", &service.queue).await;
    stop(old, of_queue).await;
    assert!(late.is_finished(), "the queue was not empty for good");
    let of_group = vec![service.dispatch(group.clone(), &new)];
    sleep(Duration::from_millis(300)).await;
    service.ended.store(true, SeqCst);
    producers.join_all().await;
    wait_until_empty("the group has delivered all", &group).await;
    stop(new, of_group).await;
    service.check(true).await;
}
