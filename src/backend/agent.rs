//! How the agent CLIs are started: arguments, environment, and the operator's policy.
//!
//! The other half of an agent, the interpretation of its events, is a [`cc_executor_actors::agent::Agent`].

pub mod claude;

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use cc_executor_actors::{agent::Agent, protocol::execute::ExecutionSpec};

use self::claude::{ClaudePolicy, PolicyError};

/// The launchers of all agents. Claude is started within the operator's policy.
pub fn launchers(claude: &ClaudePolicy) -> Vec<&dyn AgentLauncher> {
    vec![claude]
}

/// How one agent CLI is started.
pub trait AgentLauncher: fmt::Debug {
    /// The agent.
    fn agent(&self) -> &'static dyn Agent;

    /// The program, unless the operator names another one for the executor.
    fn program(&self) -> &'static str {
        self.agent().executor()
    }

    /// Combines a client's options with the operator's policy. `common` is the environment of every command.
    ///
    /// # Errors
    ///
    /// The operator does not allow an option: the error names it.
    fn launch(&self, run: &ExecutionSpec, common: &BTreeMap<String, String>) -> Result<AgentLaunch, PolicyError>;
}

/// The command line, directory and environment of an agent.
#[derive(PartialEq, Eq, Debug)]
pub struct AgentLaunch {
    /// The arguments after the program.
    pub arguments: Vec<String>,
    /// The working directory; `None` for the backend's own.
    pub cwd: Option<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
}

/// The agent of a job. Its standard output is events.
#[derive(Clone, Debug)]
pub struct AgentJob {
    /// The agent.
    pub agent: &'static dyn Agent,
    /// The whole standard input.
    pub prompt: Bytes,
}
