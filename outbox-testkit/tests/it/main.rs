//! The suite on the reference, and the proof that it can fail.

mod broken;
mod memory;
mod seeded_bugs;
