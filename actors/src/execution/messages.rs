//! What an execution hears, and what it tells its parent.

use actix::{Message, Recipient};
use bytes::Bytes;

use crate::{
    backend::api::Alive,
    id::ExecutionId,
    protocol::{PerStream, method::Signal, rpc::ErrorObject},
    terminate::{CancelReason, Ending, Status},
};

/// Output, encoded as WebSocket frames. The reply is the permission to go on.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Output {
    /// Whose output.
    pub execution_id: ExecutionId,
    /// Whole frames.
    pub frames: Bytes,
    /// Bytes of each stream up to here.
    pub offsets: PerStream<u64>,
}

/// Something that happened to an execution.
#[derive(Message, Clone, PartialEq, Debug)]
#[rtype(result = "()")]
pub struct Report {
    /// Which execution.
    pub execution_id: ExecutionId,
    /// What happened.
    pub fact: Fact,
}

/// What can happen to an execution. `Refused` and `Exited` are its last.
#[derive(Clone, PartialEq, Debug)]
pub enum Fact {
    /// It never came to be.
    Refused(ErrorObject),
    /// The process runs.
    Started,
    /// Its status changed.
    Status(Status),
    /// The backend gave a sign of life.
    Alive(Alive),
    /// It ended.
    Exited(Ending),
}

/// Whom an execution tells.
#[derive(Clone, Debug)]
pub struct Parent {
    /// Takes output and gives credit.
    pub output: Recipient<Output>,
    /// Takes everything else.
    pub reports: Recipient<Report>,
}

/// End the execution: TERM, then KILL after the grace. Answered when the backend has accepted it.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "Result<Status, ErrorObject>")]
pub struct Cancel {
    /// Milliseconds between TERM and KILL.
    pub grace_ms: u64,
    /// What the ending will say.
    pub reason: CancelReason,
}

/// Send a signal to the execution's process group.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "Result<Status, ErrorObject>")]
pub struct SendSignal(pub Signal);

/// Let go of the stream: whoever wanted it is gone.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Release;
