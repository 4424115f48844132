//! The suite on the reference and on a toy, and the proof that it can fail.

mod broken;
mod memory;
mod seeded_bugs;
mod toy;
