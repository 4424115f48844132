//! Every case on [`MemoryRepository`], the reference.

use std::time::Duration;

use outbox_core::{Declaration, MemoryRepository, Retention};
use outbox_testkit::{
    Capabilities, DeclaredHarness, Harness, OperationsHarness, ProcessedHarness, Skip, cases, conformance,
};

pub(crate) struct Memory(MemoryRepository);

impl Harness for Memory {
    const NAME: &'static str = "memory";
    type Repository = MemoryRepository;

    async fn start() -> Result<Self, Skip> {
        Ok(Self(MemoryRepository::new()))
    }

    fn repository(&self) -> &MemoryRepository {
        &self.0
    }

    async fn advance(&self, by: Duration) {
        self.0.advance(by);
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all().with_corrupt_rows(false)
    }
}

impl OperationsHarness for Memory {
    type Operations = MemoryRepository;

    fn operations(&self) -> &MemoryRepository {
        &self.0
    }

    fn keeping(&self) -> Option<MemoryRepository> {
        Some(self.0.clone().with_retention(Retention::Keep))
    }
}

impl DeclaredHarness for Memory {
    async fn declared(&self, declaration: Declaration) -> Self {
        Self(MemoryRepository::new().declared(declaration))
    }
}

impl ProcessedHarness for Memory {
    type Processed = MemoryRepository;

    fn processed(&self) -> &MemoryRepository {
        &self.0
    }
}

conformance!(Memory: repository, operations, ordered, processed, inspect);

#[test]
fn every_case_is_listed_once() {
    let mut names: Vec<_> = cases!(Memory: repository, operations, ordered, processed, inspect)
        .iter()
        .map(|case| case.name())
        .collect();
    let n = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), n);
    assert!(n >= 65, "{n} cases");
}

#[test]
fn model_agrees_with_itself() {
    outbox_testkit::model::<Memory>(64, 60);
}
