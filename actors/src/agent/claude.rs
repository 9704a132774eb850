//! What Claude Code prints with `--output-format stream-json`: one JSON event a line.
//!
//! Only what is decided from is read. Unknown types, and known ones with another shape than expected, come
//! with every release: nothing here fails over one.

pub mod lines;
pub mod progress;
pub mod text;

use std::{
    cell::RefCell,
    fmt,
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Deserializer, de};
use serde_json::{Value, value::RawValue};

use self::{progress::ProgressTracker, text::EventReader};
use super::{Agent, AgentProgress, ReaderOptions, SharedProgress};
use crate::{
    outcome::{ClaudeResult, Reason, Status},
    output::AgentReader,
    protocol::CLAUDE_EXECUTOR,
};

/// Claude Code.
#[derive(Clone, Copy, Debug)]
pub struct Claude;

impl Agent for Claude {
    fn executor(&self) -> &'static str {
        EXECUTOR
    }

    fn max_event_bytes(&self) -> usize {
        MAX_LINE
    }

    fn advice_if_missing(&self, program: &str) -> String {
        let name = Path::new(program).display();
        format!(
            "{name} is not there: install Claude Code (npm install -g @anthropic-ai/claude-code) where the backend runs, or name its path in CC_EXECUTOR_EXECUTORS"
        )
    }

    fn progress(&self, exit_patience: Duration, now: Instant) -> Box<dyn AgentProgress> {
        Box::new(ProgressTracker::new(exit_patience, now))
    }

    fn reader(&self, options: ReaderOptions) -> Box<dyn AgentReader> {
        Box::new(EventReader::new(options, None))
    }

    fn watched_reader(
        &self,
        options: ReaderOptions,
        exit_patience: Duration,
        now: Instant,
    ) -> (Box<dyn AgentReader>, SharedProgress) {
        let progress = Rc::new(RefCell::new(ProgressTracker::new(exit_patience, now)));
        (Box::new(EventReader::new(options, Some(Rc::clone(&progress)))), progress)
    }
}

/// The name of the executor that runs Claude Code.
pub const EXECUTOR: &str = CLAUDE_EXECUTOR;

/// The longest line that is taken for an event, in bytes.
pub const MAX_LINE: usize = 16 << 20;

/// The most of a result's text that is told, in bytes.
const MAX_TEXT: usize = 64 << 10;

/// The most of a result's usage that is told, in bytes of JSON.
const MAX_USAGE: usize = 64 << 10;

/// One event.
#[derive(Debug)]
pub struct ClaudeEvent<'a> {
    line: &'a str,
    head: EventHead<'a>,
    /// Its type, such as `assistant`.
    pub kind: String,
}

/// What every event may have. Values of any shape are let in here and read where they are wanted.
#[derive(Deserialize, Debug)]
struct EventHead<'a> {
    #[serde(borrow)]
    r#type: &'a RawValue,
    #[serde(borrow, default)]
    subtype: Option<&'a RawValue>,
    #[serde(borrow, default)]
    parent_tool_use_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
}

/// What a `system` event may have that tells of background tasks (seen with 2.1.197 and 2.1.330).
#[derive(Deserialize, Default)]
#[serde(default)]
struct TaskFields<'a> {
    #[serde(borrow)]
    task_id: Option<&'a RawValue>,
    #[serde(borrow)]
    owned_by_subagent: Option<&'a RawValue>,
    #[serde(borrow)]
    ambient: Option<&'a RawValue>,
    #[serde(borrow)]
    patch: Option<&'a RawValue>,
    #[serde(borrow)]
    tasks: Option<&'a RawValue>,
}

/// The part of a task's new state that is read.
#[derive(Deserialize)]
struct TaskPatch<'a> {
    #[serde(borrow, default)]
    status: Option<&'a RawValue>,
}

/// What an event says of Claude's tasks: commands and agents that it started and need not wait for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TaskChange {
    /// A task with this id has begun.
    Started(String),
    /// The task with this id has ended.
    Ended(String),
    /// These are all that are open in the background now.
    Open(Vec<String>),
}

/// A string that may have half a character in it. JavaScript writes one, a lone surrogate, where a text was
/// cut in the middle of an emoji; `String` and `Value` refuse the whole line for it. It becomes U+FFFD.
#[derive(Debug)]
struct LossyString(String);

impl<'de> Deserialize<'de> for LossyString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = LossyString;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<LossyString, E> {
                let mut text = String::with_capacity(bytes.len());
                for chunk in bytes.utf8_chunks() {
                    text.push_str(chunk.valid());
                    // The line was UTF-8: what is not is a surrogate, three bytes of which only the first is this.
                    if chunk.invalid().first() == Some(&0xED) {
                        text.push(char::REPLACEMENT_CHARACTER);
                    }
                }
                Ok(LossyString(text))
            }
        }

        // As bytes serde_json also hands out what is no UTF-8.
        deserializer.deserialize_byte_buf(Visitor)
    }
}

/// The part of an API message that is read.
#[derive(Deserialize)]
struct ApiMessage<'a> {
    #[serde(borrow)]
    content: &'a RawValue,
}

/// Content is a string, or blocks.
enum MessageContent<'a> {
    Text(String),
    Blocks(Vec<ContentBlock<'a>>),
}

impl<'a> MessageContent<'a> {
    fn read(raw: &'a RawValue) -> Option<MessageContent<'a>> {
        if raw.get().starts_with('"') {
            return string(raw).map(MessageContent::Text);
        }
        let blocks: Vec<&RawValue> = serde_json::from_str(raw.get()).ok()?;
        Some(MessageContent::Blocks(
            blocks.into_iter().filter_map(|block| serde_json::from_str(block.get()).ok()).collect(),
        ))
    }
}

/// A block of an API message, as far as it is read.
#[derive(Deserialize)]
struct ContentBlock<'a> {
    r#type: LossyString,
    #[serde(default)]
    text: Option<LossyString>,
    #[serde(default)]
    id: Option<LossyString>,
    #[serde(default)]
    name: Option<LossyString>,
    #[serde(default)]
    tool_use_id: Option<LossyString>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
}

/// What an event says that matters here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventPart {
    /// Claude says something.
    Text(String),
    /// Claude uses a tool.
    ToolUse {
        /// The use's id.
        id: String,
        /// The tool's name, such as `Bash`.
        name: String,
        /// What it is given, as JSON.
        input: String,
    },
    /// A tool has answered.
    ToolResult {
        /// The use's id.
        id: String,
        /// What it answered, as text.
        text: String,
    },
}

impl<'a> ClaudeEvent<'a> {
    /// Reads a line. `None` if it is no event: not JSON, or without a type.
    pub fn parse(line: &'a [u8]) -> Option<ClaudeEvent<'a>> {
        let line = std::str::from_utf8(line).ok()?.trim();
        let head: EventHead<'a> = serde_json::from_str(line).ok()?;
        Some(ClaudeEvent { line, kind: string(head.r#type)?, head })
    }

    /// The event as it came.
    pub fn json(&self) -> &'a str {
        self.line
    }

    /// Its subtype, such as `init`.
    pub fn subtype(&self) -> Option<String> {
        self.head.subtype.and_then(string)
    }

    /// Whether it is of an agent that Claude itself has started.
    pub fn is_of_subagent(&self) -> bool {
        self.head.parent_tool_use_id.is_some()
    }

    /// Whether it shows that the main agent is in a turn. Others may also come after the last turn: of the end of
    /// tasks that the CLI does not wait for, of hooks, and of what later releases bring.
    pub fn is_of_a_turn(&self) -> bool {
        if self.is_of_subagent() {
            return false;
        }
        match (&*self.kind, self.subtype().as_deref()) {
            ("assistant" | "user" | "stream_event", _) | ("system", Some("init")) => true,
            ("system", Some("task_started")) => !is_true(self.of_task().owned_by_subagent),
            _ => false,
        }
    }

    /// What it says of tasks.
    pub fn task_change(&self) -> Option<TaskChange> {
        if self.kind != "system" {
            return None;
        }
        let subtype = self.subtype()?;
        let of_task = self.of_task();
        match &*subtype {
            // Ambient ones are the CLI's own, and it does not wait for them.
            "task_started" if !is_true(of_task.ambient) => of_task.task_id.and_then(string).map(TaskChange::Started),
            "task_notification" => of_task.task_id.and_then(string).map(TaskChange::Ended),
            "task_updated" => {
                let status = value::<TaskPatch<'_>>(of_task.patch)?.status.and_then(string)?;
                let ended = matches!(&*status, "completed" | "failed" | "killed");
                of_task.task_id.and_then(string).filter(|_| ended).map(TaskChange::Ended)
            }
            "background_tasks_changed" => {
                let tasks: Vec<TaskFields<'_>> = value(of_task.tasks)?;
                let waited_for = tasks.into_iter().filter(|task| !is_true(task.ambient));
                Some(TaskChange::Open(waited_for.filter_map(|task| task.task_id.and_then(string)).collect()))
            }
            _ => None,
        }
    }

    fn of_task(&self) -> TaskFields<'a> {
        serde_json::from_str(self.line).unwrap_or_default()
    }

    /// What is said and done in it: of `assistant` its text and the tools used, of `user` what tools have
    /// answered. `stream_event` is left out, since its text comes again in `assistant`.
    pub fn parts(&self) -> Vec<EventPart> {
        let of_assistant = match &*self.kind {
            "assistant" => true,
            "user" => false,
            _ => return Vec::new(),
        };
        let message = self.head.message.and_then(|raw| serde_json::from_str::<ApiMessage<'_>>(raw.get()).ok());
        match message.and_then(|message| MessageContent::read(message.content)) {
            Some(MessageContent::Text(text)) if of_assistant => vec![EventPart::Text(text)],
            Some(MessageContent::Blocks(blocks)) => {
                blocks.into_iter().filter_map(|block| block.into_part(of_assistant)).collect()
            }
            Some(MessageContent::Text(_)) | None => Vec::new(),
        }
    }

    /// How Claude says it ended, if this is that event.
    pub fn outcome(&self) -> Option<ClaudeResult> {
        (self.kind == "result").then(|| ClaudeResult::read(self.line))
    }
}

impl ContentBlock<'_> {
    fn into_part(self, of_assistant: bool) -> Option<EventPart> {
        match (&*self.r#type.0, of_assistant) {
            ("text", true) => self.text.map(|text| EventPart::Text(text.0)),
            ("tool_use", true) => Some(EventPart::ToolUse {
                id: self.id.map(|id| id.0).unwrap_or_default(),
                name: self.name?.0,
                input: self.input.map(|input| input.get().to_owned()).unwrap_or_default(),
            }),
            ("tool_result", false) => Some(EventPart::ToolResult {
                id: self.tool_use_id.map(|id| id.0).unwrap_or_default(),
                text: self.content.map(text_of_content).unwrap_or_default(),
            }),
            _ => None,
        }
    }
}

/// A tool's answer is a string, or blocks of which the texts are taken.
fn text_of_content(raw: &RawValue) -> String {
    match MessageContent::read(raw) {
        Some(MessageContent::Text(text)) => text,
        Some(MessageContent::Blocks(blocks)) => {
            let texts: Vec<_> = blocks.into_iter().filter_map(|block| Some(block.text?.0)).collect();
            texts.join("\n")
        }
        None => String::new(),
    }
}

/// A string of JSON as text; `None` if it is something else. Half a character in it becomes U+FFFD.
pub fn string(raw: &RawValue) -> Option<String> {
    serde_json::from_str::<LossyString>(raw.get()).ok().map(|text| text.0)
}

/// What a `result` event may have. Each value is read by itself, so that one of an unexpected shape costs
/// no other.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ResultFields<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    errors: Option<&'a RawValue>,
    #[serde(borrow)]
    subtype: Option<&'a RawValue>,
    #[serde(borrow)]
    is_error: Option<&'a RawValue>,
    #[serde(borrow)]
    num_turns: Option<&'a RawValue>,
    #[serde(borrow)]
    duration_ms: Option<&'a RawValue>,
    #[serde(borrow)]
    total_cost_usd: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    session_id: Option<&'a RawValue>,
    #[serde(borrow)]
    api_error_status: Option<&'a RawValue>,
}

fn is_true(raw: Option<&RawValue>) -> bool {
    raw.is_some_and(|raw| raw.get() == "true")
}

fn value<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>) -> Option<T> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
}

impl ClaudeResult {
    /// Reads a `result` event, whatever of it is as expected.
    fn read(line: &str) -> ClaudeResult {
        let said: ResultFields<'_> = serde_json::from_str(line).unwrap_or_default();
        let errors: Vec<&RawValue> = value(said.errors).unwrap_or_default();
        let mut text = match said.result.and_then(string) {
            Some(text) => text,
            None if errors.is_empty() => said.subtype.and_then(string).unwrap_or_default(),
            None => {
                let texts: Vec<_> =
                    errors.into_iter().map(|error| string(error).unwrap_or_else(|| error.get().to_owned())).collect();
                texts.join("\n")
            }
        };
        let truncated = text.len() > MAX_TEXT;
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        ClaudeResult {
            text,
            truncated,
            is_error: value(said.is_error).unwrap_or(true),
            num_turns: value(said.num_turns),
            duration_ms: value(said.duration_ms),
            total_cost_usd: value(said.total_cost_usd),
            usage: value(said.usage.filter(|usage| usage.get().len() <= MAX_USAGE)),
            session_id: said.session_id.and_then(string),
            api_error_status: value(said.api_error_status),
        }
    }

    /// The same as the result of the last of several turns, of which `before` has the sums so far. Each result
    /// counts the answers, the time and the tokens of its own turn, but the cost of all so far (2.1.197, 2.1.330).
    #[must_use]
    pub fn after(mut self, before: &ClaudeResult) -> ClaudeResult {
        self.num_turns = sum(self.num_turns, before.num_turns);
        self.duration_ms = sum(self.duration_ms, before.duration_ms);
        self.total_cost_usd = self.total_cost_usd.or_else(|| before.total_cost_usd.clone());
        self.usage = match (self.usage, &before.usage) {
            (Some(usage), Some(before)) => Some(sum_of_json(usage, before)),
            (usage, before) => usage.or_else(|| before.clone()),
        };
        self
    }

    /// What a person should know of a failure, and do.
    pub fn advice(&self) -> String {
        let said = brief(&self.text);
        // As the CLI words it: a text about src/login.rs is no such thing.
        let told = self.text.to_lowercase().contains("run /login");
        let signed_out = matches!(self.api_error_status, Some(401 | 403)) || told;
        if signed_out {
            return format!(
                "claude is not signed in: {said}; run `claude` as the backend's user and log in, or give the backend ANTHROPIC_API_KEY"
            );
        }
        format!("claude failed: {said}")
    }
}

/// Both together, or what is known of them.
fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.saturating_add(other)),
        (one, other) => one.or(other),
    }
}

/// Counts of the same name are added; of anything else the newer counts.
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

/// The ending of a run of Claude that exited by itself, from its result and its exit code. The exit
/// code and `is_error` decide, whatever else is said. `None` leaves it to the process's end alone.
pub fn verdict(
    outcome: Option<&ClaudeResult>,
    exited_with_0: bool,
    last_words: &str,
) -> Option<(Status, Reason, String)> {
    match outcome {
        None => {
            let advice = if last_words.is_empty() {
                "claude ended without saying how; its log may tell why".to_owned()
            } else {
                format!("claude ended without saying how; it wrote: {}", brief(last_words))
            };
            Some((Status::Failed, Reason::ClaudeError, advice))
        }
        Some(outcome) if outcome.is_error => Some((Status::Failed, Reason::ClaudeError, outcome.advice())),
        Some(_) if exited_with_0 => Some((Status::Completed, Reason::Exit, String::new())),
        Some(_) => None,
    }
}

/// The beginning of a text, on one line.
fn brief(text: &str) -> String {
    const MAX: usize = 500;
    let words: Vec<_> = text.split_whitespace().collect();
    let mut line = words.join(" ");
    if line.len() > MAX {
        line.truncate(line.floor_char_boundary(MAX));
        line.push_str("...");
    }
    if line.is_empty() { "it said nothing".to_owned() } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_character_costs_nothing_but_itself() {
        let parts = |line: &str| ClaudeEvent::parse(line.as_bytes()).unwrap().parts();
        let said = r#"{"type":"assistant","message":{"content":[{"type":"text","text":"a \ud83d\ude00 b \ud83d"}]}}"#;
        assert_eq!(parts(said), [EventPart::Text("a \u{1f600} b \u{fffd}".to_owned())]);
        for content in [r#""one \ud83d two \ude00""#, r#"[{"type":"text","text":"one \ud83d two \ude00"}]"#] {
            let answer = format!(
                r#"{{"type":"user","message":{{"content":[{{"type":"tool_result","tool_use_id":"1","content":{content}}}]}}}}"#
            );
            let text = "one \u{fffd} two \u{fffd}".to_owned();
            assert_eq!(parts(&answer), [EventPart::ToolResult { id: "1".to_owned(), text }]);
        }
        let last = r#"{"type":"result","subtype":"success","is_error":false,"result":"done \ud83d","num_turns":2,"session_id":"s"}"#;
        let outcome = ClaudeEvent::parse(last.as_bytes()).unwrap().outcome().unwrap();
        assert_eq!((outcome.text.as_str(), outcome.is_error), ("done \u{fffd}", false));
        assert_eq!((outcome.num_turns, outcome.session_id.as_deref()), (Some(2), Some("s")));
        let failed =
            r#"{"type":"result","subtype":"error_during_execution","is_error":true,"errors":["one \ud83d",{"a":1}]}"#;
        let outcome = ClaudeEvent::parse(failed.as_bytes()).unwrap().outcome().unwrap();
        assert_eq!((outcome.text.as_str(), outcome.is_error), ("one \u{fffd}\n{\"a\":1}", true));
    }

    #[test]
    fn only_who_is_told_to_log_in_is_not_signed_in() {
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
