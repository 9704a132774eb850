//! `attach`: follow an execution that is there already.

use serde::{Deserialize, Serialize};

use super::{Limits, execute::Framing, execution_id};
use crate::{
    id::{ExecutionId, InstanceId},
    outcome::Status,
    rpc::{ErrorObject, code, params::Params},
    stream::PerStream,
};

/// Parameters of `attach`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachParams {
    /// Which execution.
    pub execution_id: ExecutionId,
    /// What the client has of each stream already, in bytes.
    #[serde(default)]
    pub offsets: PerStream<u64>,
    /// How the output is cut into messages.
    #[serde(default, skip_serializing_if = "Framing::is_default")]
    pub framing: Framing,
    /// Whether Claude's events are told too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub events: bool,
}

/// Response of `attach`: the execution is followed from here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachResult {
    /// Which execution.
    pub execution_id: ExecutionId,
    /// Its status; final if what follows is a replay.
    pub status: Status,
    /// The process of the backend that has it, where the backend says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// Whether its standard output is Claude's events: a client then does not count the bytes of what it gets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub claude: bool,
}

impl AttachParams {
    pub(super) fn from_fields(fields: &mut Params, _: &Limits) -> Result<Self, ErrorObject> {
        let execution_id = execution_id(fields)?
            .ok_or_else(|| ErrorObject::new(code::PARAMS, "executionId is missing: it says what to attach to"))?;
        let offsets = match fields.object("offsets")? {
            None => PerStream::default(),
            Some(mut fields) => {
                let offset =
                    |fields: &mut Params, name| fields.integer(name, 0, u64::MAX).map(Option::unwrap_or_default);
                let offsets =
                    PerStream { stdout: offset(&mut fields, "stdout")?, stderr: offset(&mut fields, "stderr")? };
                fields.finish()?;
                offsets
            }
        };
        let events = fields.boolean("events")?.unwrap_or(false);
        Ok(AttachParams { execution_id, offsets, framing: Framing::from_fields(fields)?, events })
    }
}
