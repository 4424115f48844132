//! Seeded pseudo-random numbers, so that a failed run can be repeated.

use std::env::var;
use std::time::Duration;

use uuid::Uuid;

/// SplitMix64: small, fast, and the same everywhere for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// From `OUTBOX_TEST_SEED`, else from the operating system; prints which.
    pub(crate) fn announced(who: &str) -> Self {
        let seed = seed();
        // captured by the test runner, so it shows where the test fails
        println!("{who}: repeat with OUTBOX_TEST_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is above zero.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Uniform in [0, 1).
    pub(crate) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn up_to(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.fraction())
    }

    /// A generator of its own for a task, so that the tasks' numbers do not depend on their timing.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

pub(crate) fn seed() -> u64 {
    let named = var("OUTBOX_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    named.unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let numbers = |seed| {
            let mut random = Random::from_seed(seed);
            [random.next(), random.next()]
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }

    #[test]
    fn fractions_stay_below_one() {
        let mut random = Random::from_seed(1);
        assert!((0..1_000).map(|_| random.fraction()).all(|value| (0.0..1.0).contains(&value)));
    }
}
