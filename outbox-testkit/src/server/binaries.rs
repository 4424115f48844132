//! Where the programs of a server are on this machine.

use std::{
    env::{split_paths, var_os},
    fs,
    path::{Path, PathBuf},
};

use super::{Engine, env};

/// Folders that hold one installation per version, and what comes before the version in their names.
const VERSIONED: [(&str, &str); 5] = [
    ("/usr/lib/postgresql", ""),
    ("/usr", "pgsql-"),
    ("/opt/homebrew/opt", "postgresql@"),
    ("/usr/local/opt", "postgresql@"),
    ("/Applications/Postgres.app/Contents/Versions", ""),
];

/// Where MySQL's packages put their server, which is in few users' `PATH`.
const USUAL: [&str; 5] = [
    "/usr/sbin",
    "/usr/local/sbin",
    "/opt/homebrew/bin",
    "/opt/homebrew/opt/mariadb/bin",
    "/usr/local/mysql/bin",
];

/// What a private server is started from.
#[derive(Debug)]
pub(super) enum Installation {
    /// The folder with `initdb` and `postgres`.
    Postgres(PathBuf),
    /// The server of MariaDB, and the script that prepares its folder.
    MariaDb { server: PathBuf, install: PathBuf },
    /// The server of MySQL, which prepares its folder itself.
    MySql(PathBuf),
}

/// Whether a private server can be started on this machine.
#[must_use]
pub fn has_local_binaries(engine: Engine) -> bool {
    find(engine).is_ok()
}

/// Of several versions of PostgreSQL the highest, unless `PATH` already names one.
pub(super) fn find(engine: Engine) -> Result<Installation, String> {
    if let Some(folder) = env::binaries(engine) {
        let named = installation(engine, &[PathBuf::from(&folder)]);
        return named.ok_or_else(|| format!("no server in {}={folder}", env::name(engine, "BIN")));
    }
    let path: Vec<PathBuf> = var_os("PATH").iter().flat_map(split_paths).collect();
    let elsewhere = match engine {
        Engine::Postgres => versioned(),
        Engine::MySql => USUAL.iter().map(PathBuf::from).collect(),
    };
    installation(engine, &[path, elsewhere].concat()).ok_or_else(|| {
        let programs = programs(engine);
        format!("no {programs} in PATH or the usual folders ({} is not set)", env::name(engine, "BIN"))
    })
}

fn programs(engine: Engine) -> &'static str {
    match engine {
        Engine::Postgres => "initdb and postgres",
        Engine::MySql => "mariadbd and mariadb-install-db, and no mysqld",
    }
}

fn installation(engine: Engine, folders: &[PathBuf]) -> Option<Installation> {
    let find = |name: &str| folders.iter().map(|folder| folder.join(name)).find(|program| program.is_file());
    match engine {
        Engine::Postgres => folders.iter().find_map(|folder| postgres(folder)).map(Installation::Postgres),
        Engine::MySql => match (find("mariadbd"), find("mariadb-install-db")) {
            (Some(server), Some(install)) => Some(Installation::MariaDb { server, install }),
            _ => find("mysqld").map(Installation::MySql),
        },
    }
}

/// The real folder, behind links such as `/usr/local/bin/initdb`.
fn postgres(folder: &Path) -> Option<PathBuf> {
    let initdb = folder.join("initdb").canonicalize().ok()?;
    let folder = initdb.parent()?;
    folder.join("postgres").is_file().then(|| folder.to_owned())
}

fn versioned() -> Vec<PathBuf> {
    let folders = VERSIONED.iter().flat_map(|(parent, prefix)| versions(Path::new(parent), prefix));
    folders.map(|folder| folder.join("bin")).collect()
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
