//! The row-level security of docs/operations.md: a producer writes for one tenant, a dispatcher sees all.

use outbox_core::{
    ClaimRequest, Context, DEDUP_RETENTION, Draft, ErrorKind, Operations, Outcome, Prune, Repository,
    Settlement,
};
use outbox_sea_orm::{SeaOrmContext, transactor};
use outbox_testkit::Harness;
use sea_orm::{ConnectionTrait, Statement};

use super::{Roles, connect, rename_roles, run_with_roles};
use crate::support::LEASE;

const OPERATIONS: &str = include_str!("../../../../docs/operations.md");

/// The SQL of the chapter on tenants, for this schema's tables and roles: the producers' policy and the dispatchers'.
fn policies(schema: &str) -> [String; 2] {
    let (_, chapter) = OPERATIONS.split_once("## Tenants").expect("the chapter");
    let (_, rest) = chapter.split_once("```sql\n").expect("its SQL");
    let (sql, _) = rest.split_once("```").expect("the end of its SQL");
    let sql = sql.replace("\"outbox\"", &format!("{schema}.outbox"));
    let sql = rename_roles(&sql.replace("\"outbox_dedup\"", &format!("{schema}.outbox_dedup")), schema);
    let (producers, dispatchers) = sql.split_once("CREATE POLICY all_tenants").expect("two policies");
    [producers.to_owned(), format!("CREATE POLICY all_tenants{dispatchers}")]
}

fn draft(tenant: &str) -> Draft {
    Draft::new("t", "").header("tenant", tenant)
}

async fn enqueue_as(roles: &Roles, tenant: Option<&str>, draft: Draft) -> outbox_core::Result<()> {
    let db = connect(&format!("{}_producer", roles.owner.schema())).await;
    let outbox = roles.handles("producer").await.outbox;
    let enqueue = async |cx: &Context| {
        if let Some(tenant) = tenant {
            let connection = cx.connection()?;
            let sql = "SELECT set_config('app.tenant', $1, true)";
            let statement =
                Statement::from_sql_and_values(connection.get_database_backend(), sql, [tenant.into()]);
            connection.execute_raw(statement).await.expect("set the tenant");
        }
        outbox.enqueue(cx, draft).await.map(drop)
    };
    transactor(&db).run(enqueue).await
}

async fn a_producer_writes_for_one_tenant_and_a_dispatcher_sees_all(roles: &Roles) {
    let [producers, dispatchers] = policies(roles.owner.schema());
    roles.owner.tables.execute(&producers).await.expect("the producers' policy");
    enqueue_as(roles, Some("acme"), draft("acme")).await.expect("its own");
    enqueue_as(roles, Some("umbrella"), draft("umbrella")).await.expect("its own");
    for (tenant, draft) in [
        (Some("acme"), draft("umbrella")),
        (Some("acme"), Draft::new("t", "")),
        (Some(""), draft("")),
        (None, draft("acme")),
        (None, Draft::new("t", "")),
    ] {
        let error = enqueue_as(roles, tenant, draft).await.expect_err("somebody else's");
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::PermissionDenied, false), "{error:?}");
        assert!(!format!("{error:?}").contains("umbrella"), "{error:?}");
    }
    let dispatcher = &roles.by_role.dispatcher.outbox;
    let blind = dispatcher.claim(ClaimRequest::new(10, LEASE)).await.expect("claim");
    assert!(blind.is_empty(), "the trap that the document warns of");
    roles.owner.tables.execute(&dispatchers).await.expect("the dispatchers' policy");
    let claim = dispatcher.claim(ClaimRequest::new(10, LEASE)).await.expect("claim");
    let tenants: Vec<_> =
        claim.messages.iter().filter_map(|claimed| claimed.message.header("tenant")).collect();
    assert_eq!(tenants, ["acme", "umbrella"]);
    let dead = Outcome::Dead { error: String::new() };
    let settled = claim.messages.iter().map(|claimed| Settlement::new(claimed.lease, dead.clone()));
    dispatcher.settle(settled.collect()).await.expect("settle");
    assert_eq!(roles.by_role.admin.outbox.stats().await.expect("stats").total().n_dead, 2);
    keys_begin_with_their_tenant(roles).await;
}

async fn keys_begin_with_their_tenant(roles: &Roles) {
    let enqueue = async |tenant, key: &str| enqueue_as(roles, tenant, draft("acme").dedup_key(key)).await;
    enqueue(Some("acme"), "acme:k").await.expect("its own");
    let kind = async |tenant, key| enqueue(tenant, key).await.expect_err(key).kind();
    assert_eq!(kind(Some("acme"), "acme:k").await, ErrorKind::AlreadyEnqueued);
    assert_eq!(kind(Some("acme"), "umbrella:k").await, ErrorKind::PermissionDenied);
    assert_eq!(kind(Some(""), ":k").await, ErrorKind::PermissionDenied);
    let expired = Prune::dedup_keys().dry_run();
    roles.advance(DEDUP_RETENTION).await;
    assert_eq!(roles.by_role.admin.outbox.prune(expired).await.expect("count"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_writes_for_one_tenant_and_a_dispatcher_sees_all_on_postgres() {
    run_with_roles(a_producer_writes_for_one_tenant_and_a_dispatcher_sees_all).await;
}
