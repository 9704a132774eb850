//! The failure of a check, and its text.

use serde::Serialize;

use crate::cli::ClientError;

/// The longest part of a message that is shown, in characters.
const SHOWN: usize = 300;

/// Why a check failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct CheckFailure {
    /// The text for people.
    pub(super) text: String,
    /// The session in which it happened, and the last message of that session.
    pub(super) session: Option<String>,
    pub(super) last: Option<String>,
}

impl CheckFailure {
    /// The same failure, with the part of the check in which it happened.
    pub(super) fn of(self, part: &str) -> Self {
        CheckFailure { text: format!("{part}: {}", self.text), ..self }
    }
}

/// A failure with this text.
pub(super) fn wrong(text: impl Into<String>) -> CheckFailure {
    CheckFailure { text: text.into(), session: None, last: None }
}

/// Fails the check with this text unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::cli::check::failure::wrong(format!($($text)+)));
        }
    };
}
pub(super) use ensure;

impl From<ClientError> for CheckFailure {
    fn from(error: ClientError) -> Self {
        wrong(error.message)
    }
}

/// A message's JSON on one line, shortened for people.
pub(super) fn shown(message: &impl Serialize) -> String {
    shortened(&serde_json::to_string(message).unwrap_or_default())
}

/// The beginning of a text.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}
