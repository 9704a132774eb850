//! The wait for an agent's exit after its last event. Time is a parameter.

use std::time::{Duration, Instant};

use crate::clock::Stopwatch;

/// Measures how long an agent takes to exit that has nothing left to do.
#[derive(Debug)]
pub struct ExitWait {
    patience: Duration,
    /// The time since the last event. Does not run while no events are read.
    quiet: Stopwatch,
    /// The time since which the agent has nothing left to do according to its events.
    expected_since: Option<Instant>,
    stdout_ended: bool,
}

impl ExitWait {
    /// The wait for an agent that has just started. `patience` is the longest time from its last event to its exit.
    pub fn new(patience: Duration, now: Instant) -> Self {
        ExitWait { patience, quiet: Stopwatch::started(now), expected_since: None, stdout_ended: false }
    }

    /// An event arrived, which starts the patience again.
    pub fn on_event(&mut self, now: Instant) {
        self.quiet.reset(now);
    }

    /// Sets whether the agent has nothing left to do. After the end of its standard output that is always so.
    pub fn set_idle(&mut self, is_idle: bool, now: Instant) {
        if is_idle || self.stdout_ended {
            self.expected_since.get_or_insert(now);
        } else {
            self.expected_since = None;
        }
    }

    /// The agent's standard output has ended.
    pub fn on_stdout_end(&mut self, now: Instant) {
        if !self.stdout_ended {
            self.stdout_ended = true;
            self.quiet.reset(now);
            self.set_idle(true, now);
        }
    }

    /// Runs or stops the clock, see [`AgentProgress::run_clock`](super::AgentProgress::run_clock).
    pub fn run_clock(&mut self, runs: bool, now: Instant) {
        self.quiet.run(runs, now);
    }

    /// Whether the agent has nothing left to do.
    pub fn is_expected(&self) -> bool {
        self.expected_since.is_some()
    }

    /// The time by which the agent must exit. The total time-out ends the patience at the latest, because events may
    /// never end, but not before the first patience has passed.
    pub fn due(&self, total: Option<Instant>) -> Option<Instant> {
        let first = self.expected_since? + self.patience;
        let due = self.quiet.due_at(self.patience)?;
        Some(total.map_or(due, |total| due.min(total.max(first))))
    }
}
