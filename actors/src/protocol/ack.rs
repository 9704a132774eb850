//! `ack`: say what the client itself has received, instead of what its WebSocket library has.

use schemars::JsonSchema;
use serde::Serialize;

use super::{Limits, execution_id, offsets};
use crate::{
    id::ExecutionId,
    rpc::{ErrorObject, code, params::Params},
    stream::PerStream,
};

/// Parameters of `ack`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AckParams {
    /// The execution: the session's own, or one that has ended in this session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<ExecutionId>,
    /// The bytes of each stream that the client has received.
    pub offsets: PerStream<u64>,
}

impl AckParams {
    pub(super) fn from_fields(fields: &mut Params, _: &Limits) -> Result<Self, ErrorObject> {
        let execution_id = execution_id(fields)?;
        let offsets = offsets(fields)?
            .ok_or_else(|| ErrorObject::new(code::PARAMS, "offsets is missing: send the bytes of each stream"))?;
        Ok(AckParams { execution_id, offsets })
    }
}
