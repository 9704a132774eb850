//! The HTTP interface between gateway and backend, as types that both ends share.

pub mod control;
mod execute;
pub mod multiplex;

pub use self::execute::{ExecuteRequest, LegacyExecuteRequest};
pub use crate::protocol::status::{Heartbeat, Snapshot};

use serde::{Deserialize, Serialize};

use crate::{
    id::{ExecutionId, InstanceId},
    outcome::{Outcome, Scope, Status},
    protocol::CLAUDE_EXECUTOR,
    stream::Gap,
};

/// Media type of Docker's framing: an 8-byte header `[stream, 0, 0, 0, size: u32 big endian]`, then the bytes.
pub const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// Media type of a stream of JSON lines.
pub const NDJSON: &str = "application/x-ndjson";

/// Response header with the execution's id.
pub const EXECUTION_ID_HEADER: &str = "x-execution-id";

/// Request header with the name of the client that a gateway calls for. A backend believes it only beside its token.
pub const CLIENT_HEADER: &str = "cc-executor-client";

/// Request header with the session for which a gateway requests an execution: the sessions of a client wait in turn.
pub const SESSION_HEADER: &str = "cc-executor-session";

/// Response header of output that is read over HTTP: the status of its execution. After a final one nothing is added.
pub const EXECUTION_STATUS_HEADER: &str = "cc-executor-status";

/// Response header of output that is read over HTTP: the offset of the first byte that is still there.
pub const FIRST_BYTE_HEADER: &str = "cc-executor-first-byte";

/// How many executions a page of `GET /executions` has at the most, and if the request does not say.
pub const MAX_LISTED: usize = 200;

/// Answer of `GET /executions?limit=N&after=NEXT`: what has not ended or is attached comes first, then the rest, each
/// the newest first.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ExecutionPage {
    /// The executions of the caller.
    pub executions: Vec<Snapshot>,
    /// Where the next page begins, if there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
    /// How many executions all pages have at this moment. `None` from a backend older than this field.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub total: Option<usize>,
}

/// Answer of `GET /health`. The answer of the legacy image has no `server`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Always `cc-executor`.
    pub server: String,
    /// The package's version.
    pub version: String,
    /// The id of the backend's process, chosen at its start. `None` from a backend older than this field.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub instance: Option<InstanceId>,
    /// The names of the executors.
    pub executors: Vec<String>,
    /// The executor of a command that names none.
    pub default_executor: String,
    /// How many executions may run at a time.
    pub max_executions: usize,
    /// The names of the features of this build.
    pub capabilities: Vec<String>,
    /// Executions that run now.
    pub running: usize,
    /// Executions that wait in the queue.
    pub queued: usize,
}

/// An event of an execution: a frame of stream 3.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendEvent {
    /// It waits in the queue. Repeated whenever its position changes.
    Queued(QueuedEvent),
    /// The process runs, or has run. Its output follows.
    Started(StartedEvent),
    /// A sign of life, once a heartbeat.
    Alive(Heartbeat),
    /// The status changed, whichever client caused it.
    Status(StatusChange),
    /// Bytes that this consumer does not get, at their place in the stream.
    Gap(Gap),
    /// Another consumer has the execution now. Nothing follows.
    TakenOver(bool),
    /// It ended. Nothing follows.
    Exit(Outcome),
}

/// An execution waits in the queue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct QueuedEvent {
    /// The position in the queue; 1 is the next to run.
    pub position: u64,
    /// The options of the execution, for a consumer that attached later.
    #[serde(flatten)]
    pub terms: StreamInfo,
}

/// The process of an execution runs, or has run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartedEvent {
    /// The id of the execution.
    pub execution_id: ExecutionId,
    /// The name of its executor.
    pub executor: String,
    /// Its current status; final if the stream is a replay.
    #[serde(default = "running")]
    pub status: Status,
    /// The options of the execution, for a consumer that attached later.
    #[serde(flatten)]
    pub terms: StreamInfo,
    /// Its clocks, for a consumer that attached later.
    #[serde(default)]
    pub alive: Heartbeat,
}

fn running() -> Status {
    Status::Running
}

/// The options of an execution that a consumer must know to follow it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamInfo {
    /// The heartbeat period, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub heartbeat_ms: Option<u64>,
    /// Whether the execution continues without a consumer, and waits for acknowledgements.
    #[serde(default)]
    pub may_detach: bool,
    /// The number of bytes after which the consumer should acknowledge, so that the command need not wait for that.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub acknowledge_bytes: Option<u64>,
    /// Whether its standard output consists of Claude's events.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub claude: bool,
    /// The executor of another agent, if its standard output consists of the events of that agent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub agent: Option<String>,
    /// The backend's instance that runs it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub instance: Option<InstanceId>,
    /// The number of this consumer's hold. A consumer that reconnects names it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hold: Option<u64>,
}

impl StreamInfo {
    /// The executor of the agent, if standard output consists of an agent's events.
    pub fn agent(&self) -> Option<&str> {
        if self.claude { Some(CLAUDE_EXECUTOR) } else { self.agent.as_deref() }
    }

    /// Sets the executor; `None` if standard output does not consist of an agent's events.
    #[must_use]
    pub fn with_agent(self, executor: Option<&str>) -> Self {
        let claude = executor == Some(CLAUDE_EXECUTOR);
        StreamInfo { claude, agent: executor.filter(|_| !claude).map(str::to_owned), ..self }
    }
}

impl BackendEvent {
    /// Adds the number of the consumer's hold to an event that begins a stream.
    pub fn with_hold(mut self, hold: u64) -> Self {
        match &mut self {
            BackendEvent::Queued(queued) => queued.terms.hold = Some(hold),
            BackendEvent::Started(started) => started.terms.hold = Some(hold),
            _ => {}
        }
        self
    }
}

/// A change of the status.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StatusChange {
    /// The new status.
    pub status: Status,
    /// What PAUSE stops, if the new status is PAUSED.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<Scope>,
}

impl StatusChange {
    /// A change to this status.
    pub fn to(status: Status) -> Self {
        let scope = (status == Status::Paused).then_some(Scope::Process);
        StatusChange { status, scope }
    }
}
