//! Follows Claude's events: what it is doing, how often it has answered, how it says it ended, and by when it
//! must have exited after that.
//!
//! A `result` ends its own turn. The CLI goes on by itself when a background task wakes it, and for queued
//! turns (seen with 2.1.197 and 2.1.330), so a later event of the main agent takes the result back.
//! Decided here alone and without a look at a clock: every call is given the time.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use serde::de::IgnoredAny;

use super::{
    ClaudeEvent, EventPart, TaskChange,
    lines::{EventLine, LineSplitter},
    verdict,
};
use crate::{
    activity::Activity,
    agent::AgentProgress,
    clock::Stopwatch,
    outcome::{ClaudeResult, Reason, Status},
};

/// How long Claude may take to exit after its last result, unless a setting says otherwise. Some releases
/// never do; others wait for something that they print no event of.
pub const EXIT_PATIENCE: Duration = Duration::from_secs(45);

/// Tools in use at a time that are remembered, and how much of a name.
const MAX_TOOLS: usize = 64;
const MAX_NAME: usize = 128;

/// How much of what is no event is remembered, in bytes: the newest.
const MAX_LAST_WORDS: usize = 2 << 10;

/// Background tasks at a time that are remembered.
const MAX_TASKS: usize = 1024;

/// What is known of one run of Claude.
#[derive(Debug)]
pub struct ProgressTracker {
    lines: LineSplitter,
    tools: VecDeque<(String, String)>,
    /// The ids of the background tasks that have begun and not ended.
    tasks: BTreeSet<String>,
    turns: u32,
    answering: bool,
    said: ReportedEnd,
    last_words: VecDeque<u8>,
    exit: ExitWait,
    /// When what is read now arrived.
    arrived_at: Instant,
    /// Whether something has changed since that was last asked.
    changed: bool,
}

/// What Claude has said of how it ended.
#[derive(Debug)]
enum ReportedEnd {
    /// No result yet.
    Nothing,
    /// The result of the last turn so far, with the sums of all turns.
    Result(ClaudeResult),
    /// Another turn has begun since that result.
    TakenBack(ClaudeResult),
}

/// The wait for Claude's exit.
#[derive(Debug)]
struct ExitWait {
    patience: Duration,
    /// Since the last event. Stands still while no events are read.
    quiet: Stopwatch,
    /// Since when Claude has nothing left to do, as far as its events tell.
    expected_since: Option<Instant>,
    /// Its standard output has ended.
    is_silent: bool,
}

impl ProgressTracker {
    /// One that has just started, and may take `patience` to exit after its last event.
    pub fn new(patience: Duration, now: Instant) -> Self {
        ProgressTracker {
            lines: LineSplitter::default(),
            tools: VecDeque::new(),
            tasks: BTreeSet::new(),
            turns: 0,
            answering: false,
            said: ReportedEnd::Nothing,
            last_words: VecDeque::new(),
            exit: ExitWait { patience, quiet: Stopwatch::started(now), expected_since: None, is_silent: false },
            arrived_at: now,
            changed: false,
        }
    }

    /// The newest of what it wrote that is no event.
    pub fn last_words(&self) -> String {
        let (front, back) = self.last_words.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).trim().to_owned()
    }

    /// How it says it ended: the result of its last turn, with the sums of all turns. `None` if it began another
    /// turn after that.
    pub fn outcome(&self) -> Option<&ClaudeResult> {
        match &self.said {
            ReportedEnd::Result(outcome) => Some(outcome),
            ReportedEnd::Nothing | ReportedEnd::TakenBack(_) => None,
        }
    }

    fn parse(&mut self, line: &EventLine, now: Instant) {
        let event = if let EventLine::Whole(bytes) = line { ClaudeEvent::parse(bytes) } else { None };
        self.arrived_at = now;
        self.on_line(line, event.as_ref());
    }

    /// Takes a line, and the event that it is.
    pub(super) fn on_line(&mut self, line: &EventLine, event: Option<&ClaudeEvent<'_>>) {
        let (EventLine::Whole(bytes) | EventLine::Piece(bytes)) = line;
        let now = self.arrived_at;
        let Some(event) = event else {
            self.push_stderr(bytes);
            // Results of several turns come one after the other: a line that was cut off may have been the last.
            let before = self.doing();
            if is_broken_event(bytes) {
                self.take_back();
                self.note_exit(now);
            }
            self.changed |= self.doing() != before;
            return;
        };
        self.changed |= self.on_event(event);
        self.exit.quiet.reset(now);
        self.note_exit(now);
    }

    fn on_event(&mut self, event: &ClaudeEvent<'_>) -> bool {
        if let Some(change) = event.task_change() {
            self.on_task(change);
        }
        if event.is_of_subagent() {
            return false;
        }
        if let Some(outcome) = event.outcome() {
            let said = std::mem::replace(&mut self.said, ReportedEnd::Nothing);
            self.said = ReportedEnd::Result(match said {
                ReportedEnd::Nothing => outcome,
                ReportedEnd::Result(before) | ReportedEnd::TakenBack(before) => outcome.after(&before),
            });
            self.answering = false;
            return true;
        }
        let before = self.doing();
        if event.is_of_a_turn() {
            self.take_back();
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
        self.doing() != before
    }

    fn on_task(&mut self, change: TaskChange) {
        match change {
            TaskChange::Started(id) if self.tasks.len() < MAX_TASKS => drop(self.tasks.insert(id)),
            TaskChange::Started(_) => {}
            TaskChange::Ended(id) => drop(self.tasks.remove(&id)),
            TaskChange::Open(ids) => self.tasks = ids.into_iter().take(MAX_TASKS).collect(),
        }
    }

    fn take_back(&mut self) {
        self.said = match std::mem::replace(&mut self.said, ReportedEnd::Nothing) {
            ReportedEnd::Result(outcome) => ReportedEnd::TakenBack(outcome),
            said => said,
        };
    }

    fn note_exit(&mut self, now: Instant) {
        if self.exit.is_silent || (self.outcome().is_some() && self.tasks.is_empty()) {
            self.exit.expected_since.get_or_insert(now);
        } else {
            self.exit.expected_since = None;
        }
    }
}

impl AgentProgress for ProgressTracker {
    fn feed(&mut self, bytes: &[u8], now: Instant) -> bool {
        self.lines.push(bytes);
        while let Some(line) = self.lines.pop() {
            self.parse(&line, now);
        }
        self.take_change()
    }

    fn arrived(&mut self, now: Instant) {
        self.arrived_at = now;
    }

    fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn push_stderr(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(MAX_LAST_WORDS)..];
        self.last_words.extend(kept);
        let surplus = self.last_words.len().saturating_sub(MAX_LAST_WORDS);
        self.last_words.drain(..surplus);
    }

    fn finish(&mut self, now: Instant) {
        if let Some(line) = self.lines.rest() {
            self.parse(&line, now);
        }
        if !self.exit.is_silent {
            self.exit.is_silent = true;
            self.exit.quiet.reset(now);
            self.note_exit(now);
        }
    }

    fn run_clock(&mut self, runs: bool, now: Instant) {
        self.exit.quiet.run(runs, now);
    }

    fn expects_exit(&self) -> bool {
        self.exit.expected_since.is_some()
    }

    /// The time starts anew with each event. Since events that never end must not keep it for ever, it is over
    /// with the total time-out at the latest, but never before the first `patience` has passed.
    fn exit_due(&self, total: Option<Instant>) -> Option<Instant> {
        let first = self.exit.expected_since? + self.exit.patience;
        let due = self.exit.quiet.due_at(self.exit.patience)?;
        Some(total.map_or(due, |total| due.min(total.max(first))))
    }

    fn doing(&self) -> Activity {
        let activity = match (self.outcome(), self.tools.back()) {
            (Some(_), _) => None,
            (None, Some((_, name))) => Some(format!("tool: {name}")),
            (None, None) => Some("thinking".to_owned()),
        };
        Activity { activity, turns: self.turns }
    }

    fn result(&self) -> Option<&ClaudeResult> {
        self.outcome()
    }

    fn verdict(&self, exited_with_0: bool) -> Option<(Status, Reason, String)> {
        verdict(self.outcome(), exited_with_0, &self.last_words())
    }
}

/// Whether a line that is no event may be what is left of one: not JSON, but begun as an object is.
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
        let mut watch = ProgressTracker::new(PATIENCE, start);
        for (line, seconds) in lines.iter().zip(1..) {
            watch.feed(format!("{line}\n").as_bytes(), start + Duration::from_secs(seconds));
        }
        watch
    }

    #[test]
    fn a_result_stands_until_another_turn_begins_and_is_waited_for_while_no_task_is_open() {
        // Whether it has an outcome, and how many seconds after the last line its exit is due.
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
            // A task of a subagent is no turn, but is waited for.
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
        for (lines, has_outcome, due) in table {
            let watch = run(start, lines);
            let due = due.map(|seconds| start + Duration::from_secs(lines.len() as u64 + seconds));
            assert_eq!((watch.outcome().is_some(), watch.exit_due(None)), (has_outcome, due), "{lines:?}");
        }
    }

    #[test]
    fn the_time_for_the_exit_stands_still_while_nothing_is_read() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = run(start, &[RESULT]);
        watch.run_clock(false, at(11));
        assert_eq!(watch.exit_due(None), None);
        watch.run_clock(true, at(1_000));
        assert_eq!(watch.exit_due(None), Some(at(1_000 + 35)));
    }

    #[test]
    fn events_without_end_do_not_outlive_the_total_time_out() {
        let start = Instant::now();
        let at = |seconds| Some(start + Duration::from_secs(seconds));
        let once = run(start, &[RESULT]);
        assert_eq!(once.exit_due(at(20)), at(46), "it has its time, whatever the time-out");
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
    fn silence_is_an_end_whatever_is_open() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for (lines, has_outcome) in [(&[STARTED, RESULT][..], true), (&[RESULT, SAID], false), (&[], false)] {
            let mut watch = run(start, lines);
            watch.finish(at(10));
            watch.finish(at(20));
            assert_eq!((watch.outcome().is_some(), watch.exit_due(None)), (has_outcome, Some(at(55))), "{lines:?}");
        }
    }

    #[test]
    fn an_unfinished_last_line_is_an_event_or_takes_the_result_back() {
        let start = Instant::now();
        for (last, expected) in [(RESULT, Some("done")), ("", Some("done")), ("bye", Some("done")), (CUT, None)] {
            let mut watch = run(start, &[RESULT]);
            watch.feed(last.as_bytes(), start);
            watch.finish(start);
            assert_eq!(watch.outcome().map(|outcome| outcome.text.as_str()), expected, "{last}");
        }
        // A result that is too long to be read is no reason to believe the one before.
        let mut watch = run(start, &[RESULT]);
        watch.feed(&[CUT.as_bytes(), &vec![b'x'; 17 << 20], b"\n"].concat(), start);
        assert_eq!(watch.outcome(), None);
    }

    #[test]
    fn turns_are_counted_over_all_results() {
        let watch = run(Instant::now(), &[INIT, SAID, RESULT, INIT, SAID, SAID, RESULT]);
        assert_eq!((watch.doing().turns, watch.outcome().unwrap().num_turns), (2, Some(4)));
    }
}
