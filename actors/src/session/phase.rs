//! What a session decides: events in, words and asks out. No actor, no clock, no socket.
//!
//! [`Phase`] owns whoever speaks to the client. Only its variant `Open` has an [`Outlet`], and closing
//! consumes it: after a close frame there is nothing left to speak with.

mod hold;
mod open;

use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;

pub use self::open::Open;
use self::open::Then;
use crate::{
    backend::Kind,
    execution::messages::{Report, Steer},
    id::{ExecutionId, SessionId},
    protocol::{
        CAPABILITIES, Limits, PerStream, VERSION,
        method::{Attach, Execute, Input},
        notify::{Connected, ErrorNotice, Message, Progress, Server},
        rpc::{ErrorObject, Id},
    },
    terminate::{CloseCode, CloseReason},
};

/// Whoever carries words to the client.
pub trait Outlet {
    /// What is left after the close frame: nothing that can speak.
    type Closed;
    /// Says one thing, after all that was said before.
    fn say(&mut self, words: Words);
    /// Says a last thing, the close frame.
    fn close(self, reason: &CloseReason) -> Self::Closed;
}

/// One thing to say.
#[derive(Clone, PartialEq, Debug)]
pub enum Words {
    /// A message of the protocol.
    Message(Message),
    /// A message that replaces an unsent one of its kind.
    Heartbeat(Progress),
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
pub enum Event {
    /// From the client.
    Incoming(Incoming),
    /// From the session's execution.
    Report(Report),
    /// Output of the session's execution, encoded, and how far its streams have come with it.
    Output {
        /// Whose output.
        execution_id: ExecutionId,
        /// WebSocket frames.
        frames: Bytes,
        /// Bytes of each stream up to here.
        offsets: PerStream<u64>,
    },
    /// The outcome of an earlier [`Ask`].
    Answered(Answered),
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
    Drain(Leave),
    /// What still runs must end now.
    Hurry,
}

/// What becomes of an execution that may go on without its client when the service goes away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// It is left to its backend.
    Running,
    /// Its backend goes away too.
    Nothing,
}

/// The outcome of something that a client asked for and that took a while.
#[derive(Clone, PartialEq, Debug)]
pub struct Answered {
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
pub enum Ask {
    /// Start the session's execution.
    Start(ExecutionId, Box<Execute>),
    /// Follow an execution that is there already.
    Follow(Attach),
    /// Repeat the newest status this often, in milliseconds.
    Beat(u64),
    /// End the session's execution; the answer is owed to this request.
    Cancel {
        /// Who asked.
        id: Option<Id>,
        /// Milliseconds between TERM and KILL.
        grace_ms: u64,
    },
    /// End the session's execution because the service goes away.
    Drain,
    /// Pause, resume, signal or resize the session's execution.
    Steer(Option<Id>, Steer),
    /// Write to its standard input.
    Feed(Option<Id>, Input),
    /// Say what the client has received.
    Acknowledge(PerStream<u64>),
    /// Say the same of an execution that has ended, in the name of the hold that it had.
    Delivered(ExecutionId, PerStream<u64>, Option<u64>),
    /// Do this to an execution that another session may hold.
    Elsewhere(Option<Id>, ExecutionId, Elsewhere),
    /// Let go of the session's execution: it has ended.
    Release,
}

/// What is asked about an execution of somebody else.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Elsewhere {
    /// End it.
    Cancel {
        /// Milliseconds between TERM and KILL.
        grace_ms: u64,
    },
    /// Pause, resume or signal it.
    Steer(Steer),
    /// Ask how it is.
    Status,
}

/// A session, from its first message to its close frame.
#[derive(Debug)]
pub enum Phase<O: Outlet> {
    /// The client is there.
    Open(Box<Open>, O),
    /// A close frame was the last thing said, or the client is gone.
    Closed(Option<O::Closed>, Closure),
}

/// How a session was closed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Closure {
    /// We said why.
    Said(CloseReason),
    /// The connection was gone before anything could be said.
    Gone,
}

impl<O: Outlet> Phase<O> {
    /// A session that has said `connected`.
    pub fn open(id: SessionId, backend: Option<&Kind>, limits: Limits, mut outlet: O, now: Instant) -> Self {
        outlet.say(Words::Message(Message::Connected(Connected {
            session_id: id,
            protocol: VERSION,
            server: Server::THIS,
            executors: backend.map(Kind::executors),
            instance: backend.and_then(Kind::instance),
            limits,
            capabilities: CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
        })));
        Phase::Open(Open::new(limits, now), outlet)
    }

    /// A session that was not let in: it hears why, and is closed.
    pub fn refused(error: ErrorObject, outlet: O) -> Self {
        let reason = CloseReason::new(CloseCode::TryAgain, error.message.clone());
        let mut outlet = outlet;
        outlet.say(Words::Message(Message::Error(ErrorNotice { error, execution_id: None })));
        Phase::Closed(Some(outlet.close(&reason)), Closure::Said(reason))
    }

    /// Takes an event: says what there is to say, and gives what is to be done.
    pub fn on(self, event: Event, now: Instant) -> (Self, Vec<Ask>) {
        let Phase::Open(open, mut outlet) = self else { return (self, Vec::new()) };
        let step = open.on(event, now);
        for words in step.say {
            outlet.say(words);
        }
        let phase = match step.then {
            Then::Stay(open) => Phase::Open(open, outlet),
            Then::Close(reason) => Phase::Closed(Some(outlet.close(&reason)), Closure::Said(reason)),
            Then::Gone => Phase::Closed(None, Closure::Gone),
        };
        (phase, step.asks)
    }
}

#[cfg(test)]
mod tests;
