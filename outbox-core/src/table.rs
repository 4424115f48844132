use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The longest schema or table name: 48 bytes, so that the names of indexes and triggers that are made
/// from it stay within the 63 bytes at which PostgreSQL cuts names silently.
pub const MAX_IDENTIFIER_BYTES: usize = 48;

/// A validated table name with an optional schema: `outbox`, `orders.outbox`.
///
/// Each part matches `[a-z_][a-z0-9_]{0,47}`, so it means the same quoted and unquoted on every database.
/// Where there is no schema, backends use the database's default (`public` on PostgreSQL). Databases
/// without schemas name the table `schema_table`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    schema: Option<String>,
    table: String,
}

impl TableName {
    /// Parses `table` or `schema.table`.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that says which part is wrong.
    pub fn parse(name: &str) -> Result<Self> {
        let (schema, table) = match name.split_once('.') {
            Some((schema, table)) => (Some(identifier("schema name", schema)?), table),
            None => (None, name),
        };
        Ok(Self { schema, table: identifier("table name", table)? })
    }

    /// The schema, where one was named.
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The table without its schema.
    pub fn table(&self) -> &str {
        &self.table
    }
}

fn identifier(field: &str, name: &str) -> Result<String> {
    if name.is_empty() {
        return Err(Error::invalid(field, "must not be empty"));
    }
    if name.len() > MAX_IDENTIFIER_BYTES {
        return Err(Error::invalid(field, format_args!("{} bytes, max {MAX_IDENTIFIER_BYTES}", name.len())));
    }
    let is_legal = |(index, byte): (usize, u8)| match byte {
        b'a'..=b'z' | b'_' => true,
        b'0'..=b'9' => index > 0,
        _ => false,
    };
    if !name.bytes().enumerate().all(is_legal) {
        return Err(Error::invalid(field, "must match [a-z_][a-z0-9_]*"));
    }
    Ok(name.to_owned())
}

impl FromStr for TableName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::parse(name)
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        f.write_str(&self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legal_names_round_trip() {
        for name in ["outbox", "orders.outbox", "_a.b9", "order", &"x".repeat(48)] {
            assert_eq!(TableName::parse(name).expect("legal").to_string(), name);
        }
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = "x".repeat(49);
        for name in [
            "",
            ".",
            "a.",
            ".a",
            "a.b.c",
            "a b",
            "A",
            "a-b",
            "1a",
            "\"a",
            "x\"; drop table y; --",
            "outbox--",
            "a\0",
            "a\n",
            "ä",
            "a‘b",
            "a'b",
            "a;b",
            "a/*",
            "$1",
            "a.$1",
            "a\\",
            "`a`",
            "[a]",
            "a%",
            &long,
        ] {
            let error = TableName::parse(name).expect_err(name);
            assert_eq!(error.kind(), crate::ErrorKind::InvalidInput);
        }
        assert_eq!(
            TableName::parse("").expect_err("empty").to_string(),
            "invalid table name: must not be empty"
        );
        assert_eq!(
            TableName::parse(&long).expect_err("long").to_string(),
            "invalid table name: 49 bytes, max 48"
        );
    }
}
