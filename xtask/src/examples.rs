//! Runs every example that a reader may copy; each checks itself and exits with 0.

use std::{
    env::current_exe,
    path::PathBuf,
    process::{Command, Stdio},
};

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
];

/// Built with the flags of the test run, which has compiled all of it already: `cargo run -p` would resolve
/// other features and compile the database drivers once more.
pub(crate) fn run_all() -> Outcome {
    run(&mut cargo(&["build", "--quiet", "--workspace", "--all-features", "--examples"]))?;
    let folder = folder()?;
    EXAMPLES.iter().try_for_each(|name| {
        let mut example = Command::new(folder.join(name));
        run(example.current_dir(root()).stdin(Stdio::null()))
    })
}

/// Beside ourselves: cargo built us into the same target folder.
fn folder() -> Result<PathBuf, String> {
    let own = current_exe().map_err(|error| error.to_string())?;
    Ok(own.with_file_name("examples"))
}
