//! A benchmark stops at the first error, whatever it is.

/// Any error.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// The result of everything that can stop a benchmark.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;
