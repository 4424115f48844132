//! The environment variables that choose a server, each read in one place.

use std::env::var;

use super::{Origin, StartError};

pub(super) const URL: &str = "OUTBOX_TEST_POSTGRES_URL";
pub(super) const BIN: &str = "OUTBOX_TEST_POSTGRES_BIN";
#[cfg(feature = "containers")]
const IMAGE: &str = "OUTBOX_TEST_POSTGRES_IMAGE";
#[cfg(feature = "containers")]
const TAG: &str = "OUTBOX_TEST_POSTGRES_TAG";
const SERVER: &str = "OUTBOX_TEST_SERVER";
const REQUIRE: &str = "OUTBOX_TEST_REQUIRE";

/// Whether `OUTBOX_TEST_REQUIRE`, a comma-separated list, names `name`: then a missing server is a failure
/// and not a skip.
#[must_use]
pub fn required(name: &str) -> bool {
    text(REQUIRE).is_some_and(|list| names(&list, name))
}

fn names(list: &str, name: &str) -> bool {
    list.split(',').any(|word| word.trim() == name)
}

pub(super) fn url() -> Option<String> {
    text(URL)
}

pub(super) fn binaries() -> Option<String> {
    text(BIN)
}

#[cfg(feature = "containers")]
pub(super) fn image() -> String {
    text(IMAGE).unwrap_or_else(|| "postgres".to_owned())
}

#[cfg(feature = "containers")]
pub(super) fn tag() -> String {
    text(TAG).unwrap_or_else(|| "17".to_owned())
}

/// What to try, in order. A server that was named by URL has no substitute: testing another one silently
/// would be worse than failing.
pub(super) fn order() -> Result<Vec<Origin>, StartError> {
    allowed()?;
    match text(SERVER) {
        Some(word) => forced(&word).map(|origin| vec![origin]),
        None if url().is_some() => Ok(vec![Origin::Url]),
        None => Ok(vec![Origin::Container, Origin::Local]),
    }
}

/// Fails where the environment asks for tests without a server.
pub(super) fn allowed() -> Result<(), StartError> {
    match text(SERVER).as_deref() {
        Some("none") => Err(StartError::SwitchedOff),
        _ => Ok(()),
    }
}

fn forced(word: &str) -> Result<Origin, StartError> {
    [Origin::Url, Origin::Container, Origin::Local]
        .into_iter()
        .find(|origin| origin.as_str() == word)
        .ok_or_else(|| StartError::UnknownServer(word.to_owned()))
}

fn text(name: &str) -> Option<String> {
    var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_required_name_is_a_whole_word_of_the_list() {
        assert!(names("postgres, container", "container"));
        assert!(!names("postgres-local", "postgres"));
        assert!(!names("", "postgres"));
    }

    #[test]
    fn only_the_three_origins_can_be_forced() {
        assert_eq!(forced("local").ok(), Some(Origin::Local));
        assert!(matches!(forced("docker"), Err(StartError::UnknownServer(word)) if word == "docker"));
    }
}
