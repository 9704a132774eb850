//! The requests to a running command, each allowed or refused by the state of its life.

use std::time::Instant;

use super::RunningJob;
use crate::backend::{
    job::{
        life::{EndCause, Life},
        shared::JobShared,
    },
    job_request::{CancelOrder, JobError, JobRequest, ReplySender, refuse},
    shim::protocol::Order,
};
use bytes::Bytes;
use cc_executor_actors::{
    id::ExecutionId,
    protocol::{
        control::{ControlRequest, TerminalSize},
        input::CommandInput,
    },
};

impl RunningJob {
    pub(super) fn on_request(&mut self, request: JobRequest, shared: &mut JobShared) {
        let snapshot = self.snapshot(Instant::now());
        let Some(request) = shared.answer_common(request, || snapshot, None) else { return };
        match request {
            JobRequest::Cancel(CancelOrder { grace_ms, reason }) => {
                self.end(EndCause::Asked(reason), grace_ms, shared);
            }
            // Its last output is on its way to disk.
            request if self.life.is_over() => refuse(request, JobError::JustEnded(shared.context.id)),
            request if matches!(self.life, Life::Leftovers { .. }) => {
                refuse(request, JobError::Exited(shared.context.id));
            }
            JobRequest::Control(request, reply) => match self.refusal(&request, shared.context.id) {
                Some(error) => refuse(JobRequest::Control(request, reply), error),
                None => self.carry_out(request, reply, shared),
            },
            JobRequest::Attach(..)
            | JobRequest::Observe(..)
            | JobRequest::Acknowledge(..)
            | JobRequest::Describe(..)
            | JobRequest::ViewOutput(..)
            | JobRequest::ReadRing { .. }
            | JobRequest::Withdraw { .. } => {}
        }
    }

    /// Why a request cannot be carried out now. Requests that need no shim can be carried out in every state.
    fn refusal(&self, request: &ControlRequest, id: ExecutionId) -> Option<JobError> {
        if matches!(request, ControlRequest::Stdin(_) | ControlRequest::Resize(_)) {
            return None;
        }
        let pauses = matches!(request, ControlRequest::Pause | ControlRequest::Resume);
        if matches!(self.life, Life::Starting) {
            return Some(JobError::NotStarted(id));
        }
        if pauses && !matches!(self.life, Life::Running { .. }) {
            return Some(JobError::Ending(id));
        }
        (!self.link.is_listening()).then_some(JobError::ShimSilent(id))
    }

    fn carry_out(&mut self, request: ControlRequest, reply: ReplySender, shared: &mut JobShared) {
        match request {
            ControlRequest::Cancel { grace_ms, reason } => {
                self.end(EndCause::Asked(reason), grace_ms, shared);
                // Fails if the client is gone. The same holds below.
                let _ = reply.send(Ok(()));
            }
            ControlRequest::Stdin(CommandInput { data, eof }) => {
                self.input.push(self.with_end_of_file(data, eof), eof, reply);
            }
            ControlRequest::Resize(size) => {
                let _ = reply.send(self.resize(size));
            }
            ControlRequest::Pause => self.order_pause(Order::Pause, reply),
            ControlRequest::Resume => self.order_pause(Order::Resume, reply),
            ControlRequest::Signal { signal } => {
                self.link.order(Order::Signal { signal });
                let _ = reply.send(Ok(()));
            }
            // Answered by `JobShared`, in every phase.
            ControlRequest::Keep { .. } => {}
        }
    }

    /// Gives an order that the shim answers with an event, which becomes the reply.
    fn order_pause(&mut self, order: Order, reply: ReplySender) {
        self.link.order(order);
        self.pause_replies.push_back(reply);
    }

    /// Appends the character that ends the input of a terminal.
    fn with_end_of_file(&self, bytes: Bytes, eof: bool) -> Bytes {
        match &self.terminal {
            Some(terminal) if eof => [&bytes[..], &[terminal.end_of_file()]].concat().into(),
            _ => bytes,
        }
    }

    fn resize(&self, size: TerminalSize) -> Result<(), JobError> {
        let Some(terminal) = &self.terminal else { return Err(JobError::NoTerminal) };
        terminal.resize(size).map_err(|error| JobError::Resize(error.to_string()))
    }
}
