//! The progress of Claude from its events: its activity, its turns, its result, and the time by which it must exit.
//!
//! A `result` ends its own turn. The CLI continues by itself when a background task wakes it, and for queued turns
//! (seen with 2.1.197 and 2.1.330), so a later event of the main agent withdraws the result. Time is a parameter.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use serde::de::IgnoredAny;

use super::{
    event::{ClaudeEvent, EventPart, TaskChange},
    result::verdict,
};
use crate::{
    activity::Activity,
    agent::{
        AgentProgress,
        exit_wait::ExitWait,
        lines::{EventLine, LineSplitter},
    },
    outcome::{ClaudeResult, Reason, Status},
};

/// The default time that Claude may take to exit after its last result. Some releases never exit; others wait for
/// something that no event reports.
pub const EXIT_PATIENCE: Duration = Duration::from_secs(45);

/// The most tools in use that are remembered.
const MAX_TOOLS: usize = 64;

/// The longest name of a tool, in bytes.
const MAX_NAME: usize = 128;

/// The longest remembered end of the output that is not an event, in bytes.
const MAX_STDERR: usize = 2 << 10;

/// The most background tasks that are remembered.
const MAX_TASKS: usize = 1024;

/// The state of one run of Claude.
#[derive(Debug)]
pub struct ProgressTracker {
    lines: LineSplitter,
    /// The tools in use: the id of the use, and the tool's name.
    tools: VecDeque<(String, String)>,
    /// The ids of the background tasks that run.
    tasks: BTreeSet<String>,
    turns: u32,
    /// Whether the newest event of a turn is the model's.
    answering: bool,
    result: ReportedResult,
    /// The end of the output that is not an event.
    stderr: VecDeque<u8>,
    exit: ExitWait,
    /// The arrival time of the events that are read now.
    arrived_at: Instant,
    /// Whether the activity or the result has changed since the last [`AgentProgress::take_change`].
    changed: bool,
}

#[derive(Debug)]
enum ReportedResult {
    /// No turn has ended.
    None,
    /// The result of the last turn, with the sums of all turns.
    Valid(ClaudeResult),
    /// Another turn has begun since that result.
    Withdrawn(ClaudeResult),
}

impl ProgressTracker {
    /// A run that has just started. `patience` is the longest time from its last event to its exit.
    pub fn new(patience: Duration, now: Instant) -> Self {
        ProgressTracker {
            lines: LineSplitter::default(),
            tools: VecDeque::new(),
            tasks: BTreeSet::new(),
            turns: 0,
            answering: false,
            result: ReportedResult::None,
            stderr: VecDeque::new(),
            exit: ExitWait::new(patience, now),
            arrived_at: now,
            changed: false,
        }
    }

    fn parse(&mut self, line: &EventLine, now: Instant) {
        self.arrived_at = now;
        self.on_line(line, ClaudeEvent::of_line(line).as_ref());
    }

    /// Handles a line, with its event if it is one.
    pub(super) fn on_line(&mut self, line: &EventLine, event: Option<&ClaudeEvent<'_>>) {
        let now = self.arrived_at;
        match event {
            Some(event) => {
                self.changed |= self.on_event(event);
                self.exit.on_event(now);
                self.update_exit(now);
            }
            None => {
                self.push_stderr(line.bytes());
                // The line may be the cut-off result of a later turn.
                if is_broken_event(line.bytes()) {
                    let before = self.activity();
                    self.withdraw_result();
                    self.update_exit(now);
                    self.changed |= self.activity() != before;
                }
            }
        }
    }

    fn on_event(&mut self, event: &ClaudeEvent<'_>) -> bool {
        if let Some(change) = event.task_change() {
            self.on_task(change);
        }
        if event.is_of_subagent() {
            return false;
        }
        if let Some(result) = event.outcome() {
            self.result = ReportedResult::Valid(match &self.result {
                ReportedResult::None => result,
                ReportedResult::Valid(earlier) | ReportedResult::Withdrawn(earlier) => result.after(earlier),
            });
            self.answering = false;
            return true;
        }
        let before = self.activity();
        if event.is_of_a_turn() {
            self.withdraw_result();
        }
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
                EventPart::ToolUse { id, mut name, .. } => {
                    name.truncate(name.floor_char_boundary(MAX_NAME));
                    if self.tools.len() == MAX_TOOLS {
                        self.tools.pop_front();
                    }
                    self.tools.push_back((id, name));
                }
                EventPart::ToolResult { id, .. } => self.tools.retain(|(used, _)| *used != id),
                EventPart::Text(_) => {}
            }
        }
        self.activity() != before
    }

    fn on_task(&mut self, change: TaskChange) {
        match change {
            TaskChange::Started(id) if self.tasks.len() < MAX_TASKS => drop(self.tasks.insert(id)),
            TaskChange::Started(_) => {}
            TaskChange::Ended(id) => drop(self.tasks.remove(&id)),
            TaskChange::Open(ids) => self.tasks = ids.into_iter().take(MAX_TASKS).collect(),
        }
    }

    fn withdraw_result(&mut self) {
        self.result = match std::mem::replace(&mut self.result, ReportedResult::None) {
            ReportedResult::Valid(result) => ReportedResult::Withdrawn(result),
            other => other,
        };
    }

    fn update_exit(&mut self, now: Instant) {
        self.exit.set_idle(self.result().is_some() && self.tasks.is_empty(), now);
    }
}

impl AgentProgress for ProgressTracker {
    fn push_stdout(&mut self, bytes: &[u8], now: Instant) -> bool {
        self.lines.push(bytes);
        while let Some(line) = self.lines.pop() {
            self.parse(&line, now);
        }
        self.take_change()
    }

    fn set_arrival(&mut self, now: Instant) {
        self.arrived_at = now;
    }

    fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn push_stderr(&mut self, bytes: &[u8]) {
        self.stderr.extend(&bytes[bytes.len().saturating_sub(MAX_STDERR)..]);
        let surplus = self.stderr.len().saturating_sub(MAX_STDERR);
        self.stderr.drain(..surplus);
    }

    fn finish(&mut self, now: Instant) {
        if let Some(line) = self.lines.rest() {
            self.parse(&line, now);
        }
        self.exit.on_stdout_end(now);
    }

    fn run_clock(&mut self, runs: bool, now: Instant) {
        self.exit.run_clock(runs, now);
    }

    fn expects_exit(&self) -> bool {
        self.exit.is_expected()
    }

    fn exit_due(&self, total: Option<Instant>) -> Option<Instant> {
        self.exit.due(total)
    }

    fn activity(&self) -> Activity {
        let activity = match (self.result(), self.tools.back()) {
            (Some(_), _) => None,
            (None, Some((_, name))) => Some(format!("tool: {name}")),
            (None, None) => Some("thinking".to_owned()),
        };
        Activity { activity, turns: self.turns }
    }

    fn result(&self) -> Option<&ClaudeResult> {
        match &self.result {
            ReportedResult::Valid(result) => Some(result),
            ReportedResult::None | ReportedResult::Withdrawn(_) => None,
        }
    }

    fn verdict(&self, exited_with_0: bool) -> Option<(Status, Reason, String)> {
        let stderr: Vec<u8> = self.stderr.iter().copied().collect();
        verdict(self.result(), exited_with_0, String::from_utf8_lossy(&stderr).trim())
    }
}

/// Whether a line may be a part of an event: not JSON, but with the beginning of an object.
fn is_broken_event(line: &[u8]) -> bool {
    let is_json = |line| std::str::from_utf8(line).is_ok_and(|line| serde_json::from_str::<IgnoredAny>(line).is_ok());
    line.trim_ascii_start().starts_with(b"{") && !is_json(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: &str = r#"{"type":"result","is_error":false,"result":"done","num_turns":2,"duration_ms":5}"#;
    const INIT: &str = r#"{"type":"system","subtype":"init"}"#;
    const SAID: &str =
        r#"{"type":"assistant","message":{"content":[{"type":"text","text":"x"}]},"parent_tool_use_id":null}"#;
    const STARTED: &str = r#"{"type":"system","subtype":"task_started","task_id":"b1"}"#;
    const FOREGROUND: &str = r#"{"type":"system","subtype":"task_started","task_id":"b2","is_backgrounded":false}"#;
    const OF_SUBAGENT: &str = r#"{"type":"system","subtype":"task_started","task_id":"b3","owned_by_subagent":true}"#;
    const NOTIFIED: &str = r#"{"type":"system","subtype":"task_notification","task_id":"b1","status":"completed"}"#;
    const UPDATED: &str = r#"{"type":"system","subtype":"task_updated","task_id":"b1","patch":{"status":"killed"}}"#;
    const PAUSED: &str = r#"{"type":"system","subtype":"task_updated","task_id":"b1","patch":{"status":"paused"}}"#;
    const OPEN: &str = r#"{"type":"system","subtype":"background_tasks_changed","tasks":[{"task_id":"b1"}]}"#;
    const AMBIENT: &str =
        r#"{"type":"system","subtype":"background_tasks_changed","tasks":[{"task_id":"b1","ambient":true}]}"#;
    const NONE_OPEN: &str = r#"{"type":"system","subtype":"background_tasks_changed","tasks":[]}"#;
    const SUBAGENT_SAID: &str =
        r#"{"type":"assistant","message":{"content":[]},"parent_tool_use_id":"toolu_1","session_id":"s"}"#;
    const UNKNOWN: &str = r#"{"type":"system","subtype":"of_tomorrow"}"#;
    const CUT: &str = r#"{"type":"result","is_error":fal"#;

    const PATIENCE: Duration = Duration::from_secs(45);

    /// A run that prints these lines, one a second.
    fn run(start: Instant, lines: &[&str]) -> ProgressTracker {
        let mut progress = ProgressTracker::new(PATIENCE, start);
        for (line, seconds) in lines.iter().zip(1..) {
            progress.push_stdout(format!("{line}\n").as_bytes(), start + Duration::from_secs(seconds));
        }
        progress
    }

    #[test]
    fn a_result_is_valid_until_the_next_turn_and_the_exit_is_due_if_no_task_runs() {
        // Whether it has a result, and how many seconds after the last line its exit is due.
        let table: [(&[&str], bool, Option<u64>); 24] = [
            (&[], false, None),
            (&[INIT, SAID], false, None),
            (&[RESULT], true, Some(45)),
            (&[RESULT, RESULT], true, Some(45)),
            (&[RESULT, INIT], false, None),
            (&[RESULT, SAID], false, None),
            (&[RESULT, STARTED], false, None),
            (&[RESULT, FOREGROUND], false, None),
            (&[RESULT, INIT, SAID, RESULT], true, Some(45)),
            (&[RESULT, SUBAGENT_SAID], true, Some(45)),
            (&[RESULT, UNKNOWN], true, Some(45)),
            (&[RESULT, CUT], false, None),
            (&[RESULT, "no event"], true, Some(44)),
            (&[RESULT, r#"{"no":"event"}"#], true, Some(44)),
            // A task of a subagent is not a turn, but delays the exit.
            (&[RESULT, OF_SUBAGENT], true, None),
            (&[STARTED, RESULT], true, None),
            (&[OPEN, STARTED, RESULT], true, None),
            (&[STARTED, RESULT, PAUSED], true, None),
            (&[STARTED, RESULT, UPDATED], true, Some(45)),
            (&[STARTED, RESULT, NOTIFIED], true, Some(45)),
            (&[OPEN, RESULT, NONE_OPEN], true, Some(45)),
            (&[OPEN, RESULT, UPDATED, NOTIFIED, NONE_OPEN], true, Some(45)),
            (&[OPEN, STARTED, RESULT, UPDATED, NOTIFIED, NONE_OPEN, INIT], false, None),
            (&[AMBIENT, RESULT], true, Some(45)),
        ];
        let start = Instant::now();
        for (lines, has_result, due) in table {
            let progress = run(start, lines);
            let due = due.map(|seconds| start + Duration::from_secs(lines.len() as u64 + seconds));
            assert_eq!((progress.result().is_some(), progress.exit_due(None)), (has_result, due), "{lines:?}");
        }
    }

    #[test]
    fn the_clock_of_the_exit_can_stop() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut progress = run(start, &[RESULT]);
        progress.run_clock(false, at(11));
        assert_eq!(progress.exit_due(None), None);
        progress.run_clock(true, at(1_000));
        assert_eq!(progress.exit_due(None), Some(at(1_000 + 35)));
    }

    #[test]
    fn endless_events_do_not_delay_the_exit_beyond_the_total_time_out() {
        let start = Instant::now();
        let at = |seconds| Some(start + Duration::from_secs(seconds));
        let once = run(start, &[RESULT]);
        assert_eq!(once.exit_due(at(20)), at(46), "the first patience passes, whatever the time-out");
        assert_eq!(once.exit_due(at(99)), at(46));
        let chatty = run(start, &[&[RESULT][..], &[UNKNOWN; 99]].concat());
        assert_eq!(
            [chatty.exit_due(at(20)), chatty.exit_due(at(80)), chatty.exit_due(at(500))],
            [at(46), at(80), at(145)]
        );
        let repeating = run(start, &[RESULT; 100]);
        assert_eq!(repeating.exit_due(at(80)), at(80));
    }

    #[test]
    fn the_exit_is_due_after_the_end_of_standard_output_even_if_tasks_run() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for (lines, has_result) in [(&[STARTED, RESULT][..], true), (&[RESULT, SAID], false), (&[], false)] {
            let mut progress = run(start, lines);
            progress.finish(at(10));
            progress.finish(at(20));
            assert_eq!((progress.result().is_some(), progress.exit_due(None)), (has_result, Some(at(55))), "{lines:?}");
        }
    }

    #[test]
    fn an_unfinished_last_line_is_an_event_or_withdraws_the_result() {
        let start = Instant::now();
        for (last, expected) in [(RESULT, Some("done")), ("", Some("done")), ("bye", Some("done")), (CUT, None)] {
            let mut progress = run(start, &[RESULT]);
            progress.push_stdout(last.as_bytes(), start);
            progress.finish(start);
            assert_eq!(progress.result().map(|result| result.text.as_str()), expected, "{last}");
        }
        // A result that is too long withdraws the result before it.
        let mut progress = run(start, &[RESULT]);
        progress.push_stdout(&[CUT.as_bytes(), &vec![b'x'; 17 << 20], b"\n"].concat(), start);
        assert_eq!(progress.result(), None);
    }

    #[test]
    fn turns_are_counted_over_all_results() {
        let progress = run(Instant::now(), &[INIT, SAID, RESULT, INIT, SAID, SAID, RESULT]);
        assert_eq!((progress.activity().turns, progress.result().unwrap().num_turns), (2, Some(4)));
    }
}
