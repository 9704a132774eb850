//! `attach`: follow an execution that exists already.

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Limits,
    execute::{Framing, HoldResult},
    execution_id, offsets,
};
use crate::{
    id::ExecutionId,
    outcome::Status,
    rpc::{ErrorObject, code, params::Params},
    stream::PerStream,
};

/// Parameters of `attach`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize)]
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
    /// Whether to follow it without a hold: neither the execution nor its holder notices.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub observe: bool,
}

/// Response of `attach`.
pub type AttachResult = HoldResult<Status>;

impl AttachParams {
    pub(super) fn from_fields(fields: &mut Params, _: &Limits) -> Result<Self, ErrorObject> {
        let execution_id = execution_id(fields)?
            .ok_or_else(|| ErrorObject::new(code::PARAMS, "executionId is missing: name the execution to attach to"))?;
        let offsets = offsets(fields)?.unwrap_or_default();
        let events = fields.boolean("events")?;
        let observe = fields.boolean("observe")?;
        Ok(AttachParams { execution_id, offsets, framing: Framing::from_fields(fields)?, events, observe })
    }
}
