use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;

use outbox_examples::AnyError;

pub(crate) const USAGE: &str = "\
usage: quickstart [FILE | -] [--sqlite FILE | --postgres URL] [--json]

  FILE            orders, one JSON object a line; default: the file that ships with the example; -: standard input
  --sqlite FILE   work on this new SQLite file and keep it; default: a temporary one
  --postgres URL  work on PostgreSQL, in a schema of its own that is dropped when all went well
  --json          print the result as one line of JSON";

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Args {
    pub(crate) orders: Option<String>,
    pub(crate) sqlite: Option<PathBuf>,
    pub(crate) postgres: Option<String>,
    pub(crate) json: bool,
    pub(crate) help: bool,
}

impl Args {
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--json" => parsed.json = true,
                "-h" | "--help" => parsed.help = true,
                "--sqlite" => parsed.sqlite = Some(value()?.into()),
                "--postgres" => parsed.postgres = Some(value()?),
                option if option.len() > 1 && option.starts_with('-') => {
                    return Err(format!("unknown option {option}"));
                }
                _ if parsed.orders.is_some() => return Err("more than one FILE".to_owned()),
                _ => parsed.orders = Some(arg),
            }
        }
        parsed.check()
    }

    fn check(self) -> Result<Self, String> {
        if self.sqlite.is_some() && self.postgres.is_some() {
            return Err("--sqlite and --postgres exclude each other".to_owned());
        }
        if self.sqlite.as_ref().is_some_and(|file| file.exists()) {
            return Err("--sqlite: the file exists already".to_owned());
        }
        // the URL may hold a password: it is not repeated
        if self.postgres.as_ref().is_some_and(|url| !url.starts_with("postgres")) {
            return Err("--postgres: the URL must start with postgres://".to_owned());
        }
        Ok(self)
    }

    pub(crate) fn open(&self) -> Result<Box<dyn BufRead>, AnyError> {
        match self.orders.as_deref() {
            Some("-") => Ok(Box::new(io::stdin().lock())),
            Some(file) => open(file),
            None => open(concat!(env!("CARGO_MANIFEST_DIR"), "/orders.jsonl")),
        }
    }
}

fn open(file: &str) -> Result<Box<dyn BufRead>, AnyError> {
    let opened = File::open(file).map_err(|error| format!("{file}: {error}"))?;
    Ok(Box::new(BufReader::new(opened)))
}
