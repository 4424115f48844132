//! The image of a server.

use std::process::Command;

use crate::cargo::{output, root, succeeds};

pub(super) struct Image {
    pub(super) name: String,
    pub(super) tag: String,
}

impl Image {
    /// The official image if it is here or can be pulled, else the one that `.ci/database-image` builds, once.
    pub(super) fn find(official: &str, packaged: (&str, &str)) -> Result<Self, String> {
        if !succeeds("docker", &["info"]) {
            return Err("no container engine answers to `docker info`".to_owned());
        }
        let is_here = |image: &str| succeeds("docker", &["image", "inspect", image]);
        let built = format!("outbox-test/{}:{}", packaged.0, packaged.1);
        if is_here(official) || !is_here(&built) && succeeds("docker", &["pull", "--quiet", official]) {
            return Self::parse(official);
        }
        let mut build = Command::new(root().join(".ci/database-image"));
        let printed = output(build.args([packaged.0, packaged.1]))?;
        Self::parse(printed.trim())
    }

    fn parse(image: &str) -> Result<Self, String> {
        let (name, tag) = image.rsplit_once(':').ok_or_else(|| format!("{image} has no tag"))?;
        Ok(Self { name: name.to_owned(), tag: tag.to_owned() })
    }
}
