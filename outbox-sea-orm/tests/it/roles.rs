//! Least privilege: `grants.sql` is enough for every part, and for nothing else.

mod forbidden;
mod tenants;

use std::time::Duration;

use outbox_core::{
    BlockedPage, BlockedQuery, Claim, ClaimRequest, Context, DeadLetterFilter, DeadLetterPage,
    DeadLetterQuery, Declaration, Draft, FailedAttempt, Finding, Lease, Mark, Marked, MessageId, Moved,
    Operations, PartitionInterval, ProcessedStore, Prune, Repository, Result, Retention, Settled, Settlement,
    Stats, Transactions, Unblocked, Wakeup,
};
use outbox_sea_orm::{OutboxTable, ProcessedTable, TableListener};
use outbox_testkit::{
    Capabilities, Corruption, DeclaredHarness, Harness, OperationsHarness, ProcessedHarness, Skip,
};
use sea_orm::{ConnectOptions, Database, DatabaseConnection};

use crate::harness::Postgres;

pub(crate) const GRANTS: &str = include_str!("../../../grants.sql");

/// A schema of its own with the roles of `grants.sql`, and a pool for each role.
pub(crate) struct Roles<const PARTITIONED: bool = false> {
    owner: Postgres,
    declared: Declaration,
    by_role: ByRole,
    roles: Vec<String>,
}

/// Whether producers may read by which message a deduplication key was taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Producers {
    InsertOnly,
    ReadKeys,
}

impl<const PARTITIONED: bool> Roles<PARTITIONED> {
    async fn create(declared: Declaration, producers: Producers) -> Result<Self, Skip> {
        let declared = if PARTITIONED { declared.partitioned(PartitionInterval::Hour) } else { declared };
        let owner = Postgres::with(declared.clone()).await?;
        let schema = owner.schema().to_owned();
        let role = |name: &str| format!("{schema}_{name}");
        let service = role("service");
        owner.tables.execute(&grants(&schema, producers)).await.expect("grants.sql");
        // a service enqueues and consumes, in one transaction
        let members = format!("CREATE ROLE {service} IN ROLE {}, {}", role("producer"), role("consumer"));
        owner.tables.execute(&members).await.expect("the service's role");
        let handles = async |name: &str| Handles::of(&owner, &declared, connect(&role(name)).await);
        let by_role = ByRole {
            service: handles("service").await,
            dispatcher: handles("dispatcher").await,
            admin: handles("admin").await,
        };
        let names = ["service", "producer", "dispatcher", "consumer", "admin"];
        Ok(Self { owner, by_role, roles: names.into_iter().map(role).collect(), declared })
    }

    /// Both tables as the role `name` of `grants.sql`.
    async fn handles(&self, name: &str) -> Handles {
        let db = connect(&format!("{}_{name}", self.owner.schema())).await;
        Handles::of(&self.owner, &self.declared, db)
    }
}

/// `grants.sql` with other names, and with what it leaves to choose.
fn grants(schema: &str, producers: Producers) -> String {
    let mut sql = GRANTS.replace("\"public\"", schema);
    if producers == Producers::ReadKeys {
        let [choice, chosen] =
            ["-- GRANT", "GRANT"].map(|verb| format!("{verb} SELECT, UPDATE (id, expires_at)"));
        assert!(sql.contains(&choice), "{sql}");
        sql = sql.replace(&choice, &chosen);
    }
    for table in ["outbox", "outbox_dedup", "inbox", "outbox_seq_seq"] {
        sql = sql.replace(&format!("\"{table}\""), &format!("{schema}.{table}"));
    }
    rename_roles(&sql, schema)
}

/// Puts the schema's name in the place of `outbox` in the names of the roles, which belong to the whole server.
pub(crate) fn rename_roles(sql: &str, schema: &str) -> String {
    ["producer", "dispatcher", "consumer", "admin"]
        .into_iter()
        .fold(sql.to_owned(), |sql, role| sql.replace(&format!("outbox_{role}"), &format!("{schema}_{role}")))
}

pub(crate) async fn connect(role: &str) -> DatabaseConnection {
    let server = outbox_testkit::server::postgres().await.expect("it is there");
    let mut options = ConnectOptions::new(server.url());
    let role = role.to_owned();
    options.max_connections(8).sqlx_logging(false).map_sqlx_postgres_opts(move |options| {
        // a superuser in this role has the rights of the role
        options.options([("role", &role)])
    });
    Database::connect(options).await.expect("connect")
}

/// The tables over one pool.
#[derive(Clone)]
struct Handles {
    outbox: OutboxTable,
    inbox: ProcessedTable,
}

impl Handles {
    fn of(owner: &Postgres, declared: &Declaration, db: DatabaseConnection) -> Self {
        Self {
            outbox: OutboxTable::new(&db, owner.name("outbox")).declared(declared.clone()),
            inbox: ProcessedTable::new(&db, owner.name("inbox")),
        }
    }
}

/// Each operation by the role that is there for it.
#[derive(Clone)]
pub(crate) struct ByRole {
    service: Handles,
    dispatcher: Handles,
    admin: Handles,
}

impl Repository for ByRole {
    async fn enqueue(&self, cx: &Context, drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        self.service.outbox.enqueue(cx, drafts).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claim> {
        self.dispatcher.outbox.claim(request).await
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        self.dispatcher.outbox.settle(settlements).await
    }

    async fn extend(&self, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        self.dispatcher.outbox.extend(leases, by).await
    }
}

impl Transactions for ByRole {
    async fn begin(&self) -> Result<Context> {
        self.service.outbox.begin().await
    }

    async fn commit(&self, cx: Context) -> Result<()> {
        self.service.outbox.commit(cx).await
    }

    async fn rollback(&self, cx: Context) -> Result<()> {
        self.service.outbox.rollback(cx).await
    }
}

impl Wakeup for ByRole {
    type Listener = TableListener;

    async fn listen(&self) -> Result<Option<TableListener>> {
        self.dispatcher.outbox.listen().await
    }
}

impl Operations for ByRole {
    async fn stats(&self) -> Result<Stats> {
        self.admin.outbox.stats().await
    }

    async fn dead_letters(&self, query: DeadLetterQuery) -> Result<DeadLetterPage> {
        self.admin.outbox.dead_letters(query).await
    }

    async fn redrive(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        self.admin.outbox.redrive(ids).await
    }

    async fn redrive_matching(&self, filter: DeadLetterFilter, limit: usize) -> Result<u64> {
        self.admin.outbox.redrive_matching(filter, limit).await
    }

    async fn discard(&self, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        self.admin.outbox.discard(ids).await
    }

    async fn discard_matching(&self, filter: DeadLetterFilter, limit: usize) -> Result<u64> {
        self.admin.outbox.discard_matching(filter, limit).await
    }

    async fn blocked_keys(&self, query: BlockedQuery) -> Result<BlockedPage> {
        self.admin.outbox.blocked_keys(query).await
    }

    async fn skip_head(&self, key: String, head: MessageId) -> Result<Unblocked> {
        self.admin.outbox.skip_head(key, head).await
    }

    async fn release_head(&self, key: String, head: MessageId) -> Result<Unblocked> {
        self.admin.outbox.release_head(key, head).await
    }

    async fn history(&self, id: MessageId) -> Result<Vec<FailedAttempt>> {
        self.admin.outbox.history(id).await
    }

    async fn prune(&self, prune: Prune) -> Result<u64> {
        self.admin.outbox.prune(prune).await
    }

    async fn ping(&self) -> Result<()> {
        self.service.outbox.ping().await
    }

    async fn check(&self) -> Result<()> {
        // whoever starts may ask whether its tables are there
        self.service.outbox.check().await?;
        self.service.inbox.check().await?;
        self.admin.outbox.check().await
    }

    async fn doctor(&self, patience: Duration) -> Result<Vec<Finding>> {
        self.admin.outbox.doctor(patience).await
    }
}

impl ProcessedStore for ByRole {
    async fn is_processed(&self, group: &str, id: MessageId) -> Result<bool> {
        self.service.inbox.is_processed(group, id).await
    }

    async fn mark_processed(&self, cx: &Context, mark: Mark) -> Result<Marked> {
        self.service.inbox.mark_processed(cx, mark).await
    }

    async fn store_result(
        &self,
        cx: &Context,
        group: &str,
        id: MessageId,
        result: serde_json::Value,
    ) -> Result<()> {
        self.service.inbox.store_result(cx, group, id, result).await
    }

    async fn purge_before(&self, group: &str, age: Duration, limit: usize) -> Result<u64> {
        self.admin.inbox.purge_before(group, age, limit).await
    }
}

impl<const PARTITIONED: bool> Harness for Roles<PARTITIONED> {
    const NAME: &'static str = "postgres";
    type Repository = ByRole;

    async fn start() -> Result<Self, Skip> {
        Self::create(Declaration::new(), Producers::ReadKeys).await
    }

    fn repository(&self) -> &ByRole {
        &self.by_role
    }

    async fn advance(&self, by: Duration) {
        self.owner.advance(by).await;
    }

    fn capabilities(&self) -> Capabilities {
        self.owner.capabilities().with_ended_ids(!PARTITIONED)
    }

    async fn corrupt(&self, id: MessageId, corruption: Corruption) -> bool {
        self.owner.corrupt(id, corruption).await
    }

    async fn finish(self) {
        let Self { owner, roles, .. } = self;
        for role in roles {
            owner
                .tables
                .execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
                .await
                .expect("drop the role");
        }
        owner.finish().await;
    }
}

impl<const PARTITIONED: bool> OperationsHarness for Roles<PARTITIONED> {
    type Operations = ByRole;

    fn operations(&self) -> &ByRole {
        &self.by_role
    }

    fn keeping(&self) -> Option<ByRole> {
        let mut keeping = self.by_role.clone();
        keeping.dispatcher.outbox = keeping.dispatcher.outbox.with_retention(Retention::Keep);
        Some(keeping)
    }
}

impl<const PARTITIONED: bool> ProcessedHarness for Roles<PARTITIONED> {
    type Processed = ByRole;

    fn processed(&self) -> &ByRole {
        &self.by_role
    }
}

impl<const PARTITIONED: bool> DeclaredHarness for Roles<PARTITIONED> {
    async fn declared(&self, declaration: Declaration) -> Self {
        Self::create(declaration, Producers::ReadKeys).await.expect("the server is there")
    }
}

mod postgres {
    use super::Roles;

    outbox_testkit::conformance!(Roles: repository, operations, fair, ordered, processed);
}

mod postgres_partitioned {
    use super::Roles;

    outbox_testkit::conformance!(Roles<true>: repository, operations, ordered);
}

/// Runs a test with roles of its own as grants.sql makes them, or skips it loudly.
async fn run_with_roles(test: impl AsyncFnOnce(&Roles)) {
    run_with_roles_on(Declaration::new(), test).await;
}

/// As [`run_with_roles`] on a table that is declared otherwise.
async fn run_with_roles_on<const PARTITIONED: bool>(
    declared: Declaration,
    test: impl AsyncFnOnce(&Roles<PARTITIONED>),
) {
    let Ok(roles) = Roles::create(declared, Producers::InsertOnly).await else { return };
    test(&roles).await;
    roles.finish().await;
}
