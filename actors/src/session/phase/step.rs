//! The result of an event: what an open session sends, what its actor must do, and whether the session ends.

use serde_json::Value;

use super::{Effect, Outgoing};
use crate::{
    close::CloseReason,
    id::ExecutionId,
    protocol::notification::{ErrorNotice, ServerMessage},
    rpc::{ErrorObject, Id, Response},
};

/// Messages and effects, each in order. The handlers of an event add to it.
#[derive(Default)]
pub struct SessionStep {
    /// Messages to the client.
    pub messages: Vec<Outgoing>,
    /// Tasks for the actor.
    pub effects: Vec<Effect>,
    /// Whether the session ends.
    pub end: SessionEnd,
}

/// Whether the session ends.
#[derive(Default)]
pub enum SessionEnd {
    /// It stays open.
    #[default]
    Open,
    /// It is closed for this reason.
    Close(CloseReason),
    /// The connection has ended.
    Gone,
}

impl SessionStep {
    /// Adds a message.
    pub(super) fn send(&mut self, message: ServerMessage) {
        self.messages.push(Outgoing::Message(message));
    }

    /// Ends the session with a close frame.
    pub(super) fn close(&mut self, reason: CloseReason) {
        self.end = SessionEnd::Close(reason);
    }

    /// Answers a call with a response that says nothing about output, see [`SessionStep::reply`].
    pub(super) fn reply_quickly(
        &mut self,
        id: Option<Id>,
        execution_id: Option<ExecutionId>,
        outcome: Result<Value, ErrorObject>,
    ) {
        self.messages.extend(answer(id, execution_id, outcome).map(Outgoing::QuickResponse));
    }

    /// Answers a call: with a response if it has an id, otherwise with an `error` if it failed.
    pub(super) fn reply(
        &mut self,
        id: Option<Id>,
        execution_id: Option<ExecutionId>,
        outcome: Result<Value, ErrorObject>,
    ) {
        self.messages.extend(answer(id, execution_id, outcome).map(Outgoing::Message));
    }
}

fn answer(
    id: Option<Id>,
    execution_id: Option<ExecutionId>,
    outcome: Result<Value, ErrorObject>,
) -> Option<ServerMessage> {
    match (id, outcome) {
        (Some(id), outcome) => Some(ServerMessage::Response(Response { id, outcome })),
        (None, Err(error)) => Some(ServerMessage::Error(ErrorNotice { error, execution_id })),
        (None, Ok(_)) => None,
    }
}
