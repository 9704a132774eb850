//! A log line as a person reads it: when, since the first one, what, of whom, and why.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::filter::{LineFields, time_of};

/// How many characters of an id are shown once it has been shown whole.
const SHORT: usize = 8;

/// Remembers what the lines before have shown.
#[derive(Default)]
pub(super) struct LineFormatter {
    began_at: Option<Timestamp>,
    shown: BTreeSet<String>,
}

impl LineFormatter {
    pub(super) fn written(&mut self, mut fields: LineFields) -> String {
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
        let why = beyond(&message, &event);
        if !why.is_empty() {
            line.push_str(&format!("  {why}"));
        }
        plain(&line)
    }

    /// An id, whole when it is met first.
    fn short(&mut self, id: String) -> String {
        if self.shown.insert(id.clone()) { id } else { id.chars().take(SHORT).collect() }
    }
}

/// A line that does nothing to a terminal.
pub(super) fn plain(line: &str) -> String {
    line.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What a message says beyond its event: nothing, if that is `process started` of `process.started`.
fn beyond<'a>(message: &'a str, event: &str) -> &'a str {
    let name = event.replace(['.', '_'], " ");
    match message.strip_prefix(&name) {
        Some("") => "",
        Some(rest) => rest.strip_prefix(": ").unwrap_or(message),
        None => message,
    }
}
