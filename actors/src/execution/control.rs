//! What is asked of an execution while it runs: control requests, and the acknowledgements of its client.

use std::time::Instant;

use actix::{ActorContext, ActorFutureExt, AsyncContext, Context, Handler, ResponseFuture, WrapFuture};
use futures_util::FutureExt;
use log::info;
use tokio::sync::oneshot;

use super::{
    Cancellation, Execution, ExecutionState, ended,
    messages::{Acknowledge, Control, ControlAnswer, ExecutionEvent},
};
use crate::{
    backend_api::StatusChange,
    backend_client::BackendError,
    outcome::{Scope, Status},
    protocol::{
        MAX_INPUT_WAITING as MAX_WAITING,
        control::{ControlReply, ControlRequest},
        input::InputParams,
    },
    rpc::{ErrorObject, code},
    stream::PerStream,
};

/// Input that has not been sent, and who waits for that.
pub(super) struct PendingInput {
    input: InputParams,
    answer: oneshot::Sender<ControlAnswer>,
}

/// What the client has received, on its way to the backend: one request at a time, the newest next.
#[derive(Default)]
pub(super) struct Acknowledger {
    under_way: bool,
    next: Option<PerStream<u64>>,
}

impl Handler<Control> for Execution {
    type Result = ResponseFuture<ControlAnswer>;

    fn handle(&mut self, Control(request): Control, ctx: &mut Self::Context) -> Self::Result {
        match request {
            ControlRequest::Cancel { grace_ms, reason } => self.cancel(Cancellation { grace_ms, reason }, ctx),
            ControlRequest::Stdin(input) => self.write_stdin(input, ctx),
            request => match &self.state {
                ExecutionState::Native => {
                    info!(event = "steer.requested", session_id:% = self.session, execution_id:% = self.id,
                        what = request.name(); "{} requested", request.name());
                    let (backend, id) = (self.backend.clone(), self.id);
                    Box::pin(async move { backend.control(id, request).await.map_err(BackendError::into_error) })
                }
                ExecutionState::Legacy(..) => answered(self.control_legacy(&request, ctx)),
                ExecutionState::Starting(_) | ExecutionState::Withdrawing(_) | ExecutionState::Ended => {
                    answered(Err(ended()))
                }
            },
        }
    }
}

/// An answer that is there at once.
pub(super) fn answered(answer: ControlAnswer) -> ResponseFuture<ControlAnswer> {
    Box::pin(std::future::ready(answer))
}

impl Execution {
    /// The legacy's image can hold back its output's delivery, and nothing else.
    fn control_legacy(&mut self, request: &ControlRequest, ctx: &mut Context<Self>) -> ControlAnswer {
        let ExecutionState::Legacy(legacy, _) = &self.state else { return Err(ended()) };
        let change = match request {
            ControlRequest::Pause => StatusChange { status: Status::Paused, scope: Some(Scope::Delivery) },
            ControlRequest::Resume => StatusChange::to(Status::Running),
            other => {
                return Err(ErrorObject::new(
                    code::NOT_ALLOWED,
                    format!("{}: this backend cannot do that, it can only be canceled", other.name()),
                ));
            }
        };
        if legacy.pause(change.status == Status::Paused, Instant::now()) {
            self.notice.tell(ExecutionEvent::Status(change));
            self.arm_timeout(ctx);
        }
        Ok(ControlReply::Status(change.status))
    }

    /// The answer comes when the command has room for all of it. When the execution ends first, the
    /// waiting inputs end with this actor.
    fn write_stdin(&mut self, input: InputParams, ctx: &mut Context<Self>) -> ResponseFuture<ControlAnswer> {
        let refusal = match &self.state {
            ExecutionState::Native => {
                let waiting: usize = self.fed.iter().map(|fed| fed.input.data.len()).sum();
                (waiting + input.data.len() > MAX_WAITING).then(|| too_much(waiting))
            }
            ExecutionState::Legacy(..) => {
                Some(ErrorObject::new(code::NOT_ALLOWED, "input: this backend gives its commands no standard input"))
            }
            ExecutionState::Starting(_) | ExecutionState::Withdrawing(_) | ExecutionState::Ended => Some(ended()),
        };
        if let Some(error) = refusal {
            return answered(Err(error));
        }
        let (answer, is_answered) = oneshot::channel();
        self.fed.push_back(PendingInput { input, answer });
        if self.fed.len() == 1 {
            self.send_input(ctx);
        }
        Box::pin(async move { is_answered.await.unwrap_or_else(|_| Err(ended())) })
    }

    /// Sends the first input that waits; the others after it, so that their order is kept.
    fn send_input(&mut self, ctx: &mut Context<Self>) {
        let Some(fed) = self.fed.front() else { return };
        let (backend, id, input) = (self.backend.clone(), self.id, fed.input.clone());
        let request = ControlRequest::Stdin(input);
        let sent = async move { backend.control(id, request).await.map_err(BackendError::into_error) };
        ctx.spawn(sent.into_actor(self).map(|outcome, actor, ctx| {
            if let Some(fed) = actor.fed.pop_front() {
                // A session that is gone needs no answer.
                let _ = fed.answer.send(outcome);
            }
            if matches!(actor.state, ExecutionState::Ended) {
                ctx.stop();
            } else {
                actor.send_input(ctx);
            }
        }));
    }

    fn send_acknowledgement(&mut self, ctx: &mut Context<Self>) {
        if self.acknowledging.under_way {
            return;
        }
        let Some(offsets) = self.acknowledging.next.take() else { return };
        self.acknowledging.under_way = true;
        let (backend, id, hold) = (self.backend.clone(), self.id, self.holder.number());
        // One that fails is made good by the next: offsets only grow.
        let sent = async move { backend.acknowledge(id, offsets, hold).await }.map(drop);
        ctx.spawn(sent.into_actor(self).map(|(), actor, ctx| {
            actor.acknowledging.under_way = false;
            actor.send_acknowledgement(ctx);
        }));
    }
}

fn too_much(waiting: usize) -> ErrorObject {
    ErrorObject::new(
        code::FULL,
        format!("{waiting} bytes of input wait already, and at most {MAX_WAITING} may: wait for the answers"),
    )
}

impl Handler<Acknowledge> for Execution {
    type Result = ();

    fn handle(&mut self, Acknowledge(offsets): Acknowledge, ctx: &mut Self::Context) {
        if matches!(self.state, ExecutionState::Native) {
            self.acknowledging.next = Some(offsets);
            self.send_acknowledgement(ctx);
        }
    }
}
