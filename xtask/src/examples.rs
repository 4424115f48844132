//! Runs every example that a reader may copy; each checks itself and exits with 0.

use std::{
    env::current_exe,
    path::PathBuf,
    process::{Command, Stdio},
};

use outbox_testkit::server::{Server, Settings, required};

use crate::{
    cargo::{cargo, root, run},
    report::Outcome,
};

const EXAMPLES: &[&str] = &[
    "quickstart",
    "transactional_enqueue",
    "inbox_consumer",
    "axum_service",
    "custom_backend",
    "observability",
    "fan_out",
    "high_throughput",
];

/// Built with the flags of the test run, which has compiled all of it already: `cargo run -p` would resolve
/// other features and compile the database drivers once more.
pub(crate) fn run_all() -> Outcome {
    run(&mut cargo(&["build", "--quiet", "--workspace", "--all-features", "--examples"]))?;
    let (folder, database) = (folder()?, database()?);
    EXAMPLES.iter().try_for_each(|name| {
        let mut example = Command::new(folder.join(name));
        if let Some(database) = &database {
            example.env("DATABASE_URL", database.url());
        }
        run(example.current_dir(root()).stdin(Stdio::null()))
    })
}

/// For those that show something on PostgreSQL only.
fn database() -> Result<Option<Server>, String> {
    match Server::start_blocking(&Settings::for_tests()) {
        Ok(server) => Ok(Some(server)),
        Err(error) if required("postgres") => Err(error.to_string()),
        Err(error) => {
            eprintln!("examples without PostgreSQL: {error}");
            Ok(None)
        }
    }
}

/// Beside ourselves: cargo built us into the same target folder.
fn folder() -> Result<PathBuf, String> {
    let own = current_exe().map_err(|error| error.to_string())?;
    Ok(own.with_file_name("examples"))
}
