//! The names that clients give to executions, and the texts by which people refer to one: an id, a name, or the
//! beginning of an id.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::ExecutionId;

/// The longest name, in bytes.
const MAX_NAME: usize = 63;

/// The hexadecimal digits of an id.
const ID_DIGITS: usize = 32;

/// Where the dashes of an id are.
const DASHES: [usize; 4] = [8, 13, 18, 23];

/// The name of an execution. It is never the beginning of an id.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^[A-Za-z][A-Za-z0-9._-]{0,62}$"))]
pub struct ExecutionName(Box<str>);

/// A text that cannot name an execution. The text completes a sentence that begins with the name of the parameter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "must have 1 to {MAX_NAME} ASCII letters, digits, '.', '_' and '-', begin with a letter, and not consist of hexadecimal digits, because ids do"
)]
pub struct InvalidExecutionName;

/// The text of a client that refers to an execution.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ExecutionRef {
    /// The whole id.
    Id(ExecutionId),
    /// The name.
    Name(ExecutionName),
    /// The beginning of the id.
    Prefix(IdPrefix),
}

/// A text that refers to no execution. The text completes a sentence that begins with the name of the parameter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("must be the id of an execution, the beginning of its id, or its name")]
pub struct InvalidExecutionRef;

/// The beginning of an id: 1 to 31 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdPrefix(String);

impl ExecutionName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ExecutionName {
    type Err = InvalidExecutionName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let is_name = text.len() <= MAX_NAME
            && text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.bytes().all(is_legal)
            && !text.bytes().all(|byte| byte.is_ascii_hexdigit())
            && digits_of(text).is_none();
        is_name.then(|| ExecutionName(text.into())).ok_or(InvalidExecutionName)
    }
}

impl fmt::Display for ExecutionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ExecutionName {
    type Error = InvalidExecutionName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ExecutionName> for String {
    fn from(name: ExecutionName) -> String {
        name.0.into()
    }
}

impl FromStr for ExecutionRef {
    type Err = InvalidExecutionRef;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(id) = text.parse() {
            return Ok(ExecutionRef::Id(id));
        }
        if let Ok(name) = text.parse() {
            return Ok(ExecutionRef::Name(name));
        }
        digits_of(text).map(|digits| ExecutionRef::Prefix(IdPrefix(digits))).ok_or(InvalidExecutionRef)
    }
}

impl fmt::Display for ExecutionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExecutionRef::Id(id) => id.fmt(f),
            ExecutionRef::Name(name) => name.fmt(f),
            ExecutionRef::Prefix(IdPrefix(digits)) => f.write_str(digits),
        }
    }
}

impl IdPrefix {
    /// The first and the last id that begin with it.
    pub fn range(&self) -> RangeInclusive<ExecutionId> {
        let filled = |digit: &str| {
            let digits = format!("{}{}", self.0, digit.repeat(ID_DIGITS - self.0.len()));
            ExecutionId::from(Uuid::try_parse(&digits).expect("32 hexadecimal digits are a UUID"))
        };
        filled("0")..=filled("f")
    }
}

/// The hexadecimal digits of the beginning of an id, which is written with its dashes or without.
fn digits_of(text: &str) -> Option<String> {
    let is_dashed = text.contains('-');
    let is_in_place = |(at, byte): (usize, u8)| (is_dashed && DASHES.contains(&at)) == (byte == b'-');
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let is_prefix = (1..ID_DIGITS).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        && text.bytes().enumerate().all(is_in_place);
    is_prefix.then_some(digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_is_never_the_beginning_of_an_id() {
        for name in ["build", "Nightly.2026_11-b", "a-z", "deadbeefs", "g", &"x".repeat(63)] {
            assert_eq!(name.parse::<ExecutionRef>().unwrap(), ExecutionRef::Name(name.parse().unwrap()), "{name}");
        }
        let hexadecimal = ["a", "dead", "deadbeef", "deadbeef-cafe", "ABCDEF", &"a".repeat(40)];
        for wrong in ["", "1a", "-a", ".a", "a b", "ä", "a/b", "a\n", &"x".repeat(64)].into_iter().chain(hexadecimal) {
            assert_eq!(wrong.parse::<ExecutionName>(), Err(InvalidExecutionName), "{wrong}");
        }
        for wrong in ["", "-", "12-", "123456789-", "g b", "0x1", &"a".repeat(40)] {
            assert_eq!(wrong.parse::<ExecutionRef>(), Err(InvalidExecutionRef), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn each_beginning_of_an_id_finds_it(bits: u128, length in 1..36usize, dashed: bool, upper: bool) {
            let id = ExecutionId::from(Uuid::from_u128(bits));
            let text = if dashed { id.to_string() } else { id.to_string().replace('-', "") };
            let text = &text[..length.min(text.len())];
            let text = if upper { text.to_uppercase() } else { text.to_owned() };
            match text.parse::<ExecutionRef>() {
                Ok(ExecutionRef::Prefix(prefix)) => prop_assert!(prefix.range().contains(&id), "{}", text),
                Ok(ExecutionRef::Id(whole)) => prop_assert_eq!(whole, id),
                other => prop_assert!(false, "{}: {:?}", text, other),
            }
        }
    }
}
