//! Where `initdb` and `postgres` are on this machine.

use std::{
    env::{split_paths, var_os},
    fs,
    path::{Path, PathBuf},
};

use super::env;

/// Folders that hold one installation per version, and what comes before the version in their names.
const VERSIONED: [(&str, &str); 5] = [
    ("/usr/lib/postgresql", ""),
    ("/usr", "pgsql-"),
    ("/opt/homebrew/opt", "postgresql@"),
    ("/usr/local/opt", "postgresql@"),
    ("/Applications/Postgres.app/Contents/Versions", ""),
];

/// Whether a private server can be started on this machine.
#[must_use]
pub fn has_local_binaries() -> bool {
    find().is_ok()
}

/// The folder with both programs; of several versions the highest, unless `PATH` already names one.
pub(super) fn find() -> Result<PathBuf, String> {
    if let Some(folder) = env::binaries() {
        return installation(Path::new(&folder))
            .ok_or_else(|| format!("no initdb and postgres in {}={folder}", env::BIN));
    }
    on_path().or_else(installed).ok_or_else(|| {
        format!("no initdb and postgres in PATH or the usual folders ({} is not set)", env::BIN)
    })
}

fn on_path() -> Option<PathBuf> {
    let path = var_os("PATH")?;
    split_paths(&path).find_map(|folder| installation(&folder))
}

fn installed() -> Option<PathBuf> {
    VERSIONED
        .iter()
        .flat_map(|(parent, prefix)| versions(Path::new(parent), prefix))
        .find_map(|folder| installation(&folder.join("bin")))
}

/// The real folder, behind links such as `/usr/local/bin/initdb`.
fn installation(folder: &Path) -> Option<PathBuf> {
    let initdb = folder.join("initdb").canonicalize().ok()?;
    let folder = initdb.parent()?;
    folder.join("postgres").is_file().then(|| folder.to_owned())
}

/// The folders in `parent` named `prefix` and a version, the highest version first.
fn versions(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| Some((version(entry.file_name().to_str()?, prefix)?, entry.path())))
        .collect();
    found.sort_by(|(a, _), (b, _)| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

fn version(name: &str, prefix: &str) -> Option<Vec<u32>> {
    let numbers = name.strip_prefix(prefix)?.split('.');
    numbers.map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(version("pgsql-17", "pgsql-") > version("pgsql-9.6", "pgsql-"));
        assert_eq!(version("latest", ""), None);
        assert_eq!(version("lib", "pgsql-"), None);
    }
}
