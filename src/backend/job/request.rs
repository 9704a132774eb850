//! The requests that reach a job, from its consumers and from the service.

use bytes::Bytes;
use cc_executor_actors::{
    backend_api::Snapshot,
    outcome::CancelReason,
    protocol::{PerStream, method::TerminalSize},
    rpc::{ErrorObject, code},
};
use tokio::sync::oneshot;

use crate::backend::{holds::Claim, output_buffer::Consumer};

/// Where the answer to a request goes.
pub type ReplySender = oneshot::Sender<Result<(), ErrorObject>>;

/// What others want of a job.
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
    pub(super) fn is_abandoned(&self) -> bool {
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

/// Refuses a request that only a running process can carry out.
pub(super) fn refuse(request: JobRequest, why: &str) {
    let error = || Err(ErrorObject::new(code::NOT_RUNNING, why));
    match request {
        JobRequest::Signal(_, answer)
        | JobRequest::Pause(answer)
        | JobRequest::Resume(answer)
        | JobRequest::Resize(_, answer)
        | JobRequest::Withdraw { answer, .. }
        | JobRequest::Input { answer, .. } => {
            // The client that asked may be gone.
            let _ = answer.send(error());
        }
        JobRequest::Cancel { .. } | JobRequest::Attach(..) | JobRequest::Acknowledge(..) | JobRequest::Describe(_) => {}
    }
}
