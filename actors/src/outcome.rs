//! How an execution ended, in one vocabulary for the backend, the gateway and the client.

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

use crate::stream::PerStream;

/// Why an execution ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The process exited by itself.
    Exit,
    /// A signal that this service did not send ended the process.
    Signal,
    /// The process could not be started.
    NotStarted,
    /// The total time-out passed.
    Timeout,
    /// Nothing was written for the stall time-out.
    Stalled,
    /// A client canceled it.
    Canceled,
    /// The service was shutting down.
    Drained,
    /// Its client went away and it was not to outlive it.
    Disconnected,
    /// Claude reported a failure, or did not report how it ended.
    ClaudeError,
    /// The backend could not be reached.
    BackendUnreachable,
    /// The backend answered with something else than an execution.
    BackendRejected,
    /// The backend's stream ended without the execution's ending.
    BackendLost,
}

impl Reason {
    /// The name on the wire and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Exit => "exit",
            Reason::Signal => "signal",
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
        }
    }
}

/// The status of an execution, as `statusUpdate` states it. The last three are final.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// It waits for a place.
    Queued,
    /// The process runs.
    Running,
    /// It is stopped until RESUME.
    Paused,
    /// It is being ended.
    Cancelling,
    /// It exited with code 0.
    Completed,
    /// It was canceled, or its session or the service ended.
    Cancelled,
    /// Everything else.
    Failed,
}

impl Status {
    /// Whether nothing can follow.
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
    /// A client asked.
    #[default]
    Canceled,
    /// The service is shutting down.
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

/// What a pause holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The processes themselves.
    Process,
    /// Only the delivery of their output: the backend cannot do more.
    Delivery,
}

/// What is known about the processes of an execution that the service ended itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CancelReport {
    /// Whether every process of the execution was seen gone.
    pub verified: bool,
    /// How many were still there; `null` where nobody could count.
    pub survivors: Option<u32>,
    /// The time between TERM and KILL, in milliseconds.
    pub grace_ms: u64,
    /// Whether KILL was needed.
    pub escalated: bool,
    /// How it is known that nothing is left.
    #[serde(default)]
    pub evidence: Evidence,
}

impl CancelReport {
    /// Nothing is known of what is left.
    pub fn unknown(grace_ms: u64) -> Self {
        CancelReport { verified: false, survivors: None, grace_ms, escalated: false, evidence: Evidence::Unknown }
    }

    /// It never had a process.
    pub fn never_ran(grace_ms: u64) -> Self {
        let evidence = Evidence::NeverStarted;
        CancelReport { verified: true, survivors: Some(0), grace_ms, escalated: false, evidence }
    }
}

/// How it is known that every process of an execution is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The shim, to which every orphan of the tree comes, has no children any more (ECHILD, wait(2)).
    Echild,
    /// The shim was lost, and the subreaper, to which its tree came, has no child left but live shims.
    Swept,
    /// The execution's cgroup has no process.
    CgroupEmpty,
    /// The first process of the execution's PID namespace was reaped: the kernel has then ended the others.
    PidNamespace,
    /// No process was ever made for it.
    NeverStarted,
    /// It is not known.
    #[default]
    Unknown,
}

impl Evidence {
    /// Whether it shows that nothing is left.
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

/// How an execution ended: the backend's last word, and the body of the final `statusUpdate`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The final status.
    pub status: Status,
    /// Why.
    pub reason: Reason,
    /// The exit code, where the process had one. The field keeps the original wire's spelling.
    pub exit_code: Option<i32>,
    /// The name of the signal that ended the process, such as `SIGKILL`.
    pub signal: Option<String>,
    /// What a person should know about it.
    pub message: Option<String>,
    /// Time since RUNNING, in milliseconds; `None` where it never ran.
    #[serde(rename = "elapsedMs")]
    pub elapsed_ms: Option<u64>,
    /// Bytes read from each stream, dropped ones included.
    pub bytes: PerStream<Option<u64>>,
    /// SHA-256 over those bytes, in hexadecimal.
    pub sha256: PerStream<Option<String>>,
    /// Processes left behind by the leader's own exit, and ended.
    pub leftovers: u32,
    /// Present whenever the service ended the execution.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cancel: Option<CancelReport>,
    /// How Claude says it ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub result: Option<Box<ClaudeResult>>,
}

/// How Claude says that it ended: the `result` of a final status.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClaudeResult {
    /// Its last words.
    pub text: String,
    /// Present where the text was too long to be told whole.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub truncated: bool,
    /// Whether it failed. Where Claude does not say, it did.
    pub is_error: bool,
    /// How often the model answered.
    pub num_turns: Option<u64>,
    /// Its own measure of its run, in milliseconds.
    pub duration_ms: Option<u64>,
    /// What that cost, in US dollars.
    pub total_cost_usd: Option<Number>,
    /// Tokens, as the API counts them.
    pub usage: Option<Value>,
    /// What `resume` takes to go on from here.
    pub session_id: Option<String>,
    /// The API's HTTP status, where that was the error.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub api_error_status: Option<u64>,
}

impl Outcome {
    /// An ending of an execution of which the backend has said nothing.
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
            cancel: None,
            result: None,
        }
    }

    /// A FAILED of which the backend has said nothing.
    pub fn failed(reason: Reason, message: impl Into<String>) -> Self {
        Self::without_process(Status::Failed, reason, message.into())
    }
}
