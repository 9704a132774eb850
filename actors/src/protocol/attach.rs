//! `attach`: follow an execution that exists already.

use serde::{Deserialize, Serialize};

use super::{Limits, execute::Framing, execution_id};
use crate::{
    id::{ExecutionId, InstanceId},
    outcome::Status,
    rpc::{ErrorObject, code, params::Params},
    stream::PerStream,
};

/// Parameters of `attach`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachParams {
    /// The execution.
    pub execution_id: ExecutionId,
    /// The bytes of each stream that the client has already.
    pub offsets: PerStream<u64>,
    /// How the output is cut into messages.
    #[serde(skip_serializing_if = "Framing::is_default")]
    pub framing: Framing,
    /// Whether the client gets an agent's events beside their text.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub events: bool,
}

/// Response of `attach`: the output follows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachResult {
    /// The execution.
    pub execution_id: ExecutionId,
    /// Its status; final if the output is a replay.
    pub status: Status,
    /// The instance of the backend that has it, if the backend names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// Whether its standard output is Claude's events. The client then does not count the bytes of their text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub claude: bool,
    /// The executor of another agent, if its standard output is the events of that agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
}

impl AttachParams {
    pub(super) fn from_fields(fields: &mut Params, _: &Limits) -> Result<Self, ErrorObject> {
        let execution_id = execution_id(fields)?
            .ok_or_else(|| ErrorObject::new(code::PARAMS, "executionId is missing: it says what to attach to"))?;
        let mut offsets = PerStream::default();
        if let Some(mut fields) = fields.object("offsets")? {
            offsets.stdout = fields.integer("stdout", 0, u64::MAX)?.unwrap_or(0);
            offsets.stderr = fields.integer("stderr", 0, u64::MAX)?.unwrap_or(0);
            fields.finish()?;
        }
        let events = fields.boolean("events")?;
        Ok(AttachParams { execution_id, offsets, framing: Framing::from_fields(fields)?, events })
    }
}
