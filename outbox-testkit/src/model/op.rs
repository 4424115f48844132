//! The calls of a sequence, and how they are drawn.

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any};
use proptest::{option, prop_oneof};

use outbox_core::Prunable;

/// Calls to be made in order.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    /// Whether claims continue where a loop left off, and transactions are left open.
    pub(crate) with_loops: bool,
    /// Whether what is delivered is kept, where the backend can.
    pub(crate) keeps: bool,
    pub(crate) ops: Vec<Op>,
}

/// One call. A `which` counts what there is, again from the start behind the end.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Enqueue {
        sketches: Vec<Sketch>,
        end: End,
    },
    /// Ends a transaction that was left open.
    EndOpen {
        which: usize,
        commit: bool,
    },
    /// Enqueues an id again.
    Repeat {
        which: usize,
    },
    Claim(ClaimOp),
    /// Pauses, then claims with a loop until nothing comes: nothing may be missing.
    CatchUp {
        claimer: usize,
        topics: Topics,
    },
    Settle(Vec<(usize, Ending)>),
    Extend {
        which: Vec<usize>,
        hours: u64,
    },
    Advance {
        half_hours: u64,
    },
    Redrive {
        which: usize,
    },
    Discard {
        which: usize,
    },
    History {
        which: usize,
    },
    Prune {
        what: Prunable,
        half_hours: u32,
    },
    Stats,
    DeadLetters,
}

/// What to enqueue.
#[derive(Clone, Debug)]
pub(crate) struct Sketch {
    pub(crate) topic: usize,
    pub(crate) key: Option<u8>,
    pub(crate) delay_hours: u64,
    pub(crate) bytes: usize,
    pub(crate) dedup_key: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Commit,
    RollBack,
    LeaveOpen,
}

#[derive(Clone, Debug)]
pub(crate) struct ClaimOp {
    pub(crate) limit: usize,
    pub(crate) topics: Topics,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) lease_hours: u64,
    pub(crate) recover: bool,
    /// Which loop claims, if it is one that continues.
    pub(crate) claimer: Option<usize>,
}

/// Which topics are claimed: `None` is all.
pub(crate) type Topics = Option<[bool; N_TOPICS]>;

pub(crate) const N_TOPICS: usize = 3;
pub(crate) const N_CLAIMERS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Done,
    Retry { hours: u64 },
    Dead,
    Release,
}

pub(crate) fn sequence(n_ops: usize, exact_order: bool) -> impl Strategy<Value = Sequence> {
    let with_loops = any::<bool>().prop_map(move |loops| loops || !exact_order);
    (with_loops, any::<bool>(), vec(op(), 1..=n_ops)).prop_map(|(with_loops, keeps, ops)| Sequence {
        with_loops,
        keeps,
        ops,
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => (vec(sketch(), 1..=6), end()).prop_map(|(sketches, end)| Op::Enqueue { sketches, end }),
        6 => (which(), any::<bool>()).prop_map(|(which, commit)| Op::EndOpen { which, commit }),
        2 => which().prop_map(|which| Op::Repeat { which }),
        24 => claim().prop_map(Op::Claim),
        2 => (0..N_CLAIMERS, topics()).prop_map(|(claimer, topics)| Op::CatchUp { claimer, topics }),
        20 => vec((which(), ending()), 1..=5).prop_map(Op::Settle),
        6 => (vec(which(), 1..=3), 1..=4_u64).prop_map(|(which, hours)| Op::Extend { which, hours }),
        10 => half_hours().prop_map(|half_hours| Op::Advance { half_hours }),
        4 => which().prop_map(|which| Op::Redrive { which }),
        2 => which().prop_map(|which| Op::Discard { which }),
        2 => which().prop_map(|which| Op::History { which }),
        3 => (prunable(), 0..6_u32).prop_map(|(what, half_hours)| Op::Prune { what, half_hours }),
        3 => Just(Op::Stats),
        2 => Just(Op::DeadLetters),
    ]
}

fn which() -> impl Strategy<Value = usize> {
    0..200_usize
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let delay_hours = prop_oneof![6 => Just(0), 1 => 1..=3_u64];
    let dedup_key = prop_oneof![2 => Just(None), 1 => (0..5_u8).prop_map(Some)];
    (0..N_TOPICS, option::of(0..4_u8), delay_hours, 0..40_usize, dedup_key).prop_map(
        |(topic, key, delay_hours, bytes, dedup_key)| Sketch { topic, key, delay_hours, bytes, dedup_key },
    )
}

/// Seldom so long that deduplication keys expire.
fn half_hours() -> impl Strategy<Value = u64> {
    prop_oneof![9 => 1..=6_u64, 1 => Just(30)]
}

fn prunable() -> impl Strategy<Value = Prunable> {
    prop_oneof![Just(Prunable::Done), Just(Prunable::Dead), Just(Prunable::DedupKeys)]
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![6 => Just(End::Commit), 1 => Just(End::RollBack), 2 => Just(End::LeaveOpen)]
}

fn topics() -> impl Strategy<Value = Topics> {
    prop_oneof![3 => Just(None), 2 => any::<[bool; N_TOPICS]>().prop_map(Some)]
}

fn claim() -> impl Strategy<Value = ClaimOp> {
    let limit = prop_oneof![1..=4_usize, 5..=50_usize];
    let max_bytes = prop_oneof![3 => Just(None), 1 => (0..120_u64).prop_map(Some)];
    let claimer = option::of(0..N_CLAIMERS);
    let recover = prop_oneof![4 => Just(true), 1 => Just(false)];
    (limit, topics(), max_bytes, 1..=3_u64, recover, claimer).prop_map(
        |(limit, topics, max_bytes, lease_hours, recover, claimer)| ClaimOp {
            limit,
            topics,
            max_bytes,
            lease_hours,
            recover,
            claimer,
        },
    )
}

fn ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        4 => Just(Ending::Done),
        3 => (0..=3_u64).prop_map(|hours| Ending::Retry { hours }),
        1 => Just(Ending::Dead),
        2 => Just(Ending::Release),
    ]
}
