//! `execute`: its parameters and its response.
//!
//! [`ExecutionSpec`] is the part of the parameters that goes to the backend. The rest concerns the session only.

mod claude;
mod command;
mod spec;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    claude::ClaudeOptions,
    command::RequestedCommand,
    spec::{DetachOptions, ExecutionSpec, Overflow},
};
use super::Limits;
use crate::{
    excerpt::Quoted,
    id::{ExecutionId, InstanceId},
    rpc::{
        ErrorObject,
        params::{Params, invalid},
    },
};

/// Parameters of `execute`.
#[derive(Clone, PartialEq, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecuteParams {
    /// The command, its environment and its limits.
    #[serde(flatten)]
    pub run: ExecutionSpec,
    /// How the output is cut into messages.
    #[serde(skip_serializing_if = "Framing::is_default")]
    pub framing: Framing,
    /// Whether the client gets an agent's events beside their text.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub events: bool,
    /// The only instance of the backend that may run it. A client that repeats a request after a lost answer names the
    /// instance of `connected`, because a restarted backend does not know that it has run the command already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
}

/// How output is cut into messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Framing {
    /// A message has all output that is ready.
    #[default]
    Chunk,
    /// A message has one line with its newline.
    Line,
}

impl Framing {
    pub(super) fn is_default(&self) -> bool {
        *self == Framing::default()
    }

    /// Reads the parameter `framing`.
    pub(super) fn from_fields(fields: &mut Params) -> Result<Self, ErrorObject> {
        Ok(match fields.one_of("framing", &["chunk", "line"])? {
            Some(1) => Framing::Line,
            _ => Framing::Chunk,
        })
    }
}

/// Response of `execute`.
pub type ExecuteResult = HoldResult<Acceptance>;

/// Response of `execute` and `attach`: the session holds the execution, or observes it, and its output follows.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "HoldResult_{S}")]
pub struct HoldResult<S> {
    /// The execution.
    pub execution_id: ExecutionId,
    /// An [`Acceptance`] for `execute`; for `attach` the status, which is final if the output is a replay.
    pub status: S,
    /// The instance of the backend that has it, if the backend names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// Whether its standard output consists of Claude's events. The client then does not count the bytes of their text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub claude: bool,
    /// The executor of another agent, if its standard output consists of the events of that agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Whether the session only observes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub observe: bool,
}

/// Whether an execution was accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceptance {
    /// It waits in the queue.
    Queued,
    /// It runs, or has run.
    Started,
    /// It ended before it ran.
    Failed,
}

impl From<ExecutionSpec> for ExecuteParams {
    fn from(run: ExecutionSpec) -> Self {
        ExecuteParams { run, framing: Framing::default(), events: false, instance: None }
    }
}

impl ExecuteParams {
    pub(super) fn from_fields(fields: &mut Params, limits: &Limits) -> Result<Self, ErrorObject> {
        Ok(ExecuteParams {
            run: ExecutionSpec::from_fields(fields, "command", limits)?,
            framing: Framing::from_fields(fields)?,
            events: fields.boolean("events")?,
            instance: fields.parsed("instance", "a UUID")?,
        })
    }

    /// Checks that the options apply to the executor that they name. Without a name only the backend can check them,
    /// because the default executor is its setting.
    ///
    /// # Errors
    ///
    /// An option does not apply: the error names it.
    pub fn check_executor(&self, is_agent: impl Fn(&str) -> bool) -> Result<(), ErrorObject> {
        let Some(name) = self.run.executor.as_deref() else { return Ok(()) };
        self.run.check_executor(name, is_agent(name))?;
        if self.events && !is_agent(name) {
            let message =
                format!("events come from the executors of agents, not from {}: leave events out", Quoted(name));
            return Err(invalid("events", message));
        }
        Ok(())
    }

    /// The first parameter in which the two differ, apart from their ids.
    pub fn difference(&self, other: &ExecuteParams) -> Option<&'static str> {
        let own = [("framing", self.framing != other.framing), ("events", self.events != other.events)];
        self.run.difference(&other.run).or(own.into_iter().find_map(|(name, differs)| differs.then_some(name)))
    }
}
