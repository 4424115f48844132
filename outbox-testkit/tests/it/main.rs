//! The suite on the reference, and the proof that it can fail.

mod memory;
