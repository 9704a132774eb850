//! What the server says without being asked.

use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::Limits;
use crate::rpc::{ErrorObject, Response};
use crate::{
    id::{ExecutionId, InstanceId, SessionId},
    outcome::{Outcome, Scope, Status},
    stream::{GapReason, PerStream, Stream},
};

/// One message to the client. Output is not among them: it is encoded where it is cut, see
/// [`crate::execution::text`].
#[derive(Clone, PartialEq, Debug)]
pub enum ServerMessage {
    /// The answer to a request.
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

fn notification<S: Serializer>(serializer: S, method: &str, params: &impl Serialize) -> Result<S::Ok, S::Error> {
    let mut object = serializer.serialize_struct("Notification", 3)?;
    object.serialize_field("jsonrpc", "2.0")?;
    object.serialize_field("method", method)?;
    object.serialize_field("params", params)?;
    object.end()
}

/// Params of `connected`.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connected {
    /// The session's id, as it stands in the logs.
    pub session_id: SessionId,
    /// The version of the dialect.
    pub protocol: u32,
    /// Who speaks.
    pub server: ServerInfo,
    /// What `executor` may name; `None` while the backend has not answered yet.
    pub executors: Option<Vec<String>>,
    /// The backend's instance, which a repeated `execute` names. Absent where `executors` is `None`, and with the
    /// original's image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// What a client may ask for.
    pub limits: Limits,
    /// What this build can do.
    pub capabilities: Vec<String>,
}

/// Name and version of the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct ServerInfo {
    /// Always `cc-executor`.
    pub name: &'static str,
    /// The package's version.
    pub version: &'static str,
}

impl ServerInfo {
    /// This build.
    pub const THIS: ServerInfo = ServerInfo { name: "cc-executor", version: env!("CARGO_PKG_VERSION") };
}

/// Whether the backend was heard lately.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendHealth {
    /// It was.
    Alive,
    /// Three heartbeats in a row were missed.
    Silent,
}

/// Params of a `statusUpdate` that is not the last.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusUpdate {
    /// Which execution.
    pub execution_id: ExecutionId,
    /// Its status.
    pub status: Status,
    /// Its place in the queue, while it is QUEUED.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// What stands still, while it is PAUSED.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Milliseconds since RUNNING.
    pub elapsed_ms: u64,
    /// Milliseconds since the process last wrote anything.
    pub since_output_ms: u64,
    /// Bytes of each stream that were sent to this client.
    pub offsets: PerStream<u64>,
    /// Whether all of its processes are stopped, by whomever.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// Whether the backend was heard lately.
    pub backend: BackendHealth,
    /// Milliseconds left until the total time-out; `None` without one.
    pub deadline_ms: Option<u64>,
    /// What Claude is doing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activity: Option<String>,
    /// How often Claude's model has answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turns: Option<u32>,
}

/// Params of the final `statusUpdate`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct FinalStatus {
    /// Which execution.
    #[serde(rename = "executionId")]
    pub execution_id: ExecutionId,
    /// How it ended.
    #[serde(flatten)]
    pub ending: Outcome,
}

/// Params of `gap`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct GapNotice {
    /// Which execution.
    #[serde(rename = "executionId")]
    pub execution_id: ExecutionId,
    /// Of which stream.
    pub r#type: Stream,
    /// The offset of the first byte that this client will not get.
    pub from: u64,
    /// The offset after the last.
    pub to: u64,
    /// Why.
    pub reason: GapReason,
}

/// Params of `detached`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DetachedNotice {
    /// Which execution.
    pub execution_id: ExecutionId,
    /// Why: always `taken_over`.
    pub reason: &'static str,
    /// What was sent of each stream to this client, in bytes.
    pub offsets: PerStream<u64>,
}

/// Params of `error`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ErrorNotice {
    /// What failed.
    #[serde(flatten)]
    pub error: ErrorObject,
    /// The execution that it concerns, if one.
    #[serde(rename = "executionId", skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<ExecutionId>,
}
