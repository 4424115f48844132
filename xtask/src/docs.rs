//! Tests that the documents name exist.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::cargo::root;

/// A Rust file with the names of its folders and its own, `-` as `_`.
struct Source {
    place: Vec<String>,
    text: String,
}

impl Source {
    fn read(path: &Path) -> Self {
        let inside = path.strip_prefix(root()).unwrap_or(path).with_extension("");
        let place = inside.iter().map(|part| part.to_string_lossy().replace('-', "_")).collect();
        Self { place, text: fs::read_to_string(path).expect("a source file") }
    }

    fn has(&self, item: &str) -> bool {
        [format!("fn {item}("), format!("fn {item}<"), format!("mod {item} {{")]
            .iter()
            .any(|text| self.text.contains(text))
    }

    fn is_in(&self, module: &str) -> bool {
        self.place.iter().any(|part| part == module) || self.text.contains(&format!("mod {module} {{"))
    }
}

fn sources() -> Vec<Source> {
    files(root(), "rs").iter().map(|path| Source::read(path)).collect()
}

/// The files below a folder; hidden folders and what cargo built are left out.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a file").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}

/// What stands between backquotes and reads like a test: `module::name`, or a sentence of four words and more that is no metric and
/// no function of PostgreSQL.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|name| {
        let is_path = name.contains("::") && !name.ends_with("::");
        let is_lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_:".contains(&byte);
        let is_other = ["outbox_", "pg_"].iter().any(|start| name.starts_with(start)) && !is_path;
        name.bytes().all(is_lower) && !is_other && (is_path || name.matches('_').count() >= 3)
    })
}

/// The last part of the name is a function or a module, and the parts before it say where.
fn exists(name: &str, sources: &[Source]) -> bool {
    let mut parts: Vec<_> = name.split("::").collect();
    let item = parts.pop().unwrap_or_default();
    sources.iter().any(|source| {
        let is_file = source.place.last().is_some_and(|file| file == item);
        (source.has(item) || is_file) && parts.iter().all(|module| source.is_in(module))
    })
}

fn missing(text: &str, sources: &[Source]) -> Vec<String> {
    names(text).filter(|name| !exists(name, sources)).map(str::to_owned).collect()
}

/// Settings of servers that read like sentences.
const SETTINGS: [&str; 3] =
    ["idle_in_transaction_session_timeout", "innodb_flush_log_at_trx_commit", "max_slot_wal_keep_size"];

#[test]
fn every_test_that_the_documents_name_exists() {
    let sources = sources();
    let documents = files(&root().join("docs"), "md");
    assert!(documents.len() > 5);
    for document in documents {
        let text = fs::read_to_string(&document).expect("a document");
        let mut missing = missing(&text, &sources);
        missing.retain(|name| !SETTINGS.contains(&&**name));
        assert!(missing.is_empty(), "{}: {missing:?}", document.display());
    }
}

#[test]
fn a_name_that_is_nowhere_is_missing() {
    let text = "`docs::a_name_that_is_nowhere_is_missing` `claim::a_name_that_is_nowhere_is_missing` `no_such_test_is_there` \
                `max_attempts` `Config::default`";
    let expected = ["claim::a_name_that_is_nowhere_is_missing", "no_such_test_is_there"];
    assert_eq!(missing(text, &sources()), expected);
}
