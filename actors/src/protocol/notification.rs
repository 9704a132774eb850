//! The messages of the service: responses, and notifications that it sends unasked.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeStruct};
use serde_json::value::RawValue;

use super::Limits;
use crate::{
    id::{ExecutionId, InstanceId, SessionId},
    outcome::{Outcome, Scope, Status},
    rpc::{ErrorObject, ReceivedMessage, Response},
    stream::{GapReason, PerStream, Stream},
};

/// A message to the client. `output` and `event` are missing, because [`crate::output`] encodes them without a value
/// between.
#[derive(Clone, PartialEq, Debug)]
pub enum ServerMessage {
    /// The response to a request.
    Response(Response),
    /// `connected`, the first message of a session.
    Connected(Connected),
    /// `statusUpdate` of an execution that has not ended.
    Progress(StatusUpdate),
    /// The final `statusUpdate`.
    Ended(FinalStatus),
    /// `gap`.
    Gap(GapNotice),
    /// `detached`.
    Detached(DetachedNotice),
    /// `error`.
    Error(ErrorNotice),
}

impl Serialize for ServerMessage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ServerMessage::Response(response) => response.serialize(serializer),
            ServerMessage::Connected(params) => notification(serializer, "connected", params),
            ServerMessage::Progress(params) => notification(serializer, "statusUpdate", params),
            ServerMessage::Ended(params) => notification(serializer, "statusUpdate", params),
            ServerMessage::Gap(params) => notification(serializer, "gap", params),
            ServerMessage::Detached(params) => notification(serializer, "detached", params),
            ServerMessage::Error(params) => notification(serializer, "error", params),
        }
    }
}

impl<'de> Deserialize<'de> for ServerMessage {
    /// Reads all messages but `output` and `event`, see [`OutputNotice`] and [`EventNotice`].
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ReceivedMessage { id, method, params, result, error } = ReceivedMessage::deserialize(deserializer)?;
        let params = params.map_or("null", RawValue::get);
        let message = match (method.as_deref(), result, error) {
            (Some("connected"), ..) => serde_json::from_str(params).map(ServerMessage::Connected),
            (Some("statusUpdate"), ..) => StatusNotice::read(params).map(|notice| match notice {
                StatusNotice::Progress(update) => ServerMessage::Progress(update),
                StatusNotice::Ended(last) => ServerMessage::Ended(last),
            }),
            (Some("gap"), ..) => serde_json::from_str(params).map(ServerMessage::Gap),
            (Some("detached"), ..) => serde_json::from_str(params).map(ServerMessage::Detached),
            (Some("error"), ..) => serde_json::from_str(params).map(ServerMessage::Error),
            (Some(other), ..) => Err(de::Error::custom(format_args!("unknown notification {other:?}"))),
            (None, Some(result), None) => serde_json::from_str(result.get())
                .map(|result| ServerMessage::Response(Response { id: id.into(), outcome: Ok(result) })),
            (None, None, Some(error)) => Ok(ServerMessage::Response(Response { id: id.into(), outcome: Err(error) })),
            (None, ..) => Err(de::Error::custom("neither a notification nor a response")),
        };
        message.map_err(de::Error::custom)
    }
}

fn notification<S: Serializer>(serializer: S, method: &str, params: &impl Serialize) -> Result<S::Ok, S::Error> {
    let mut object = serializer.serialize_struct("Notification", 3)?;
    object.serialize_field("jsonrpc", "2.0")?;
    object.serialize_field("method", method)?;
    object.serialize_field("params", params)?;
    object.end()
}

/// Params of `connected`.
#[derive(Clone, PartialEq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connected {
    /// The session's id, which is also in the logs.
    pub session_id: SessionId,
    /// The version of the protocol.
    pub protocol: u32,
    /// Name and version of the service.
    pub server: ServerInfo,
    /// The names of the executors; `None` while the backend has not answered yet.
    pub executors: Option<Vec<String>>,
    /// The backend's instance, which a repeated `execute` names. Absent if `executors` is `None`, and with the legacy
    /// image.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub instance: Option<InstanceId>,
    /// The bounds of parameters.
    pub limits: Limits,
    /// The optional features of this build.
    pub capabilities: Vec<String>,
}

/// Name and version of the service.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Always `cc-executor`.
    pub name: Cow<'static, str>,
    /// The package's version.
    pub version: Cow<'static, str>,
}

impl ServerInfo {
    /// This build.
    pub const THIS: ServerInfo =
        ServerInfo { name: Cow::Borrowed("cc-executor"), version: Cow::Borrowed(env!("CARGO_PKG_VERSION")) };
}

/// Whether the backend sends events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendHealth {
    /// Events arrive.
    Alive,
    /// No event arrived for three heartbeat periods.
    Silent,
}

/// Params of a `statusUpdate` that is not the last.
#[derive(Clone, PartialEq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusUpdate {
    /// The execution.
    pub execution_id: ExecutionId,
    /// Its status.
    pub status: Status,
    /// Its position in the queue, while it is QUEUED.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub position: Option<u64>,
    /// What is stopped, while it is PAUSED.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<Scope>,
    /// Milliseconds since RUNNING.
    pub elapsed_ms: u64,
    /// Milliseconds since the last output.
    pub since_output_ms: u64,
    /// Bytes of each stream that were sent to this client.
    pub offsets: PerStream<u64>,
    /// Whether all of its processes are stopped, by PAUSE or by a signal of another sender.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub stopped: bool,
    /// Whether the backend sends events.
    pub backend: BackendHealth,
    /// Milliseconds left until the total time-out; `None` without one.
    pub deadline_ms: Option<u64>,
    /// The activity of the agent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub activity: Option<String>,
    /// The number of answers of the agent's model.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub turns: Option<u32>,
}

/// Params of the final `statusUpdate`.
#[derive(Clone, PartialEq, Debug, JsonSchema, Serialize, Deserialize)]
pub struct FinalStatus {
    /// The execution.
    #[serde(rename = "executionId")]
    pub execution_id: ExecutionId,
    /// How it ended.
    #[serde(flatten)]
    pub ending: Outcome,
}

/// Params of `statusUpdate` as a client reads them.
#[derive(Clone, PartialEq, Debug)]
pub enum StatusNotice {
    /// The execution has not ended.
    Progress(StatusUpdate),
    /// The last message about the execution.
    Ended(FinalStatus),
}

impl StatusNotice {
    /// Reads the parameters.
    ///
    /// # Errors
    ///
    /// They are not those of a `statusUpdate`.
    pub fn read(params: &str) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct AnyStatus {
            status: Status,
        }
        let AnyStatus { status } = serde_json::from_str(params)?;
        if status.is_final() {
            return serde_json::from_str(params).map(StatusNotice::Ended);
        }
        serde_json::from_str(params).map(StatusNotice::Progress)
    }
}

/// Params of `gap`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
pub struct GapNotice {
    /// The execution.
    #[serde(rename = "executionId")]
    pub execution_id: ExecutionId,
    /// The stream.
    pub r#type: Stream,
    /// The offset of the first byte that this client will not get.
    pub from: u64,
    /// The offset after the last.
    pub to: u64,
    /// The reason.
    pub reason: GapReason,
}

/// Params of `detached`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DetachedNotice {
    /// The execution.
    pub execution_id: ExecutionId,
    /// The reason.
    pub reason: DetachReason,
    /// The bytes of each stream that were sent to this client.
    pub offsets: PerStream<u64>,
}

/// Why a session does not hold its execution any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DetachReason {
    /// Another consumer holds it now.
    TakenOver,
}

/// Params of `output`, as clients read them. [`crate::output`] writes them without this type.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
pub struct OutputNotice<'a> {
    /// The stream.
    pub r#type: Stream,
    /// The bytes, if they are UTF-8.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Cow<'a, str>>,
    /// The bytes in base64, if they are not UTF-8.
    #[serde(borrow, rename = "contentBase64", default, skip_serializing_if = "Option::is_none")]
    pub content_base64: Option<Cow<'a, str>>,
    /// The stream's offset after them.
    pub end: u64,
}

/// Params of `event`, as clients read them. [`crate::output`] writes them without this type.
#[derive(Clone, Debug, JsonSchema, Serialize, Deserialize)]
pub struct EventNotice<'a> {
    /// The execution.
    #[serde(rename = "executionId")]
    pub execution_id: ExecutionId,
    /// The agent's event as it came.
    #[serde(borrow)]
    #[schemars(with = "serde_json::Value")]
    pub event: &'a RawValue,
    /// The offset of standard output after it.
    #[serde(default)]
    pub end: u64,
}

/// Params of `error`.
#[derive(Clone, PartialEq, Debug, JsonSchema, Serialize, Deserialize)]
pub struct ErrorNotice {
    /// The error.
    #[serde(flatten)]
    pub error: ErrorObject,
    /// The execution that failed, if the error concerns one.
    #[serde(rename = "executionId", skip_serializing_if = "Option::is_none", default)]
    pub execution_id: Option<ExecutionId>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        outcome::{CancelReport, Reason},
        protocol::{CAPABILITIES, VERSION},
    };

    #[test]
    fn a_client_reads_each_message_as_the_server_wrote_it() {
        let execution_id = ExecutionId::random();
        let progress = StatusUpdate {
            execution_id,
            status: Status::Paused,
            position: None,
            scope: Some(Scope::Process),
            elapsed_ms: 1,
            since_output_ms: 2,
            offsets: PerStream { stdout: 3, stderr: 4 },
            stopped: true,
            backend: BackendHealth::Silent,
            deadline_ms: None,
            activity: Some("tool: Bash".to_owned()),
            turns: Some(5),
        };
        let ending = Outcome {
            exit_code: Some(3),
            cancel: Some(CancelReport::unknown(6)),
            ..Outcome::failed(Reason::Timeout, "the total time-out passed")
        };
        let error = ErrorObject::new(-32010, "gone").with(serde_json::json!({ "reason": "backend_lost" }));
        for message in [
            ServerMessage::Response(Response { id: Some(7).into(), outcome: Ok(serde_json::json!({ "accepted": 1 })) }),
            ServerMessage::Response(Response { id: Some(8).into(), outcome: Err(error.clone()) }),
            ServerMessage::Connected(Connected {
                session_id: SessionId::random(),
                protocol: VERSION,
                server: ServerInfo::THIS,
                executors: Some(vec!["shell".to_owned()]),
                instance: Some(InstanceId::random()),
                limits: Limits::default(),
                capabilities: CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
            }),
            ServerMessage::Progress(progress),
            ServerMessage::Ended(FinalStatus { execution_id, ending }),
            ServerMessage::Gap(GapNotice {
                execution_id,
                r#type: Stream::Stderr,
                from: 1,
                to: 2,
                reason: GapReason::Dropped,
            }),
            ServerMessage::Detached(DetachedNotice {
                execution_id,
                reason: DetachReason::TakenOver,
                offsets: PerStream::default(),
            }),
            ServerMessage::Error(ErrorNotice { error, execution_id: Some(execution_id) }),
        ] {
            let text = serde_json::to_string(&message).unwrap();
            assert_eq!(serde_json::from_str::<ServerMessage>(&text).unwrap(), message, "{text}");
        }
    }
}
