//! Formats a log line for people: time, time since the first line, event, fields, message.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::filter::{LineFields, time_of};
use crate::console::visible;

/// The number of characters of an id that are shown after its first occurrence.
const SHORT: usize = 8;

/// Formats lines; remembers the ids that were shown whole.
#[derive(Default)]
pub(super) struct LineFormatter {
    began_at: Option<Timestamp>,
    shown: BTreeSet<String>,
}

impl LineFormatter {
    pub(super) fn format(&mut self, mut fields: LineFields) -> String {
        let at = time_of(&fields);
        let mut text = |name: &str| match fields.remove(name) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let (time, level, event, message) = (text("time"), text("level"), text("event"), text("message"));
        text("target");
        let (clock, since) = match at {
            Some(at) => {
                let began_at = *self.began_at.get_or_insert(at);
                let since = at.duration_since(began_at).as_secs_f64();
                (at.strftime("%H:%M:%S%.3f").to_string(), format!("{since:+.3}"))
            }
            None => (time, String::new()),
        };
        let mut line = format!("{clock}  {since:>9}  {event:<20}");
        if level != "INFO" {
            line.push_str(&format!("  {level}"));
        }
        let mut fields: Vec<(String, Value)> = fields.into_iter().collect();
        fields.sort_by_key(|(name, _)| match name.as_str() {
            "session_id" => 0,
            "execution_id" => 1,
            _ => 2,
        });
        for (name, value) in fields {
            let value = match value {
                Value::String(id) if name.ends_with("_id") => self.short(id),
                Value::String(text) if !text.contains(char::is_whitespace) => text,
                value => value.to_string(),
            };
            line.push_str(&format!("  {name}={value}"));
        }
        let message = additional(&message, &event);
        if !message.is_empty() {
            line.push_str(&format!("  {message}"));
        }
        plain(&line)
    }

    /// An id: whole at its first occurrence, then shortened.
    fn short(&mut self, id: String) -> String {
        if self.shown.insert(id.clone()) { id } else { id.chars().take(SHORT).collect() }
    }
}

/// Escapes control characters, because somebody else may have written the log.
pub(super) fn plain(line: &str) -> String {
    visible(line.trim_end()).into_owned()
}

/// The message, or nothing if it only repeats the event, like `process started` of `process.started`.
fn additional<'a>(message: &'a str, event: &str) -> &'a str {
    let name = event.replace(['.', '_'], " ");
    match message.strip_prefix(&name) {
        Some("") => "",
        Some(rest) => rest.strip_prefix(": ").unwrap_or(message),
        None => message,
    }
}
