//! The requests to a job, from its consumers and from the service, and the errors that answer them.

use std::time::Duration;

use cc_executor_actors::{
    backend_api::Snapshot,
    id::ExecutionId,
    outcome::{CancelReason, Status},
    protocol::{MAX_INPUT_WAITING, control::ControlRequest},
    stream::{PerStream, Stream},
};
use tokio::sync::oneshot;

use super::{
    holds::Claim,
    output_buffer::{Consumer, ConsumerError, StreamExtent},
};

/// For the answer to a request.
pub type ReplySender = oneshot::Sender<Result<(), JobError>>;

/// A request to a job.
#[derive(Debug)]
pub enum JobRequest {
    /// End it. There is no answer, because a job can be canceled in every state.
    Cancel(CancelOrder),
    /// Carry out a control request.
    Control(ControlRequest, ReplySender),
    /// End it if this claim is valid, because a gateway gives up its own request. Answered when that is decided.
    Withdraw {
        /// The claim of the gateway.
        claim: Claim,
        /// How to end it.
        cancel: CancelOrder,
        /// For the answer.
        answer: ReplySender,
    },
    /// Attach a consumer.
    Attach(Box<Consumer>, ReplySender),
    /// Add an observer.
    Observe(Box<Consumer>, ReplySender),
    /// The client of this holder has received everything before these offsets.
    Acknowledge((PerStream<u64>, Claim), ReplySender),
    /// Describe its state.
    Describe(Poller, oneshot::Sender<Snapshot>),
    /// Say what can be read of a stream now.
    ViewOutput(Stream, oneshot::Sender<ReadableOutput>),
    /// Read up to `most` bytes that only the ring has. Answered without bytes if they are gone.
    ReadRing {
        /// The stream.
        stream: Stream,
        /// The offset of the first byte.
        from: u64,
        /// How many bytes at the most.
        most: usize,
        /// For the answer.
        answer: oneshot::Sender<Vec<u8>>,
    },
}

/// What can be read of a stream at one moment.
#[derive(Clone, Debug)]
pub struct ReadableOutput {
    /// The status of the execution. If it is final, nothing more will be written.
    pub status: Status,
    /// The bytes.
    pub extent: StreamExtent,
    /// The SHA-256 of everything that was written, in hexadecimal, if it is known and what can be read is that.
    pub sha256: Option<String>,
}

impl JobRequest {
    /// Whether its client is gone. A cancellation is not answered, and an acknowledgement stays true without its
    /// client.
    pub fn is_abandoned(&self) -> bool {
        match self {
            JobRequest::Control(_, answer)
            | JobRequest::Attach(_, answer)
            | JobRequest::Observe(_, answer)
            | JobRequest::Withdraw { answer, .. } => answer.is_closed(),
            JobRequest::Describe(_, answer) => answer.is_closed(),
            JobRequest::ViewOutput(_, answer) => answer.is_closed(),
            JobRequest::ReadRing { answer, .. } => answer.is_closed(),
            JobRequest::Cancel(_) | JobRequest::Acknowledge(..) => false,
        }
    }

    /// Whether only an execution that has not ended can carry it out.
    pub fn needs_process(&self) -> bool {
        matches!(self, JobRequest::Cancel(_) | JobRequest::Control(..) | JobRequest::Withdraw { .. })
    }
}

/// Who asks a job for its state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Poller {
    /// Perhaps the gateway of the consumer, which polls as long as its client does not read.
    Anyone,
    /// The gateway of an observer, which says nothing about the consumer.
    Observer,
}

/// How to end a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CancelOrder {
    /// Milliseconds between TERM and KILL.
    pub grace_ms: u64,
    /// The reason for the client.
    pub reason: CancelReason,
}

/// Refuses a request that only a running process can carry out.
pub fn refuse(request: JobRequest, error: JobError) {
    if let JobRequest::Control(_, answer) | JobRequest::Withdraw { answer, .. } = request {
        // Fails if the client is gone.
        let _ = answer.send(Err(error));
    }
}

/// Why a job refuses or fails a request.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JobError {
    /// It waits for its turn.
    #[error("execution {0} is queued: wait for RUNNING, or send CANCEL")]
    Queued(ExecutionId),
    /// Its command is being started.
    #[error("execution {0} has not started yet: wait for RUNNING, or send CANCEL")]
    NotStarted(ExecutionId),
    /// Its command has exited, and the processes that it left are being ended.
    #[error("execution {0}: the command has exited, only CANCEL is possible now")]
    Exited(ExecutionId),
    /// Its processes are being ended.
    #[error("execution {0} is being ended: wait for its final status")]
    Ending(ExecutionId),
    /// It has ended.
    #[error("execution {0} has ended")]
    Ended(ExecutionId),
    /// Its shim does not read its orders.
    #[error("execution {0}: its shim does not answer: try again in a moment, or cancel the execution")]
    ShimSilent(ExecutionId),
    /// A process of it cannot be stopped.
    #[error(
        "cannot pause execution {0}: one of its processes cannot be stopped now, and all continue: try again, or cancel the execution"
    )]
    NotPaused(ExecutionId),
    /// It ended before it answered.
    #[error("execution {0} has just ended")]
    JustEnded(ExecutionId),
    /// It ended before its command had read all of the input.
    #[error("execution {0} ended before it had read the input")]
    EndedUnread(ExecutionId),
    /// Its task does not answer.
    #[error("execution {id} did not answer within {} s: try again, or cancel it", .within.as_secs())]
    NoReply {
        /// The execution.
        id: ExecutionId,
        /// How long an answer was waited for.
        within: Duration,
    },
    /// The consumer's claim or its offsets are refused.
    #[error(transparent)]
    Consumer(#[from] ConsumerError),
    /// The command was started without standard input.
    #[error("this command has no standard input: execute it with stdin or pty")]
    NoStdin,
    /// The command's standard input has ended.
    #[error("the command's standard input is closed: nothing more can be written to it")]
    StdinClosed,
    /// The command does not read its input fast enough.
    #[error(
        "{length} more bytes of input exceed the limit of {MAX_INPUT_WAITING}, {waiting} are pending: wait for responses to input"
    )]
    StdinFull {
        /// The length of the refused input, in bytes.
        length: usize,
        /// How much is pending, in bytes.
        waiting: usize,
    },
    /// The command was started without a terminal.
    #[error("this command runs on no terminal: execute it with pty")]
    NoTerminal,
    /// The execution ends with its session, so it cannot be kept without one.
    #[error("this command ends with its session: execute it with onDisconnect \"detach\"")]
    NotDetachable,
    /// It was asked to continue for longer without a session than the backend allows.
    #[error("detachMs must be at most {limit} (--max-detach-ms of the backend), not {asked}")]
    DetachTooLong {
        /// What was asked, in milliseconds.
        asked: u64,
        /// The limit, in milliseconds.
        limit: u64,
    },
    /// The system did not change the terminal's size.
    #[error("cannot resize the terminal: {0}")]
    Resize(String),
}
