//! The absences that ARCHITECTURE.md promises: which crates must not depend on what.

use crate::{
    cargo::{cargo, output},
    report::Outcome,
};

const DATABASES: &[&str] = &[
    "sea-orm",
    "sea-query",
    "sqlx",
    "rusqlite",
    "libsqlite3-sys",
    "postgres",
    "tokio-postgres",
    "diesel",
    "mysql",
    "mysql_async",
];
const RUNTIMES: &[&str] = &["tokio", "async-std", "smol", "async-global-executor"];

/// What only an adapter needs, behind a feature of the dispatcher.
const TELEMETRY: &[&str] = &["metrics", "opentelemetry", "tracing-opentelemetry"];

/// A crate, and the families that must not appear among its normal dependencies with all features on.
const RULES: &[(&str, &[&[&str]])] = &[
    ("outbox-core", &[DATABASES, RUNTIMES, TELEMETRY]),
    ("outbox-dispatcher", &[DATABASES]),
    ("outbox-inbox", &[DATABASES, TELEMETRY]),
    ("outbox-sea-orm", &[TELEMETRY]),
    ("outbox-testkit", &[DATABASES]),
];

/// What a service's tests must not get with the helpers for them.
const SUITE: &[&str] = &["proptest", "testcontainers"];

pub(crate) fn check() -> Outcome {
    RULES.iter().try_for_each(|(package, families)| check_one(package, &["--all-features"], families))?;
    check_one("outbox-testkit", &[], &[RUNTIMES, SUITE])?;
    check_one("outbox-dispatcher", &[], &[TELEMETRY])
}

fn check_one(package: &str, features: &[&str], families: &[&[&str]]) -> Outcome {
    let tree = ["tree", "-p", package, "-e", "normal", "--prefix", "none"];
    let tree = output(cargo(&tree).args(features))?;
    let names = || tree.lines().filter_map(|line| line.split(' ').next());
    if let Some(name) = names().find(|name| is_in(name, families)) {
        let features = features.join(" ");
        return Err(format!(
            "{package} depends on {name}; see: cargo tree {features} -p {package} -i {name}"
        ));
    }
    println!("{package}: nothing forbidden in {} lines", names().count());
    Ok(())
}

/// `sqlx` stands for `sqlx-core` and its other parts, too.
fn is_in(name: &str, families: &[&[&str]]) -> bool {
    let mut words = families.iter().copied().flatten();
    words.any(|word| name.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_a_name_and_its_parts() {
        let families: &[&[&str]] = &[&["sqlx", "postgres"]];
        assert!(is_in("sqlx", families) && is_in("sqlx-core", families));
        assert!(!is_in("sqlxmq", families) && !is_in("pgwire", families));
    }
}
