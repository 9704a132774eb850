//! Requests to an execution while it runs: control requests, and the acknowledgements of its client.

use std::{collections::VecDeque, time::Instant};

use actix::{ActorContext, ActorFutureExt, AsyncContext, Context, Handler, ResponseFuture, WrapFuture};
use log::info;
use tokio::sync::oneshot;

use super::{
    Execution,
    messages::{Acknowledge, Control, ControlAnswer, ExecutionEvent},
    state::{Cancellation, ExecutionState},
};
use crate::{
    backend_api::StatusChange,
    id::ExecutionId,
    outcome::{Scope, Status},
    protocol::{
        MAX_INPUT_WAITING as MAX_WAITING,
        control::{ControlReply, ControlRequest},
        input::CommandInput,
    },
    rpc::{ErrorObject, code},
    stream::PerStream,
};

/// Input that the backend has not answered yet. The first entry is under way.
#[derive(Default)]
pub(super) struct InputQueue(VecDeque<PendingInput>);

struct PendingInput {
    input: CommandInput,
    answer: oneshot::Sender<ControlAnswer>,
}

impl InputQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Sends acknowledgements to the backend: one request at a time, the newest next.
#[derive(Default)]
pub(super) enum Acknowledger {
    /// No request is under way.
    #[default]
    Idle,
    /// A request is under way, and these offsets follow it.
    Sending { next: Option<PerStream<u64>> },
}

/// What an input counts against the limit of waiting input, in bytes: at least 1 KiB, which bounds their number.
fn cost(input: &CommandInput) -> usize {
    input.data.len().max(1_024)
}

impl Handler<Control> for Execution {
    type Result = ResponseFuture<ControlAnswer>;

    fn handle(&mut self, Control(request): Control, ctx: &mut Self::Context) -> Self::Result {
        match (request, &self.state) {
            (ControlRequest::Cancel { grace_ms, reason }, _) => self.cancel(Cancellation { grace_ms, reason }, ctx),
            (
                _,
                ExecutionState::Starting(_)
                | ExecutionState::Finding
                | ExecutionState::Withdrawing(_)
                | ExecutionState::Ended,
            ) => answered(Err(not_running(self.id))),
            (ControlRequest::Stdin(input), ExecutionState::Native(_)) => self.write_stdin(input, ctx),
            (request, ExecutionState::Native(_)) => {
                info!(event = "steer.requested", session_id:% = self.session, execution_id:% = self.id,
                    what = request.name(); "{} requested", request.name());
                self.forward(request)
            }
            (request, ExecutionState::Legacy(clocks)) => {
                let change = match request {
                    ControlRequest::Pause => StatusChange { status: Status::Paused, scope: Some(Scope::Delivery) },
                    ControlRequest::Resume => StatusChange::to(Status::Running),
                    other => return answered(Err(not_possible(&other))),
                };
                if clocks.pause(change.status == Status::Paused, Instant::now()) {
                    self.notice.report(ExecutionEvent::Status(change));
                }
                answered(Ok(ControlReply::Status(change.status)))
            }
        }
    }
}

/// An answer that is known at once.
pub(super) fn answered(answer: ControlAnswer) -> ResponseFuture<ControlAnswer> {
    Box::pin(std::future::ready(answer))
}

/// The refusal of a request to an execution that does not run.
pub(super) fn not_running(id: ExecutionId) -> ErrorObject {
    ErrorObject::new(code::NOT_RUNNING, format!("execution {id} has ended already, or has not started yet"))
}

/// The legacy image gives its commands no standard input, and a gateway can only hold back its output.
fn not_possible(request: &ControlRequest) -> ErrorObject {
    let message =
        format!("{} is not supported by this backend (legacy image): use CANCEL, PAUSE or RESUME", request.name());
    ErrorObject::new(code::NOT_ALLOWED, message)
}

impl Execution {
    /// The answer comes when the command has room for all of the input. If the execution ends first, the inputs in the
    /// queue end with this actor.
    fn write_stdin(&mut self, input: CommandInput, ctx: &mut Context<Self>) -> ResponseFuture<ControlAnswer> {
        let waiting: usize = self.input.0.iter().map(|pending| cost(&pending.input)).sum();
        let length = cost(&input);
        if waiting + length > MAX_WAITING {
            let message = format!(
                "{length} more bytes of input exceed the limit of {MAX_WAITING}, {waiting} are pending (an input counts at least 1024): wait for responses to input"
            );
            return answered(Err(ErrorObject::new(code::FULL, message)));
        }
        let (answer, is_answered) = oneshot::channel();
        self.input.0.push_back(PendingInput { input, answer });
        if self.input.0.len() == 1 {
            self.send_input(ctx);
        }
        let id = self.id;
        Box::pin(async move { is_answered.await.unwrap_or_else(|_| Err(not_running(id))) })
    }

    /// Sends the first input of the queue, and the others after it, so that their order is kept.
    fn send_input(&mut self, ctx: &mut Context<Self>) {
        let Some(first) = self.input.0.front() else { return };
        let sent = self.forward(ControlRequest::Stdin(first.input.clone()));
        ctx.spawn(sent.into_actor(self).map(|answer, actor, ctx| {
            if let Some(first) = actor.input.0.pop_front() {
                // The error means that the session is gone, which needs no answer.
                let _ = first.answer.send(answer);
            }
            if matches!(actor.state, ExecutionState::Ended) {
                ctx.stop();
            } else {
                actor.send_input(ctx);
            }
        }));
    }

    fn send_acknowledgement(&mut self, offsets: PerStream<u64>, ctx: &mut Context<Self>) {
        self.acknowledging = Acknowledger::Sending { next: None };
        let (backend, id, hold) = (self.backend.clone(), self.id, self.holder.number());
        let sent = async move { backend.acknowledge(id, offsets, hold).await };
        // A failure needs no repetition: offsets only grow, so the next acknowledgement covers this one.
        ctx.spawn(sent.into_actor(self).map(|_, actor, ctx| match std::mem::take(&mut actor.acknowledging) {
            Acknowledger::Sending { next: Some(offsets) } => actor.send_acknowledgement(offsets, ctx),
            Acknowledger::Sending { next: None } | Acknowledger::Idle => {}
        }));
    }
}

impl Handler<Acknowledge> for Execution {
    type Result = ();

    fn handle(&mut self, Acknowledge(offsets): Acknowledge, ctx: &mut Self::Context) {
        match (&self.state, &mut self.acknowledging) {
            (ExecutionState::Native(_), Acknowledger::Idle) => self.send_acknowledgement(offsets, ctx),
            (ExecutionState::Native(_), Acknowledger::Sending { next }) => *next = Some(offsets),
            _ => {}
        }
    }
}
