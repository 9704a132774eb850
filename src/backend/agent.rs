//! How the agent CLIs are started: arguments, environment, and what the operator allows.
//!
//! The other half of what is special about an agent, which follows from its events, is
//! [`cc_executor_actors::agent::Agent`].

pub mod claude;

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use cc_executor_actors::{agent::Agent, protocol::execute::ExecutionSpec};

use self::claude::PolicyError;

/// How one agent CLI is started, within what the operator allows.
pub trait AgentLauncher: fmt::Debug {
    /// Which agent.
    fn agent(&self) -> &'static dyn Agent;

    /// Puts a client's wishes together with what is allowed. `common` is the environment of every command.
    ///
    /// # Errors
    ///
    /// The client asks for something that the operator does not allow: the error names the parameter.
    fn launch(&self, run: &ExecutionSpec, common: &BTreeMap<String, String>) -> Result<AgentLaunch, PolicyError>;
}

/// What of a client's wishes an agent is started with.
#[derive(PartialEq, Eq, Debug)]
pub struct AgentLaunch {
    /// Arguments after the program's own.
    pub arguments: Vec<String>,
    /// The working directory, if one was asked for or is prescribed.
    pub cwd: Option<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
}

/// An agent at work: its standard output is events.
#[derive(Clone, Debug)]
pub struct AgentJob {
    /// Which agent.
    pub agent: &'static dyn Agent,
    /// What is written to its standard input, and nothing else.
    pub prompt: Bytes,
}
