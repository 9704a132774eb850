//! JSON-RPC 2.0: reads calls, writes responses.
//!
//! A response holds a `Result`. A call's id is kept as the client wrote it, so that a number beyond 64 bits or `1.0`
//! comes back unchanged.

pub mod params;
mod unique;

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer, de::IgnoredAny, ser::SerializeMap};
use serde_json::{Value, json, value::RawValue};

use self::unique::UniqueFields;
use crate::{
    excerpt::{Quoted, excerpt},
    outcome::{Outcome, Reason},
    share::{ShareExceeded, ShareScope},
};

/// The error codes of the wire.
pub mod code {
    #![allow(missing_docs, reason = "each constant is its own name")]
    pub const PARSE: i64 = -32700;
    pub const INVALID_REQUEST: i64 = -32600;
    pub const METHOD: i64 = -32601;
    pub const PARAMS: i64 = -32602;
    pub const INTERNAL: i64 = -32603;
    pub const SESSION_LIMIT: i64 = -32001;
    pub const NOT_ALLOWED: i64 = -32002;
    pub const NOT_RUNNING: i64 = -32003;
    pub const ALREADY_RUNNING: i64 = -32005;
    pub const UNKNOWN_EXECUTION: i64 = -32006;
    pub const NOT_AUTHORIZED: i64 = -32007;
    pub const DRAINING: i64 = -32008;
    pub const FULL: i64 = -32009;
    pub const BACKEND: i64 = -32010;
    pub const NOT_STARTED: i64 = -32011;
    pub const LIMIT: i64 = -32012;
    pub const CLAUDE: i64 = -32013;
    pub const OTHER_INSTANCE: i64 = -32014;
}

/// The id of a request: a string, a number or `null`, exactly as written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Id(Box<RawValue>);

/// The longest id, in bytes of JSON. It comes back in the response, which must stay small.
const MAX_ID: usize = 256;

/// The longest message of an error, in bytes.
const MAX_ERROR_MESSAGE: usize = 4_096;

impl Id {
    /// Reads the id of a call.
    fn read(id: &RawValue) -> Result<Id, String> {
        let text = id.get();
        if text.len() > MAX_ID {
            return Err(format!("id has {} bytes, the limit is {MAX_ID}", text.len()));
        }
        match text.as_bytes().first() {
            Some(b'{' | b'[' | b't' | b'f') | None => Err("id must be a string, a number or null".to_owned()),
            Some(_) => Ok(Id(id.to_owned())),
        }
    }

    /// The id as JSON text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }
}

impl From<Option<u64>> for Id {
    fn from(id: Option<u64>) -> Self {
        let text = id.map_or_else(|| "null".to_owned(), |id| id.to_string());
        Id(RawValue::from_string(text).expect("a number or null is JSON"))
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

/// A call of a client. Without an id it is a notification and gets no response.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Present exactly if the client expects a response.
    pub id: Option<Id>,
    /// The method's name.
    pub method: String,
    /// The parameters by name.
    pub params: serde_json::Map<String, Value>,
}

/// A JSON-RPC error object.
#[derive(Clone, PartialEq, Debug, JsonSchema, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct ErrorObject {
    /// One of [`code`].
    pub code: i64,
    /// What failed, with which value, and what to do next.
    pub message: String,
    /// Machine-readable details, such as the parameter and its bounds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data: Option<Value>,
}

impl ErrorObject {
    /// An error without data.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_ERROR_MESSAGE));
        ErrorObject { code, message, data: None }
    }

    /// The error that announces a FAILED execution; `None` if the command itself caused the ending.
    pub fn of_outcome(outcome: &Outcome) -> Option<Self> {
        let code = match outcome.reason {
            Reason::BackendUnreachable | Reason::BackendRejected | Reason::BackendLost => code::BACKEND,
            Reason::NotStarted => code::NOT_STARTED,
            Reason::Timeout | Reason::Stalled => code::LIMIT,
            Reason::ClaudeError => code::CLAUDE,
            Reason::Exit
            | Reason::Signal
            | Reason::Oom
            | Reason::Canceled
            | Reason::Drained
            | Reason::Disconnected
            | Reason::Unknown => return None,
        };
        let message = outcome.message.clone().unwrap_or_else(|| outcome.reason.as_str().to_owned());
        Some(ErrorObject::new(code, message).with(json!({ "reason": outcome.reason })))
    }

    /// Adds the limit that is reached as data: `limit`, `used`, `scope`, and when to try again, if that is known.
    pub fn over(self, ShareExceeded { scope, limit, used }: ShareExceeded, retry_after_ms: Option<u64>) -> Self {
        let scope = match scope {
            ShareScope::Client => "client",
            ShareScope::Service => "service",
        };
        self.with(json!({ "limit": limit, "used": used, "scope": scope, "retryAfterMs": retry_after_ms }))
    }

    /// Adds data. Its strings are cut.
    pub fn with(mut self, mut data: Value) -> Self {
        cut_strings(&mut data);
        self.data = Some(data);
        self
    }
}

fn cut_strings(data: &mut Value) {
    match data {
        Value::String(text) => *text = excerpt(text).into_owned(),
        Value::Array(items) => items.iter_mut().for_each(cut_strings),
        Value::Object(map) => map.values_mut().for_each(cut_strings),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The response to a request.
#[derive(Clone, PartialEq, Debug)]
pub struct Response {
    /// The request's id, or `null` if it could not be read.
    pub id: Id,
    /// The result or the error.
    pub outcome: Result<Value, ErrorObject>,
}

impl Serialize for Response {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("jsonrpc", "2.0")?;
        map.serialize_entry("id", &self.id)?;
        match &self.outcome {
            Ok(result) => map.serialize_entry("result", result)?,
            Err(error) => map.serialize_entry("error", error)?,
        }
        map.end()
    }
}

/// A message of the service as a client reads it: a notification has a method, a response has a result or an error.
#[derive(Deserialize, Debug)]
pub struct ReceivedMessage<'a> {
    /// The id of the call that a response answers. The clients in this package use numbers.
    #[serde(default)]
    pub id: Option<u64>,
    /// The notification's name.
    #[serde(borrow, default)]
    pub method: Option<Cow<'a, str>>,
    /// The notification's parameters.
    #[serde(borrow, default)]
    pub params: Option<&'a RawValue>,
    /// The result of a call that succeeded.
    #[serde(borrow, default)]
    pub result: Option<&'a RawValue>,
    /// The error of a call that failed.
    #[serde(default)]
    pub error: Option<ErrorObject>,
}

/// Writes a call.
pub fn call_text(id: u64, method: &str, params: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct WrittenCall<'a, P> {
        jsonrpc: &'a str,
        id: u64,
        method: &'a str,
        params: &'a P,
    }
    serde_json::to_string(&WrittenCall { jsonrpc: "2.0", id, method, params })
        .expect("parameters have string keys and writing to memory cannot fail")
}

/// Reads a message.
///
/// # Errors
///
/// The message is not a call: the error is the response to it.
pub fn parse(text: &str) -> Result<Call, Response> {
    #[derive(Deserialize)]
    struct RawCall<'a> {
        #[serde(borrow)]
        jsonrpc: Cow<'a, str>,
        // Not an `Option<&RawValue>`, because `"id": null` is an id: only a call without the field is a notification.
        #[serde(borrow, default, deserialize_with = "present")]
        id: Option<&'a RawValue>,
        method: String,
        #[serde(borrow, default)]
        params: Option<&'a RawValue>,
    }

    let refuse = |id: Option<Id>, code, message: String| Response {
        id: id.unwrap_or_else(|| None.into()),
        outcome: Err(ErrorObject::new(code, message)),
    };
    let not_json = |error| refuse(None, code::PARSE, format!("not JSON: {error}"));

    if text.trim_ascii_start().starts_with('[') {
        serde_json::from_str::<IgnoredAny>(text).map_err(not_json)?;
        let message = "batches are not supported: send one call in each message";
        return Err(refuse(None, code::INVALID_REQUEST, message.to_owned()));
    }
    let raw: RawCall<'_> = serde_json::from_str(text).map_err(|error| match serde_json::from_str::<Value>(text) {
        // The response to JSON of another shape names its id.
        Ok(value) => {
            let message = format!("not a JSON-RPC 2.0 call: {}", excerpt(&error.to_string()));
            refuse(id_of(&value), code::INVALID_REQUEST, message)
        }
        Err(error) => not_json(error),
    })?;
    let id = raw.id.map(Id::read).transpose().map_err(|message| refuse(None, code::INVALID_REQUEST, message))?;
    if raw.jsonrpc != "2.0" {
        let message = format!("jsonrpc must be \"2.0\", not {}", Quoted(&raw.jsonrpc));
        return Err(refuse(id, code::INVALID_REQUEST, message));
    }
    let params = match raw.params.map(|params| serde_json::from_str(params.get())) {
        None => serde_json::Map::new(),
        Some(Ok(UniqueFields(Value::Object(params)))) => params,
        Some(Ok(_)) => {
            return Err(refuse(id, code::PARAMS, "params must be an object: parameters go by name".into()));
        }
        // The text was read as JSON before, so all that can be wrong is an object with two fields of the same name.
        Some(Err(error)) => return Err(refuse(id, code::PARAMS, unique::message_of(&error))),
    };
    Ok(Call { id, method: raw.method, params })
}

/// Reads an id that is present.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn id_of(value: &Value) -> Option<Id> {
    let id = RawValue::from_string(value.as_object()?.get("id")?.to_string()).ok()?;
    Id::read(&id).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> (String, i64) {
        let response = parse(text).expect_err("must be refused");
        (response.id.as_str().to_owned(), response.outcome.unwrap_err().code)
    }

    #[test]
    fn a_message_that_is_not_a_call_is_refused_with_its_id() {
        let table = [
            ("{", "null", code::PARSE),
            ("", "null", code::PARSE),
            ("{\"jsonrpc\":\"2.0\",\"method\":\"x\"} trailing", "null", code::PARSE),
            ("[", "null", code::PARSE),
            ("[]", "null", code::INVALID_REQUEST),
            ("[{\"jsonrpc\":\"2.0\",\"method\":\"ping\",\"id\":1}]", "null", code::INVALID_REQUEST),
            ("7", "null", code::INVALID_REQUEST),
            ("{\"jsonrpc\":\"1.0\",\"method\":\"ping\",\"id\":3}", "3", code::INVALID_REQUEST),
            ("{\"method\":\"ping\",\"id\":\"a\"}", "\"a\"", code::INVALID_REQUEST),
            ("{\"jsonrpc\":\"2.0\",\"id\":4,\"method\":5}", "4", code::INVALID_REQUEST),
            ("{\"jsonrpc\":\"2.0\",\"id\":4,\"result\":{}}", "4", code::INVALID_REQUEST),
            ("{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"ping\"}", "null", code::INVALID_REQUEST),
            ("{\"jsonrpc\":\"2.0\",\"id\":true,\"method\":\"ping\"}", "null", code::INVALID_REQUEST),
            ("{\"jsonrpc\":\"2.0\",\"id\":6,\"method\":\"ping\",\"params\":[1]}", "6", code::PARAMS),
            ("{\"jsonrpc\":\"2.0\",\"id\":6,\"id\":7,\"method\":\"ping\"}", "7", code::INVALID_REQUEST),
        ];
        for (text, id, code) in table {
            assert_eq!(refused(text), (id.to_owned(), code), "{text}");
        }
    }

    #[test]
    fn an_id_is_returned_unchanged() {
        for id in ["1", "1.0", "123456789012345678901234567890", "\"a\\u0041\"", "null"] {
            let call = parse(&format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"ping\"}}")).unwrap();
            let response = Response { id: call.id.unwrap(), outcome: Ok(Value::Null) };
            let text = serde_json::to_string(&response).unwrap();
            assert_eq!(text, format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":null}}"));
        }
        assert_eq!(parse("{\"jsonrpc\":\"2.0\",\"method\":\"ping\"}").unwrap().id, None);
    }
}
