//! The decisions of a session, on plain values: events in, messages and effects out. No actor, clock or socket.
//!
//! Start reading at [`OpenSession`], the state of an open session. Its handlers of JSON-RPC calls are in `requests`.

mod current;
mod ended;
mod open;
mod requests;
mod step;

use bytes::Bytes;
use serde_json::Value;

pub use self::{
    open::OpenSession,
    step::{SessionEnd, SessionStep},
};
use crate::{
    backend_client::BackendKind,
    close::CloseReason,
    execution::messages::{EncodedOutput, ExecutionReport},
    id::{ExecutionId, SessionId},
    protocol::{
        CAPABILITIES, Limits, VERSION,
        attach::AttachParams,
        control::ControlRequest,
        execute::ExecuteParams,
        notification::{Connected, ServerInfo, ServerMessage, StatusUpdate},
    },
    rpc::{ErrorObject, Id},
    stream::PerStream,
    supervisor::Drain,
};

/// A message to the client.
#[derive(Clone, PartialEq, Debug)]
pub enum Outgoing {
    /// A JSON-RPC message.
    Message(ServerMessage),
    /// A response that says nothing about output, so it may go ahead of output that waits.
    QuickResponse(ServerMessage),
    /// A status that replaces an unsent `Heartbeat`.
    Heartbeat(StatusUpdate),
    /// A WebSocket ping, in order with all other messages.
    Ping(Bytes),
    /// The answer to a WebSocket ping. Replaces an unsent pong (RFC 6455 section 5.5.3).
    Pong(Bytes),
    /// Output, already encoded as frames.
    Output(Bytes),
}

/// An event of the client's socket.
#[derive(Clone, PartialEq, Debug)]
pub enum Incoming {
    /// A whole text message.
    Text(String),
    /// A ping and its payload.
    Ping(Bytes),
    /// A pong and its payload.
    Pong(Bytes),
    /// The client's next message is long, and waits until there is memory for it.
    Held,
    /// A close frame.
    Close,
    /// A breach of the WebSocket protocol or of a limit, with the reason for the close frame.
    Fault(CloseReason),
    /// The connection ended.
    Gone,
}

/// An event of a session.
#[derive(Debug)]
pub enum SessionEvent {
    /// From the client.
    Incoming(Incoming),
    /// From the session's execution.
    Report(ExecutionReport),
    /// Output of the session's execution, encoded as WebSocket frames.
    Output(EncodedOutput),
    /// The outcome of an [`Effect::Control`] or [`Effect::ById`].
    Answered(ControlOutcome),
    /// The heartbeat timer fired.
    Heartbeat,
    /// The timer that checks the client's liveness fired.
    Tick {
        /// The bytes that the server has taken for the client's socket so far.
        taken: u64,
        /// Whether messages wait for the client.
        blocked: bool,
        /// Whether the service reads the client.
        is_read: bool,
    },
    /// The client leaves too many responses unread, for this reason.
    Flooded(String),
    /// The service is shutting down.
    Drain(Drain),
}

/// The outcome of a request that the backend or another session has answered.
#[derive(Clone, PartialEq, Debug)]
pub struct ControlOutcome {
    /// The id of the client's call, if it expects a response.
    pub id: Option<Id>,
    /// The execution that the request was for.
    pub execution_id: ExecutionId,
    /// Whether the request went to the session's own execution.
    pub own: bool,
    /// Whether the result is a status.
    pub is_status: bool,
    /// The result of the response.
    pub outcome: Result<Value, ErrorObject>,
}

/// A task for the session's actor.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Start the session's execution.
    Start(ExecutionId, Box<ExecuteParams>),
    /// Attach to an execution that exists already.
    Attach(AttachParams),
    /// Set the heartbeat period, in milliseconds.
    SetHeartbeat(u64),
    /// Cancel the session's execution because the service is shutting down.
    Drain {
        /// Milliseconds between TERM and KILL.
        grace_ms: u64,
    },
    /// Send this request to the session's execution, for the call with this id.
    Control(Option<Id>, ControlRequest),
    /// Report to the backend what the client has received.
    Acknowledge(PerStream<u64>),
    /// The same for an execution that has ended, with the number of the hold that the session had.
    AcknowledgeEnded(ExecutionId, PerStream<u64>, Option<u64>),
    /// Send this request to an execution that this session does not hold, for the call with this id.
    ById(Option<Id>, ExecutionId, ByIdRequest),
    /// Release the session's execution: it has ended, was refused, or is held by another consumer.
    Release,
}

/// A request for an execution that this session does not hold.
#[derive(Clone, PartialEq, Debug)]
pub enum ByIdRequest {
    /// A control request.
    Control(ControlRequest),
    /// A request for its status.
    Status,
}

/// The first message of a session, `connected`.
pub fn greeting(id: SessionId, backend: Option<&BackendKind>, limits: Limits) -> Outgoing {
    Outgoing::Message(ServerMessage::Connected(Connected {
        session_id: id,
        protocol: VERSION,
        server: ServerInfo::THIS,
        executors: backend.map(BackendKind::executors),
        instance: backend.and_then(BackendKind::instance),
        limits,
        capabilities: CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
    }))
}

#[cfg(test)]
mod tests;
