//! What ran, how long it took and what came of it.

use std::{
    fmt,
    process::ExitCode,
    time::{Duration, Instant},
};

/// The reason is one line for a human reader.
pub(crate) type Outcome = Result<(), String>;

pub(crate) struct Report {
    lines: Vec<Line>,
    notes: Vec<String>,
}

struct Line {
    step: &'static str,
    took: Duration,
    end: End,
}

enum End {
    Passed,
    LeftOut(String),
    Failed(String),
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { lines: Vec::new(), notes: Vec::new() }
    }

    /// Runs a step. A failed one does not keep the next from running.
    pub(crate) fn step(&mut self, step: &'static str, work: impl FnOnce() -> Outcome) {
        println!("== {step}");
        let begun = Instant::now();
        let end = match work() {
            Ok(()) => End::Passed,
            Err(reason) => End::Failed(reason),
        };
        if let End::Failed(reason) = &end {
            eprintln!("== {step} FAILED: {reason}");
        }
        self.lines.push(Line { step, took: begun.elapsed(), end });
    }

    /// Says loudly that a step did not run, which is no failure.
    pub(crate) fn leave_out(&mut self, step: &'static str, reason: String) {
        eprintln!("== {step} LEFT OUT: {reason}");
        self.lines.push(Line { step, took: Duration::ZERO, end: End::LeftOut(reason) });
    }

    /// Adds a line to the summary.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Prints the summary.
    pub(crate) fn finish(self) -> ExitCode {
        println!("== summary");
        self.lines.iter().for_each(Line::print);
        self.notes.iter().for_each(|note| println!("{note}"));
        if self.lines.iter().any(|line| matches!(line.end, End::Failed(_))) {
            return ExitCode::FAILURE;
        }
        ExitCode::SUCCESS
    }
}

impl Line {
    fn print(&self) {
        let seconds = self.took.as_secs_f64();
        println!("{:<24} {seconds:>7.1} s  {}", self.step, self.end);
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Passed => f.write_str("ok"),
            End::LeftOut(reason) => write!(f, "LEFT OUT: {reason}"),
            End::Failed(reason) => write!(f, "FAILED: {reason}"),
        }
    }
}
