//! Stands in for `container.rs` in a build without the feature `containers`.

use super::{Settings, StopMode};

#[derive(Debug)]
pub(super) enum Container {}

impl Container {
    pub(super) fn start(_settings: &Settings) -> Result<Self, String> {
        Err("built without the feature `containers`".to_owned())
    }

    pub(super) fn url(&self) -> &str {
        match *self {}
    }

    pub(super) fn stop(&self, _mode: StopMode) -> Result<(), String> {
        match *self {}
    }

    pub(super) fn restart(&self) -> Result<(), String> {
        match *self {}
    }
}
