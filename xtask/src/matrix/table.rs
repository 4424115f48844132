//! The table in docs/storage.md.

use std::{fs, path::PathBuf, process::Command};

use super::{ENTRIES, End};
use crate::{
    cargo::{output, root},
    report::Outcome,
};

const BEGIN: &str = "<!-- matrix: written by `cargo xtask matrix --write` -->\n";
const END: &str = "<!-- end of matrix -->\n";
const HEAD: &str = "| database | version | passed | failed | skipped | on |\n|---|---|---|---|---|---|\n";

/// A row, by the title of its entry.
pub(super) type Row = (&'static str, String);

pub(super) fn row(title: &str, end: &End) -> String {
    match end {
        End::NotRun(reason) => {
            let reason = reason.replace('|', "/");
            format!("| {title} | not run: {reason} | | | | |\n")
        }
        End::Ran(results) => {
            let version = &results.version;
            let counts = [results.n_passed, results.n_failed, results.n_skipped].map(|n| n.to_string());
            format!("| {title} | {version} | {} | {} |\n", counts.join(" | "), today())
        }
    }
}

fn today() -> String {
    output(Command::new("date").args(["-u", "+%Y-%m-%d"]))
        .map_or_else(|_| "?".to_owned(), |day| day.trim().to_owned())
}

pub(super) fn new(rows: &[Row]) -> String {
    let rows: String = rows.iter().map(|(_, row)| row.as_str()).collect();
    format!("{HEAD}{rows}")
}

/// Puts the rows into the document; what was not run now keeps its row.
pub(super) fn write(rows: &[Row]) -> Outcome {
    let path = document();
    let read = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let text =
        replace(&read, rows).ok_or_else(|| format!("{} has no place for the table", path.display()))?;
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn document() -> PathBuf {
    root().join("docs/storage.md")
}

fn replace(text: &str, rows: &[Row]) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (old, after) = rest.split_once(END)?;
    let merged: Vec<Row> =
        ENTRIES.iter().map(|entry| (entry.title, merged(entry.title, old, rows))).collect();
    Some(format!("{before}{BEGIN}\n{}\n{END}{after}", new(&merged)))
}

fn merged(title: &str, old: &str, rows: &[Row]) -> String {
    let fresh = rows.iter().find(|(of, _)| *of == title).map(|(_, row)| row.clone());
    let kept = || old.lines().find(|line| line.starts_with(&format!("| {title} |")));
    fresh
        .or_else(|| Some(format!("{}\n", kept()?)))
        .unwrap_or_else(|| row(title, &End::NotRun("never".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<&str> {
        text.lines().filter(|line| line.starts_with("| ")).collect()
    }

    #[test]
    fn a_row_that_was_not_run_now_stays() {
        let old = format!("a\n{BEGIN}{HEAD}| PostgreSQL 13 | 13.1 | 1 | 0 | 0 | 2020-01-01 |\n{END}b\n");
        let fresh = row("SQLite", &End::NotRun("it rains | pours".to_owned()));
        let text = replace(&old, &[("SQLite", fresh)]).expect("a place");
        assert!(text.starts_with("a\n") && text.ends_with("b\n"), "{text}");
        let lines = lines(&text);
        assert_eq!(lines.len(), 1 + ENTRIES.len());
        assert_eq!(lines[1], "| PostgreSQL 13 | 13.1 | 1 | 0 | 0 | 2020-01-01 |");
        assert_eq!(lines[2], "| PostgreSQL 15 | not run: never | | | | |");
        assert_eq!(lines[ENTRIES.len()], "| SQLite | not run: it rains / pours | | | | |");
        assert_eq!(replace(&text, &[]).as_ref(), Some(&text), "written twice is written once");
    }

    #[test]
    fn the_document_has_a_place_for_it() {
        let text = fs::read_to_string(document()).expect("the document");
        assert!(replace(&text, &[]).is_some());
    }
}
