//! The form of a log line, for people and for programs. No character of a client's text reaches it raw.

use std::{borrow::Cow, fmt::Write};

use cc_executor_actors::excerpt::cut;
use jiff::Timestamp;
use log::{
    Level, Record,
    kv::{Error, Key, Value, VisitSource},
};
use serde_json::{Map, Value as Json};

use crate::console::visible;

/// The longest text, or serialized field, in a line, in bytes. The rest is cut off, because at debug level a line holds a
/// client's command, which may be as long as a message.
const MAX_TEXT: usize = 16 * 1024;

/// How lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Format {
    /// The names of all formats.
    pub const NAMES: [&str; 2] = ["text", "json"];

    /// The format with this name.
    pub fn named(name: &str) -> Option<Format> {
        match name {
            "text" => Some(Format::Text),
            "json" => Some(Format::Json),
            _ => None,
        }
    }
}

/// A log line before it is formatted.
pub(super) struct LogLine<'a> {
    pub(super) level: Level,
    pub(super) target: &'a str,
    pub(super) fields: Map<String, Json>,
    pub(super) message: Cow<'a, str>,
}

impl<'a> LogLine<'a> {
    /// The line of a record, without the fields that are `null`.
    pub(super) fn of(record: &'a Record<'a>) -> LogLine<'a> {
        let mut fields = FieldVisitor(Map::new());
        // Neither the visitor nor the standard sources fail.
        let _ = record.key_values().visit(&mut fields);
        let message = record.args().as_str().map_or_else(|| record.args().to_string().into(), Cow::Borrowed);
        LogLine { level: record.level(), target: record.target(), fields: fields.0, message }
    }

    /// The value of a field that is a text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name).and_then(Json::as_str)
    }

    /// The line with its end.
    pub(super) fn format(self, format: Format, now: Timestamp) -> String {
        let line = match format {
            Format::Text => self.into_text(now),
            Format::Json => self.into_json(now),
        };
        let mut line = match visible(&line) {
            Cow::Borrowed(_) => line,
            Cow::Owned(shown) => shown,
        };
        line.push('\n');
        line
    }

    fn into_text(mut self, now: Timestamp) -> String {
        let event = self.fields.remove("event");
        let name = event.as_ref().and_then(Json::as_str).unwrap_or(self.target);
        let mut line = format!("{now:.3} {:<5} {name:<20} {}", self.level, cut(&self.message, MAX_TEXT));
        for (name, value) in self.fields {
            // A `String` accepts every write.
            let _ = match bounded(value) {
                Json::String(text) if !text.contains([' ', '"', '\n']) => write!(line, " {name}={text}"),
                value => write!(line, " {name}={value}"),
            };
        }
        line
    }

    fn into_json(self, now: Timestamp) -> String {
        let mut line = Map::new();
        line.insert("time".into(), format!("{now:.3}").into());
        line.insert("level".into(), self.level.as_str().into());
        line.insert("target".into(), self.target.into());
        line.extend(self.fields.into_iter().map(|(name, value)| (name, bounded(value))));
        line.insert("message".into(), cut(&self.message, MAX_TEXT).into());
        Json::Object(line).to_string()
    }
}

struct FieldVisitor(Map<String, Json>);

impl<'kvs> VisitSource<'kvs> for FieldVisitor {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let value = serde_json::to_value(&value).unwrap_or_else(|_| value.to_string().into());
        if !value.is_null() {
            self.0.insert(key.to_string(), value);
        }
        Ok(())
    }
}

/// A field that is not too long. A list that is too long becomes the beginning of its JSON, as a text.
fn bounded(value: Json) -> Json {
    match value {
        Json::String(text) if text.len() > MAX_TEXT => cut(&text, MAX_TEXT).into(),
        Json::Array(_) | Json::Object(_) => match value.to_string() {
            json if json.len() > MAX_TEXT => cut(&json, MAX_TEXT).into(),
            _ => value,
        },
        value => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-02T03:04:05.678Z";

    fn line(format: Format, message: &str, fields: &[(&str, Json)]) -> String {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let line = LogLine { level: Level::Info, target: "cc_executor", fields, message: message.into() };
        line.format(format, NOW.parse().unwrap())
    }

    fn closed(format: Format) -> String {
        let fields = [
            ("event", Value::from("session.closed")),
            ("session_id", Value::from("s-1")),
            ("close_code", Value::from(1000)),
            ("signal", Value::null()),
        ];
        let args = format_args!("closed: \"bye\"\nnow");
        let record = Record::builder().level(Level::Info).target("cc_executor").args(args).key_values(&fields).build();
        LogLine::of(&record).format(format, NOW.parse().unwrap())
    }

    #[test]
    fn a_json_line_is_one_object_with_all_fields() {
        let line = closed(Format::Json);
        assert_eq!(line.matches('\n').count(), 1);
        let object: Json = serde_json::from_str(&line).unwrap();
        assert_eq!(object["event"], "session.closed");
        assert_eq!(object["close_code"], 1000);
        assert_eq!(object["time"], NOW);
        assert_eq!(object["message"], "closed: \"bye\"\nnow");
        assert_eq!(object.get("signal"), None);
    }

    #[test]
    fn a_text_line_begins_with_the_time_and_names_the_event() {
        assert_eq!(
            closed(Format::Text),
            format!("{NOW} INFO  session.closed       closed: \"bye\"\\nnow close_code=1000 session_id=s-1\n")
        );
    }

    #[test]
    fn no_control_character_is_written_raw() {
        let hostile = "\u{1b}]0;x\u{7}\r\n\u{9b}2J\u{85}\u{2028}\u{202e}\u{7f}";
        let fields = [
            ("command", hostile.into()),
            ("argv", Json::from(vec!["a b", hostile])),
            ("spaced", format!("a {hostile}").into()),
            (hostile, 1.into()),
        ];
        for format in [Format::Text, Format::Json] {
            let line = line(format, hostile, &fields);
            let (body, end) = line.split_at(line.len() - 1);
            assert_eq!(end, "\n");
            assert_eq!(visible(body), body, "{format:?}");
            if format == Format::Json {
                let object: Json = serde_json::from_str(&line).unwrap();
                for text in [&object["message"], &object["command"], &object["argv"][1]] {
                    assert_eq!(text, hostile);
                }
            }
        }
    }

    #[test]
    fn long_texts_and_fields_are_cut() {
        let long = "ü".repeat(MAX_TEXT);
        let fields =
            [("command", Json::from(long.as_str())), ("argv", vec!["x"; MAX_TEXT].into()), ("short", vec!["x"].into())];
        for format in [Format::Text, Format::Json] {
            let text = line(format, &long, &fields);
            assert!((3 * MAX_TEXT..4 * MAX_TEXT + 4096).contains(&text.len()), "{}", text.len());
            assert_eq!(text.matches('…').count(), 3);
            if format == Format::Json {
                assert_eq!(serde_json::from_str::<Json>(&text).unwrap()["short"][0], "x");
            }
        }
    }
}
