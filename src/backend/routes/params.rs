//! The parameters of the backend's routes in paths and queries. Bodies are read by the types of `backend_api`.

use cc_executor_actors::{
    backend_api::control::read_cancel,
    excerpt::Quoted,
    id::ExecutionId,
    rpc::{ErrorObject, code, params::Params},
    stream::PerStream,
};
use serde_json::{Map, Value};

use crate::{
    backend::{holds::Claim, job_request::CancelOrder, registry::Registry},
    server::request_log::shown_path,
};

/// The parameters of a cancellation. The claim keeps a gateway that gives up its own request from canceling an execution
/// that another consumer has taken over.
pub(super) fn read_cancellation(
    query: Map<String, Value>,
    registry: &Registry,
) -> Result<(CancelOrder, Claim), ErrorObject> {
    let mut fields = Params::new(query);
    let (grace_ms, reason) = read_cancel(&mut fields, &registry.limits())?;
    let claim = read_claim(&mut fields)?;
    fields.finish()?;
    Ok((CancelOrder { grace_ms, reason }, claim))
}

pub(super) fn read_offsets(fields: &mut Params) -> Result<PerStream<u64>, ErrorObject> {
    let mut offset = |name: &str| match fields.string(name)? {
        None => Ok(0),
        Some(text) => text.parse().map_err(|_| {
            ErrorObject::new(code::PARAMS, format!("{name} must be an offset in bytes, not {}", Quoted(&text)))
        }),
    };
    Ok(PerStream { stdout: offset("stdout")?, stderr: offset("stderr")? })
}

/// The claim in the query: `hold`, `request_id`, or none.
pub(super) fn read_claim(fields: &mut Params) -> Result<Claim, ErrorObject> {
    let hold = fields.parsed("hold", "the number of a hold")?;
    let request = fields.parsed("request_id", "a UUID")?;
    Ok(hold.map_or(Claim::Request(request), Claim::Number))
}

/// Whether the client that attaches has received everything before its offsets.
pub(super) fn has_arrived(fields: &mut Params) -> Result<bool, ErrorObject> {
    match fields.string("arrived")?.as_deref() {
        None | Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => {
            Err(ErrorObject::new(code::PARAMS, format!("arrived must be true or false, not {}", Quoted(other))))
        }
    }
}

pub(super) fn parse_id(text: &str) -> Result<ExecutionId, ErrorObject> {
    text.parse().map_err(|_| {
        let shown = shown_path(text);
        ErrorObject::new(code::PARAMS, format!("an execution's id is a UUID, not {}", Quoted(&shown)))
    })
}
