//! Lines about Claude's work on standard error, beside its text on standard output: a dim line for each use of a tool,
//! and the turns, time and cost at the end.

use std::collections::HashMap;

use cc_executor_actors::{
    agent::claude::{self, ClaudeEvent, EventPart},
    outcome::ClaudeResult,
};
use serde_json::value::RawValue;

use super::color::ErrorStyle;
use crate::console::is_obeyed;

/// The longest line about a tool, in characters.
const MAX_LINE: usize = 100;

/// The fields of a tool's input of which the first that is present is shown.
const SHOWN_FIELDS: &[&str] =
    &["command", "file_path", "path", "pattern", "query", "url", "skill", "description", "prompt"];

/// Makes the lines.
pub(super) struct AgentView {
    style: ErrorStyle,
    /// The offset after the last event that was shown. After a broken connection the service repeats events.
    shown: u64,
}

impl AgentView {
    pub(super) fn new(style: ErrorStyle) -> Self {
        AgentView { style, shown: 0 }
    }

    /// The lines for an event that ends at this offset.
    pub(super) fn of_event(&mut self, json: &str, end: u64) -> Vec<String> {
        if end <= self.shown {
            return Vec::new();
        }
        self.shown = end;
        let Some(event) = ClaudeEvent::parse(json.as_bytes()).filter(|event| !event.is_of_subagent()) else {
            return Vec::new();
        };
        let uses = event.parts().into_iter().filter_map(|part| match part {
            EventPart::ToolUse { name, input, .. } => Some(self.dimmed(&of_tool(&name, &input))),
            _ => None,
        });
        uses.collect()
    }

    /// The line for the end: turns, time, cost and session.
    pub(super) fn of_outcome(&self, outcome: &ClaudeResult) -> String {
        let mut parts = Vec::new();
        parts.extend(
            outcome.num_turns.map(|turns| if turns == 1 { "1 turn".to_owned() } else { format!("{turns} turns") }),
        );
        parts.extend(outcome.duration_ms.map(|ms| format!("{}.{} s", ms / 1_000, ms % 1_000 / 100)));
        parts.extend(outcome.total_cost_usd.as_ref().and_then(|cost| cost.as_f64()).map(|cost| format!("${cost:.4}")));
        parts.extend(outcome.session_id.as_ref().map(|session| format!("session {session}")));
        self.dimmed(&plain(&parts.join(", ")))
    }

    /// A line as it looks beside output.
    pub(super) fn dimmed(&self, text: &str) -> String {
        self.style.dimmed(text)
    }
}

fn of_tool(name: &str, input: &str) -> String {
    let input: HashMap<String, &RawValue> = serde_json::from_str(input).unwrap_or_default();
    let field = SHOWN_FIELDS.iter().find_map(|key| claude::string(input.get(*key)?)).unwrap_or_default();
    plain(&format!("{name} {field}"))
}

/// One line without characters that a terminal obeys, cut to [`MAX_LINE`].
fn plain(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    let clean: String = words.join(" ").chars().filter(|c| !is_obeyed(*c)).collect();
    match clean.char_indices().nth(MAX_LINE) {
        Some((at, _)) => format!("{}...", &clean[..at]),
        None => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_one_plain_line_and_shown_once() {
        let event = r#"{"type":"assistant","message":{"content":[{"type":"tool_use","id":"1","name":"Bash","input":{"command":"echo \u001b[31m\n  x","description":"y"}}]}}"#;
        let plain = ErrorStyle { dims: false, replaces_lines: false, is_terminal: false };
        let mut lines = AgentView::new(plain);
        assert_eq!(lines.of_event(event, 10), ["Bash echo [31m x"]);
        assert_eq!(lines.of_event(event, 10), Vec::<String>::new());
        let hostile = r#"{"type":"assistant","message":{"content":[{"type":"tool_use","id":"2","name":"Bash","input":{"command":"a\u202eb\u2066c\u2069\u061c\u200ed"}}]}}"#;
        assert_eq!(lines.of_event(hostile, 11), ["Bash abcd"]);
        lines.style.dims = true;
        assert_eq!(lines.of_event(event, 20), ["\x1b[2mBash echo [31m x\x1b[0m"]);
    }

    #[test]
    fn a_long_line_is_cut() {
        assert_eq!(
            of_tool("Bash", &serde_json::json!({ "command": "é".repeat(300) }).to_string()).chars().count(),
            103
        );
        assert_eq!(of_tool("Bash", r#"{"command":"cut \ud83d"}"#), "Bash cut \u{fffd}");
    }
}
