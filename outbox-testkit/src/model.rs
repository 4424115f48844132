//! Random sequences of calls, each made on a backend and on [`MemoryRepository`](outbox_core::MemoryRepository),
//! their answers compared.
//!
//! Half of the sequences compare claims exactly: the same messages in the same order. The other half claim with
//! [`Claimer`](outbox_core::Claimer)s and leave transactions open: there a claim may pass something over for a
//! tenth of a second, so what the backend hands out is checked to be eligible, and that nothing is missed is
//! checked after a pause. A backend without the capability `exact_order` runs only the second half.
//!
//! Time moves in steps of half an hour on both sides, so the milliseconds that a run takes do not matter.

mod compare;
mod op;

use std::env::var;

use outbox_core::Declaration;
use proptest::test_runner::{
    Config, RngAlgorithm, TestCaseError, TestCaseResult, TestError, TestRng, TestRunner,
};
use tokio::runtime::Builder;

use self::compare::Comparison;
use self::op::Sequence;
use crate::random::{Random, seed};
use crate::{DeclaredHarness, Harness, OperationsHarness, Skip};

/// Compares `n_sequences` random sequences of at most `n_ops` calls with the reference. The environment variable
/// `OUTBOX_TEST_SEQUENCES` overrides the number of sequences; `OUTBOX_TEST_SEED` repeats a run.
///
/// # Panics
/// When the backend answers otherwise than the reference, with the shortest sequence that shows it.
///
/// # Examples
/// ```
/// # use std::time::Duration;
/// # use outbox_core::MemoryRepository;
/// # use outbox_testkit::{Capabilities, Harness, OperationsHarness, Skip};
/// # struct Memory(MemoryRepository);
/// # impl Harness for Memory {
/// #     const NAME: &'static str = "memory";
/// #     type Repository = MemoryRepository;
/// #     async fn start() -> Result<Self, Skip> { Ok(Self(MemoryRepository::new())) }
/// #     fn repository(&self) -> &MemoryRepository { &self.0 }
/// #     async fn advance(&self, by: Duration) { self.0.advance(by) }
/// #     fn capabilities(&self) -> Capabilities { Capabilities::all() }
/// # }
/// # impl OperationsHarness for Memory {
/// #     type Operations = MemoryRepository;
/// #     fn operations(&self) -> &MemoryRepository { &self.0 }
/// # }
/// outbox_testkit::model::<Memory>(4, 20);
/// ```
pub fn model<H: OperationsHarness>(n_sequences: u32, n_ops: usize) {
    if let Err(difference) = find_difference::<H>(n_sequences, n_ops) {
        panic!("{difference}");
    }
}

/// Does the same on tables that are declared so, and on a reference that is.
///
/// There the order between keys is open, so no claim is compared exactly. What the backend hands out must be what the
/// reference may hand out: with every earlier message of its key that is not over with, in order. And a claim that
/// is not full, and has made nothing dead, must have left nothing that could be claimed.
///
/// # Panics
/// As [`model`] does.
pub fn model_declared<H: DeclaredHarness>(declared: &Declaration, n_sequences: u32, n_ops: usize) {
    if let Err(difference) = find_declared_difference::<H>(declared, n_sequences, n_ops) {
        panic!("{difference}");
    }
}

/// What [`model`] does, without the panic: the difference with the shortest sequence that shows it.
///
/// # Errors
/// The difference, for a human reader.
///
/// # Panics
/// When the backend cannot be tested although `OUTBOX_TEST_REQUIRE` names it.
pub fn find_difference<H: OperationsHarness>(n_sequences: u32, n_ops: usize) -> Result<(), String> {
    search(H::start, &Declaration::new(), n_sequences, n_ops)
}

/// What [`model_declared`] does, without the panic.
///
/// # Errors
/// The difference, for a human reader.
///
/// # Panics
/// When the backend cannot be tested although `OUTBOX_TEST_REQUIRE` names it.
pub fn find_declared_difference<H: DeclaredHarness>(
    declared: &Declaration,
    n_sequences: u32,
    n_ops: usize,
) -> Result<(), String> {
    let start = async || {
        let plain = H::start().await?;
        let harness = plain.declared(declared.clone()).await;
        plain.finish().await;
        Ok(harness)
    };
    search(start, declared, n_sequences, n_ops)
}

fn search<H: OperationsHarness>(
    start: impl AsyncFn() -> Result<H, Skip>,
    declared: &Declaration,
    n_sequences: u32,
    n_ops: usize,
) -> Result<(), String> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let Some(exact_order) = runtime.block_on(has_exact_order(&start)) else { return Ok(()) };
    let seed = seed();
    let mut runner = TestRunner::new_with_rng(config(n_sequences), rng(seed));
    let compare = |sequence| runtime.block_on(compare(&start, declared, &sequence));
    runner.run(&op::sequence(n_ops, exact_order), compare).map_err(|error| report::<H>(error, seed))
}

async fn has_exact_order<H: Harness>(start: &impl AsyncFn() -> Result<H, Skip>) -> Option<bool> {
    match start().await {
        Ok(harness) => {
            let exact_order = harness.capabilities().exact_order;
            harness.finish().await;
            Some(exact_order)
        }
        Err(skip) => {
            skip.report(H::NAME, "model");
            None
        }
    }
}

async fn compare<H: OperationsHarness>(
    start: &impl AsyncFn() -> Result<H, Skip>,
    declared: &Declaration,
    sequence: &Sequence,
) -> TestCaseResult {
    let harness = start().await.map_err(|skip| TestCaseError::reject(skip.to_string()))?;
    let comparison = Comparison::new(&harness, declared, sequence);
    comparison.run(sequence).await.map_err(TestCaseError::fail)?;
    harness.finish().await;
    Ok(())
}

fn config(n_sequences: u32) -> Config {
    let named = var("OUTBOX_TEST_SEQUENCES").ok().and_then(|number| number.parse().ok());
    let cases = named.unwrap_or(n_sequences);
    Config { cases, max_shrink_iters: 400, failure_persistence: None, ..Config::default() }
}

fn rng(seed: u64) -> TestRng {
    let mut random = Random::from_seed(seed);
    let bytes: Vec<u8> = (0..4).flat_map(|_| random.next().to_le_bytes()).collect();
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

fn report<H: Harness>(error: TestError<Sequence>, seed: u64) -> String {
    match error {
        TestError::Fail(difference, sequence) => format!(
            "{} differs from the reference: {difference}\n{sequence:#?}\nrepeat with OUTBOX_TEST_SEED={seed}",
            H::NAME
        ),
        TestError::Abort(reason) => format!("{}: {reason}", H::NAME),
    }
}
