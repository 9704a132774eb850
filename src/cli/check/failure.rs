//! What a check finds wrong, and how that is said.

use serde_json::Value;

/// How much of a message is shown to a person, in characters.
const SHOWN: usize = 300;

/// Why a check failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct CheckFailure {
    /// What a person should know.
    pub(super) what: String,
    /// The session in which it happened, and the last message that came in it.
    pub(super) session: Option<String>,
    pub(super) last: Option<String>,
}

impl CheckFailure {
    /// The same, of a part of the check.
    pub(super) fn of(self, part: &str) -> Self {
        CheckFailure { what: format!("{part}: {}", self.what), ..self }
    }
}

/// Something was not as it should be.
pub(super) fn wrong(what: impl Into<String>) -> CheckFailure {
    CheckFailure { what: what.into(), session: None, last: None }
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

/// JSON as a person wants to see it: not too much of it, and on one line.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
