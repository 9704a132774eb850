//! `status`, and what is known of an execution.

use serde::{Deserialize, Serialize};

use super::{
    Limits, execution_id,
    notification::{FinalStatus, StatusUpdate},
};
use crate::{
    activity::Activity,
    id::{ExecutionId, InstanceId},
    outcome::{Outcome, Scope, Status},
    rpc::{ErrorObject, params::Params},
    stream::PerStream,
};

/// Parameters of `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StatusParams {
    /// Which execution; the session's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<ExecutionId>,
}

/// Response of `status`: the newest status of an execution of this session, or what the backend knows of another.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StatusResult {
    /// It has ended.
    Ended(FinalStatus),
    /// It waits or runs, in this session.
    Progress(StatusUpdate),
    /// It waits or runs, in another session or in none.
    Other(Snapshot),
}

/// Answer of `GET /executions/{id}`, and one entry of `GET /executions`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Which execution.
    pub execution_id: ExecutionId,
    /// What runs it.
    pub executor: String,
    /// Its status.
    pub status: Status,
    /// Its place in the queue, while it waits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub position: Option<u64>,
    /// What stands still, while it is PAUSED.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<Scope>,
    /// Whether somebody follows it now.
    #[serde(default)]
    pub attached: bool,
    /// The number of the newest hold, whether or not its consumer is there now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hold: Option<u64>,
    /// Which process of the backend has it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub instance: Option<InstanceId>,
    /// Clocks.
    #[serde(flatten)]
    pub alive: Heartbeat,
    /// How far each stream has come.
    #[serde(default)]
    pub offsets: PerStream<u64>,
    /// How it ended, if it has.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ending: Option<Outcome>,
}

/// A sign of life.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// Milliseconds since RUNNING.
    pub elapsed_ms: u64,
    /// Milliseconds since the process last wrote anything.
    pub since_output_ms: u64,
    /// Milliseconds left until the total time-out, which stands still while paused; `None` without one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deadline_ms: Option<u64>,
    /// Whether all of its processes are stopped, by whomever.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub stopped: bool,
    /// What Claude is doing, until it has said how it ended: `thinking`, or `tool: Bash`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub activity: Option<String>,
    /// How often Claude's model has answered.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub turns: Option<u32>,
}

impl Heartbeat {
    /// The same of Claude.
    pub fn doing(self, doing: Activity) -> Self {
        Heartbeat { activity: doing.activity, turns: Some(doing.turns), ..self }
    }
}

impl StatusParams {
    pub(super) fn from_fields(fields: &mut Params, _: &Limits) -> Result<Self, ErrorObject> {
        Ok(StatusParams { execution_id: execution_id(fields)? })
    }
}
