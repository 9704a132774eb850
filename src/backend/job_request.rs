//! What others ask of an execution, whether it waits, runs or has ended, and why it may not do that.

use bytes::Bytes;
use cc_executor_actors::{
    backend_api::Snapshot,
    id::ExecutionId,
    outcome::CancelReason,
    protocol::{MAX_INPUT_WAITING, method::TerminalSize},
    stream::PerStream,
};
use tokio::sync::oneshot;

use super::{
    holds::{Claim, HoldError},
    output_buffer::{AttachError, Consumer, OffsetError},
};

/// Where the outcome of an ask goes.
pub type ReplySender = oneshot::Sender<Result<(), JobError>>;

/// What others ask of an execution.
#[derive(Debug)]
pub enum JobRequest {
    /// End it.
    Cancel {
        /// Milliseconds between TERM and KILL.
        grace_ms: u64,
        /// Who wanted it.
        reason: CancelReason,
    },
    /// End it, if whoever gave the request for it up still has it. Answered when that is decided.
    Withdraw {
        /// Who has it, in the asker's eyes.
        claim: Claim,
        /// Milliseconds between TERM and KILL.
        grace_ms: u64,
        /// Who wanted it.
        reason: CancelReason,
        /// Who wants to know.
        answer: ReplySender,
    },
    /// Send a signal to its process group.
    Signal(i32, ReplySender),
    /// Let its whole tree stand still.
    Pause(ReplySender),
    /// Let it go on.
    Resume(ReplySender),
    /// Write to its standard input; answered when all is in the pipe.
    Input {
        /// What to write.
        bytes: Bytes,
        /// Whether nothing follows.
        eof: bool,
        /// Who wants to know.
        answer: ReplySender,
    },
    /// Tell its terminal its size.
    Resize(TerminalSize, ReplySender),
    /// Follow it from now on.
    Attach(Box<Consumer>, ReplySender),
    /// The client of this holder has this much.
    Acknowledge((PerStream<u64>, Claim), ReplySender),
    /// Tell how it is. A gateway asks that for as long as its client does not read.
    Describe(oneshot::Sender<Snapshot>),
}

impl JobRequest {
    /// Whether nobody waits for what comes of it any more. What a client has received stays true all the
    /// same, and a cancellation waits for no answer.
    pub fn is_abandoned(&self) -> bool {
        match self {
            JobRequest::Signal(_, answer)
            | JobRequest::Pause(answer)
            | JobRequest::Resume(answer)
            | JobRequest::Input { answer, .. }
            | JobRequest::Resize(_, answer)
            | JobRequest::Attach(_, answer)
            | JobRequest::Withdraw { answer, .. } => answer.is_closed(),
            JobRequest::Describe(answer) => answer.is_closed(),
            JobRequest::Cancel { .. } | JobRequest::Acknowledge(..) => false,
        }
    }
}

/// Refuses an ask that only a process can be asked.
pub fn refuse(ask: JobRequest, why: &'static str) {
    let error = || Err(JobError::NotNow(why));
    match ask {
        JobRequest::Signal(_, answer)
        | JobRequest::Pause(answer)
        | JobRequest::Resume(answer)
        | JobRequest::Resize(_, answer)
        | JobRequest::Withdraw { answer, .. }
        | JobRequest::Input { answer, .. } => {
            // Whoever asked may be gone.
            let _ = answer.send(error());
        }
        JobRequest::Cancel { .. } | JobRequest::Attach(..) | JobRequest::Acknowledge(..) | JobRequest::Describe(_) => {}
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
