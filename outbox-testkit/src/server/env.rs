//! The environment variables that choose a server, each read in one place.

use std::env::var;

use super::{Engine, Origin, StartError};

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

/// The variable that says `what` of an engine, for example `OUTBOX_TEST_POSTGRES_URL`.
pub(super) fn name(engine: Engine, what: &str) -> String {
    format!("OUTBOX_TEST_{}_{what}", engine.as_str().to_uppercase())
}

pub(super) fn url(engine: Engine) -> Option<String> {
    text(&name(engine, "URL"))
}

pub(super) fn binaries(engine: Engine) -> Option<String> {
    text(&name(engine, "BIN"))
}

/// Name and tag of the image.
#[cfg(feature = "containers")]
pub(super) fn image(engine: Engine) -> (String, String) {
    let (image, tag) = match engine {
        Engine::Postgres => ("postgres", "17"),
        Engine::MySql => ("mariadb", "11.8"),
    };
    let setting = |what, default: &str| text(&name(engine, what)).unwrap_or_else(|| default.to_owned());
    (setting("IMAGE", image), setting("TAG", tag))
}

/// What to try, in order. A server that was named by URL has no substitute: testing another one silently
/// would be worse than failing.
pub(super) fn order(engine: Engine) -> Result<Vec<Origin>, StartError> {
    allowed()?;
    match text(SERVER) {
        Some(word) => forced(&word).map(|origin| vec![origin]),
        None if url(engine).is_some() => Ok(vec![Origin::Url]),
        None => Ok(vec![Origin::Container, Origin::Local]),
    }
}

/// From what a server is started that a test wants for itself; a URL is not for that.
pub(super) fn private() -> Result<Origin, StartError> {
    allowed()?;
    match text(SERVER).as_deref().map(forced).transpose()? {
        Some(Origin::Container) => Ok(Origin::Container),
        _ => Ok(Origin::Local),
    }
}

/// Fails where the environment asks for tests without a server.
fn allowed() -> Result<(), StartError> {
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
