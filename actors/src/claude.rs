//! What Claude Code prints with `--output-format stream-json`: one JSON event a line.
//!
//! Only what is decided from is read. Unknown types, and known ones with another shape than expected, come
//! with every release: nothing here fails over one.

pub mod lines;
pub mod watch;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value, value::RawValue};

use crate::terminate::{Reason, Status};

/// The name of the executor that runs Claude Code.
pub const EXECUTOR: &str = "claude";

/// The longest line that is taken for an event, in bytes.
pub const MAX_LINE: usize = 16 << 20;

/// The most of a result's text that is told, in bytes.
const MAX_TEXT: usize = 64 << 10;

/// The most of a result's usage that is told, in bytes of JSON.
const MAX_USAGE: usize = 64 << 10;

/// One event.
#[derive(Debug)]
pub struct Event<'a> {
    line: &'a str,
    head: Head<'a>,
    /// Its type, such as `assistant`.
    pub kind: Cow<'a, str>,
}

/// What every event may have. Values of any shape are let in here and read where they are wanted.
#[derive(Deserialize, Debug)]
struct Head<'a> {
    #[serde(borrow)]
    r#type: &'a RawValue,
    #[serde(borrow, default)]
    subtype: Option<&'a RawValue>,
    #[serde(borrow, default)]
    parent_tool_use_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
}

/// The part of an API message that is read.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    content: &'a RawValue,
}

/// Content is a string, or blocks.
enum Content<'a> {
    Text(String),
    Blocks(Vec<Block<'a>>),
}

impl<'a> Content<'a> {
    fn read(raw: &'a RawValue) -> Option<Content<'a>> {
        if raw.get().starts_with('"') {
            return serde_json::from_str(raw.get()).ok().map(Content::Text);
        }
        let blocks: Vec<&RawValue> = serde_json::from_str(raw.get()).ok()?;
        Some(Content::Blocks(blocks.into_iter().filter_map(|block| serde_json::from_str(block.get()).ok()).collect()))
    }
}

/// A block of an API message, as far as it is read.
#[derive(Deserialize)]
struct Block<'a> {
    r#type: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    tool_use_id: Option<String>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
}

/// What an event says that matters here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
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

impl<'a> Event<'a> {
    /// Reads a line. `None` if it is no event: not JSON, or without a type.
    pub fn parse(line: &'a [u8]) -> Option<Event<'a>> {
        let line = std::str::from_utf8(line).ok()?.trim();
        let head: Head<'a> = serde_json::from_str(line).ok()?;
        Some(Event { line, kind: text_of(head.r#type)?, head })
    }

    /// The event as it came.
    pub fn json(&self) -> &'a str {
        self.line
    }

    /// Its subtype, such as `init`.
    pub fn subtype(&self) -> Option<Cow<'a, str>> {
        self.head.subtype.and_then(text_of)
    }

    /// Whether it is of an agent that Claude itself has started.
    pub fn is_of_subagent(&self) -> bool {
        self.head.parent_tool_use_id.is_some()
    }

    /// What is said and done in it: of `assistant` its text and the tools used, of `user` what tools have
    /// answered. `stream_event` is left out, since its text comes again in `assistant`.
    pub fn parts(&self) -> Vec<Part> {
        let of_assistant = match &*self.kind {
            "assistant" => true,
            "user" => false,
            _ => return Vec::new(),
        };
        let message = self.head.message.and_then(|raw| serde_json::from_str::<Message<'_>>(raw.get()).ok());
        match message.and_then(|message| Content::read(message.content)) {
            Some(Content::Text(text)) if of_assistant => vec![Part::Text(text)],
            Some(Content::Blocks(blocks)) => {
                blocks.into_iter().filter_map(|block| block.into_part(of_assistant)).collect()
            }
            Some(Content::Text(_)) | None => Vec::new(),
        }
    }

    /// How Claude says it ended, if this is that event.
    pub fn outcome(&self) -> Option<Outcome> {
        (self.kind == "result").then(|| Outcome::read(self.line))
    }
}

impl Block<'_> {
    fn into_part(self, of_assistant: bool) -> Option<Part> {
        match (&*self.r#type, of_assistant) {
            ("text", true) => self.text.map(Part::Text),
            ("tool_use", true) => Some(Part::ToolUse {
                id: self.id.unwrap_or_default(),
                name: self.name?,
                input: self.input.map(|input| input.get().to_owned()).unwrap_or_default(),
            }),
            ("tool_result", false) => Some(Part::ToolResult {
                id: self.tool_use_id.unwrap_or_default(),
                text: self.content.map(text_of_content).unwrap_or_default(),
            }),
            _ => None,
        }
    }
}

/// A tool's answer is a string, or blocks of which the texts are taken.
fn text_of_content(raw: &RawValue) -> String {
    match Content::read(raw) {
        Some(Content::Text(text)) => text,
        Some(Content::Blocks(blocks)) => {
            let texts: Vec<_> = blocks.into_iter().filter_map(|block| block.text).collect();
            texts.join("\n")
        }
        None => String::new(),
    }
}

fn text_of(raw: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'_>>(raw.get()).ok().map(|text| text.0)
}

/// How Claude says that it ended: the `result` of a final status.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Its last words.
    pub text: String,
    /// Present where the text was too long to be told whole.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub truncated: bool,
    /// Whether it failed. Where Claude does not say, it did.
    pub is_error: bool,
    /// How often the model answered.
    pub num_turns: Option<u64>,
    /// Its own measure of its run, in milliseconds.
    pub duration_ms: Option<u64>,
    /// What that cost, in US dollars.
    pub total_cost_usd: Option<Number>,
    /// Tokens, as the API counts them.
    pub usage: Option<Value>,
    /// What `resume` takes to go on from here.
    pub session_id: Option<String>,
    /// The API's HTTP status, where that was the error.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub api_error_status: Option<u64>,
}

impl Outcome {
    /// Reads a `result` event, whatever of it is as expected.
    fn read(line: &str) -> Outcome {
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        let mut text = match (&value["result"], &value["errors"]) {
            (Value::String(text), _) => text.clone(),
            (_, Value::Array(errors)) if !errors.is_empty() => {
                let texts: Vec<_> = errors
                    .iter()
                    .map(|error| error.as_str().map_or_else(|| error.to_string(), str::to_owned))
                    .collect();
                texts.join("\n")
            }
            _ => value["subtype"].as_str().unwrap_or_default().to_owned(),
        };
        let truncated = text.len() > MAX_TEXT;
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        Outcome {
            text,
            truncated,
            is_error: value["is_error"].as_bool().unwrap_or(true),
            num_turns: value["num_turns"].as_u64(),
            duration_ms: value["duration_ms"].as_u64(),
            total_cost_usd: value["total_cost_usd"].as_number().cloned(),
            usage: value.get("usage").filter(|usage| usage.to_string().len() <= MAX_USAGE).cloned(),
            session_id: value["session_id"].as_str().map(str::to_owned),
            api_error_status: value["api_error_status"].as_u64(),
        }
    }

    /// What a person should know of a failure, and do.
    pub fn advice(&self) -> String {
        let said = brief(&self.text);
        let signed_out = matches!(self.api_error_status, Some(401 | 403)) || self.text.contains("/login");
        if signed_out {
            return format!(
                "claude is not signed in: {said}; run `claude` as the backend's user and log in, or give the backend ANTHROPIC_API_KEY"
            );
        }
        format!("claude failed: {said}")
    }
}

/// How an execution of Claude ended that nobody ended, from its own words and its process's end. The exit
/// code and `is_error` decide, whatever else is said. `None` leaves it to the process's end alone.
pub fn verdict(outcome: Option<&Outcome>, exited_with_0: bool, last_words: &str) -> Option<(Status, Reason, String)> {
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
