//! The cases of the suite that a run has skipped: test binaries write them to a file.

use std::{
    collections::BTreeMap,
    fs::{read_to_string, remove_file},
    path::PathBuf,
    process::Command,
};

use crate::{cargo::root, report::Report};

pub(crate) struct Skipped(PathBuf);

impl Skipped {
    pub(crate) fn begin() -> Self {
        let path = root().join("target").join("skipped-cases");
        // there may be none
        let _ = remove_file(&path);
        Self(path)
    }

    /// Lets these tests say what they skip.
    pub(crate) fn hear<'a>(&self, tests: &'a mut Command) -> &'a mut Command {
        tests.env("OUTBOX_TEST_SKIPPED", &self.0)
    }

    /// Adds to the summary how many cases there are and which were skipped, and how often.
    pub(crate) fn tell(self, report: &mut Report) {
        let text = read_to_string(&self.0).unwrap_or_default();
        let skipped = count(&text);
        let n = outbox_testkit::case_names().len();
        report.note(format!("the suite has {n} named cases; skipped somewhere:"));
        if skipped.is_empty() {
            report.note("  none".to_owned());
        }
        skipped.into_iter().for_each(|(line, n)| report.note(format!("  {n:>3} x {line}")));
    }
}

fn count(text: &str) -> BTreeMap<&str, usize> {
    let mut lines = BTreeMap::new();
    text.lines().for_each(|line| *lines.entry(line).or_default() += 1);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_skipped_again_stands_there_once() {
        let counted: Vec<_> = count("b on sqlite: x\na on mysql: y\nb on sqlite: x\n").into_iter().collect();
        assert_eq!(counted, [("a on mysql: y", 1), ("b on sqlite: x", 2)]);
    }
}
