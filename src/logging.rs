//! Log lines, for people and for programs.
//!
//! Every line has a time, a level, a text and fields; the field `event` is the name of an event. With
//! `LOG_FORMAT=json` each line is a JSON object, with `text` (the default) it is easier to read. `RUST_LOG` filters.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use env_logger::{Builder, Env, Logger};
use jiff::Timestamp;
use log::{
    Record,
    kv::{Error, Key, Value, VisitSource},
};
use serde_json::{Map, Value as Json};

/// The filter without `RUST_LOG`: the service's own lines from `info` up, others' from `warn` up.
pub const DEFAULT_FILTER: &str = "warn,cc_executor=info,cc_executor_actors=info";

/// The log target of actix's acceptor. It logs an error for a connection that arrives while the server stops.
const ACCEPTOR: &str = "actix_server::accept";

/// Whether the servers of this process are being stopped.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Suppresses the acceptor's errors from now on, because the servers of this process are being stopped.
pub fn stopping() {
    STOPPING.store(true, Ordering::Relaxed);
}

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

/// Starts logging to standard error, filtered by `RUST_LOG` or [`DEFAULT_FILTER`].
pub fn init(format: Format) {
    let logger = builder(format).build();
    log::set_max_level(logger.filter());
    // This fails only in tests, where an earlier test has set a logger.
    let _ = log::set_boxed_logger(Box::new(logger) as Box<Logger>);
}

fn builder(format: Format) -> Builder {
    let mut builder = Builder::from_env(Env::default().default_filter_or(DEFAULT_FILTER));
    builder.target(env_logger::Target::Stderr).format(move |out, record| {
        if record.target() == ACCEPTOR && STOPPING.load(Ordering::Relaxed) {
            return Ok(());
        }
        let now = Timestamp::now();
        match format {
            Format::Text => write_text(out, now, record),
            Format::Json => write_json(out, now, record),
        }
    });
    builder
}

fn write_text(out: &mut dyn Write, now: Timestamp, record: &Record<'_>) -> io::Result<()> {
    let mut fields = fields_of(record);
    let event = fields.remove("event");
    write!(out, "{now:.3} {:<5} ", record.level())?;
    let name = event.as_ref().and_then(Json::as_str).unwrap_or(record.target());
    // Control characters become blanks, so that a record stays one line whatever text a client has sent.
    let text: String = record.args().to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    write!(out, "{name:<20} {text}")?;
    for (name, value) in fields {
        match value {
            Json::String(text) if !text.contains([' ', '"', '\n']) => write!(out, " {name}={text}")?,
            value => write!(out, " {name}={value}")?,
        }
    }
    writeln!(out)
}

fn write_json(out: &mut dyn Write, now: Timestamp, record: &Record<'_>) -> io::Result<()> {
    let mut line = Map::new();
    line.insert("time".into(), format!("{now:.3}").into());
    line.insert("level".into(), record.level().as_str().into());
    line.insert("target".into(), record.target().into());
    line.extend(fields_of(record));
    line.insert("message".into(), record.args().to_string().into());
    writeln!(out, "{}", Json::Object(line))
}

/// The fields of a record without those that are `null`.
fn fields_of(record: &Record<'_>) -> Map<String, Json> {
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

    let mut fields = FieldVisitor(Map::new());
    // Neither the visitor nor the standard sources fail.
    let _ = record.key_values().visit(&mut fields);
    fields.0
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;

    fn line(format: Format) -> String {
        let fields = [
            ("event", Value::from("session.closed")),
            ("session_id", Value::from("s-1")),
            ("close_code", Value::from(1000)),
        ];
        let mut out = Vec::new();
        let record = Record::builder()
            .level(Level::Info)
            .target("cc_executor")
            .args(format_args!("closed: \"bye\"\nnow"))
            .key_values(&fields)
            .build();
        let now = "2026-01-02T03:04:05.678Z".parse().unwrap();
        match format {
            Format::Text => write_text(&mut out, now, &record).unwrap(),
            Format::Json => write_json(&mut out, now, &record).unwrap(),
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_json_line_is_one_object_with_all_fields() {
        let line = line(Format::Json);
        assert_eq!(line.matches('\n').count(), 1);
        let object: Json = serde_json::from_str(&line).unwrap();
        assert_eq!(object["event"], "session.closed");
        assert_eq!(object["close_code"], 1000);
        assert_eq!(object["time"], "2026-01-02T03:04:05.678Z");
        assert_eq!(object["message"], "closed: \"bye\"\nnow");
    }

    #[test]
    fn a_text_line_begins_with_the_time_and_names_the_event() {
        let line = line(Format::Text);
        assert!(line.starts_with("2026-01-02T03:04:05.678Z INFO  session.closed "), "{line}");
        assert!(line.contains(" session_id=s-1"), "{line}");
        assert_eq!(line.matches('\n').count(), 1);
    }
}
