//! The user a private server runs as: ourselves, or an unprivileged one where we are root, because
//! the servers refuse root. Everything here that differs between systems.

use std::{io, path::Path, process::Command};

use super::Engine;

/// `None` is ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner(Option<(u32, u32)>);

impl Owner {
    /// Tells who we are by a folder that we have just made.
    #[cfg(unix)]
    pub(super) fn for_server(engine: Engine, folder: &Path) -> Result<Self, String> {
        use std::os::unix::fs::MetadataExt;
        let metadata = folder.metadata().map_err(|error| error.to_string())?;
        if metadata.uid() != 0 {
            return Ok(Owner(None));
        }
        let users = std::fs::read_to_string("/etc/passwd").map_err(|error| error.to_string())?;
        let names = engine.users();
        let found = names.iter().find_map(|name| ids_of(&users, name));
        let ids =
            found.ok_or_else(|| format!("this is root, and there is no user {}", names.join(" or ")))?;
        Ok(Owner(Some(ids)))
    }

    #[cfg(not(unix))]
    pub(super) fn for_server(_engine: Engine, _folder: &Path) -> Result<Self, String> {
        Err("local servers are started on Unix only".to_owned())
    }

    /// Hands a file or folder over to the owner.
    #[cfg(unix)]
    pub(super) fn give(self, path: &Path) -> io::Result<()> {
        let Some((user, group)) = self.0 else {
            return Ok(());
        };
        std::os::unix::fs::chown(path, Some(user), Some(group))
    }

    #[cfg(not(unix))]
    pub(super) fn give(self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    /// Makes the command run as the owner.
    #[cfg(unix)]
    pub(super) fn run(self, command: &mut Command) {
        use std::os::unix::process::CommandExt;
        if let Some((user, group)) = self.0 {
            command.uid(user).gid(group);
        }
    }

    #[cfg(not(unix))]
    pub(super) fn run(self, _command: &mut Command) {}
}

/// A folder that only its owner may enter.
#[cfg(unix)]
pub(super) fn private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(path)
}

#[cfg(not(unix))]
pub(super) fn private_folder(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path)
}

/// Out of the terminal's process group: an interrupt ends us, and our end is what the command waits for.
#[cfg(unix)]
pub(super) fn detach(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

#[cfg(not(unix))]
pub(super) fn detach(_command: &mut Command) {}

/// User and group id of `name` in the text of `/etc/passwd`.
#[cfg(unix)]
fn ids_of(users: &str, name: &str) -> Option<(u32, u32)> {
    let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    let user = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    Some((user, group))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_by_exact_name() {
        let users = "postgres-x:x:1:2::/:/bin/sh\npostgres:x:101:104:PostgreSQL,,,:/var:/bin/bash\n";
        assert_eq!(ids_of(users, "postgres"), Some((101, 104)));
        assert_eq!(ids_of(users, "nobody"), None);
    }
}
