//! One event of Claude Code.

use serde_json::value::RawValue;

use super::json::{Fields, string};
use crate::{agent::lines::EventLine, outcome::ClaudeResult};

/// One event.
#[derive(Debug)]
pub struct ClaudeEvent<'a> {
    fields: Fields<'a>,
    /// Its type, such as `assistant`.
    pub kind: String,
}

/// A change of Claude's background tasks: commands and agents that run beside the main agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TaskChange {
    /// The task with this id has begun.
    Started(String),
    /// The task with this id has ended.
    Ended(String),
    /// These are all tasks that run now.
    Open(Vec<String>),
}

/// A part of an event's content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventPart {
    /// Text of the model.
    Text(String),
    /// The use of a tool.
    ToolUse {
        /// The id of the use.
        id: String,
        /// The tool's name, such as `Bash`.
        name: String,
        /// The tool's input, as JSON.
        input: String,
    },
    /// The result of a tool.
    ToolResult {
        /// The id of the use.
        id: String,
        /// The result, as text.
        text: String,
    },
}

impl<'a> ClaudeEvent<'a> {
    /// Reads a line. `None` if it is not an event: not JSON, or without a type.
    pub fn parse(line: &'a [u8]) -> Option<ClaudeEvent<'a>> {
        let fields = Fields::of(std::str::from_utf8(line).ok()?.trim())?;
        Some(ClaudeEvent { kind: fields.text("type")?, fields })
    }

    /// Reads a line that is not too long for an event.
    pub(super) fn of_line(line: &'a EventLine) -> Option<ClaudeEvent<'a>> {
        match line {
            EventLine::Whole(bytes) => ClaudeEvent::parse(bytes),
            EventLine::Piece(_) => None,
        }
    }

    /// Its subtype, such as `init`.
    pub fn subtype(&self) -> Option<String> {
        self.fields.text("subtype")
    }

    /// Whether it comes from an agent that Claude itself has started.
    pub fn is_of_subagent(&self) -> bool {
        self.fields.raw("parent_tool_use_id").is_some()
    }

    /// Whether it shows that the main agent is in a turn. Other events may also come after the last turn: the end of
    /// tasks that the CLI does not wait for, hooks, and new types of later releases.
    pub fn is_of_a_turn(&self) -> bool {
        if self.is_of_subagent() {
            return false;
        }
        match (&*self.kind, self.subtype().as_deref()) {
            ("assistant" | "user" | "stream_event", _) | ("system", Some("init")) => true,
            ("system", Some("task_started")) => !self.fields.is_true("owned_by_subagent"),
            _ => false,
        }
    }

    /// The change of tasks that it reports (seen with 2.1.197 and 2.1.330).
    pub fn task_change(&self) -> Option<TaskChange> {
        if self.kind != "system" {
            return None;
        }
        let id = || self.fields.text("task_id");
        match &*self.subtype()? {
            // Ambient tasks are the CLI's own, and it does not wait for them.
            "task_started" if !self.fields.is_true("ambient") => id().map(TaskChange::Started),
            "task_notification" => id().map(TaskChange::Ended),
            "task_updated" => {
                let status = self.fields.get::<Fields<'_>>("patch")?.text("status")?;
                let has_ended = matches!(&*status, "completed" | "failed" | "killed");
                id().filter(|_| has_ended).map(TaskChange::Ended)
            }
            "background_tasks_changed" => {
                let tasks: Vec<Fields<'_>> = self.fields.get("tasks")?;
                let awaited = tasks.into_iter().filter(|task| !task.is_true("ambient"));
                Some(TaskChange::Open(awaited.filter_map(|task| task.text("task_id")).collect()))
            }
            _ => None,
        }
    }

    /// Its content: text and uses of tools from `assistant`, results of tools from `user`. `stream_event` has none,
    /// because its text comes again in `assistant`.
    pub fn parts(&self) -> Vec<EventPart> {
        let is_of_assistant = match &*self.kind {
            "assistant" => true,
            "user" => false,
            _ => return Vec::new(),
        };
        let message: Option<Fields<'_>> = self.fields.get("message");
        match message.and_then(|message| MessageContent::read(message.raw("content")?)) {
            Some(MessageContent::Text(text)) if is_of_assistant => vec![EventPart::Text(text)],
            Some(MessageContent::Blocks(blocks)) => {
                blocks.iter().filter_map(|block| part_of(block, is_of_assistant)).collect()
            }
            Some(MessageContent::Text(_)) | None => Vec::new(),
        }
    }

    /// The result of a turn, if this is a `result` event.
    pub fn outcome(&self) -> Option<ClaudeResult> {
        (self.kind == "result").then(|| ClaudeResult::read(&self.fields))
    }
}

/// The content of a message: a string, or blocks.
enum MessageContent<'a> {
    Text(String),
    Blocks(Vec<Fields<'a>>),
}

impl<'a> MessageContent<'a> {
    fn read(raw: &'a RawValue) -> Option<MessageContent<'a>> {
        if raw.get().starts_with('"') {
            return string(raw).map(MessageContent::Text);
        }
        let blocks: Vec<&RawValue> = serde_json::from_str(raw.get()).ok()?;
        Some(MessageContent::Blocks(blocks.into_iter().filter_map(|block| Fields::of(block.get())).collect()))
    }

    fn into_text(self) -> String {
        match self {
            MessageContent::Text(text) => text,
            MessageContent::Blocks(blocks) => {
                blocks.iter().filter_map(|block| block.text("text")).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

fn part_of(block: &Fields<'_>, is_of_assistant: bool) -> Option<EventPart> {
    match (&*block.text("type")?, is_of_assistant) {
        ("text", true) => block.text("text").map(EventPart::Text),
        ("tool_use", true) => Some(EventPart::ToolUse {
            id: block.text("id").unwrap_or_default(),
            name: block.text("name")?,
            input: block.raw("input").map(|input| input.get().to_owned()).unwrap_or_default(),
        }),
        ("tool_result", false) => Some(EventPart::ToolResult {
            id: block.text("tool_use_id").unwrap_or_default(),
            text: block
                .raw("content")
                .and_then(MessageContent::read)
                .map(MessageContent::into_text)
                .unwrap_or_default(),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_surrogate_costs_only_itself() {
        let parts = |line: &str| ClaudeEvent::parse(line.as_bytes()).unwrap().parts();
        let assistant =
            r#"{"type":"assistant","message":{"content":[{"type":"text","text":"a \ud83d\ude00 b \ud83d"}]}}"#;
        assert_eq!(parts(assistant), [EventPart::Text("a \u{1f600} b \u{fffd}".to_owned())]);
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
}
