//! The types of status and outcome, the same for the backend, the gateway and the client. The decision is in
//! `src/backend/job/outcome.rs`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

use crate::stream::PerStream;

/// Why an execution ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The process exited by itself.
    Exit,
    /// A signal of another sender ended the process.
    Signal,
    /// The kernel killed the process because memory ran out, as the execution's own cgroup has counted.
    Oom,
    /// The process could not be started.
    NotStarted,
    /// The total time-out passed.
    Timeout,
    /// The command wrote nothing for the stall time-out.
    Stalled,
    /// A client canceled it.
    Canceled,
    /// The service was shutting down.
    Drained,
    /// Its client disconnected, and it was not to continue without one.
    Disconnected,
    /// Claude reported a failure, or no result.
    ClaudeError,
    /// The backend could not be reached.
    BackendUnreachable,
    /// The backend refused the execution.
    BackendRejected,
    /// The backend's stream ended without the outcome.
    BackendLost,
    /// A reason that only a newer service has.
    #[serde(other)]
    Unknown,
}

impl Reason {
    /// The name on the wire and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Exit => "exit",
            Reason::Signal => "signal",
            Reason::Oom => "oom",
            Reason::NotStarted => "not_started",
            Reason::Timeout => "timeout",
            Reason::Stalled => "stalled",
            Reason::Canceled => "canceled",
            Reason::Drained => "drained",
            Reason::Disconnected => "disconnected",
            Reason::ClaudeError => "claude_error",
            Reason::BackendUnreachable => "backend_unreachable",
            Reason::BackendRejected => "backend_rejected",
            Reason::BackendLost => "backend_lost",
            Reason::Unknown => "unknown",
        }
    }
}

/// The status of an execution. The last three are final.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// It waits in the queue.
    Queued,
    /// The process runs.
    Running,
    /// Its processes are stopped until RESUME.
    Paused,
    /// It is being ended.
    Cancelling,
    /// It succeeded: exit code 0, or the success that an agent or the legacy image reported.
    Completed,
    /// It was canceled, or its session or the service ended.
    Cancelled,
    /// It ended in any other way.
    Failed,
}

impl Status {
    /// All of them.
    pub const ALL: [Status; 7] = [
        Status::Queued,
        Status::Running,
        Status::Paused,
        Status::Cancelling,
        Status::Completed,
        Status::Cancelled,
        Status::Failed,
    ];

    /// Whether no other status can follow.
    pub fn is_final(self) -> bool {
        matches!(self, Status::Completed | Status::Cancelled | Status::Failed)
    }

    /// The name on the wire and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Queued => "QUEUED",
            Status::Running => "RUNNING",
            Status::Paused => "PAUSED",
            Status::Cancelling => "CANCELLING",
            Status::Completed => "COMPLETED",
            Status::Cancelled => "CANCELLED",
            Status::Failed => "FAILED",
        }
    }
}

/// On whose behalf an execution is ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CancelReason {
    /// A client.
    #[default]
    Canceled,
    /// The service, which is shutting down.
    Drained,
}

impl CancelReason {
    /// The name on the wire and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            CancelReason::Canceled => "canceled",
            CancelReason::Drained => "drained",
        }
    }
}

/// Whether the output of an execution is kept on the backend's disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// All of it, up to the quota.
    Disk,
    /// The disk failed: the output is kept in memory, as without a state directory.
    Failed,
    /// The files were altered: the output, or the record of the ending, is not what the execution left.
    Altered,
    /// A state that only a newer service has.
    #[serde(other)]
    Unknown,
}

/// What PAUSE stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The processes themselves.
    Process,
    /// Only the delivery of their output, with the legacy image.
    Delivery,
}

/// The processes of an execution that the service ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CancelReport {
    /// Whether every process of the execution is proven to be gone.
    pub verified: bool,
    /// The number of remaining processes; `null` if it is unknown.
    pub survivors: Option<u32>,
    /// The time between TERM and KILL, in milliseconds.
    pub grace_ms: u64,
    /// Whether KILL was sent.
    pub escalated: bool,
    /// The proof that no process remains.
    #[serde(default)]
    pub evidence: Evidence,
}

impl CancelReport {
    /// A report without knowledge of the processes.
    pub fn unknown(grace_ms: u64) -> Self {
        CancelReport { verified: false, survivors: None, grace_ms, escalated: false, evidence: Evidence::Unknown }
    }

    /// The report of an execution without a process.
    pub fn never_ran(grace_ms: u64) -> Self {
        let evidence = Evidence::NeverStarted;
        CancelReport { verified: true, survivors: Some(0), grace_ms, escalated: false, evidence }
    }
}

/// The proof that every process of an execution is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The shim, which adopts every orphan of the tree, has no child any more (ECHILD, wait(2)).
    Echild,
    /// The shim was lost, and the subreaper, which adopted its tree, has no child but live shims.
    Swept,
    /// The execution's cgroup has no process.
    CgroupEmpty,
    /// The first process of the execution's PID namespace was reaped, so the kernel has ended the others.
    PidNamespace,
    /// No process was started.
    NeverStarted,
    /// There is no proof, or this version does not know the kind of proof.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Evidence {
    /// Whether it proves that no process remains.
    pub fn is_proof(self) -> bool {
        self != Evidence::Unknown
    }

    /// The name on the wire and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Evidence::Echild => "echild",
            Evidence::Swept => "swept",
            Evidence::CgroupEmpty => "cgroup_empty",
            Evidence::PidNamespace => "pid_namespace",
            Evidence::NeverStarted => "never_started",
            Evidence::Unknown => "unknown",
        }
    }
}

/// How an execution ended: the backend's last event, and the body of the final `statusUpdate`.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
pub struct Outcome {
    /// The final status.
    pub status: Status,
    /// The reason.
    pub reason: Reason,
    /// The exit code, if the process had one. The field keeps the spelling of the legacy image.
    pub exit_code: Option<i32>,
    /// The name of the signal that ended the process, such as `SIGKILL`.
    pub signal: Option<String>,
    /// A message for people.
    pub message: Option<String>,
    /// Time since RUNNING, in milliseconds; `None` if it never ran.
    #[serde(rename = "elapsedMs")]
    pub elapsed_ms: Option<u64>,
    /// Bytes read from each stream, dropped ones included.
    pub bytes: PerStream<Option<u64>>,
    /// SHA-256 over those bytes, in hexadecimal.
    pub sha256: PerStream<Option<String>>,
    /// The number of processes that outlived the leader and were ended.
    pub leftovers: u32,
    /// What its processes used. `None` if that is not known, or if it never ran.
    #[serde(default)]
    pub usage: Option<Usage>,
    /// Present whenever the service ended the execution.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cancel: Option<CancelReport>,
    /// Claude's result.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub result: Option<Box<ClaudeResult>>,
    /// Whether the output is on the backend's disk; absent if it never was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub storage: Option<Storage>,
}

/// What the processes of an execution used, from its start until the last of them was gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Processor time in user mode, in milliseconds, summed over the processes that were waited for: RUSAGE_CHILDREN of
    /// the shim (getrusage(2)). It lacks the children of a process that ignores SIGCHLD.
    pub cpu_user_ms: u64,
    /// Processor time in the kernel, likewise.
    pub cpu_system_ms: u64,
    /// The largest resident set of a single process, in bytes. Not a sum.
    pub max_process_rss_bytes: u64,
    /// The most memory that all processes used at one time, in bytes, with the page cache, as the execution's own cgroup
    /// counts it. `None` without such a cgroup.
    pub peak_tree_bytes: Option<u64>,
}

/// The result of Claude: the `result` of a final status.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
pub struct ClaudeResult {
    /// Its final text, or its errors.
    pub text: String,
    /// Whether the text was cut because it was too long.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub truncated: bool,
    /// Whether it failed. True if the event does not say.
    pub is_error: bool,
    /// The number of answers of the model.
    pub num_turns: Option<u64>,
    /// The duration of its run by its own clock, in milliseconds.
    pub duration_ms: Option<u64>,
    /// The cost, in US dollars.
    pub total_cost_usd: Option<Number>,
    /// Tokens, as the API counts them.
    pub usage: Option<Value>,
    /// The value for the option `resume`, which continues this session.
    pub session_id: Option<String>,
    /// The API's HTTP status, if that was the error.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub api_error_status: Option<u64>,
}

impl Outcome {
    /// The outcome of an execution without a report of the backend.
    pub fn without_process(status: Status, reason: Reason, message: impl Into<Option<String>>) -> Self {
        Outcome {
            status,
            reason,
            exit_code: None,
            signal: None,
            message: message.into(),
            elapsed_ms: None,
            bytes: PerStream::default(),
            sha256: PerStream::default(),
            leftovers: 0,
            usage: None,
            cancel: None,
            result: None,
            storage: None,
        }
    }

    /// A FAILED outcome without a report of the backend.
    pub fn failed(reason: Reason, message: impl Into<String>) -> Self {
        Self::without_process(Status::Failed, reason, message.into())
    }
}
