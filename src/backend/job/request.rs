//! The requests that reach a job, from its consumers and from the service.

use cc_executor_actors::{
    backend_api::Snapshot,
    protocol::control::ControlRequest,
    rpc::{ErrorObject, code},
    stream::PerStream,
};
use tokio::sync::oneshot;

use crate::backend::{holds::Claim, output_buffer::Consumer};

/// Where the answer to a request goes.
pub type ReplySender = oneshot::Sender<Result<(), ErrorObject>>;

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
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            JobRequest::Attach(_, answer) | JobRequest::Withdraw { answer, .. } => answer.is_closed(),
            JobRequest::Control(_, answer) => answer.as_ref().is_some_and(ReplySender::is_closed),
            JobRequest::Describe(answer) => answer.is_closed(),
            JobRequest::Acknowledge(..) => false,
        }
    }
}

/// Refuses a request that only a running process can carry out.
pub(super) fn refuse(request: JobRequest, why: &str) {
    if let JobRequest::Control(_, Some(answer)) | JobRequest::Withdraw { answer, .. } = request {
        // The client that asked may be gone.
        let _ = answer.send(Err(ErrorObject::new(code::NOT_RUNNING, why)));
    }
}
