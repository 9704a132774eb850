//! `execute`: its parameters, and the rules for them.
//!
//! The same options travel from client to gateway and from gateway to backend, so both read them here.

mod claude;
mod spec;

use serde::{Deserialize, Serialize};
use serde_json::json;

pub use self::{
    claude::ClaudeOptions,
    spec::{DetachOptions, ExecutionSpec, Overflow},
};
use super::{CLAUDE_EXECUTOR, Limits};
use crate::{
    id::{ExecutionId, InstanceId},
    rpc::{ErrorObject, code, params::Params},
};

/// Parameters of `execute`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecuteParams {
    /// What runs.
    #[serde(flatten)]
    pub run: ExecutionSpec,
    /// How its output is cut into messages.
    #[serde(default, skip_serializing_if = "Framing::is_default")]
    pub framing: Framing,
    /// Whether Claude's events are told too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub events: bool,
    /// The only instance of the backend that may run it. A client that repeats a request whose answer it did not get
    /// names the instance of `connected`, because a restarted backend does not know that it has run already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
}

/// How output is cut into messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Framing {
    /// What is there goes into one message.
    #[default]
    Chunk,
    /// One line with its newline in each message.
    Line,
}

impl Framing {
    /// Whether it is the framing of a client that names none.
    pub(super) fn is_default(&self) -> bool {
        *self == Framing::Chunk
    }

    /// Reads the parameter `framing`.
    pub(super) fn from_fields(fields: &mut Params) -> Result<Self, ErrorObject> {
        Ok(match fields.one_of("framing", &["chunk", "line"])? {
            Some(1) => Framing::Line,
            _ => Framing::Chunk,
        })
    }
}

/// Response of `execute`: the execution was accepted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecuteResult {
    /// Which execution.
    pub execution_id: ExecutionId,
    /// Whether it runs.
    pub status: Acceptance,
    /// The process of the backend that has it, where the backend says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// Whether its standard output is Claude's events: a client then does not count the bytes of what it gets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub claude: bool,
}

/// What came of a request for an execution.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceptance {
    /// It waits for a place.
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
        let run = ExecutionSpec::from_fields(fields, "command", limits)?;
        let framing = Framing::from_fields(fields)?;
        let events = fields.boolean("events")?.unwrap_or(false);
        if let Some(other) = run.executor.as_deref().filter(|name| events && *name != CLAUDE_EXECUTOR) {
            let message = format!("events come from the executor claude alone, not from {other:?}: leave them out");
            return Err(ErrorObject::new(code::PARAMS, message).with(json!({ "param": "events" })));
        }
        Ok(ExecuteParams { run, framing, events, instance: fields.parsed("instance", "a UUID")? })
    }

    /// The parameter in which the two differ.
    pub fn difference(&self, other: &ExecuteParams) -> Option<&'static str> {
        let own = [("framing", self.framing != other.framing), ("events", self.events != other.events)];
        self.run.difference(&other.run).or(own.into_iter().find_map(|(name, differs)| differs.then_some(name)))
    }
}
