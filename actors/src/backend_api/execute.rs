//! The body of `POST /execute/stream`.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::{
    id::{ExecutionId, InstanceId, RequestId},
    protocol::{Limits, execute::ExecutionSpec},
    rpc::{ErrorObject, code, params::Params},
};

/// A gateway's request to run a command.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecuteRequest {
    /// The command and its options. The command is called `question` here, because the legacy image knows no other
    /// name.
    #[serde(flatten, serialize_with = "with_question")]
    pub run: ExecutionSpec,
    /// The only instance of the backend that may run it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// The id of this request, which is the same in a repetition of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
}

/// The body that the legacy image understands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LegacyExecuteRequest {
    /// The command.
    pub question: String,
}

fn with_question<S: Serializer>(run: &ExecutionSpec, serializer: S) -> Result<S::Ok, S::Error> {
    let mut body = serde_json::to_value(run).map_err(serde::ser::Error::custom)?;
    if let Value::Object(map) = &mut body
        && let Some(command) = map.remove("command")
    {
        map.insert("question".to_owned(), command);
    }
    body.serialize(serializer)
}

impl ExecuteRequest {
    /// A request for any instance of the backend.
    pub fn new(run: &ExecutionSpec, id: ExecutionId) -> Self {
        let heartbeat_ms = Some(run.heartbeat_ms());
        let run = ExecutionSpec { execution_id: Some(id), heartbeat_ms, ..run.clone() };
        ExecuteRequest { run, instance: None, request_id: None }
    }

    /// Reads a body. `command` is accepted beside `question`.
    ///
    /// # Errors
    ///
    /// The body is not a JSON object, or a parameter is unknown, ill-typed or out of its bounds: the error names it.
    pub fn read(body: &[u8], limits: &Limits) -> Result<Self, ErrorObject> {
        let mut fields = Params::of_body(body)?;
        let command = if fields.has("command") { "command" } else { "question" };
        if command == "command" && fields.has("question") {
            return Err(ErrorObject::new(code::PARAMS, "command and question are two names of the same: send one"));
        }
        let instance = fields.parsed("instance", "a UUID")?;
        let request_id = fields.parsed("requestId", "a UUID")?;
        let run = ExecutionSpec::from_fields(&mut fields, command, limits)?;
        fields.finish()?;
        Ok(ExecuteRequest { run, instance, request_id })
    }
}
