//! The parameters of the backend's routes: ids in paths, queries and bodies.

use cc_executor_actors::{
    id::{ExecutionId, InstanceId, RequestId},
    outcome::CancelReason,
    protocol::{DEFAULT_GRACE_MS, method::ExecutionSpec},
    rpc::{ErrorObject, code, params::Params},
    stream::PerStream,
};
use serde_json::{Map, Value};

use crate::backend::{holds::Claim, registry::Registry};

/// What the body of a request for an execution says.
pub(super) struct ExecuteRequest {
    pub(super) run: ExecutionSpec,
    /// The process of the backend that is meant.
    pub(super) instance: Option<InstanceId>,
    /// The name of this request: a repetition of it has the same.
    pub(super) request: Option<RequestId>,
}

impl ExecuteRequest {
    pub(super) fn read(body: &[u8], registry: &Registry) -> Result<ExecuteRequest, ErrorObject> {
        let mut map = read_object(body)?;
        if let Some(command) = map.remove("command") {
            if map.contains_key("question") {
                return Err(ErrorObject::new(code::PARAMS, "command and question are two names of the same: send one"));
            }
            map.insert("question".to_owned(), command);
        }
        let mut fields = Params::new(map);
        let instance = fields.parsed("instance", "a UUID")?;
        let request = fields.parsed("requestId", "a UUID")?;
        let run = ExecutionSpec::from_fields(&mut fields, "question", &registry.limits())?;
        fields.finish()?;
        Ok(ExecuteRequest { run, instance, request })
    }
}

/// What a cancellation says.
pub(super) struct CancelQuery {
    pub(super) grace_ms: u64,
    pub(super) reason: CancelReason,
    /// A gateway that gives its own request up cancels nothing that another one has by now.
    pub(super) claim: Claim,
}

impl CancelQuery {
    pub(super) fn read(query: &Map<String, Value>, registry: &Registry) -> Result<CancelQuery, ErrorObject> {
        let mut fields = Params::new(query.clone());
        let limit = registry.limits().grace_ms;
        let grace_ms = match fields.string("grace_ms")? {
            None => DEFAULT_GRACE_MS,
            Some(text) => text.parse().ok().filter(|grace_ms| *grace_ms <= limit).ok_or_else(|| {
                ErrorObject::new(
                    code::PARAMS,
                    format!("grace_ms must be a whole number from 0 to {limit}, not {text:?}"),
                )
            })?,
        };
        let reason = match fields.one_of("reason", &["canceled", "drained"])? {
            Some(1) => CancelReason::Drained,
            _ => CancelReason::Canceled,
        };
        let claim = read_claim(&mut fields)?;
        fields.finish()?;
        Ok(CancelQuery { grace_ms, reason, claim })
    }
}

pub(super) fn read_offsets(fields: &mut Params) -> Result<PerStream<u64>, ErrorObject> {
    let mut offset = |name: &str| match fields.string(name)? {
        None => Ok(0),
        Some(text) => text
            .parse()
            .map_err(|_| ErrorObject::new(code::PARAMS, format!("{name} must be an offset in bytes, not {text:?}"))),
    };
    Ok(PerStream { stdout: offset("stdout")?, stderr: offset("stderr")? })
}

/// In whose name somebody acts: of a numbered hold, of a request, or of nobody in particular.
pub(super) fn read_claim(fields: &mut Params) -> Result<Claim, ErrorObject> {
    let hold = fields.parsed("hold", "the number of a hold")?;
    let request = fields.parsed("request_id", "a UUID")?;
    Ok(hold.map_or(Claim::Request(request), Claim::Number))
}

/// Whether who attaches says by it that everything before its offsets has arrived.
pub(super) fn has_arrived(fields: &mut Params) -> Result<bool, ErrorObject> {
    match fields.string("arrived")?.as_deref() {
        None | Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => Err(ErrorObject::new(code::PARAMS, format!("arrived must be true or false, not {other:?}"))),
    }
}

pub(super) fn read_object(body: &[u8]) -> Result<Map<String, Value>, ErrorObject> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ErrorObject::new(code::PARAMS, "the body must be a JSON object")),
        Err(error) => Err(ErrorObject::new(code::PARAMS, format!("the body is not JSON: {error}"))),
    }
}

pub(super) fn parse_id(text: &str) -> Result<ExecutionId, ErrorObject> {
    text.parse().map_err(|_| ErrorObject::new(code::PARAMS, format!("an execution's id is a UUID, not {text:?}")))
}
