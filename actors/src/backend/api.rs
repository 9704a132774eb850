//! What gateway and backend say to each other over HTTP, as types that both ends share.

use serde::{Deserialize, Serialize};

use crate::{
    id::ExecutionId,
    terminate::{Ending, Status},
};

/// Media type of Docker's framing: an 8-byte header `[stream, 0, 0, 0, size: u32 big endian]`, then the bytes.
pub const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// Media type of the same as JSON lines.
pub const NDJSON: &str = "application/x-ndjson";

/// Response header with the execution's id.
pub const EXECUTION_ID_HEADER: &str = "x-execution-id";

/// Answer of `GET /health`. Without `server` it is the original's image that answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Always `cc-executor`.
    pub server: String,
    /// The package's version.
    pub version: String,
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
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// The process runs: the first word of an execution that could be started.
    Started(Started),
    /// A sign of life, once a heartbeat.
    Alive(Alive),
    /// The status changed, whoever caused it.
    Status(StatusChange),
    /// The last word.
    Exit(Ending),
}

/// The process runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// Which execution.
    pub execution_id: ExecutionId,
    /// What runs it.
    pub executor: String,
}

/// A sign of life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alive {
    /// Milliseconds since RUNNING.
    pub elapsed_ms: u64,
    /// Milliseconds since the process last wrote anything.
    pub since_output_ms: u64,
}

/// The status changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StatusChange {
    /// What it is now.
    pub status: Status,
}

/// Answer of `GET /executions/{id}`, and one entry of `GET /executions`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Which execution.
    pub execution_id: ExecutionId,
    /// What runs it.
    pub executor: String,
    /// Its status.
    pub status: Status,
    /// Milliseconds since RUNNING.
    pub elapsed_ms: u64,
    /// How it ended, if it has.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ending: Option<Ending>,
}
