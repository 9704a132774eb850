//! Agent CLIs: programs that take a prompt and print their work as events.
//!
//! An [`Agent`] interprets the events of one such program, without files or processes; the backend has the other half,
//! which starts it. [`named`] finds an agent by the name of its executor. Only that name says which agent runs.
//!
//! A gateway reads the events with an [`EventReader`](reader::EventReader) for its client, a backend with an
//! [`AgentProgress`] for the status. Where one process does both, the reader updates the progress.

pub mod claude;
pub mod exit_wait;
pub mod lines;
pub mod reader;

use std::{
    cell::RefCell,
    fmt,
    rc::Rc,
    time::{Duration, Instant},
};

use crate::{
    activity::Activity,
    id::ExecutionId,
    outcome::{ClaudeResult, Reason, Status},
    output::AgentReader,
    protocol::Framing,
};

/// All agents.
const AGENTS: &[&dyn Agent] = &[&claude::Claude];

/// The agent that the executor with this name runs; `None` if the executor runs commands.
pub fn named(executor: &str) -> Option<&'static dyn Agent> {
    AGENTS.iter().copied().find(|agent| agent.executor() == executor)
}

/// The interpretation of one agent CLI.
pub trait Agent: Sync + fmt::Debug {
    /// The name of the executor that runs it.
    fn executor(&self) -> &'static str;

    /// The longest event, in bytes. Events are delivered whole, so an output buffer must have room for one.
    fn max_event_bytes(&self) -> usize {
        lines::MAX_LINE
    }

    /// The message for people if `program`, the path of the CLI, does not exist.
    fn advice_if_missing(&self, program: &str) -> String;

    /// Starts to track its progress. `exit_patience` is the longest time from its last event to its exit.
    fn progress(&self, exit_patience: Duration, now: Instant) -> Box<dyn AgentProgress>;

    /// Starts to read its events for a client.
    fn reader(&self, options: ReaderOptions) -> Box<dyn AgentReader>;

    /// A reader that also updates a progress, so that each event is parsed once.
    fn reader_with_progress(
        &self,
        options: ReaderOptions,
        exit_patience: Duration,
        now: Instant,
    ) -> (Box<dyn AgentReader>, SharedProgress);
}

/// How an agent's events are read for one client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReaderOptions {
    /// How texts are cut into messages.
    pub framing: Framing,
    /// The bytes of standard output that the client has already.
    pub start: u64,
    /// The execution's id for `event` notifications; `None` if the client does not want them.
    pub events_of: Option<ExecutionId>,
}

/// A progress that a reader updates.
pub type SharedProgress = Rc<RefCell<dyn AgentProgress>>;

/// The state of one run of an agent, from its events. Time is a parameter.
pub trait AgentProgress {
    /// Reads more of its standard output. Returns whether its activity or its result has changed.
    fn push_stdout(&mut self, bytes: &[u8], now: Instant) -> bool;

    /// Sets the arrival time of the events that a reader passes on from now on. For a [`SharedProgress`] only.
    fn set_arrival(&mut self, now: Instant);

    /// Whether its activity or its result has changed since the last call.
    fn take_change(&mut self) -> bool;

    /// Keeps the end of its standard error, which explains a failure before the first event.
    fn push_stderr(&mut self, bytes: &[u8]);

    /// Handles the end of its standard output. A last line without a newline counts.
    fn finish(&mut self, now: Instant);

    /// Runs or stops the clock of its exit. The clock must not run while the agent is paused or its output is not read,
    /// because silence means nothing then.
    fn run_clock(&mut self, runs: bool, now: Instant);

    /// Whether its events show that it has nothing left to do.
    fn expects_exit(&self) -> bool;

    /// The time by which it must exit. `total` is when the total time-out passes; it can only bring the time forward,
    /// never before one patience is over. `None` while it may still work, and while the clock does not run.
    fn exit_due(&self, total: Option<Instant>) -> Option<Instant>;

    /// Its current activity.
    fn activity(&self) -> Activity;

    /// The result that it reported.
    fn result(&self) -> Option<&ClaudeResult>;

    /// Status, reason and message of an execution that exited by itself, or was ended after its result (`exited_with_0`
    /// is true then). `None` if the exit code alone decides.
    fn verdict(&self, exited_with_0: bool) -> Option<(Status, Reason, String)>;
}
