//! The one place that reads the clock of this machine.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Starts counting; two measurements are subtracted from each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Nanoseconds since the first call in this process: what a message carries to tell when it began.
pub(crate) fn nanos() -> u64 {
    static ZERO: OnceLock<Stopwatch> = OnceLock::new();
    u64::try_from(ZERO.get_or_init(Stopwatch::start).elapsed().as_nanos()).unwrap_or(u64::MAX)
}
