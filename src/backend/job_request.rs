//! The requests that reach a job, from its consumers and from the service, and the errors that answer them.

use cc_executor_actors::{
    backend_api::Snapshot,
    id::ExecutionId,
    protocol::{MAX_INPUT_WAITING, control::ControlRequest},
    stream::PerStream,
};
use tokio::sync::oneshot;

use super::{
    holds::{Claim, HoldError},
    output_buffer::{AttachError, Consumer, OffsetError},
};

/// Where the answer to a request goes.
pub type ReplySender = oneshot::Sender<Result<(), JobError>>;

/// What others want of a job.
#[derive(Debug)]
pub enum JobRequest {
    /// Carry this out. The reply says whether it was; a cancellation has nobody who waits for one.
    Control(ControlRequest, Option<ReplySender>),
    /// End it, if the holder that gave the request for it up still has it. Answered when that is decided.
    Withdraw {
        /// The holder, in the asker's eyes.
        claim: Claim,
        /// The cancellation.
        cancel: ControlRequest,
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
    /// Whether nobody waits for the answer any more. Acknowledgements stay true all the same, and a cancellation waits for
    /// no answer.
    pub fn is_abandoned(&self) -> bool {
        match self {
            JobRequest::Attach(_, answer) | JobRequest::Withdraw { answer, .. } => answer.is_closed(),
            JobRequest::Control(_, answer) => answer.as_ref().is_some_and(ReplySender::is_closed),
            JobRequest::Describe(answer) => answer.is_closed(),
            JobRequest::Acknowledge(..) => false,
        }
    }
}

/// Refuses a request that only a running process can carry out.
pub fn refuse(request: JobRequest, why: &'static str) {
    if let JobRequest::Control(_, Some(answer)) | JobRequest::Withdraw { answer, .. } = request {
        // The client that asked may be gone.
        let _ = answer.send(Err(JobError::NotNow(why)));
    }
}

/// Why an execution does not do what it was asked to.
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
    /// The consumer's hold is over.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// The offsets are not those of its output.
    #[error(transparent)]
    Offset(#[from] OffsetError),
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

impl From<AttachError> for JobError {
    fn from(error: AttachError) -> JobError {
        match error {
            AttachError::Hold(error) => error.into(),
            AttachError::Offset(error) => error.into(),
        }
    }
}
