//! What goes wrong outside of a message has a kind of its own and a text that says what to do.

use std::error::Error as _;
use std::time::Duration;

use outbox_core::{
    ClaimRequest, Context, Draft, Error, ErrorKind, Lease, Mark, Operations, ProcessedStore, Repository,
    RepositoryExt, Result, TableName, Transactions,
};
use outbox_sea_orm::{OutboxTable, ProcessedTable, SeaOrm, transactor};
use sea_orm::{AccessMode, ConnectOptions, ConnectionTrait, Database, DatabaseConnection, TransactionTrait};
use uuid::Uuid;

use crate::support::{LEASE, Pool, Site, on_mysql, on_postgres, on_sqlite};

const SECRET: &str = "S3CR3T-of-the-database";

fn failed<T: std::fmt::Debug>(result: Result<T>) -> Error {
    result.expect_err("must fail")
}

/// Everything that an error shows of itself.
fn shown(error: &Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(" {cause} {cause:?}");
        source = cause.source();
    }
    text
}

async fn a_missing_table_is_a_schema_error_with_advice(site: &Site) {
    let outbox = OutboxTable::new(&site.db, site.name("absent"));
    let inbox = ProcessedTable::new(&site.db, site.name("absent_inbox"));
    let lease = Lease { id: Uuid::now_v7(), token: Uuid::now_v7(), locator: 1 };
    let mark = || Mark::new("g", lease.id);
    let tx = transactor(&site.db);
    let errors = [
        failed(outbox.enqueue_autocommit([Draft::new("t", "")]).await),
        failed(tx.run(async |cx| outbox.enqueue(cx, Draft::new("t", "")).await).await),
        failed(outbox.claim(ClaimRequest::new(1, LEASE)).await),
        failed(outbox.mark_done(lease).await),
        failed(outbox.extend(vec![lease], LEASE).await),
        failed(outbox.stats().await),
        failed(inbox.is_processed("g", lease.id).await),
        failed(tx.run(async |cx| inbox.mark_processed(cx, mark()).await).await),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Schema, "{}", shown(&error));
        assert!(!error.is_retryable());
        let text = error.to_string();
        assert!(text.contains(&format!("on {}", site.name("absent"))), "{text}");
        assert!(text.ends_with("schema mismatch: apply schema.sql or call migrate()"), "{text}");
    }
}

async fn a_missing_column_is_a_schema_error_with_advice(site: &Site) {
    site.execute(&format!("ALTER TABLE {} DROP COLUMN fence", site.sql_name("outbox"))).await;
    site.enqueue("t", 1).await;
    let error = failed(site.outbox.claim(ClaimRequest::new(1, LEASE)).await);
    assert_eq!(error.kind(), ErrorKind::Schema, "{}", shown(&error));
    assert!(error.to_string().ends_with("apply schema.sql or call migrate()"), "{error}");
}

async fn a_missing_schema_is_a_schema_error_with_advice(site: &Site) {
    let outbox = OutboxTable::new(&site.db, TableName::parse("no_such_schema.outbox").expect("name"));
    let error = failed(outbox.enqueue_autocommit([Draft::new("t", "")]).await);
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().starts_with("enqueue on no_such_schema.outbox: "), "{error}");
}

async fn a_read_only_transaction_is_named(site: &Site) {
    let transaction = site.db.begin_with_config(None, Some(AccessMode::ReadOnly)).await.expect("begin");
    let error = failed(site.outbox.enqueue_in(&transaction, [Draft::new("t", "")]).await);
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    assert!(error.is_retryable(), "after a failover the same call reaches the new primary");
}

async fn a_read_only_server_is_named(site: &Site) {
    let settings = &[("default_transaction_read_only", "on")];
    let db = site.connect(Pool { settings, ..Pool::of(2) }).await;
    let outbox = OutboxTable::new(&db, site.name("outbox"));
    site.enqueue("t", 1).await;
    for error in [
        failed(outbox.enqueue_autocommit([Draft::new("t", "")]).await.map(drop)),
        failed(outbox.claim(ClaimRequest::new(1, LEASE)).await.map(drop)),
    ] {
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::ReadOnly, true));
    }
    assert_eq!(site.drain().await.len(), 1, "no attempt, no lease");
}

async fn a_read_only_file_is_a_missing_permission(site: &Site) {
    let path = site.file().display().to_string();
    let db =
        Database::connect(ConnectOptions::new(format!("sqlite://{path}?mode=ro"))).await.expect("connect");
    let outbox = OutboxTable::new(&db, site.name("outbox"));
    let error = failed(outbox.enqueue_autocommit([Draft::new("t", "")]).await);
    let expected = (ErrorKind::PermissionDenied, false);
    assert_eq!((error.kind(), error.is_retryable()), expected, "{}", shown(&error));
}

async fn a_transaction_that_had_failed_is_named(site: &Site) {
    let transaction = site.db.begin().await.expect("begin");
    transaction.execute_unprepared("SELECT 1 / 0").await.expect_err("fails");
    let error = failed(site.outbox.enqueue_in(&transaction, [Draft::new("t", "")]).await);
    assert_eq!(error.kind(), ErrorKind::TransactionDoomed);
    assert!(error.to_string().ends_with(": the transaction had already failed"), "{error}");
}

async fn a_role_without_privileges_is_named(site: &Site) {
    let role = site.schema();
    site.execute(&format!("CREATE ROLE {role}; GRANT USAGE ON SCHEMA {role} TO {role}")).await;
    let db = site.connect(Pool { settings: &[("role", role)], ..Pool::of(2) }).await;
    let outbox = OutboxTable::new(&db, site.name("outbox"));
    let error = failed(outbox.enqueue_autocommit([Draft::new("t", "")]).await);
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::PermissionDenied, false));
    assert_eq!(failed(outbox.claim(ClaimRequest::new(1, LEASE)).await).kind(), ErrorKind::PermissionDenied);
    site.execute(&format!("GRANT INSERT ON {} TO {role}", site.sql_name("outbox"))).await;
    outbox.enqueue_autocommit([Draft::new("t", "")]).await.expect("a producer needs INSERT only");
    site.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

/// A lazy pool, so that the first call of ours is what fails.
async fn lazy(url: String) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.connect_lazy(true).acquire_timeout(Duration::from_secs(2)).max_connections(1);
    Database::connect(options).await.expect("lazy")
}

async fn a_wrong_password_is_final_and_shows_no_secret(site: &Site) {
    let role = format!("{}_login", &site.schema()[..20]);
    site.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'another'")).await;
    let server = outbox_testkit::server::postgres().await.expect("it is there");
    let (_, place) = server.url().rsplit_once('@').expect("a user");
    let db = lazy(format!("postgres://{role}:{SECRET}@{place}")).await;
    let outbox = OutboxTable::new(&db, site.name("outbox"));
    let result = outbox.ping().await;
    site.execute(&format!("DROP ROLE {role}")).await;
    let error = failed(result);
    assert_eq!(
        (error.kind(), error.is_retryable()),
        (ErrorKind::PermissionDenied, false),
        "{}",
        shown(&error)
    );
    assert!(!shown(&error).contains(SECRET), "{}", shown(&error));
    assert!(!format!("{outbox:?} {:?}", SeaOrm::new(&db)).contains(SECRET));
}

async fn a_server_that_is_not_there_is_unavailable_and_shows_no_secret(_: &Site) {
    // a port that was free a moment ago
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("port");
    let db = lazy(format!("postgres://somebody:{SECRET}@{port}/postgres")).await;
    let outbox = OutboxTable::new(&db, TableName::parse("outbox").expect("name"));
    for error in [
        failed(outbox.ping().await),
        failed(outbox.claim(ClaimRequest::new(1, LEASE)).await.map(drop)),
        failed(SeaOrm::new(&db).begin().await.map(drop)),
    ] {
        assert!(error.is_retryable(), "{}", shown(&error));
        assert!(!shown(&error).contains(SECRET), "{}", shown(&error));
    }
}

async fn a_pool_without_a_free_connection_is_a_timeout(site: &Site) {
    let mut options = ConnectOptions::new(site.url());
    options.max_connections(1).acquire_timeout(Duration::from_millis(200)).sqlx_logging(false);
    let db = Database::connect(options).await.expect("connect");
    let _held = db.begin().await.expect("begin");
    let outbox = OutboxTable::new(&db, site.name("outbox"));
    let error = failed(outbox.enqueue_autocommit([Draft::new("t", "")]).await);
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Timeout, true), "{}", shown(&error));
    assert!(error.to_string().ends_with("no connection was free in time"), "{error}");
    assert_eq!(failed(SeaOrm::new(&db).begin().await.map(drop)).kind(), ErrorKind::Timeout);
}

async fn a_lock_that_is_not_free_in_time_is_a_timeout(site: &Site) {
    let holder = site.db.begin().await.expect("begin");
    let lock = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", site.sql_name("outbox"));
    holder.execute_unprepared(&lock).await.expect("lock");
    for setting in ["lock_timeout", "statement_timeout"] {
        let db = site.connect(Pool { settings: &[(setting, "100ms")], ..Pool::of(2) }).await;
        let outbox = OutboxTable::new(&db, site.name("outbox"));
        for error in [
            failed(outbox.enqueue_autocommit([Draft::new("t", "")]).await.map(drop)),
            failed(outbox.claim(ClaimRequest::new(1, LEASE)).await.map(drop)),
        ] {
            assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Timeout, true), "{}", shown(&error));
        }
    }
}

async fn a_deadlock_is_contention(site: &Site) {
    let [a, b] = [Uuid::now_v7(), Uuid::now_v7()];
    let mark = async |cx: &Context, id| site.inbox.mark_processed(cx, Mark::new("g", id)).await.map(drop);
    let meeting = tokio::sync::Barrier::new(2);
    let crossing = async |first, second| {
        transactor(&site.db)
            .run(async |cx| {
                mark(cx, first).await?;
                meeting.wait().await;
                mark(cx, second).await
            })
            .await
    };
    let (one, other) = tokio::join!(crossing(a, b), crossing(b, a));
    // one of them is ended by the server, the other goes on
    let error = failed(one.and(other));
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Contention, true), "{}", shown(&error));
}

async fn a_file_that_another_writes_to_is_contention(site: &Site) {
    let mut options = ConnectOptions::new(site.url());
    options
        .max_connections(1)
        .map_sqlx_sqlite_opts(|options| options.busy_timeout(Duration::from_millis(50)));
    let db = Database::connect(options).await.expect("connect");
    let holder = SeaOrm::new(&site.db).begin().await.expect("begin");
    let outbox = OutboxTable::new(&db, site.name("outbox"));
    let error = failed(outbox.enqueue_autocommit([Draft::new("t", "")]).await);
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Contention, true), "{}", shown(&error));
    assert_eq!(failed(SeaOrm::new(&db).begin().await.map(drop)).kind(), ErrorKind::Contention);
    SeaOrm::new(&site.db).rollback(holder).await.expect("rollback");
    outbox.enqueue_autocommit([Draft::new("t", "")]).await.expect("free again");
}

on_postgres! {
    a_missing_table_is_a_schema_error_with_advice,
    a_missing_column_is_a_schema_error_with_advice,
    a_missing_schema_is_a_schema_error_with_advice,
    a_read_only_transaction_is_named,
    a_read_only_server_is_named,
    a_transaction_that_had_failed_is_named,
    a_role_without_privileges_is_named,
    a_wrong_password_is_final_and_shows_no_secret,
    a_server_that_is_not_there_is_unavailable_and_shows_no_secret,
    a_pool_without_a_free_connection_is_a_timeout,
    a_lock_that_is_not_free_in_time_is_a_timeout,
    a_deadlock_is_contention,
}

on_mysql! {
    a_missing_table_is_a_schema_error_with_advice,
    a_missing_column_is_a_schema_error_with_advice,
    a_missing_schema_is_a_schema_error_with_advice,
    a_read_only_transaction_is_named,
    a_pool_without_a_free_connection_is_a_timeout,
    a_deadlock_is_contention,
}

on_sqlite! {
    a_missing_table_is_a_schema_error_with_advice,
    a_missing_column_is_a_schema_error_with_advice,
    a_read_only_file_is_a_missing_permission,
    a_pool_without_a_free_connection_is_a_timeout,
    a_file_that_another_writes_to_is_contention,
}
