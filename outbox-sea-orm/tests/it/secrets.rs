//! Nothing that a message carries shows in logs, in errors or in `Debug`.

use std::error::Error as _;
use std::fmt::Debug;
use std::time::Duration;

use outbox_core::{
    ClaimRequest, Context, DeadLetterQuery, Draft, Error, Mark, Marked, Operations, Outcome, ProcessedStore,
    Repository, RepositoryExt, Result, Settlement,
};
use outbox_dispatcher::{Config, DepthWatch, Dispatcher, Instrumented, Message, Router, TracingObserver};
use outbox_sea_orm::{OutboxTable, ProcessedTable, transactor};
use outbox_testkit::secrets::{TOKEN, assert_clean};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    LEASE, Log, PATIENCE, Pool, Site, run_logged, run_logged_on_mysql, run_logged_on_sqlite,
};

#[track_caller]
fn assert_debug_clean(value: &impl Debug) {
    let (text, pretty) = (format!("{value:?}"), format!("{value:#?}"));
    assert!(!text.is_empty());
    assert_clean("Debug", &text);
    assert_clean("Debug", &pretty);
}

/// All that a program shows of an error: its text, its Debug, and the texts of its causes.
#[track_caller]
fn assert_error_clean<T: Debug>(result: Result<T>) -> Error {
    let error = result.expect_err("must fail");
    assert_debug_clean(&error);
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    assert_clean("an error", &text);
    error
}

fn draft(topic: &str) -> Draft {
    Draft::new(topic, format!("payload {TOKEN}")).header("authorization", TOKEN).header("x", "y")
}

fn metadata() -> Value {
    json!({ "password": TOKEN, "nested": [{ "a": TOKEN }] })
}

/// The tables over a pool that logs every statement.
struct Logged<'a> {
    site: &'a Site,
    db: sea_orm::DatabaseConnection,
    outbox: OutboxTable,
    inbox: ProcessedTable,
}

impl<'a> Logged<'a> {
    async fn open(site: &'a Site) -> Self {
        let db = site.connect(Pool { logs: true, ..Pool::of(4) }).await;
        let outbox = OutboxTable::new(&db, site.name("outbox"));
        let inbox = ProcessedTable::new(&db, site.name("inbox"));
        Self { site, db, outbox, inbox }
    }

    async fn use_the_outbox(&self) {
        let cx = Context::new().with_header("authorization", TOKEN);
        assert_debug_clean(&(&cx, draft("t"), &self.outbox));
        let tx = transactor(&self.db);
        tx.run(async |cx| self.outbox.enqueue(cx, draft("t")).await).await.expect("enqueue");
        self.use_a_key().await;
        let claim = self.outbox.claim(ClaimRequest::new(10, LEASE)).await.expect("claim");
        assert_eq!(claim.messages.len(), 1);
        assert_debug_clean(&claim);
        let lease = claim.messages[0].lease;
        let _ = self.outbox.extend(vec![lease], LEASE).await.expect("extend");
        let _ = self.outbox.mark_dead(lease, "no").await.expect("settle");
        let page = self.outbox.dead_letters(DeadLetterQuery::new(10)).await.expect("list");
        assert_debug_clean(&page);
        assert_debug_clean(&self.outbox.stats().await.expect("stats"));
        let _ = self.outbox.discard(vec![lease.id]).await.expect("discard");
    }

    async fn use_a_key(&self) {
        let keyed = || draft("keyed").dedup_key(TOKEN);
        assert_debug_clean(&keyed());
        let first = self.outbox.enqueue_autocommit([keyed()]).await.expect("enqueue");
        assert_eq!(self.outbox.enqueue_autocommit([keyed(), keyed()]).await.expect("repeat"), [first[0]; 2]);
        let request = ClaimRequest::new(10, LEASE).with_topics(["keyed"]);
        let claim = self.outbox.claim(request).await.expect("claim");
        let _ = self.outbox.mark_done(claim.messages[0].lease).await.expect("settle");
    }

    async fn use_the_inbox(&self) {
        let id = Uuid::now_v7();
        let mark = || Mark::new("g", id).with_metadata(metadata());
        assert_debug_clean(&(mark(), &self.inbox));
        let tx = transactor(&self.db);
        tx.run(async |cx| {
            assert_eq!(self.inbox.mark_processed(cx, mark()).await?, Marked::First);
            self.inbox.store_result(cx, "g", id, metadata()).await
        })
        .await
        .expect("mark");
        let again = tx.run(async |cx| self.inbox.mark_processed(cx, mark()).await).await.expect("mark");
        assert!(matches!(&again, Marked::Duplicate(record) if record.metadata == metadata()));
        assert_debug_clean(&again);
    }

    async fn refuse_input(&self) {
        let long = TOKEN.repeat(40);
        for draft in [
            Draft::new("t", TOKEN.repeat(200_000)),
            Draft::new("t", "").header("h", format!("{TOKEN}\n")),
            Draft::new("t", "").header(format!("{TOKEN}\n"), ""),
            Draft::new("t", "").header("h", TOKEN.repeat(2_000)),
            Draft::new("t", "").key(&long),
            Draft::new("t", "").dedup_key(long),
        ] {
            assert_error_clean(self.outbox.enqueue_autocommit([draft]).await);
        }
        let nul = json!({ "a": format!("{TOKEN}\0") });
        let mark = Mark::new("g", Uuid::now_v7()).with_metadata(nul);
        let tx = transactor(&self.db);
        assert_error_clean(tx.run(async |cx| self.inbox.mark_processed(cx, mark).await).await);
        assert_error_clean(self.inbox.is_processed(&TOKEN.repeat(40), Uuid::now_v7()).await);
    }

    async fn enqueue_again(&self) {
        let id = Uuid::now_v7();
        let again = || [draft("t").id(id)];
        self.outbox.enqueue_autocommit(again()).await.expect("enqueue");
        assert_error_clean(self.outbox.enqueue_autocommit(again()).await);
        let claim = self.outbox.claim(ClaimRequest::new(10, LEASE)).await.expect("claim");
        let _ = self.outbox.mark_done(claim.messages[0].lease).await.expect("settle");
    }

    /// The server tells the whole row with each constraint that it breaks.
    async fn break_constraints(&self) {
        let (outbox, inbox) = (self.site.sql_name("outbox"), self.site.sql_name("inbox"));
        for sql in [
            format!("ALTER TABLE {outbox} ADD CONSTRAINT no_topic CHECK (topic <> 'refused')"),
            format!(
                "ALTER TABLE {outbox} ADD CONSTRAINT no_lease CHECK (topic <> 'unclaimed' OR lease IS NULL)"
            ),
            format!("ALTER TABLE {outbox} ADD CONSTRAINT no_error CHECK (last_error <> 'no')"),
            format!("ALTER TABLE {outbox}_dedup ADD CONSTRAINT no_key CHECK (dedup_key NOT LIKE '%refused')"),
            format!("ALTER TABLE {inbox} ADD CONSTRAINT no_group CHECK (group_name <> 'refused')"),
            format!("CREATE UNIQUE INDEX ON {outbox} ((headers ->> 'authorization')) WHERE topic = 'unique'"),
            format!("CREATE UNIQUE INDEX ON {inbox} ((result ->> 'password'))"),
        ] {
            self.site.execute(&sql).await;
        }
        assert_error_clean(self.outbox.enqueue_autocommit([draft("refused")]).await);
        assert_error_clean(self.outbox.enqueue_autocommit([draft("unique"), draft("unique")]).await);
        let refused = format!("{TOKEN} refused");
        assert_error_clean(self.outbox.enqueue_autocommit([draft("t").dedup_key(&refused)]).await);
        let both = [draft("t").dedup_key("k"), draft("t").dedup_key(refused)];
        assert_error_clean(self.outbox.enqueue_autocommit(both).await);
        self.break_constraints_of_leases().await;
        self.break_constraints_of_records().await;
    }

    async fn break_constraints_of_leases(&self) {
        self.outbox.enqueue_autocommit([draft("unclaimed")]).await.expect("enqueue");
        let request = ClaimRequest::new(10, LEASE).with_topics(["unclaimed"]);
        assert_error_clean(self.outbox.claim(request).await);
        self.outbox.enqueue_autocommit([draft("t")]).await.expect("enqueue");
        let request = ClaimRequest::new(10, LEASE).with_topics(["t"]);
        let claim = self.outbox.claim(request).await.expect("claim");
        let retry = Outcome::Retry { after: Duration::ZERO, error: "no".to_owned() };
        assert_error_clean(self.outbox.settle(vec![Settlement::new(claim.messages[0].lease, retry)]).await);
    }

    async fn break_constraints_of_records(&self) {
        let tx = transactor(&self.db);
        let [mark, one, other] =
            ["refused", "g", "g"].map(|group| Mark::new(group, Uuid::now_v7()).with_metadata(metadata()));
        assert_error_clean(tx.run(async |cx| self.inbox.mark_processed(cx, mark).await).await);
        let stored = tx.run(async |cx| {
            for mark in [one, other] {
                let id = mark.id;
                let _ = self.inbox.mark_processed(cx, mark).await?;
                self.inbox.store_result(cx, "g", id, metadata()).await?;
            }
            Ok(())
        });
        assert_error_clean(stored.await);
    }

    async fn dispatch(&self) {
        let outbox = Instrumented::new(self.outbox.clone());
        let drafts = ["fails", "panics", "works"].map(draft);
        let enqueue = async |table: &OutboxTable, drafts| table.enqueue_autocommit(drafts).await;
        outbox.enqueue_with(drafts, enqueue).await.expect("enqueue");
        DepthWatch::new(outbox.clone(), TracingObserver).look(PATIENCE).await.expect("stats");
        assert_debug_clean(&outbox);
        let router = Router::new()
            .on("fails", async |_: Message| Err("refused by the downstream")?)
            .on("panics", async |message: Message| {
                assert!(message.payload.is_empty(), "on purpose");
                Ok(())
            })
            .on("works", async |_: Message| Ok(()));
        let config = Config::default().with_max_attempts(1);
        let dispatcher = Dispatcher::new(outbox, router).with_config(config).expect("config");
        let report = dispatcher.drain_once().await.expect("drained");
        assert_eq!(report.n_done, 1);
        assert_debug_clean(&report);
    }
}

/// The log is there, and the token is not in it.
fn assert_log_clean(log: &Log, tables: &[&str]) {
    let text = log.take();
    for table in tables {
        let insert = format!("INSERT INTO {table}");
        assert!(text.replace('\\', "").contains(&insert), "nothing was logged of {table}");
    }
    for part in ["outbox_dispatcher::span: new", "called operation=", "depth topic=", "dead letter"] {
        assert!(text.contains(part), "the log has no {part}");
    }
    assert_clean("the log", &text);
}

async fn nothing_shows_a_secret(site: &Site, log: &Log, tables: &[&str]) {
    let logged = Logged::open(site).await;
    logged.use_the_outbox().await;
    logged.use_the_inbox().await;
    logged.refuse_input().await;
    logged.enqueue_again().await;
    logged.dispatch().await;
    if site.is_postgres() {
        logged.break_constraints().await;
    }
    assert_log_clean(log, tables);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_shows_a_secret_on_postgres() {
    run_logged("secrets::nothing_shows_a_secret_on_postgres", async |site, log| {
        let [outbox, inbox] = ["outbox", "inbox"].map(|table| format!("\"{}\".\"{table}\"", site.schema()));
        nothing_shows_a_secret(site, log, &[&outbox, &inbox]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_shows_a_secret_on_mysql() {
    run_logged_on_mysql("secrets::nothing_shows_a_secret_on_mysql", async |site, log| {
        let [outbox, inbox] = ["outbox", "inbox"].map(|table| format!("`{}`.`{table}`", site.schema()));
        nothing_shows_a_secret(site, log, &[&outbox, &inbox]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_shows_a_secret_on_sqlite() {
    run_logged_on_sqlite("secrets::nothing_shows_a_secret_on_sqlite", async |site, log| {
        nothing_shows_a_secret(site, log, &["\"t_outbox\"", "\"t_inbox\""]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_never_holds_the_password_on_postgres() {
    run_logged("secrets::the_log_never_holds_the_password_on_postgres", async |site, log| {
        let url = site.url();
        let place = url.split_once("://").expect("a URL").1;
        let Some((_, password)) = place.rsplit_once('@').and_then(|(user, _)| user.split_once(':')) else {
            return;
        };
        let logged = Logged::open(site).await;
        // SeaORM's span around connecting, of level trace, shows the options of the pool that we are given
        log.take();
        logged.enqueue_again().await;
        let listener = outbox_core::Wakeup::listen(&logged.outbox).await.expect("listen");
        assert!(!format!("{listener:?} {:?}", logged.outbox).contains(password));
        let text = log.take();
        assert!(text.contains("outbox_sea_orm") || text.contains("sqlx"), "our own connections are logged");
        let line =
            text.lines().find(|line| line.contains(password)).map(|line| line.replace(password, "PASSWORD"));
        assert_eq!(line, None);
    })
    .await;
}
