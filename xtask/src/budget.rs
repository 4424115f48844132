//! How many crates we add to the build of somebody who uses SeaORM already.

use std::{
    collections::BTreeSet,
    env::temp_dir,
    fs,
    path::{Path, PathBuf},
    process,
};

use crate::{
    cargo::{cargo, output, root},
    report::{Outcome, Report},
};

const MAX_MORE: usize = 20;
/// What every user of SeaORM chooses for themselves.
const RUNTIME: &str = "runtime-tokio-rustls";

pub(crate) fn budget(report: &mut Report) -> Outcome {
    report.step("budget", check);
    Ok(())
}

/// Compares a crate that uses us with one that uses SeaORM with the same features.
pub(crate) fn check() -> Outcome {
    let folder = Folder::create().map_err(|error| format!("temporary folder: {error}"))?;
    let ours = folder.user("ours", &with_us())?;
    let features = sea_orm_features(&folder.tree("ours", "{p} {f}")?)?;
    let alone = folder.user("alone", &without_us(&features))?;
    judge(&ours, &alone)
}

fn judge(ours: &BTreeSet<String>, alone: &BTreeSet<String>) -> Outcome {
    let more = ours.len().saturating_sub(alone.len());
    let added: Vec<_> = ours.difference(alone).map(String::as_str).collect();
    println!("SeaORM alone {} crates, with us {}: {more} more, at most {MAX_MORE}", alone.len(), ours.len());
    println!("added: {}", added.join(", "));
    if more <= MAX_MORE {
        Ok(())
    } else {
        Err(format!("{more} crates more than SeaORM alone, at most {MAX_MORE}"))
    }
}

fn with_us() -> String {
    let path = |name| root().join(name).display().to_string();
    format!(
        "sea-orm = {{ version = \"2\", default-features = false, features = [{RUNTIME:?}] }}\n\
         outbox-sea-orm = {{ path = {:?}, features = [\"postgres\"] }}\n\
         outbox-dispatcher = {{ path = {:?} }}\n",
        path("outbox-sea-orm"),
        path("outbox-dispatcher"),
    )
}

fn without_us(features: &[String]) -> String {
    format!("sea-orm = {{ version = \"2\", default-features = false, features = {features:?} }}\n")
}

/// The features that the whole build turned on, from a line such as `sea-orm v2.0.4 macros,sqlx-postgres`.
fn sea_orm_features(tree: &str) -> Result<Vec<String>, String> {
    let line = tree.lines().find(|line| line.starts_with("sea-orm v")).ok_or("sea-orm is not in the tree")?;
    let features = line.split(' ').nth(2).unwrap_or_default();
    Ok(features.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect())
}

/// Holds the throw-away crates.
struct Folder(PathBuf);

impl Folder {
    fn create() -> std::io::Result<Self> {
        let path = temp_dir().join(format!("outbox-budget-{}", process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Makes a crate with these dependencies and returns all that its build needs, itself left out.
    fn user(&self, name: &str, dependencies: &str) -> Result<BTreeSet<String>, String> {
        write_crate(&self.0.join(name), name, dependencies).map_err(|error| error.to_string())?;
        let tree = self.tree(name, "{p}")?;
        Ok(tree
            .lines()
            .filter_map(package)
            .filter(|package| !package.starts_with(&format!("{name} ")))
            .collect())
    }

    /// With the versions of our lock file, without the network where that is enough.
    fn tree(&self, name: &str, format: &str) -> Result<String, String> {
        let manifest = self.0.join(name).join("Cargo.toml");
        let tree = ["tree", "-e", "normal,build", "--prefix", "none", "-f", format, "--manifest-path"];
        let with = |offline: &[&str]| output(cargo(&tree).arg(&manifest).args(offline));
        with(&["--offline"]).or_else(|_| with(&[]))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write_crate(folder: &Path, name: &str, dependencies: &str) -> std::io::Result<()> {
    fs::create_dir_all(folder.join("src"))?;
    fs::write(folder.join("src/lib.rs"), "")?;
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
    let package = format!("[package]\nname = {name:?}\nversion = \"0.0.0\"\nedition = \"2024\"\n");
    fs::write(folder.join("Cargo.toml"), format!("{package}[workspace]\n[dependencies]\n{dependencies}"))
}

/// Name and version, without the marks that `cargo tree` puts behind them.
fn package(line: &str) -> Option<String> {
    let mut words = line.split(' ');
    Some(format!("{} {}", words.next()?, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_do_not_make_a_second_crate() {
        assert_eq!(package("syn v2.0.1 (*)"), package("syn v2.0.1"));
    }

    #[test]
    fn features_are_read_from_the_tree() {
        let tree = "ours v0.0.0 \nsea-orm-macros v2.0.4 x\nsea-orm v2.0.4 macros,sqlx-postgres (*)\n";
        assert_eq!(sea_orm_features(tree), Ok(vec!["macros".to_owned(), "sqlx-postgres".to_owned()]));
    }

    #[test]
    fn more_than_the_budget_is_a_failure() {
        let crates = |count: usize| (0..count).map(|n| n.to_string()).collect();
        assert!(judge(&crates(120), &crates(100)).is_ok());
        assert!(judge(&crates(121), &crates(100)).is_err());
    }
}
