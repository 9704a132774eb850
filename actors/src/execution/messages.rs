//! What an execution hears, and what it tells its parent.

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

/// What an execution is there for.
#[derive(Clone, PartialEq, Debug)]
pub enum ExecutionPurpose {
    /// Run this.
    Run(Box<ExecuteParams>),
    /// Follow what runs already.
    Follow(AttachParams),
}

/// Output, encoded by the encoder that the parent has given. The reply is the permission to go on.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct EncodedOutput {
    /// Whose output.
    pub execution_id: ExecutionId,
    /// Whole messages.
    pub bytes: Bytes,
    /// Bytes of each stream up to here.
    pub offsets: PerStream<u64>,
}

/// Something that happened to an execution.
#[derive(Message, Clone, PartialEq, Debug)]
#[rtype(result = "()")]
pub struct ExecutionReport {
    /// Which execution.
    pub execution_id: ExecutionId,
    /// What happened.
    pub fact: ExecutionEvent,
}

/// What can happen to an execution. `Refused`, `TakenOver` and `Exited` are its last.
#[derive(Clone, PartialEq, Debug)]
pub enum ExecutionEvent {
    /// The backend refused it; nothing runs, or it cannot be followed.
    Refused(ErrorObject),
    /// The backend has it: it waits, runs, or has ended and is replayed.
    Held(StreamStart),
    /// It waits, now at this position.
    Queued(u64),
    /// Its status changed.
    Status(StatusChange),
    /// The backend gave a sign of life.
    Alive(Heartbeat),
    /// Bytes that this client will not get.
    Gap(Gap),
    /// Another consumer has it now.
    TakenOver,
    /// It ended.
    Exited(Outcome),
}

/// The state of an execution in the first event of its stream.
#[derive(Clone, PartialEq, Debug)]
pub struct StreamStart {
    /// Its status; final if what follows is a replay.
    pub status: Status,
    /// Its place in the queue, if it waits.
    pub position: Option<u64>,
    /// What was asked for.
    pub terms: StreamInfo,
    /// Its clocks.
    pub alive: Heartbeat,
}

/// Whom an execution tells, and in which form.
#[derive(Clone, Debug)]
pub struct Parent {
    /// Makes the encoder of its output.
    pub encoder: NewEncoder,
    /// Takes output and gives credit.
    pub output: Recipient<EncodedOutput>,
    /// Takes everything else.
    pub reports: Recipient<ExecutionReport>,
}

impl Parent {
    pub(super) fn report(&self, execution_id: ExecutionId, event: ExecutionEvent) {
        self.reports.do_send(ExecutionReport { execution_id, fact: event });
    }
}

/// Do this to the execution, or to its processes. Answered when the backend has accepted it; input is answered when
/// all of it is in the pipe, in the order asked.
#[derive(Message, Clone, PartialEq, Eq, Debug)]
#[rtype(result = "ControlAnswer")]
pub struct Control(pub ControlRequest);

/// What came of a [`Control`].
pub type ControlAnswer = Result<ControlReply, ErrorObject>;

/// The client has received this much.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Acknowledge(pub PerStream<u64>);

/// Let go of the stream: whoever wanted it is gone.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Release;
