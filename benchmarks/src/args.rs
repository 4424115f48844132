//! The command line: a subcommand and `--name value` pairs.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use crate::error::Result;

/// The pairs that have not been asked for yet.
#[derive(Debug, Default)]
pub(crate) struct Flags(BTreeMap<String, String>);

impl Flags {
    /// Reads `--name value` and `--name=value`.
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut flags = BTreeMap::new();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or_else(|| format!("expected --name, found {word}"))?;
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => (name, words.next().ok_or_else(|| format!("--{name} needs a value"))?),
            };
            flags.insert(name.to_owned(), value);
        }
        Ok(Self(flags))
    }

    /// The value of a flag, if it was given.
    pub(crate) fn take<T: FromStr<Err: std::fmt::Display>>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.0.remove(name) else {
            return Ok(None);
        };
        let value = text.parse().map_err(|error| format!("--{name} {text}: {error}"))?;
        Ok(Some(value))
    }

    /// The value of a flag, or its default.
    pub(crate) fn get<T: FromStr<Err: std::fmt::Display>>(&mut self, name: &str, default: T) -> Result<T> {
        Ok(self.take(name)?.unwrap_or(default))
    }

    /// A duration: `500ms`, `30s`, `10m`, `2h`, `30d`.
    pub(crate) fn duration(&mut self, name: &str) -> Result<Option<Duration>> {
        let Some(text) = self.0.remove(name) else {
            return Ok(None);
        };
        let duration =
            duration(&text).ok_or_else(|| format!("--{name} {text}: expected 500ms, 30s, 10m …"))?;
        Ok(Some(duration))
    }

    /// Refuses what nobody asked for.
    pub(crate) fn finish(self) -> Result<()> {
        match self.0.keys().next() {
            Some(name) => Err(format!("unknown flag --{name}").into()),
            None => Ok(()),
        }
    }
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number * 60)),
        "h" => Some(Duration::from_secs(number * 3_600)),
        "d" => Some(Duration::from_secs(number * 86_400)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Result<Flags> {
        Flags::parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn both_spellings_are_read_and_leftovers_refused() {
        let mut flags = flags("--rounds 3 --delay=500ms --typo 1").expect("pairs");
        assert_eq!(flags.get("rounds", 5).expect("a number"), 3);
        assert_eq!(flags.duration("delay").expect("a duration"), Some(Duration::from_millis(500)));
        assert_eq!(flags.finish().expect_err("left over").to_string(), "unknown flag --typo");
    }

    #[test]
    fn a_bad_value_names_its_flag() {
        let mut flags = flags("--rounds x --delay 5").expect("pairs");
        let error = flags.take::<u64>("rounds").expect_err("not a number");
        assert_eq!(error.to_string(), "--rounds x: invalid digit found in string");
        assert!(flags.duration("delay").is_err());
    }
}
