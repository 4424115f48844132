//! Every case on [`MemoryRepository`], the reference.

use std::env::current_exe;
use std::fs::{read_to_string, remove_file};
use std::path::Path;
use std::process::{Command, id};
use std::time::Duration;

use outbox_core::{Declaration, MemoryRepository, OnDead, Retention};
use outbox_testkit::{
    Capabilities, DeclaredHarness, Harness, OperationsHarness, ProcessedHarness, Skip, case_names, cases,
    conformance,
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

conformance!(Memory: repository, operations, fair, ordered, processed, inspect);

#[test]
fn every_case_is_listed_once() {
    let mut names: Vec<_> = cases!(Memory: repository, operations, fair, ordered, processed, inspect)
        .iter()
        .map(|case| case.name())
        .collect();
    let n = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), n);
    let mut all = case_names();
    all.sort_unstable();
    assert_eq!(names, all, "the reference has every case");
    assert!(n >= 200, "{n} cases");
}

#[test]
fn what_is_skipped_is_noted_for_a_summary() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("skipped-{}", id()));
    let case = "claim::undecodable_row_is_dead_and_the_rest_goes_on";
    for _ in 0..2 {
        let mut test = Command::new(current_exe().expect("this binary"));
        test.args(["--exact", &format!("memory::{case}")]).env("OUTBOX_TEST_SKIPPED", &path);
        assert!(test.output().expect("it runs").status.success());
    }
    let line = format!("{case} on memory: needs the capability corrupt_rows\n");
    assert_eq!(read_to_string(&path).expect("the file"), line.repeat(2));
    remove_file(path).expect("removed");
}

#[test]
fn model_agrees_with_itself() {
    outbox_testkit::model::<Memory>(64, 60);
}

#[test]
fn model_of_an_ordered_table_agrees_with_itself() {
    for on_dead in [OnDead::Continue, OnDead::Block] {
        outbox_testkit::model_declared::<Memory>(&Declaration::new().ordered(on_dead), 64, 60);
    }
}
