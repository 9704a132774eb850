//! Follows Claude's events: what it is doing, how often it has answered, and how it says it ended.

use std::{collections::VecDeque, time::Duration};

use super::{
    Event, Outcome, Part,
    lines::{Line, Lines},
};

/// How long Claude may take to exit after it has said how it ended. Some releases never do.
pub const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// Tools in use at a time that are remembered, and how much of a name.
const MAX_TOOLS: usize = 64;
const MAX_NAME: usize = 128;

/// How much of what is no event is remembered, in bytes: the newest.
const MAX_LAST_WORDS: usize = 2 << 10;

/// What is known of one run of Claude.
#[derive(Debug, Default)]
pub struct Watch {
    lines: Lines,
    tools: VecDeque<(String, String)>,
    turns: u32,
    answering: bool,
    outcome: Option<Outcome>,
    last_words: VecDeque<u8>,
}

/// What Claude is doing, as a status tells it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Doing {
    /// `thinking`, or `tool: Bash`; nothing when it has said how it ended.
    pub activity: Option<String>,
    /// How often the model has answered.
    pub turns: u32,
}

impl Watch {
    /// Takes more of its standard output. True if what it does, or how it ended, is another now.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        self.lines.push(bytes);
        let mut changed = false;
        while let Some(line) = self.lines.pop() {
            changed |= self.on_line(&line);
        }
        changed
    }

    /// Nothing more will come: a last line without a newline counts.
    pub fn finish(&mut self) {
        if let Some(line) = self.lines.rest() {
            self.on_line(&line);
        }
    }

    /// Takes note of what it wrote to its standard error: where it fails early, that is all there is.
    pub fn hear(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(MAX_LAST_WORDS)..];
        self.last_words.extend(kept);
        let surplus = self.last_words.len().saturating_sub(MAX_LAST_WORDS);
        self.last_words.drain(..surplus);
    }

    /// What it does now.
    pub fn doing(&self) -> Doing {
        let activity = match (&self.outcome, self.tools.back()) {
            (Some(_), _) => None,
            (None, Some((_, name))) => Some(format!("tool: {name}")),
            (None, None) => Some("thinking".to_owned()),
        };
        Doing { activity, turns: self.turns }
    }

    /// How it says it ended.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// The newest of what it wrote that is no event.
    pub fn last_words(&self) -> String {
        let (front, back) = self.last_words.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).trim().to_owned()
    }

    fn on_line(&mut self, line: &Line) -> bool {
        let (Line::Whole(bytes) | Line::Piece(bytes)) = line;
        let event = if matches!(line, Line::Whole(_)) { Event::parse(bytes) } else { None };
        let Some(event) = event else {
            self.hear(bytes);
            return false;
        };
        if let Some(outcome) = event.outcome() {
            self.outcome = Some(outcome);
            return true;
        }
        if event.is_of_subagent() {
            return false;
        }
        let before = self.doing();
        match &*event.kind {
            "assistant" if !self.answering => {
                self.answering = true;
                self.turns = self.turns.saturating_add(1);
            }
            "user" => self.answering = false,
            _ => {}
        }
        for part in event.parts() {
            match part {
                Part::ToolUse { id, mut name, .. } => {
                    name.truncate(name.floor_char_boundary(MAX_NAME));
                    if self.tools.len() == MAX_TOOLS {
                        self.tools.pop_front();
                    }
                    self.tools.push_back((id, name));
                }
                Part::ToolResult { id, .. } => self.tools.retain(|(used, _)| *used != id),
                Part::Text(_) => {}
            }
        }
        self.doing() != before
    }
}
