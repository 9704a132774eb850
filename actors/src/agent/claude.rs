//! Claude Code, which prints one JSON event per line with `--output-format stream-json`.
//!
//! Each release brings new types of events and new fields, so nothing here fails because of an unknown type or an
//! unexpected shape; only the fields that matter here are read.

mod event;
mod json;
pub mod progress;
mod result;

use std::{
    cell::RefCell,
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use self::progress::ProgressTracker;
pub use self::{
    event::{ClaudeEvent, EventPart},
    json::string,
};
use super::{
    Agent, AgentProgress, ReaderOptions, SharedProgress,
    lines::EventLine,
    reader::{AgentEvent, EventFormat, EventReader},
};
use crate::{output::AgentReader, protocol::CLAUDE_EXECUTOR};

/// The name of the executor that runs Claude Code.
pub const EXECUTOR: &str = CLAUDE_EXECUTOR;

/// Claude Code.
#[derive(Clone, Copy, Debug)]
pub struct Claude;

impl Agent for Claude {
    fn executor(&self) -> &'static str {
        EXECUTOR
    }

    fn advice_if_missing(&self, program: &str) -> String {
        let name = Path::new(program).display();
        format!(
            "{name} does not exist: install Claude Code (npm install -g @anthropic-ai/claude-code) where the backend runs, or name its path in CC_EXECUTOR_EXECUTORS"
        )
    }

    fn progress(&self, exit_patience: Duration, now: Instant) -> Box<dyn AgentProgress> {
        Box::new(ProgressTracker::new(exit_patience, now))
    }

    fn reader(&self, options: ReaderOptions) -> Box<dyn AgentReader> {
        Box::new(EventReader::new(ClaudeFormat::default(), options))
    }

    fn reader_with_progress(
        &self,
        options: ReaderOptions,
        exit_patience: Duration,
        now: Instant,
    ) -> (Box<dyn AgentReader>, SharedProgress) {
        let progress = Rc::new(RefCell::new(ProgressTracker::new(exit_patience, now)));
        let format = ClaudeFormat { progress: Some(Rc::clone(&progress)) };
        (Box::new(EventReader::new(format, options)), progress)
    }
}

/// The format of Claude's events, with the progress that they update.
#[derive(Default)]
pub struct ClaudeFormat {
    progress: Option<Rc<RefCell<ProgressTracker>>>,
}

impl EventFormat for ClaudeFormat {
    fn read(&mut self, line: &EventLine) -> Option<AgentEvent> {
        let event = ClaudeEvent::of_line(line);
        if let Some(progress) = &self.progress {
            progress.borrow_mut().on_line(line, event.as_ref());
        }
        let event = event?;
        let text_of = |part| match part {
            EventPart::Text(text) | EventPart::ToolResult { text, .. } => Some(text),
            EventPart::ToolUse { .. } => None,
        };
        let parts = if event.is_of_subagent() { Vec::new() } else { event.parts() };
        let texts = parts.into_iter().filter_map(text_of).collect();
        Some(AgentEvent { texts, json: None, kind: (event.kind.clone(), event.subtype()) })
    }
}
