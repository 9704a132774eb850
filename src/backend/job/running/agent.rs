//! A command that is an agent: its output goes to its progress, which knows its activity, its result, and when it must exit.

use std::time::{Duration, Instant};

use cc_executor_actors::{
    agent::{Agent, AgentProgress},
    stream::Stream,
};

use crate::backend::{agent::AgentJob, job::clocks::AgentExit};

/// A running agent.
pub(super) struct RunningAgent {
    pub(super) agent: &'static dyn Agent,
    pub(super) progress: Box<dyn AgentProgress>,
}

impl RunningAgent {
    /// An agent that is being started. `exit_patience` is how long it may take to exit after its last event.
    pub(super) fn new(job: &AgentJob, exit_patience: Duration, now: Instant) -> Self {
        RunningAgent { agent: job.agent, progress: job.agent.progress(exit_patience, now) }
    }

    /// Passes output to the progress. Returns whether the agent's activity has changed.
    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8]) -> bool {
        if stream == Stream::Stderr {
            self.progress.push_stderr(bytes);
            return false;
        }
        self.progress.push_stdout(bytes, Instant::now())
    }

    /// When it must exit.
    pub(super) fn exit(&self, timeout_at: Option<Instant>) -> AgentExit {
        if self.progress.expects_exit() {
            AgentExit::ExpectedBy(self.progress.exit_due(timeout_at))
        } else {
            AgentExit::NotExpected
        }
    }
}
