//! Selects lines. The backend does not know sessions, so a line of the backend belongs to a session if a line of the
//! gateway, earlier or later, has both the session and the line's execution.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::LogsOptions;

/// The fields of a line.
pub(super) type LineFields = Map<String, Value>;

/// Finds the JSON in a log line. `docker compose logs` puts the service's name before it.
pub(super) fn json_of(line: &str) -> Option<(&str, LineFields)> {
    let json = &line[line.find('{')?..];
    let fields: LineFields = serde_json::from_str(json).ok()?;
    fields.contains_key("time").then_some((json, fields))
}

pub(super) fn time_of(fields: &LineFields) -> Option<Timestamp> {
    text(fields, "time")?.parse().ok()
}

fn text<'a>(fields: &'a LineFields, name: &str) -> Option<&'a str> {
    fields.get(name).and_then(Value::as_str)
}

/// The decision about a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum FilterResult {
    Selected,
    Rejected,
    /// Selected if this execution belongs to the session.
    IfOfSession(String),
}

/// The selection, and the session's executions that are known so far.
pub(super) struct LineFilter<'a> {
    options: &'a LogsOptions,
    /// Executions of the selected session.
    executions: BTreeSet<String>,
}

impl<'a> LineFilter<'a> {
    pub(super) fn new(options: &'a LogsOptions) -> Self {
        LineFilter { options, executions: BTreeSet::new() }
    }

    /// Whether every line is selected.
    pub(super) fn selects_all(&self) -> bool {
        let LogsOptions { session, execution, event, .. } = self.options;
        session.is_none() && execution.is_none() && event.is_none()
    }

    /// Updates the known executions from a line, and returns an execution that was found to belong to the session.
    pub(super) fn learn(&mut self, fields: &LineFields) -> Option<String> {
        let session = self.options.session.as_deref()?;
        let execution = text(fields, "execution_id")?;
        let is_of_session = text(fields, "session_id").is_some_and(|id| id.starts_with(session));
        (is_of_session && self.executions.insert(execution.to_owned())).then(|| execution.to_owned())
    }

    pub(super) fn apply(&self, fields: &LineFields) -> FilterResult {
        let LogsOptions { session, execution, event, .. } = self.options;
        let begins = |name: &str, wanted: &str| text(fields, name).is_some_and(|id| id.starts_with(wanted));
        let is_event = |wanted: &str| {
            let rest = text(fields, "event").and_then(|name| name.strip_prefix(wanted));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if event.as_deref().is_some_and(|wanted| !is_event(wanted))
            || execution.as_deref().is_some_and(|wanted| !begins("execution_id", wanted))
        {
            return FilterResult::Rejected;
        }
        let Some(session) = session else { return FilterResult::Selected };
        match (fields.contains_key("session_id"), text(fields, "execution_id")) {
            (true, _) if begins("session_id", session) => FilterResult::Selected,
            (false, Some(execution)) if self.is_of_session(execution) => FilterResult::Selected,
            (false, Some(execution)) => FilterResult::IfOfSession(execution.to_owned()),
            _ => FilterResult::Rejected,
        }
    }

    pub(super) fn is_of_session(&self, execution: &str) -> bool {
        self.executions.contains(execution)
    }
}
