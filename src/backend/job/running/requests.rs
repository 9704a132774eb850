//! The requests to a running command, each allowed or refused by the state of its life.

use std::time::Instant;

use bytes::Bytes;
use cc_executor_actors::{
    protocol::method::TerminalSize,
    rpc::{ErrorObject, code},
};

use super::RunningJob;
use crate::backend::{
    job::{JobRequest, JobShared, ReplySender, life::Life, outcome::EndCause, request::refuse},
    shim::protocol::Order,
};

impl RunningJob {
    pub(super) fn on_request(&mut self, request: JobRequest, shared: &mut JobShared) {
        let snapshot = self.snapshot(Instant::now());
        let Some(request) = shared.answer_common(request, || snapshot, None) else { return };
        let needs_shim = matches!(request, JobRequest::Signal(..) | JobRequest::Pause(_) | JobRequest::Resume(_));
        match (request, &self.life) {
            (JobRequest::Cancel { grace_ms, reason }, _) => self.end(EndCause::Asked(reason), grace_ms, shared),
            (request, Life::Leftovers { .. }) => refuse(request, "its command has ended"),
            (request, Life::Starting) if needs_shim => {
                refuse(request, "it has not started yet: only CANCEL reaches it");
            }
            (request @ (JobRequest::Pause(_) | JobRequest::Resume(_)), life)
                if !matches!(life, Life::Running { .. }) =>
            {
                refuse(request, "it is being ended");
            }
            (request, _) if needs_shim && !self.line.is_listening() => {
                refuse(request, "its shim does not answer: try again in a moment, or cancel it");
            }
            (request, _) => self.carry_out(request),
        }
    }

    fn carry_out(&mut self, request: JobRequest) {
        match request {
            JobRequest::Signal(number, reply) => {
                self.line.order(Order::Signal { number });
                // Here and below: the client that asked may be gone.
                let _ = reply.send(Ok(()));
            }
            JobRequest::Pause(reply) => self.order_pause(Order::Pause, reply),
            JobRequest::Resume(reply) => self.order_pause(Order::Resume, reply),
            JobRequest::Input { bytes, eof, answer } => self.input.take(self.with_end_of_file(bytes, eof), eof, answer),
            JobRequest::Resize(size, reply) => {
                let _ = reply.send(self.resize(size));
            }
            JobRequest::Cancel { .. }
            | JobRequest::Attach(..)
            | JobRequest::Acknowledge(..)
            | JobRequest::Describe(_)
            | JobRequest::Withdraw { .. } => {}
        }
    }

    /// On a terminal a character ends the input.
    fn with_end_of_file(&self, bytes: Bytes, eof: bool) -> Bytes {
        match &self.terminal {
            Some(terminal) if eof => [&bytes[..], &[terminal.end_of_file()]].concat().into(),
            _ => bytes,
        }
    }

    /// Gives an order that the shim answers with an event, which is the reply.
    fn order_pause(&mut self, order: Order, reply: ReplySender) {
        self.line.order(order);
        self.pause_replies.push_back(reply);
    }

    fn resize(&self, size: TerminalSize) -> Result<(), ErrorObject> {
        let Some(terminal) = &self.terminal else {
            return Err(ErrorObject::new(
                code::NOT_ALLOWED,
                "this command runs on no terminal: ask for one with pty in execute",
            ));
        };
        terminal
            .resize(size)
            .map_err(|error| ErrorObject::new(code::INTERNAL, format!("cannot resize the terminal: {error}")))
    }
}
