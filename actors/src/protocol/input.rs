//! `input`: write to the command's standard input.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Limits;
use crate::rpc::{ErrorObject, code, params::Params};

/// Parameters of `input`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "EncodedInput", try_from = "EncodedInput")]
pub struct InputParams {
    /// What the command is to read.
    pub data: Bytes,
    /// Whether nothing follows.
    pub eof: bool,
}

/// Response of `input`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InputResult {
    /// How many bytes the command can read now.
    pub accepted: usize,
}

/// The input as it travels: as text, or as base64 where it is not UTF-8.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EncodedInput {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    eof: bool,
}

impl From<InputParams> for EncodedInput {
    fn from(InputParams { data, eof }: InputParams) -> Self {
        let data_base64 = (!data.is_empty()).then(|| STANDARD.encode(&data));
        EncodedInput { data: None, data_base64, eof }
    }
}

impl TryFrom<EncodedInput> for InputParams {
    type Error = String;

    fn try_from(EncodedInput { data, data_base64, eof }: EncodedInput) -> Result<Self, String> {
        let data = match (data, data_base64) {
            (Some(_), Some(_)) => return Err("data and dataBase64 are two forms of the same".to_owned()),
            (Some(text), None) => text.into(),
            (None, Some(base64)) => STANDARD.decode(base64).map_err(|error| error.to_string())?.into(),
            (None, None) => Bytes::new(),
        };
        Ok(InputParams { data, eof })
    }
}

impl InputParams {
    pub(super) fn from_fields(fields: &mut Params, limits: &Limits) -> Result<Self, ErrorObject> {
        let data = match (fields.string("data")?, fields.base64("dataBase64")?) {
            (Some(_), Some(_)) => {
                return Err(ErrorObject::new(code::PARAMS, "data and dataBase64 are two forms of the same: send one"));
            }
            (Some(text), None) => Bytes::from(text),
            (None, data) => data.unwrap_or_default().into(),
        };
        let eof = fields.boolean("eof")?.unwrap_or(false);
        if data.is_empty() && !eof {
            return Err(ErrorObject::new(code::PARAMS, "data is missing: send data, dataBase64 or eof"));
        }
        if data.len() > limits.input_bytes {
            let message = format!("data has {} bytes: at most {} may wait", data.len(), limits.input_bytes);
            return Err(ErrorObject::new(code::PARAMS, message)
                .with(json!({ "param": "data", "asked": data.len(), "max": limits.input_bytes })));
        }
        Ok(InputParams { data, eof })
    }
}
