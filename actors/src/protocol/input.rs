//! `input`: write to the command's standard input.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};

use super::{Limits, execution_id};
use crate::{
    id::ExecutionId,
    rpc::{ErrorObject, code, params::Params},
};

/// Parameters of `input`.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = with_text)]
pub struct InputParams {
    /// The execution; the session's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<ExecutionId>,
    /// The input.
    #[serde(flatten)]
    pub input: CommandInput,
}

/// Input for a command.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema, Serialize)]
pub struct CommandInput {
    /// The bytes to write.
    #[serde(rename = "dataBase64", serialize_with = "as_base64", skip_serializing_if = "Bytes::is_empty")]
    #[schemars(with = "String")]
    pub data: Bytes,
    /// Whether to close standard input after them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub eof: bool,
}

/// Response of `input`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
pub struct InputResult {
    /// The number of bytes that were written to the command's standard input.
    pub accepted: usize,
}

/// Adds the form of the input that this package never sends.
fn with_text(schema: &mut Schema) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("data".to_owned(), json!({ "description": "The input as text.", "type": "string" }));
    }
}

fn as_base64<S: Serializer>(data: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(data))
}

impl InputParams {
    pub(super) fn from_fields(fields: &mut Params, limits: &Limits) -> Result<Self, ErrorObject> {
        Ok(InputParams { execution_id: execution_id(fields)?, input: CommandInput::from_fields(fields, limits)? })
    }
}

impl CommandInput {
    fn from_fields(fields: &mut Params, limits: &Limits) -> Result<Self, ErrorObject> {
        let data = match (fields.string("data")?, fields.base64("dataBase64")?) {
            (Some(_), Some(_)) => {
                return Err(ErrorObject::new(code::PARAMS, "data and dataBase64 are two forms of the same: send one"));
            }
            (Some(text), None) => Bytes::from(text),
            (None, data) => data.unwrap_or_default().into(),
        };
        let eof = fields.boolean("eof")?;
        if data.is_empty() && !eof {
            return Err(ErrorObject::new(code::PARAMS, "data is missing: send data, dataBase64 or eof"));
        }
        if data.len() > limits.input_bytes {
            let message =
                format!("data has {} bytes, the limit is {}: send it in several calls", data.len(), limits.input_bytes);
            return Err(ErrorObject::new(code::PARAMS, message)
                .with(json!({ "param": "data", "asked": data.len(), "max": limits.input_bytes })));
        }
        Ok(CommandInput { data, eof })
    }
}
