//! The requests that reach a job, from its consumers and from the service, and the errors that answer them.

use cc_executor_actors::{
    backend_api::Snapshot,
    id::ExecutionId,
    outcome::CancelReason,
    protocol::{MAX_INPUT_WAITING, control::ControlRequest},
    stream::PerStream,
};
use tokio::sync::oneshot;

use super::{
    holds::Claim,
    output_buffer::{Consumer, ConsumerError},
};

/// Where the answer to a request goes.
pub type ReplySender = oneshot::Sender<Result<(), JobError>>;

/// A request to a job.
#[derive(Debug)]
pub enum JobRequest {
    /// End it. There is no answer, because a job can be canceled in every state.
    Cancel(CancelOrder),
    /// Carry this out, and answer whether it was.
    Control(ControlRequest, ReplySender),
    /// End it if this claim still holds it, for a gateway that gives up its own request. Answered when that is decided.
    Withdraw {
        /// The claim of the gateway.
        claim: Claim,
        /// How to end it.
        cancel: CancelOrder,
        /// Where the answer goes.
        answer: ReplySender,
    },
    /// Follow it from now on.
    Attach(Box<Consumer>, ReplySender),
    /// The client of this holder has this much.
    Acknowledge((PerStream<u64>, Claim), ReplySender),
    /// Tell how it is. A gateway asks that for as long as its client does not read.
    Describe(oneshot::Sender<Snapshot>),
}

impl JobRequest {
    /// Whether the client that sent it has gone. A cancellation has no answer to wait for, and an acknowledgement stays
    /// true without its client.
    pub fn is_abandoned(&self) -> bool {
        match self {
            JobRequest::Control(_, answer) | JobRequest::Attach(_, answer) | JobRequest::Withdraw { answer, .. } => {
                answer.is_closed()
            }
            JobRequest::Describe(answer) => answer.is_closed(),
            JobRequest::Cancel(_) | JobRequest::Acknowledge(..) => false,
        }
    }

    /// Whether only an execution that has not ended can carry it out.
    pub fn needs_process(&self) -> bool {
        matches!(self, JobRequest::Cancel(_) | JobRequest::Control(..) | JobRequest::Withdraw { .. })
    }
}

/// How to end a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CancelOrder {
    /// Milliseconds between TERM and KILL.
    pub grace_ms: u64,
    /// Who wants it ended.
    pub reason: CancelReason,
}

/// Refuses a request that only a running process can carry out.
pub fn refuse(request: JobRequest, why: &'static str) {
    if let JobRequest::Control(_, answer) | JobRequest::Withdraw { answer, .. } = request {
        // The client that asked may be gone.
        let _ = answer.send(Err(JobError::NotNow(why)));
    }
}

/// Why a job refuses or fails a request.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JobError {
    /// It is in a state in which it cannot.
    #[error("{0}")]
    NotNow(&'static str),
    /// It ended before it answered.
    #[error("execution {0} has just ended")]
    JustEnded(ExecutionId),
    /// It ended before its command had read all of the input.
    #[error("execution {0} ended before it had read that")]
    EndedUnread(ExecutionId),
    /// Its task gives no answer.
    #[error("execution {0} does not answer")]
    NoReply(ExecutionId),
    /// The consumer's claim or its offsets are refused.
    #[error(transparent)]
    Consumer(#[from] ConsumerError),
    /// The command was started without standard input.
    #[error("this command has no standard input: ask for it with stdin or pty in execute")]
    NoStdin,
    /// The command's standard input has ended.
    #[error("the command's standard input is closed: nothing more can be written to it")]
    StdinClosed,
    /// The command does not read its input fast enough.
    #[error("{waiting} bytes of input wait already, and at most {MAX_INPUT_WAITING} may: wait for the answers")]
    StdinFull {
        /// How much waits, in bytes.
        waiting: usize,
    },
    /// The command was started without a terminal.
    #[error("this command runs on no terminal: ask for one with pty in execute")]
    NoTerminal,
    /// The system did not change the terminal's size.
    #[error("cannot resize the terminal: {0}")]
    Resize(String),
}
