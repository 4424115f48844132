use std::{error::Error, fmt};

use super::{Engine, Origin};

/// Why no server could be had. Never holds a URL or a password.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum StartError {
    /// `OUTBOX_TEST_SERVER` is `none`.
    SwitchedOff,
    /// `OUTBOX_TEST_SERVER` holds this word, which is none of `url`, `container`, `local`, `none`.
    UnknownServer(String),
    /// Each way that was tried, in order, with what was in the way.
    NoServer(Engine, Vec<Attempt>),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::SwitchedOff => f.write_str("OUTBOX_TEST_SERVER is none"),
            StartError::UnknownServer(word) => {
                write!(f, "OUTBOX_TEST_SERVER is {word:?}, not url, container, local or none")
            }
            StartError::NoServer(engine, attempts) => write_attempts(f, *engine, attempts),
        }
    }
}

impl Error for StartError {}

fn write_attempts(f: &mut fmt::Formatter<'_>, engine: Engine, attempts: &[Attempt]) -> fmt::Result {
    write!(f, "no {} server", engine.title())?;
    attempts.iter().try_for_each(|attempt| write!(f, "; {}: {}", attempt.origin, attempt.reason))
}

/// One way to a server that led nowhere.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The way that was tried.
    pub origin: Origin,
    /// What was in the way, for a human reader.
    pub reason: String,
}

/// Why a server could not be stopped or restarted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ControlError {
    /// Only a server that was started here can be controlled; this one was not.
    NotPrivate(Origin),
    /// The server did not do what it was told, with the end of its log where that helps.
    Failed(String),
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlError::NotPrivate(origin) => {
                write!(f, "a server by {origin} cannot be stopped or restarted from here")
            }
            ControlError::Failed(reason) => f.write_str(reason),
        }
    }
}

impl Error for ControlError {}

/// A test has no server and was told to return; the reason is on standard error already.
#[derive(Debug, Clone)]
pub struct Skipped {
    pub(super) reason: String,
}

impl Skipped {
    /// What is missing, in one line.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Error for Skipped {}
