//! The log: the suite on one group, and what only groups have.

mod backlog;
mod killed;
mod migrated;
mod order;
mod parts;
mod promoted;
mod ranges;
pub(crate) mod restored;
mod rights;
mod sqlite;
mod watched;

use std::time::Duration;

use outbox_core::{
    ClaimRequest, Declaration, Draft, MessageId, OnDead, Operations, Outcome, PartitionInterval, Repository,
    Settlement, Symptom, TableName,
};
use outbox_sea_orm::{LogGroup, OutboxLog, Start, Subscription};
use outbox_testkit::{Capabilities, Corruption, DeclaredHarness, Harness, OperationsHarness, Skip};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement, TransactionTrait,
};
use uuid::Uuid;

use crate::harness::declared;
use crate::support::sqlite_options;

/// A file in this folder.
async fn open_file(folder: &std::path::Path, max_connections: u32) -> DatabaseConnection {
    let mut options = ConnectOptions::new(format!("sqlite://{}/test.db?mode=rwc", folder.display()));
    options.max_connections(max_connections).sqlx_logging(false);
    sqlite_options(&mut options);
    Database::connect(options).await.expect("connect")
}

/// A log with one group, in a schema of its own on the shared server, or in a file.
pub(crate) struct Log {
    db: DatabaseConnection,
    log: OutboxLog,
    group: LogGroup,
    schema: String,
    _folder: Option<tempfile::TempDir>,
}

impl Log {
    async fn with(declared: Declaration) -> Result<Self, Skip> {
        let server = outbox_testkit::server::postgres().await?;
        let mut options = ConnectOptions::new(server.url());
        options.max_connections(12).sqlx_logging(false);
        let db = Database::connect(options).await.expect("connect");
        let schema = format!("t_{}", Uuid::new_v4().simple());
        Ok(Self::create(db, schema, declared, None).await)
    }

    async fn on_sqlite(declared: Declaration) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let db = open_file(folder.path(), 6).await;
        Self::create(db, "t".to_owned(), declared, Some(folder)).await
    }

    async fn create(
        db: DatabaseConnection,
        schema: String,
        declared: Declaration,
        folder: Option<tempfile::TempDir>,
    ) -> Self {
        let name = TableName::parse(&format!("{schema}.log")).expect("name");
        let log = OutboxLog::new(&db, name).declared(declared);
        log.migrate().await.expect("migrate");
        let group = log.register(Subscription::new("billing")).await.expect("register");
        Self { db, log, group, schema, _folder: folder }
    }

    fn is_sqlite(&self) -> bool {
        self.db.get_database_backend() == DbBackend::Sqlite
    }

    /// A table of the log as SQL names it.
    fn table(&self, table: &str) -> String {
        let between = if self.is_sqlite() { "_" } else { "." };
        format!("{}{between}{table}", self.schema)
    }

    async fn count(&self, table: &str) -> i64 {
        self.number(&format!("SELECT count(*) FROM {}", self.table(table))).await
    }

    /// Lets time pass: subtracts `by`, as the database writes it, from every time.
    async fn shift(&self, by: &str) {
        let shift = async |table: &str, columns: &[&str]| {
            let set: Vec<String> =
                columns.iter().map(|column| format!("{column} = {column} - {by}")).collect();
            self.execute(&format!("UPDATE {} SET {}", self.table(table), set.join(", "))).await;
        };
        shift("log", &["created_at", "available_at"]).await;
        shift("log_ranges", &["leased_until"]).await;
        let columns = ["created_at", "available_at", "leased_until", "dead_at", "done_at"];
        shift("log_group_billing", &columns).await;
    }

    async fn advance(&self, by: Duration) {
        let by = match self.is_sqlite() {
            true => by.as_millis().to_string(),
            false => format!("{} * interval '1 microsecond'", by.as_micros()),
        };
        self.shift(&by).await;
    }

    /// Whether a statement with the id of a message changes one row.
    async fn change(&self, sql: &str, id: MessageId) -> bool {
        let statement = Statement::from_sql_and_values(self.db.get_database_backend(), sql, [id.into()]);
        self.db.execute_raw(statement).await.is_ok_and(|result| result.rows_affected() == 1)
    }

    async fn execute(&self, sql: &str) {
        self.db.execute_unprepared(sql).await.expect("execute");
    }

    async fn number(&self, sql: &str) -> i64 {
        let row = self.db.query_one_raw(Statement::from_string(self.db.get_database_backend(), sql)).await;
        row.expect("query").expect("a row").try_get_by_index(0).expect("a number")
    }

    async fn register(&self, subscription: Subscription) -> LogGroup {
        self.log.register(subscription).await.expect("register")
    }
}

impl Harness for Log {
    const NAME: &'static str = "postgres";
    type Repository = LogGroup;

    async fn start() -> Result<Self, Skip> {
        Self::with(Declaration::new()).await
    }

    fn repository(&self) -> &LogGroup {
        &self.group
    }

    async fn advance(&self, by: Duration) {
        Log::advance(self, by).await;
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all()
            .with_exact_order(false)
            .with_dedup_keys(false)
            .with_unique_ids(false)
            .with_overtaking(false)
    }

    async fn corrupt(&self, id: MessageId, corruption: Corruption) -> bool {
        let set = match corruption {
            Corruption::Headers => "headers = '[1]'",
            Corruption::CreatedAt => "created_at = 'infinity'",
            _ => return false,
        };
        self.change(&format!("UPDATE {}.log SET {set} WHERE id = $1", self.schema), id).await
    }

    async fn finish(self) {
        self.execute(&format!("DROP SCHEMA {} CASCADE", self.schema)).await;
    }
}

impl OperationsHarness for Log {
    type Operations = LogGroup;

    fn operations(&self) -> &LogGroup {
        &self.group
    }
}

impl DeclaredHarness for Log {
    async fn declared(&self, declared: Declaration) -> Self {
        Self::with(declared).await.expect("the server is there")
    }
}

/// The same in a file of its own.
pub(crate) struct SqliteLog(Log);

impl std::ops::Deref for SqliteLog {
    type Target = Log;

    fn deref(&self) -> &Log {
        &self.0
    }
}

impl Harness for SqliteLog {
    const NAME: &'static str = "sqlite";
    type Repository = LogGroup;

    async fn start() -> Result<Self, Skip> {
        Ok(Self(Log::on_sqlite(Declaration::new()).await))
    }

    fn repository(&self) -> &LogGroup {
        &self.0.group
    }

    async fn advance(&self, by: Duration) {
        self.0.advance(by).await;
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities().with_overtaking(true).with_hints(false).with_concurrent_writers(false)
    }

    async fn corrupt(&self, id: MessageId, corruption: Corruption) -> bool {
        let set = match corruption {
            Corruption::Headers => "headers = '[1]'",
            Corruption::CreatedAt => "created_at = 'never'",
            _ => return false,
        };
        self.0.change(&format!("UPDATE t_log SET {set} WHERE id = ?1"), id).await
    }
}

impl OperationsHarness for SqliteLog {
    type Operations = LogGroup;

    fn operations(&self) -> &LogGroup {
        &self.0.group
    }
}

impl DeclaredHarness for SqliteLog {
    async fn declared(&self, declared: Declaration) -> Self {
        Self(Log::on_sqlite(declared).await)
    }
}

declared! {
    OrderedLog over Log: Declaration::new().ordered(OnDead::Continue).partitioned(PartitionInterval::Hour)
}
declared! { OrderedSqliteLog over SqliteLog: Declaration::new().ordered(OnDead::Continue) }

mod suite {
    use super::Log;

    outbox_testkit::conformance!(Log: repository, operations, ordered);
}

mod ordered_suite {
    use super::OrderedLog;

    outbox_testkit::conformance!(OrderedLog: repository, operations);
}

mod sqlite_suite {
    use super::SqliteLog;

    outbox_testkit::conformance!(SqliteLog: repository, operations, ordered);
}

mod sqlite_ordered_suite {
    use super::OrderedSqliteLog;

    outbox_testkit::conformance!(OrderedSqliteLog: repository, operations);
}

/// What only groups have.
mod groups {
    use super::*;

    /// Makes tests of cases on logs of their own, which skip loudly without a server.
    macro_rules! on_logs {
        ($($module:ident: $harness:ident),+ => $cases:tt) => {
            on_logs! { @cases $cases }
            $(mod $module { on_logs! { @tests $harness $cases } })+
        };
        (@cases { $(async fn $name:ident($log:ident: &Log) $body:block)+ }) => {
            $(async fn $name($log: &Log) $body)+
        };
        (@tests $harness:ident { $(async fn $name:ident($log:ident: &Log) $body:block)+ }) => {
            $(
                #[test]
                fn $name() {
                    outbox_testkit::Case::<crate::log::$harness>::new(
                        concat!("groups::", stringify!($name)),
                        |log| Box::pin(super::$name(log)),
                    )
                    .run();
                }
            )+
        };
    }

    const LEASE: Duration = Duration::from_secs(3600);

    fn on(topic: &str) -> Draft {
        Draft::new(topic, "x")
    }

    fn request(limit: usize) -> ClaimRequest {
        ClaimRequest::new(limit, LEASE)
    }

    async fn claim(group: &LogGroup, limit: usize) -> Vec<outbox_core::Claimed> {
        group.claim(request(limit)).await.expect("claim").messages
    }

    async fn settle(group: &LogGroup, claimed: &[outbox_core::Claimed], outcome: Outcome) {
        let call = claimed.iter().map(|claimed| Settlement::new(claimed.lease, outcome.clone())).collect();
        let settled = group.settle(call).await.expect("settle");
        assert!(settled.iter().all(|settled| *settled == outbox_core::Settled::Applied), "{settled:?}");
    }

    async fn drain(group: &LogGroup) -> Vec<MessageId> {
        let mut ids = Vec::new();
        loop {
            let claimed = claim(group, 100).await;
            if claimed.is_empty() {
                return ids;
            }
            settle(group, &claimed, Outcome::Done).await;
            ids.extend(claimed.iter().map(|claimed| claimed.message.id));
        }
    }

    async fn enqueue(log: &Log, drafts: Vec<Draft>) -> Vec<MessageId> {
        log.log.enqueue_autocommit(drafts).await.expect("enqueue")
    }

    on_logs! { postgres: Log, sqlite: SqliteLog => {
        async fn every_group_gets_every_message(log: &Log) {
            let shipping = log.register(Subscription::new("shipping")).await;
            let ids = enqueue(log, (0..250).map(|_| on("a")).collect()).await;
            assert_eq!(drain(&log.group).await, ids);
            assert_eq!(drain(&shipping).await, ids);
            assert!(drain(&shipping).await.is_empty());
        }

        async fn what_fails_in_one_group_is_delivered_in_the_other(log: &Log) {
            let shipping = log.register(Subscription::new("shipping")).await;
            let ids = enqueue(log, vec![on("a"), on("a")]).await;
            let claimed = claim(&log.group, 1).await;
            settle(&log.group, &claimed, Outcome::Dead { error: "no".into() }).await;
            assert_eq!(drain(&shipping).await, ids);
            assert_eq!(drain(&log.group).await, ids[1..]);
            assert_eq!(shipping.stats().await.expect("stats").total().n_dead, 0);
            assert_eq!(log.group.stats().await.expect("stats").total().n_dead, 1);
        }

        async fn group_passes_over_what_it_does_not_want(log: &Log) {
            let only_b = log.register(Subscription::new("only_b").with_topics(["b", "c"])).await;
            let ids = enqueue(log, vec![on("a"), on("b"), on("a").delay(LEASE), on("c"), on("a")]).await;
            assert_eq!(drain(&only_b).await, [ids[1], ids[3]]);
            assert!(only_b.stats().await.expect("stats").topics.is_empty());
            assert_eq!(log.count("log_group_only_b").await, 0);
        }

        async fn rare_topic_is_found_in_a_long_log(log: &Log) {
            let rare = log.register(Subscription::new("rare").with_topics(["rare"])).await;
            let mut drafts: Vec<_> = (0..30_000).map(|_| on("a")).collect();
            drafts.push(on("rare"));
            let ids = enqueue(log, drafts).await;
            let claimed = claim(&rare, 10).await;
            assert_eq!(claimed.iter().map(|claimed| claimed.message.id).collect::<Vec<_>>(), ids[30_000..]);
        }

        async fn group_begins_at_the_beginning(log: &Log) {
            let ids = enqueue(log, vec![on("a"), on("b")]).await;
            let late = log.register(Subscription::new("late").with_start(Start::Beginning)).await;
            assert_eq!(drain(&late).await, ids);
        }

        async fn group_begins_at_the_end(log: &Log) {
            enqueue(log, vec![on("a"), on("b")]).await;
            let late = log.register(Subscription::new("late").with_start(Start::End)).await;
            let ids = enqueue(log, vec![on("c")]).await;
            assert_eq!(drain(&late).await, ids);
        }

        async fn group_begins_some_time_ago(log: &Log) {
            enqueue(log, vec![on("a")]).await;
            log.advance(2 * LEASE).await;
            let ids = enqueue(log, vec![on("b"), on("c")]).await;
            let late = log.register(Subscription::new("late").with_start(Start::Ago(LEASE))).await;
            assert_eq!(drain(&late).await, ids);
        }

        async fn second_registration_changes_the_topics_only(log: &Log) {
            enqueue(log, vec![on("a")]).await;
            assert_eq!(drain(&log.group).await.len(), 1);
            let again = Subscription::new("billing").with_topics(["b"]).with_start(Start::Beginning);
            log.register(again).await;
            let ids = enqueue(log, vec![on("a"), on("b")]).await;
            assert_eq!(drain(&log.group).await, ids[1..]);
            assert_eq!(log.log.groups().await.expect("groups"), ["billing"]);
        }

        async fn removed_group_leaves_nothing(log: &Log) {
            let gone = log.register(Subscription::new("gone")).await;
            enqueue(log, vec![on("a"), on("b")]).await;
            claim(&gone, 1).await;
            assert!(log.log.unregister("gone").await.expect("unregister"));
            assert!(!log.log.unregister("gone").await.expect("unregister"));
            assert_eq!(gone.claim(request(1)).await.expect_err("gone").kind(), outbox_core::ErrorKind::Schema);
            assert_eq!(log.count("log_ranges").await, 0);
            assert_eq!(drain(&log.group).await.len(), 2);
        }

        async fn success_writes_no_row(log: &Log) {
            enqueue(log, (0..500).map(|_| on("a")).collect()).await;
            assert_eq!(drain(&log.group).await.len(), 500);
            for table in ["log_ranges", "log_group_billing"] {
                assert_eq!(log.count(table).await, 0);
            }
            assert_eq!(log.count("log").await, 500);
        }

        async fn range_is_settled_in_parts(log: &Log) {
            let ids = enqueue(log, (0..10).map(|_| on("a")).collect()).await;
            let claimed = claim(&log.group, 10).await;
            settle(&log.group, &claimed[2..5], Outcome::Done).await;
            settle(&log.group, &claimed[..1], Outcome::Release).await;
            log.advance(LEASE).await;
            let recovered = log.group.claim(request(100)).await.expect("claim");
            let mut expected = ids[5..].to_vec();
            expected.insert(0, ids[1]);
            assert!(recovered.recovered);
            assert_eq!(recovered.messages.iter().map(|claimed| claimed.message.id).collect::<Vec<_>>(), expected);
            settle(&log.group, &recovered.messages, Outcome::Done).await;
            assert_eq!(drain(&log.group).await, ids[..1]);
        }

        async fn late_settlement_applies_after_its_range_was_given_up(log: &Log) {
            enqueue(log, (0..1_000).map(|_| on("a")).collect()).await;
            let claimed = claim(&log.group, 1_000).await;
            log.advance(LEASE).await;
            let recovered = claim(&log.group, 8).await;
            assert_eq!(recovered.len(), 8);
            settle(&log.group, &claimed[8..], Outcome::Done).await;
            let stale: Vec<_> = claimed[..8].iter().map(|claimed| Settlement::new(claimed.lease, Outcome::Done)).collect();
            assert_eq!(log.group.settle(stale).await.expect("settle"), [outbox_core::Settled::LeaseLost; 8]);
            settle(&log.group, &recovered, Outcome::Done).await;
            assert!(drain(&log.group).await.is_empty());
        }

        async fn impossible_groups_are_refused(log: &Log) {
            for name in ["", "Billing", "a b", "a;b", &"x".repeat(60)] {
                let error = log.log.group(name).expect_err(name);
                assert_eq!(error.kind(), outbox_core::ErrorKind::InvalidInput, "{name:?}");
                assert!(error.to_string().contains("group"), "{error}");
            }
            let nothing = Subscription::new("nothing").with_topics::<String>([]);
            let error = log.log.register(nothing).await.expect_err("no topics");
            assert!(error.to_string().contains("topics"), "{error}");
            let endless = Subscription::new("endless").with_start(Start::Ago(Duration::MAX));
            let error = log.log.register(endless).await.expect_err("too long ago");
            assert!(error.to_string().contains("start"), "{error}");
            let unknown = log.log.group("unknown").expect("a name").claim(request(1)).await.expect_err("unknown");
            assert_eq!(unknown.kind(), outbox_core::ErrorKind::Schema);
        }
    }}

    on_logs! { with_writers: Log => {
        async fn what_commits_after_the_registration_is_not_passed_over(log: &Log) {
            let txn = log.db.begin().await.expect("begin");
            let open = log.log.enqueue_in(&txn, [on("a")]).await.expect("enqueue");
            enqueue(log, vec![on("before")]).await;
            let registering = tokio::spawn({
                let outbox = log.log.clone();
                async move { outbox.register(Subscription::new("late")).await.expect("register") }
            });
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(!registering.is_finished(), "it waits for the open transaction");
            txn.commit().await.expect("commit");
            let late = registering.await.expect("registered");
            let after = enqueue(log, vec![on("b")]).await;
            assert_eq!(drain(&late).await, after);
            assert_eq!(drain(&log.group).await.len(), 3, "{open:?}");
        }

        async fn open_transaction_elsewhere_holds_nobody_back(log: &Log) {
            log.execute(&format!("CREATE TABLE {}.other (id int)", log.schema)).await;
            let txn = log.db.begin().await.expect("begin");
            txn.execute_unprepared(&format!("INSERT INTO {}.other VALUES (1)", log.schema)).await.expect("insert");
            let ids = enqueue(log, vec![on("a")]).await;
            assert_eq!(drain(&log.group).await, ids);
            txn.rollback().await.expect("rollback");
        }

        async fn reader_goes_on_when_what_held_it_back_rolls_back(log: &Log) {
            let txn = log.db.begin().await.expect("begin");
            log.log.enqueue_in(&txn, [on("a")]).await.expect("enqueue");
            let ids = enqueue(log, vec![on("b")]).await;
            let held = log.group.claim(request(1)).await.expect("claim");
            assert!(held.is_empty());
            assert!(held.next_due_in.expect("a timer") < Duration::from_secs(1), "nobody tells of a rollback");
            txn.rollback().await.expect("rollback");
            assert_eq!(drain(&log.group).await, ids);
        }

        async fn who_holds_a_reader_back_is_named(log: &Log) {
            let (held_back, found) = (
                async || log.group.stats().await.expect("stats").held_back,
                async |patience| {
                    let found = log.group.doctor(patience).await.expect("doctor");
                    found.into_iter().filter(|finding| finding.symptom == Symptom::OpenTransaction).collect::<Vec<_>>()
                },
            );
            enqueue(log, vec![on("a"), on("a")]).await;
            assert_eq!(drain(&log.group).await.len(), 2);
            assert_eq!((held_back().await, found(Duration::ZERO).await), (None, vec![]));
            let txn = log.db.begin().await.expect("begin");
            log.log.enqueue_in(&txn, [on("a")]).await.expect("enqueue");
            enqueue(log, vec![on("b"), on("b")]).await;
            assert!(drain(&log.group).await.is_empty());
            let blocker = held_back().await.expect("the transaction");
            let sql = "SELECT 'session ' || pg_backend_pid() || ' of ' || current_user";
            let row = txn.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await.expect("query");
            let name: String = row.expect("a row").try_get_by_index(0).expect("a name");
            assert_eq!(blocker.n_numbers, 3);
            assert!(blocker.by.starts_with(&name) && blocker.by.ends_with("idle in transaction"), "{blocker:?}");
            let finding = &found(Duration::ZERO).await[0];
            assert!(finding.what.starts_with(&name) && finding.what.contains("up to 3 messages"), "{finding:?}");
            assert_eq!(found(LEASE).await, [], "not for so long");
            txn.commit().await.expect("commit");
            assert_eq!(held_back().await, None);
            assert_eq!(drain(&log.group).await.len(), 3);
        }

        async fn prepared_transaction_that_holds_a_reader_back_is_named(log: &Log) {
            let gid = &log.schema;
            enqueue(log, vec![on("a")]).await;
            assert_eq!(drain(&log.group).await.len(), 1);
            let txn = log.db.begin().await.expect("begin");
            log.log.enqueue_in(&txn, [on("a")]).await.expect("enqueue");
            txn.execute_unprepared(&format!("PREPARE TRANSACTION '{gid}'")).await.expect("prepare");
            txn.rollback().await.expect("it is the server's now");
            enqueue(log, vec![on("b"), on("b")]).await;
            assert!(drain(&log.group).await.is_empty(), "it is behind an open transaction");
            let blocker = log.group.stats().await.expect("stats").held_back.expect("the transaction");
            let found = log.group.doctor(Duration::ZERO).await.expect("doctor");
            log.execute(&format!("COMMIT PREPARED '{gid}'")).await;
            let name = format!("prepared transaction {gid} of ");
            assert!(blocker.n_numbers == 3 && blocker.by.starts_with(&name), "{blocker:?}");
            assert!(blocker.open_for > Duration::ZERO && blocker.open_for < LEASE, "{blocker:?}");
            let is_named = |finding: &&outbox_core::Finding| {
                finding.symptom == Symptom::OpenTransaction && finding.what.starts_with(&name)
            };
            let finding = found.iter().find(is_named).unwrap_or_else(|| panic!("{found:?}"));
            assert!(finding.what.contains("up to 3 messages"), "{finding:?}");
            assert_eq!(log.group.stats().await.expect("stats").held_back, None);
            assert_eq!(drain(&log.group).await.len(), 3);
        }

        async fn insert_straight_into_a_partition_is_waited_for(log: &Log) {
            let txn = log.db.begin().await.expect("begin");
            let sql = format!(
                "INSERT INTO {0}.log_default (seq, id, topic, payload) OVERRIDING SYSTEM VALUE \
                 VALUES (nextval(pg_get_serial_sequence('{0}.log', 'seq')), gen_random_uuid(), 'a', '')",
                log.schema
            );
            txn.execute_unprepared(&sql).await.expect("insert");
            enqueue(log, vec![on("b")]).await;
            assert!(drain(&log.group).await.is_empty(), "it is behind an open transaction");
            txn.commit().await.expect("commit");
            assert_eq!(drain(&log.group).await.len(), 2);
        }

        async fn partition_made_by_hand_is_read(log: &Log) {
            let schema = &log.schema;
            let before = enqueue(log, vec![on("a")]).await;
            log.advance(48 * LEASE).await;
            log.execute(&format!(
                "DO $$ BEGIN EXECUTE format('CREATE TABLE {schema}.today PARTITION OF {schema}.log FOR VALUES FROM (%L) TO (%L)', \
                 now() - interval '1 day', now() + interval '1 day'); END $$"
            )).await;
            let after = enqueue(log, vec![on("b")]).await;
            assert_eq!(log.number(&format!("SELECT count(*) FROM {schema}.today")).await, 1);
            assert_eq!(drain(&log.group).await, [before, after].concat());
        }
    }}
}
