//! Stands in for `container.rs` in a build without the feature `containers`.

use super::Settings;

#[derive(Debug)]
pub(super) enum Container {}

impl Container {
    pub(super) fn start(_settings: &Settings) -> Result<Self, String> {
        Err("built without the feature `containers`".to_owned())
    }

    pub(super) fn url(&self) -> &str {
        match *self {}
    }
}
