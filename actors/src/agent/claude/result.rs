//! The `result` event of Claude Code, and the verdict on the run: COMPLETED, a failure, or the exit code alone.

use serde_json::{Value, value::RawValue};

use super::json::{Fields, string};
use crate::outcome::{ClaudeResult, Reason, Status};

/// The longest text of a result that a client gets, in bytes.
const MAX_TEXT: usize = 64 << 10;

/// The longest usage of a result that a client gets, in bytes of JSON.
const MAX_USAGE: usize = 64 << 10;

impl ClaudeResult {
    /// Reads the fields of a `result` event that have the expected shape.
    pub(super) fn read(fields: &Fields<'_>) -> ClaudeResult {
        let errors: Vec<&RawValue> = fields.get("errors").unwrap_or_default();
        let mut text = match fields.text("result") {
            Some(text) => text,
            None if errors.is_empty() => fields.text("subtype").unwrap_or_default(),
            None => {
                let text = |error: &RawValue| string(error).unwrap_or_else(|| error.get().to_owned());
                errors.into_iter().map(text).collect::<Vec<_>>().join("\n")
            }
        };
        let truncated = text.len() > MAX_TEXT;
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        ClaudeResult {
            text,
            truncated,
            is_error: fields.get("is_error").unwrap_or(true),
            num_turns: fields.get("num_turns"),
            duration_ms: fields.get("duration_ms"),
            total_cost_usd: fields.get("total_cost_usd"),
            // The size is checked first, because a parsed value takes many times the memory of its text.
            usage: fields
                .raw("usage")
                .filter(|raw| raw.get().len() <= MAX_USAGE)
                .and_then(|raw| serde_json::from_str(raw.get()).ok()),
            session_id: fields.text("session_id"),
            api_error_status: fields.get("api_error_status"),
        }
    }

    /// The result of the last of several turns; `earlier` has the sums of the turns before it. Each result counts the
    /// answers, the time and the tokens of its own turn, but the cost of all turns so far (2.1.197, 2.1.330).
    #[must_use]
    pub(super) fn after(mut self, earlier: &ClaudeResult) -> ClaudeResult {
        let sum = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (Some(one), Some(other)) => Some(one.saturating_add(other)),
            (one, other) => one.or(other),
        };
        self.num_turns = sum(self.num_turns, earlier.num_turns);
        self.duration_ms = sum(self.duration_ms, earlier.duration_ms);
        self.total_cost_usd = self.total_cost_usd.or_else(|| earlier.total_cost_usd.clone());
        self.usage = match (self.usage, &earlier.usage) {
            (Some(usage), Some(earlier)) => Some(sum_of_json(usage, earlier)),
            (usage, earlier) => usage.or_else(|| earlier.clone()),
        };
        self
    }

    /// The message for people about a failure.
    fn advice(&self) -> String {
        let text = shortened(&self.text);
        // The CLI's own words, because a text about src/login.rs says nothing about the login.
        let asks_for_login = self.text.to_lowercase().contains("run /login");
        if asks_for_login || matches!(self.api_error_status, Some(401 | 403)) {
            return format!(
                "claude is not signed in: {text}; run `claude` as the backend's user and log in, or give the backend ANTHROPIC_API_KEY"
            );
        }
        format!("claude failed: {text}")
    }
}

/// Adds numbers of the same name; for all other values the newer one counts.
fn sum_of_json(newer: Value, older: &Value) -> Value {
    match (newer, older) {
        (Value::Object(mut newer), Value::Object(older)) => {
            for (name, older) in older {
                let sum = match newer.remove(name) {
                    Some(newer) => sum_of_json(newer, older),
                    None => older.clone(),
                };
                newer.insert(name.clone(), sum);
            }
            Value::Object(newer)
        }
        (Value::Number(newer), Value::Number(older)) => match (newer.as_u64(), older.as_u64()) {
            (Some(newer), Some(older)) => newer.saturating_add(older).into(),
            _ => Value::Number(newer),
        },
        (newer, _) => newer,
    }
}

/// Status, reason and message of an execution that exited by itself, from Claude's result and its exit code. `stderr`
/// is the end of its other output. `None` if the exit code alone decides.
pub(super) fn verdict(
    result: Option<&ClaudeResult>,
    exited_with_0: bool,
    stderr: &str,
) -> Option<(Status, Reason, String)> {
    let failed = |message| Some((Status::Failed, Reason::ClaudeError, message));
    match result {
        None if stderr.is_empty() => failed("claude exited without a result and without a message on stderr; run claude -p as the backend's user to see why".to_owned()),
        None => failed(format!("claude exited without a result; it wrote: {}", shortened(stderr))),
        Some(result) if result.is_error => failed(result.advice()),
        Some(_) if exited_with_0 => Some((Status::Completed, Reason::Exit, String::new())),
        Some(_) => None,
    }
}

/// The beginning of a text, on one line.
fn shortened(text: &str) -> String {
    const MAX: usize = 500;
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.len() > MAX {
        line.truncate(line.floor_char_boundary(MAX));
        line.push_str("...");
    }
    if line.is_empty() { "it gave no reason".to_owned() } else { line }
}

#[cfg(test)]
mod tests {
    use super::super::event::ClaudeEvent;

    #[test]
    fn a_failure_that_asks_for_a_login_is_reported_as_not_signed_in() {
        for (text, signed_out) in [
            ("Not logged in · Please run /login", true),
            ("Invalid API key · Please Run /login", true),
            ("src/login.rs does not compile", false),
            ("", false),
        ] {
            let line = serde_json::json!({ "type": "result", "is_error": true, "result": text }).to_string();
            let advice = ClaudeEvent::parse(line.as_bytes()).unwrap().outcome().unwrap().advice();
            assert_eq!(advice.contains("not signed in"), signed_out, "{advice}");
        }
    }
}
