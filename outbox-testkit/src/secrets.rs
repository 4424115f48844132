//! A token that messages of the suite carry and that nobody may show, and a watch for it.

use std::io::{self, Write, stderr};
use std::process::abort;
use std::sync::LazyLock;

/// Stands in the payload and in a header of what the cases enqueue. Let whatever your backend logs go through a
/// [`Sentinel`] while the suite runs.
pub const TOKEN: &str = "S3CR3T-4f2c";

static DISGUISES: LazyLock<[String; 4]> = LazyLock::new(disguises);

/// What `text` shows before it shows the token, as it is or as bytes are usually shown: the line up to there.
pub fn find(text: &str) -> Option<&str> {
    let shown = DISGUISES.iter().filter_map(|disguise| text.find(disguise)).min()?;
    text[..shown].rsplit('\n').next()
}

fn disguises() -> [String; 4] {
    let bytes = TOKEN.as_bytes();
    let hex = |upper: bool| -> String {
        bytes.iter().map(|byte| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") }).collect()
    };
    let list = format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
    [TOKEN.to_owned(), hex(false), hex(true), list]
}

/// Panics when `text` shows the token.
///
/// # Panics
/// Then.
#[track_caller]
pub fn assert_clean(what: &str, text: &str) {
    if let Some(before) = find(text) {
        panic!("{what} shows the secret behind: {before}");
    }
}

/// A writer for logs, for example `tracing_subscriber::fmt().with_writer(|| Sentinel)`: it keeps nothing, and
/// ends the process when a line shows the token, so that no test can pass over it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sentinel;

impl Sentinel {
    /// Ends the process when `text` shows the token.
    pub fn look(&self, text: &str) {
        if let Some(before) = find(text) {
            // past the capturing of the test runner; nothing can be done when it fails
            let _ = writeln!(stderr(), "the secret of the suite is shown behind: {before}");
            abort();
        }
    }
}

impl Write for Sentinel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.look(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_found_in_every_disguise() {
        for shown in disguises() {
            assert_eq!(find(&format!("one\ntwo {shown} three")), Some("two "));
        }
        assert_eq!(find("one\ntwo"), None);
        assert_eq!(find(&format!("{:?}", TOKEN.as_bytes())), Some("["));
    }
}
