//! `logs`: a service's JSON log lines as a timeline that a person can read.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::File,
    io::{self, BufRead, BufReader, ErrorKind, Write},
    process::ExitCode,
};

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{ClientError, exit, told};

/// How many lines of executions are remembered that may yet turn out to belong to the session asked for:
/// the backend tells of a process before the gateway tells whose it is.
const LOOK_BACK: usize = 10_000;

/// How many characters of an id are shown once it has been shown whole.
const SHORT: usize = 8;

/// What `logs` was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogsOptions {
    /// The beginning of a session's id: only what concerns it.
    pub session: Option<String>,
    /// The beginning of an execution's id.
    pub execution: Option<String>,
    /// The name of an event, or its beginning up to a dot: `session` is `session.opened` and so on.
    pub event: Option<String>,
    /// A file, or `-` for standard input.
    pub file: String,
}

/// Prints the timeline. Exits with 1 if there was nothing to print.
pub fn logs(options: &LogsOptions) -> ExitCode {
    told(print(options))
}

fn print(options: &LogsOptions) -> Result<u8, ClientError> {
    let input: Box<dyn BufRead> = if options.file == "-" {
        Box::new(io::stdin().lock())
    } else {
        let file = File::open(&options.file)
            .map_err(|error| ClientError::new(exit::USAGE, format!("cannot read {:?}: {error}", options.file)))?;
        Box::new(BufReader::new(file))
    };
    let mut timeline = Timeline::new(options);
    let mut out = io::stdout().lock();
    let mut n_printed = 0;
    for line in input.split(b'\n') {
        let line =
            line.map_err(|error| ClientError::new(exit::USAGE, format!("cannot read {:?} on: {error}", options.file)))?;
        for line in timeline.take(&String::from_utf8_lossy(&line)) {
            n_printed += 1;
            match writeln!(out, "{line}").and_then(|()| out.flush()) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(0),
                _ => {}
            }
        }
    }
    let (n_lines, n_foreign) = (timeline.n_lines, timeline.n_foreign);
    if n_lines == n_foreign && n_lines > 0 {
        let advice = "no line of it is a JSON log line: start the service with LOG_FORMAT=json";
        return Err(ClientError::new(exit::USAGE, advice));
    }
    if n_printed == 0 {
        eprintln!("cc-executor: none of {n_lines} log lines is of what was asked for");
        return Ok(1);
    }
    Ok(0)
}

/// Makes the timeline, line by line.
pub(super) struct Timeline<'a> {
    options: &'a LogsOptions,
    /// Executions of the session asked for.
    executions: BTreeSet<String>,
    /// Lines of executions of which it is not known whose they are.
    waiting: VecDeque<Map<String, Value>>,
    began_at: Option<Timestamp>,
    shown: BTreeSet<String>,
    n_lines: usize,
    n_foreign: usize,
}

impl<'a> Timeline<'a> {
    pub(super) fn new(options: &'a LogsOptions) -> Self {
        Timeline {
            options,
            executions: BTreeSet::new(),
            waiting: VecDeque::new(),
            began_at: None,
            shown: BTreeSet::new(),
            n_lines: 0,
            n_foreign: 0,
        }
    }

    /// Takes a line of the log, and gives what is to be printed now.
    pub(super) fn take(&mut self, line: &str) -> Vec<String> {
        if line.trim().is_empty() {
            return Vec::new();
        }
        self.n_lines += 1;
        // What follows logs for several services puts a name before each line.
        let json = line.find('{').and_then(|at| serde_json::from_str::<Map<String, Value>>(&line[at..]).ok());
        let Some(fields) = json.filter(|fields| fields.contains_key("time")) else {
            self.n_foreign += 1;
            return Vec::new();
        };
        self.chosen(fields).into_iter().map(|fields| self.written(fields)).collect()
    }

    /// The lines that are known now to be wanted.
    fn chosen(&mut self, fields: Map<String, Value>) -> Vec<Map<String, Value>> {
        let LogsOptions { session, execution, event, .. } = self.options;
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        if let Some(wanted) = event {
            let is_it = |name: &str| {
                name.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            if !text("event").is_some_and(is_it) {
                return Vec::new();
            }
        }
        if let Some(wanted) = execution
            && !text("execution_id").is_some_and(|id| id.starts_with(wanted.as_str()))
        {
            return Vec::new();
        }
        let Some(wanted) = session else { return vec![fields] };
        match (text("session_id"), text("execution_id")) {
            (Some(id), None) if id.starts_with(wanted.as_str()) => vec![fields],
            (Some(id), Some(execution)) if id.starts_with(wanted.as_str()) => {
                let execution = execution.to_owned();
                let mut chosen = Vec::new();
                if self.executions.insert(execution.clone()) {
                    let (of_it, others) = std::mem::take(&mut self.waiting)
                        .into_iter()
                        .partition(|fields| fields.get("execution_id").and_then(Value::as_str) == Some(&execution));
                    self.waiting = others;
                    chosen = Vec::from(of_it);
                }
                chosen.push(fields);
                chosen
            }
            (None, Some(execution)) if self.executions.contains(execution) => vec![fields],
            (None, Some(_)) => {
                if self.waiting.len() == LOOK_BACK {
                    self.waiting.pop_front();
                }
                self.waiting.push_back(fields);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn written(&mut self, mut fields: Map<String, Value>) -> String {
        let mut text = |name: &str| match fields.remove(name) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let (time, level, event, message) = (text("time"), text("level"), text("event"), text("message"));
        text("target");
        let (clock, since) = match time.parse::<Timestamp>() {
            Ok(at) => {
                let began_at = *self.began_at.get_or_insert(at);
                let since = at.duration_since(began_at).as_secs_f64();
                (format!("{:.3}", at.strftime("%H:%M:%S%.3f")), format!("{since:+.3}"))
            }
            Err(_) => (time, String::new()),
        };
        let mut line = format!("{clock}  {since:>9}  {event:<20}");
        if level != "INFO" {
            line.push_str(&format!("  {level}"));
        }
        if event.is_empty() || level != "INFO" {
            line.push_str(&format!("  {message}"));
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
        line.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }

    /// An id, whole when it is met first.
    fn short(&mut self, id: String) -> String {
        if self.shown.insert(id.clone()) { id } else { id.chars().take(SHORT).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"
claude-api_1 | {"time":"2026-01-02T03:04:05.000Z","level":"INFO","target":"b","event":"process.started","execution_id":"eeeeeeee-1","pid":7,"message":"m"}
{"time":"2026-01-02T03:04:05.000Z","level":"INFO","target":"b","event":"process.started","execution_id":"ffffffff-1","pid":8,"message":"m"}
{"time":"2026-01-02T03:04:04.900Z","level":"INFO","target":"g","event":"session.opened","session_id":"aaaaaaaa-1","message":"m"}
no log line
{"time":"2026-01-02T03:04:05.010Z","level":"INFO","target":"g","event":"execution.started","session_id":"aaaaaaaa-1","execution_id":"eeeeeeee-1","message":"m"}
{"time":"2026-01-02T03:04:05.010Z","level":"INFO","target":"g","event":"execution.started","session_id":"bbbbbbbb-1","execution_id":"ffffffff-1","message":"m"}
{"time":"2026-01-02T03:04:06.000Z","level":"WARN","target":"g","event":"client_stalled","session_id":"aaaaaaaa-1","message":"it \u001b[31mreads nothing"}
{"time":"2026-01-02T03:04:07.500Z","level":"INFO","target":"b","event":"process.finished","execution_id":"eeeeeeee-1","status":"COMPLETED","message":"m"}
"#;

    fn lines(options: &LogsOptions) -> Vec<String> {
        let mut timeline = Timeline::new(options);
        LOG.lines().flat_map(|line| timeline.take(line)).collect()
    }

    #[test]
    fn a_sessions_life_is_told_with_what_its_executions_did() {
        let options = LogsOptions { session: Some("aaaa".into()), ..LogsOptions::default() };
        assert_eq!(
            lines(&options),
            [
                "03:04:04.900     +0.000  session.opened        session_id=aaaaaaaa-1",
                "03:04:05.000     +0.100  process.started       execution_id=eeeeeeee-1  pid=7",
                "03:04:05.010     +0.110  execution.started     session_id=aaaaaaaa  execution_id=eeeeeeee",
                "03:04:06.000     +1.100  client_stalled        WARN  it  [31mreads nothing  session_id=aaaaaaaa",
                "03:04:07.500     +2.600  process.finished      execution_id=eeeeeeee  status=COMPLETED",
            ]
        );
    }

    #[test]
    fn executions_and_events_are_chosen_by_their_beginnings() {
        let of = |execution: Option<&str>, event: Option<&str>| {
            let (execution, event) = (execution.map(str::to_owned), event.map(str::to_owned));
            lines(&LogsOptions { execution, event, ..LogsOptions::default() }).len()
        };
        assert_eq!(of(None, None), 7);
        assert_eq!(of(Some("ffff"), None), 2);
        assert_eq!((of(None, Some("process")), of(None, Some("process.started")), of(None, Some("proc"))), (3, 2, 0));
    }
}
