//! The agent CLIs: programs that are given a prompt and print what they do as events.
//!
//! An [`Agent`] is what follows from the events of one such program: pure, without files and processes. How it is
//! started is the backend's half. Nobody else asks which agent it is: an agent is found by the name of its executor.

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

/// The agent that the executor of this name runs, if it runs one.
pub fn named(executor: &str) -> Option<&'static dyn Agent> {
    AGENTS.iter().copied().find(|agent| agent.executor() == executor)
}

/// The agent whose events a backend's stream has: [`StreamInfo::claude`](crate::backend_api::StreamInfo::claude) is
/// the wire's word for them.
pub fn of_stream(claude: bool) -> Option<&'static dyn Agent> {
    claude.then_some(&claude::Claude)
}

/// What is special about one agent CLI.
pub trait Agent: Sync + fmt::Debug {
    /// The name of the executor that runs it.
    fn executor(&self) -> &'static str;

    /// The longest event, in bytes. Events are delivered whole, so an output buffer must have room for one.
    fn max_event_bytes(&self) -> usize;

    /// What a person should do where its program, which has this path, is not there.
    fn advice_if_missing(&self, program: &str) -> String;

    /// Follows what it does. `exit_patience` is how long it may take to exit after its last event.
    fn progress(&self, exit_patience: Duration, now: Instant) -> Box<dyn AgentProgress>;

    /// Reads its events for a client.
    fn reader(&self, options: ReaderOptions) -> Box<dyn AgentReader>;

    /// The same, and follows what it does without parsing the events once more.
    fn watched_reader(
        &self,
        options: ReaderOptions,
        exit_patience: Duration,
        now: Instant,
    ) -> (Box<dyn AgentReader>, SharedProgress);
}

/// What a client has and wants of an agent's events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReaderOptions {
    /// How texts are cut into messages.
    pub framing: Framing,
    /// What the client has already of standard output, in bytes.
    pub start: u64,
    /// The id under which events are told, if they are wanted.
    pub told_as: Option<ExecutionId>,
}

/// A progress that is fed by whoever reads the events.
pub type SharedProgress = Rc<RefCell<dyn AgentProgress>>;

/// What is known of one run of an agent. Decided without a look at a clock: every call is given the time.
pub trait AgentProgress {
    /// Takes more of its standard output. True if what it does, or how it ended, is another now.
    fn feed(&mut self, bytes: &[u8], now: Instant) -> bool;

    /// Of one that is fed by a reader: what is read from now on has arrived at this time.
    fn arrived(&mut self, now: Instant);

    /// Whether what it does, or how it ended, is another than at the last call.
    fn take_change(&mut self) -> bool;

    /// Takes note of what it wrote to its standard error: where it fails early, that is all there is.
    fn push_stderr(&mut self, bytes: &[u8]);

    /// Its standard output has ended: a last line without a newline counts, and nothing more will be said.
    fn finish(&mut self, now: Instant);

    /// Lets the time for its exit run, or stand still: while it is paused, or its output is not read, silence
    /// says nothing.
    fn run_clock(&mut self, runs: bool, now: Instant);

    /// Whether it has nothing left to do, as far as its events tell.
    fn expects_exit(&self) -> bool;

    /// When it must have exited. `None` while it may still work, and while the time stands still.
    fn exit_due(&self, total: Option<Instant>) -> Option<Instant>;

    /// What it does now.
    fn doing(&self) -> Activity;

    /// How it says it ended.
    fn result(&self) -> Option<&ClaudeResult>;

    /// How an execution ended that nobody ended, from the agent's own words and its process's end, with what a person
    /// should know. `None` leaves it to the process's end alone.
    fn verdict(&self, exited_with_0: bool) -> Option<(Status, Reason, String)>;
}
