//! What gateway and backend say to each other over HTTP, as types that both ends share.

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

/// Media type of the same as JSON lines.
pub const NDJSON: &str = "application/x-ndjson";

/// Response header with the execution's id.
pub const EXECUTION_ID_HEADER: &str = "x-execution-id";

/// Answer of `GET /health`. Without `server` it is the legacy image that answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Always `cc-executor`.
    pub server: String,
    /// The package's version.
    pub version: String,
    /// Identifies the backend's process: a UUID that it makes at its start. `None` from a backend older than this field.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub instance: Option<InstanceId>,
    /// What can be run, by name.
    pub executors: Vec<String>,
    /// Which one runs a command that names none.
    pub default_executor: String,
    /// How many executions may run at a time.
    pub max_executions: usize,
    /// What this build can do.
    pub capabilities: Vec<String>,
    /// Executions that run now.
    pub running: usize,
    /// Executions that wait.
    pub queued: usize,
}

/// One word of the backend about an execution: an entry of stream 3.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendEvent {
    /// It waits for a place; again whenever its position changes.
    Queued(QueuedEvent),
    /// The process runs, or has run: what follows is its output.
    Started(StartedEvent),
    /// A sign of life, once a heartbeat.
    Alive(Heartbeat),
    /// The status changed, whoever caused it.
    Status(StatusChange),
    /// Bytes that this consumer will not get, in their place in the stream.
    Gap(Gap),
    /// Another consumer has it now. Nothing follows.
    TakenOver(bool),
    /// The last word.
    Exit(Outcome),
}

/// It waits for a place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct QueuedEvent {
    /// 1 is the next to run.
    pub position: u64,
    /// What was asked for, for a consumer that came later.
    #[serde(flatten)]
    pub terms: StreamInfo,
}

/// The process runs, or has run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartedEvent {
    /// Which execution.
    pub execution_id: ExecutionId,
    /// What runs it.
    pub executor: String,
    /// How it is now; final if all that follows is a replay.
    #[serde(default = "running")]
    pub status: Status,
    /// What was asked for, for a consumer that came later.
    #[serde(flatten)]
    pub terms: StreamInfo,
    /// Its clocks, for a consumer that came later.
    #[serde(default)]
    pub alive: Heartbeat,
}

fn running() -> Status {
    Status::Running
}

/// What somebody who attaches must know of what was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamInfo {
    /// How often a sign of life comes, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub heartbeat_ms: Option<u64>,
    /// Whether it goes on without a consumer, and waits for acknowledgements.
    #[serde(default)]
    pub may_detach: bool,
    /// After how many bytes an acknowledgement is wanted, so that the command need not wait for it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub acknowledge_bytes: Option<u64>,
    /// Whether its standard output is Claude's events.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub claude: bool,
    /// The executor of another agent, if its standard output is the events of that agent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub agent: Option<String>,
    /// Which process of the backend has it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub instance: Option<InstanceId>,
    /// The number of this consumer's hold. A consumer that comes back for itself names it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hold: Option<u64>,
}

impl StreamInfo {
    /// The executor of the agent whose events standard output is.
    pub fn agent(&self) -> Option<&str> {
        if self.claude { Some(CLAUDE_EXECUTOR) } else { self.agent.as_deref() }
    }

    /// Sets the executor of the agent whose events standard output is.
    #[must_use]
    pub fn with_agent(self, executor: Option<&str>) -> Self {
        let claude = executor == Some(CLAUDE_EXECUTOR);
        StreamInfo { claude, agent: executor.filter(|_| !claude).map(str::to_owned), ..self }
    }
}

impl BackendEvent {
    /// The same with the number of its consumer's hold, where it is a word that begins a stream.
    pub fn with_hold(mut self, hold: u64) -> Self {
        match &mut self {
            BackendEvent::Queued(queued) => queued.terms.hold = Some(hold),
            BackendEvent::Started(started) => started.terms.hold = Some(hold),
            _ => {}
        }
        self
    }
}

/// The status changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StatusChange {
    /// What it is now.
    pub status: Status,
    /// What stands still, if it is PAUSED.
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
