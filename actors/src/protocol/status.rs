//! `status`, and the state of an execution as backend and gateway report it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Limits, execution_id,
    notification::{FinalStatus, StatusUpdate},
};
use crate::{
    activity::Activity,
    id::{ExecutionId, InstanceId},
    name::ExecutionName,
    outcome::{Outcome, Scope, Status, Storage},
    rpc::{ErrorObject, params::Params},
    stream::PerStream,
};

/// Parameters of `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusParams {
    /// The execution; the session's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<ExecutionId>,
}

/// Response of `status`: the newest status of an execution of this session, or the backend's state of another one.
#[derive(Clone, PartialEq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StatusResult {
    /// It has ended.
    Ended(FinalStatus),
    /// It waits or runs, in this session.
    Progress(StatusUpdate),
    /// It waits or runs, in another session or without one.
    Other(Box<Snapshot>),
}

/// Answer of `GET /executions/{id}`, and one entry of `GET /executions`.
#[derive(Clone, PartialEq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// The execution.
    pub execution_id: ExecutionId,
    /// The name that its client gave it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<ExecutionName>,
    /// The executor's name.
    pub executor: String,
    /// Its status.
    pub status: Status,
    /// Its place in the queue, while it waits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub position: Option<u64>,
    /// What is stopped, while it is PAUSED.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<Scope>,
    /// Whether the command has been held back for a second or longer: its output is not read, because nobody receives it
    /// fast enough or what may wait for a client is full.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub held_back: bool,
    /// Whether a consumer follows it now.
    #[serde(default)]
    pub attached: bool,
    /// How many observers follow it now.
    #[serde(skip_serializing_if = "is_none", default)]
    pub observers: usize,
    /// The number of the newest hold, even if its consumer is disconnected now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hold: Option<u64>,
    /// The instance of the backend that has it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub instance: Option<InstanceId>,
    /// Its times and its activity.
    #[serde(flatten)]
    pub alive: Heartbeat,
    /// The bytes of each stream so far.
    #[serde(default)]
    pub offsets: PerStream<u64>,
    /// Whether its output is on the backend's disk; absent if it never was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub storage: Option<Storage>,
    /// The beginning of its command, or of an agent's prompt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub command: Option<String>,
    /// Milliseconds since it was requested.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub age_ms: Option<u64>,
    /// How it ended, if it has.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ending: Option<Outcome>,
}

/// The times and the activity of an execution, as each heartbeat reports them.
#[derive(Clone, PartialEq, Eq, Debug, Default, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// Milliseconds since RUNNING.
    pub elapsed_ms: u64,
    /// Milliseconds since the last output.
    pub since_output_ms: u64,
    /// Milliseconds left until the total time-out; `None` without one. They do not pass while the execution is paused.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deadline_ms: Option<u64>,
    /// Whether all of its processes are stopped, by PAUSE or by a signal of another sender.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub stopped: bool,
    /// The agent's activity until it reports its result: `thinking`, or `tool: Bash`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub activity: Option<String>,
    /// The number of answers of the agent's model.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub turns: Option<u32>,
}

fn is_none(n: &usize) -> bool {
    *n == 0
}

impl Heartbeat {
    /// Adds the activity of an agent.
    pub fn with_activity(self, Activity { activity, turns }: Activity) -> Self {
        Heartbeat { activity, turns: Some(turns), ..self }
    }
}

impl StatusParams {
    pub(super) fn from_fields(fields: &mut Params, _: &Limits) -> Result<Self, ErrorObject> {
        Ok(StatusParams { execution_id: execution_id(fields)? })
    }
}
