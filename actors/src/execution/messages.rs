//! The messages to an execution, and from it to its parent.

use actix::{Message, Recipient};
use bytes::Bytes;

use crate::{
    backend_api::{Heartbeat, StatusChange, StreamInfo},
    id::ExecutionId,
    outcome::{Outcome, Status},
    output::NewEncoder,
    protocol::{
        attach::AttachParams,
        control::{ControlReply, ControlRequest},
        execute::ExecuteParams,
    },
    rpc::ErrorObject,
    stream::{Gap, PerStream},
};

/// The purpose of an execution.
#[derive(Clone, PartialEq, Debug)]
pub enum ExecutionPurpose {
    /// Run a command.
    Run(Box<ExecuteParams>),
    /// Follow an execution that the backend knows already.
    Follow(AttachParams),
}

impl ExecutionPurpose {
    /// Whether it follows the execution without a hold.
    pub(super) fn observes(&self) -> bool {
        matches!(self, ExecutionPurpose::Follow(AttachParams { observe: true, .. }))
    }
}

/// Output, encoded by the encoder that the parent has given. The reply is the permission to continue.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct EncodedOutput {
    /// The id of the execution.
    pub execution_id: ExecutionId,
    /// Complete messages.
    pub bytes: Bytes,
    /// The offset of each stream after these messages.
    pub offsets: PerStream<u64>,
}

/// An event of an execution, with its id.
#[derive(Message, Clone, PartialEq, Debug)]
#[rtype(result = "()")]
pub struct ExecutionReport {
    /// The id of the execution.
    pub execution_id: ExecutionId,
    /// The event.
    pub event: ExecutionEvent,
}

/// An event of an execution. Nothing follows `Refused`, `TakenOver` and `Exited`.
#[derive(Clone, PartialEq, Debug)]
pub enum ExecutionEvent {
    /// The backend refused the request: nothing runs, or this client cannot follow it.
    Refused(ErrorObject),
    /// The backend accepted the request: the execution waits, runs, or has ended and is replayed.
    Held(StreamStart),
    /// It waits in the queue, now at this position.
    Queued(u64),
    /// Its status changed.
    Status(StatusChange),
    /// The backend gave a sign of life.
    Alive(Heartbeat),
    /// Bytes that this client does not get.
    Gap(Gap),
    /// Another consumer holds it now.
    TakenOver,
    /// It ended.
    Exited(Outcome),
}

/// The state of an execution in the first event of its stream.
#[derive(Clone, PartialEq, Debug)]
pub struct StreamStart {
    /// Its status; final if the stream is a replay.
    pub status: Status,
    /// Its position in the queue, if it waits.
    pub position: Option<u64>,
    /// Its options.
    pub terms: StreamInfo,
    /// Its clocks.
    pub alive: Heartbeat,
}

/// The parent of an execution, as two recipients.
#[derive(Clone, Debug)]
pub struct Parent {
    /// Makes the encoder of the output.
    pub encoder: NewEncoder,
    /// Takes output, and replies when the client has room for more.
    pub output: Recipient<EncodedOutput>,
    /// Takes the events.
    pub reports: Recipient<ExecutionReport>,
}

impl Parent {
    pub(super) fn report(&self, execution_id: ExecutionId, event: ExecutionEvent) {
        self.reports.do_send(ExecutionReport { execution_id, event });
    }
}

/// A control request for the execution. Answered when the backend has accepted it; input is answered when all of it is
/// in the pipe, in the order of the requests.
#[derive(Message, Clone, PartialEq, Eq, Debug)]
#[rtype(result = "ControlAnswer")]
pub struct Control(pub ControlRequest);

/// The answer to a [`Control`].
pub type ControlAnswer = Result<ControlReply, ErrorObject>;

/// The client has received the output up to these offsets.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Acknowledge(pub PerStream<u64>);

/// The client is gone: drop the stream.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Release;
