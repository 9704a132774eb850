//! What a session decides: events in, words and asks out. No actor, no clock, no socket.
//!
//! [`Phase`] owns whoever speaks to the client. Only its variant `Open` has an [`Outlet`], and closing
//! consumes it: after a close frame there is nothing left to speak with.

mod current;
mod open;
mod requests;

use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;

use self::open::NextStep;
pub use self::open::Open;
use crate::{
    backend_client::BackendKind,
    close::{CloseCode, CloseReason},
    execution::messages::ExecutionReport,
    id::{ExecutionId, SessionId},
    protocol::{
        CAPABILITIES, Limits, VERSION,
        attach::AttachParams,
        control::ControlRequest,
        execute::ExecuteParams,
        notification::{Connected, ErrorNotice, ServerInfo, ServerMessage, StatusUpdate},
    },
    rpc::{ErrorObject, Id},
    stream::PerStream,
};

/// Sends messages to the client.
pub trait Outlet {
    /// The state after the close frame; it cannot send.
    type Closed;
    /// Says one thing, after all that was said before.
    fn send(&mut self, words: Outgoing);
    /// Says a last thing, the close frame.
    fn close(self, reason: &CloseReason) -> Self::Closed;
}

/// One thing to say.
#[derive(Clone, PartialEq, Debug)]
pub enum Outgoing {
    /// A message of the protocol.
    Message(ServerMessage),
    /// A message that replaces an unsent one of its kind.
    Heartbeat(StatusUpdate),
    /// A WebSocket ping, in its place among everything else.
    Ping(Bytes),
    /// The answer to a WebSocket ping. Replaces an unsent one (RFC 6455 section 5.5.3).
    Pong(Bytes),
    /// Output, already encoded as frames.
    Output(Bytes),
}

/// What came from the client's socket.
#[derive(Clone, PartialEq, Debug)]
pub enum Incoming {
    /// A whole text message.
    Text(String),
    /// A ping and its payload.
    Ping(Bytes),
    /// A pong and its payload.
    Pong(Bytes),
    /// A close frame.
    Close,
    /// A breach of the WebSocket protocol or of a limit, and how to close for it.
    Fault(CloseReason),
    /// The connection ended.
    Gone,
}

/// Something that happened.
#[derive(Clone, PartialEq, Debug)]
pub enum SessionEvent {
    /// From the client.
    Incoming(Incoming),
    /// From the session's execution.
    Report(ExecutionReport),
    /// Output of the session's execution, encoded, and how far its streams have come with it.
    Output {
        /// Whose output.
        execution_id: ExecutionId,
        /// WebSocket frames.
        frames: Bytes,
        /// Bytes of each stream up to here.
        offsets: PerStream<u64>,
    },
    /// The outcome of an earlier [`Effect`].
    Answered(ControlOutcome),
    /// It is time to repeat the newest status.
    Heartbeat,
    /// It is time to look whether the client lives.
    Look {
        /// Bytes that its socket has taken so far.
        taken: u64,
        /// Whether something waits for it.
        blocked: bool,
    },
    /// More responses wait for the client than may.
    Flooded,
    /// The service goes away.
    Drain(DrainMode),
    /// What still runs must end now.
    Hurry,
}

/// What becomes of an execution that may go on without its client when the service goes away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DrainMode {
    /// It is left to its backend.
    Running,
    /// Its backend goes away too.
    Nothing,
}

/// The outcome of something that a client asked for and that took a while.
#[derive(Clone, PartialEq, Debug)]
pub struct ControlOutcome {
    /// The request's id, if a response is owed.
    pub id: Option<Id>,
    /// Which execution it was about.
    pub execution_id: ExecutionId,
    /// Whether it was an ask of the session's own execution.
    pub own: bool,
    /// What came of it.
    pub outcome: Result<Value, ErrorObject>,
}

/// Something that the session's shell must do.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Start the session's execution.
    Start(ExecutionId, Box<ExecuteParams>),
    /// Follow an execution that is there already.
    Follow(AttachParams),
    /// Repeat the newest status this often, in milliseconds.
    Beat(u64),
    /// End the session's execution because the service goes away.
    Drain,
    /// Ask this of the session's execution; the answer is owed to this request.
    Control(Option<Id>, ControlRequest),
    /// Say what the client has received.
    Acknowledge(PerStream<u64>),
    /// Say the same of an execution that has ended, in the name of the hold that it had.
    Delivered(ExecutionId, PerStream<u64>, Option<u64>),
    /// Do this to an execution that another session may hold.
    Elsewhere(Option<Id>, ExecutionId, ByIdRequest),
    /// Let go of the session's execution: it has ended.
    Release,
}

/// A request for an execution that this session does not hold.
#[derive(Clone, PartialEq, Debug)]
pub enum ByIdRequest {
    /// Do this to it.
    Control(ControlRequest),
    /// Ask how it is.
    Status,
}

/// A session, from its first message to its close frame.
#[derive(Debug)]
pub enum Phase<O: Outlet> {
    /// The client is there.
    Open(Box<Open>, O),
    /// A close frame was the last thing said, or the client is gone.
    Closed(Option<O::Closed>, CloseCause),
}

/// How a session was closed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CloseCause {
    /// We said why.
    Said(CloseReason),
    /// The connection was gone before anything could be said.
    Gone,
}

impl<O: Outlet> Phase<O> {
    /// A session that has said `connected`.
    pub fn open(id: SessionId, backend: Option<&BackendKind>, limits: Limits, mut outlet: O, now: Instant) -> Self {
        outlet.send(Outgoing::Message(ServerMessage::Connected(Connected {
            session_id: id,
            protocol: VERSION,
            server: ServerInfo::THIS,
            executors: backend.map(BackendKind::executors),
            instance: backend.and_then(BackendKind::instance),
            limits,
            capabilities: CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
        })));
        Phase::Open(Open::new(limits, now), outlet)
    }

    /// A session that was not let in: it hears why, and is closed.
    pub fn refused(error: ErrorObject, outlet: O) -> Self {
        let reason = CloseReason::new(CloseCode::TryAgain, error.message.clone());
        let mut outlet = outlet;
        outlet.send(Outgoing::Message(ServerMessage::Error(ErrorNotice { error, execution_id: None })));
        Phase::Closed(Some(outlet.close(&reason)), CloseCause::Said(reason))
    }

    /// Takes an event: says what there is to say, and gives what is to be done.
    pub fn on(self, event: SessionEvent, now: Instant) -> (Self, Vec<Effect>) {
        let Phase::Open(open, mut outlet) = self else { return (self, Vec::new()) };
        let step = open.on(event, now);
        for words in step.say {
            outlet.send(words);
        }
        let phase = match step.then {
            NextStep::Stay(open) => Phase::Open(open, outlet),
            NextStep::Close(reason) => Phase::Closed(Some(outlet.close(&reason)), CloseCause::Said(reason)),
            NextStep::Gone => Phase::Closed(None, CloseCause::Gone),
        };
        (phase, step.asks)
    }
}

#[cfg(test)]
mod tests;
