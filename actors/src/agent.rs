//! Agent CLIs: programs that take a prompt and print what they do as events.
//!
//! An [`Agent`] interprets the events of one such program. It is pure: no files, no processes. How the program is
//! started is in the backend. An agent is found by the name of its executor; no other module asks which agent runs.

pub mod claude;

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

/// The agent that the executor with this name runs, or `None` if it runs commands.
pub fn named(executor: &str) -> Option<&'static dyn Agent> {
    AGENTS.iter().copied().find(|agent| agent.executor() == executor)
}

/// The agent whose events a backend's stream carries, from the wire's flag
/// [`StreamInfo::claude`](crate::backend_api::StreamInfo::claude).
pub fn of_stream(claude: bool) -> Option<&'static dyn Agent> {
    claude.then_some(&claude::Claude)
}

/// The interpretation of one agent CLI.
pub trait Agent: Sync + fmt::Debug {
    /// The name of the executor that runs it.
    fn executor(&self) -> &'static str;

    /// The longest event, in bytes. Events are delivered whole, so an output buffer must have room for one.
    fn max_event_bytes(&self) -> usize;

    /// The message for people when its program, which has this path, is missing.
    fn advice_if_missing(&self, program: &str) -> String;

    /// Starts to track its progress. `exit_patience` is the longest time from its last event to its exit.
    fn progress(&self, exit_patience: Duration, now: Instant) -> Box<dyn AgentProgress>;

    /// Starts to read its events for a client.
    fn reader(&self, options: ReaderOptions) -> Box<dyn AgentReader>;

    /// A reader that also updates a progress, so that the events are parsed once.
    fn watched_reader(
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
    /// What the client has already of standard output, in bytes.
    pub start: u64,
    /// The execution's id for `event` notifications, if the client wants them.
    pub told_as: Option<ExecutionId>,
}

/// A progress that a reader of the events updates.
pub type SharedProgress = Rc<RefCell<dyn AgentProgress>>;

/// The state of one run of an agent, as its events tell it. It reads no clock: time is a parameter.
pub trait AgentProgress {
    /// Takes more of its standard output. Returns true if its activity or its result has changed.
    fn feed(&mut self, bytes: &[u8], now: Instant) -> bool;

    /// Sets the arrival time of the events that a reader passes on from now on. Only for a [`SharedProgress`].
    fn arrived(&mut self, now: Instant);

    /// Whether its activity or its result has changed since the last call.
    fn take_change(&mut self) -> bool;

    /// Keeps the end of its standard error, which explains a failure before the first event.
    fn push_stderr(&mut self, bytes: &[u8]);

    /// Takes the end of its standard output. A last line without a newline counts.
    fn finish(&mut self, now: Instant);

    /// Runs or stops the clock of its exit. The clock must stand still while the agent is paused or its output is not
    /// read, because silence means nothing then.
    fn run_clock(&mut self, runs: bool, now: Instant);

    /// Whether its events say that it has nothing left to do.
    fn expects_exit(&self) -> bool;

    /// The time by which it must exit. `None` while it may still work, and while the clock stands still.
    fn exit_due(&self, total: Option<Instant>) -> Option<Instant>;

    /// Its current activity.
    fn doing(&self) -> Activity;

    /// The result that it reported.
    fn result(&self) -> Option<&ClaudeResult>;

    /// The ending of an execution that exited by itself, from the agent's result and its exit code: status, reason and
    /// a message for people. `None` if the exit code alone decides.
    fn verdict(&self, exited_with_0: bool) -> Option<(Status, Reason, String)>;
}
