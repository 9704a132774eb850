//! What is asked of an execution while it runs, besides its end: pause, signals, input, and the
//! acknowledgements of its client.

use std::time::Instant;

use actix::{ActorContext, ActorFutureExt, AsyncContext, Context, Handler, ResponseFuture, WrapFuture};
use futures_util::FutureExt;
use log::info;
use tokio::sync::oneshot;

use super::{
    Execution, ExecutionState, ended,
    messages::{Acknowledge, ControlRequest, ControlResult, ExecutionEvent, WriteStdin},
};
use crate::{
    backend_api::StatusChange,
    backend_client::BackendError,
    outcome::{Scope, Status},
    protocol::{MAX_INPUT_WAITING as MAX_WAITING, method::InputParams},
    rpc::{ErrorObject, code},
    stream::PerStream,
};

/// Input that has not been sent, and who waits for that.
pub(super) struct PendingInput {
    input: InputParams,
    answer: oneshot::Sender<Result<usize, ErrorObject>>,
}

/// What the client has received, on its way to the backend: one request at a time, the newest next.
#[derive(Default)]
pub(super) struct Acknowledger {
    under_way: bool,
    next: Option<PerStream<u64>>,
}

impl Handler<ControlRequest> for Execution {
    type Result = ResponseFuture<ControlResult>;

    fn handle(&mut self, steer: ControlRequest, ctx: &mut Self::Context) -> Self::Result {
        match &self.state {
            ExecutionState::Native => {
                info!(event = "steer.requested", session_id:% = self.session, execution_id:% = self.id,
                    what = steer.as_str(); "{} requested", steer.as_str());
                let (backend, id) = (self.backend.clone(), self.id);
                Box::pin(async move { steer.ask(&backend, id).await.map_err(BackendError::into_error) })
            }
            ExecutionState::Legacy(..) => Box::pin(std::future::ready(self.steer_original(steer, ctx))),
            ExecutionState::Starting(_) | ExecutionState::Withdrawing(_) | ExecutionState::Ended => {
                Box::pin(std::future::ready(Err(ended())))
            }
        }
    }
}

impl ControlRequest {
    /// Has the backend do it, and gives the status that follows.
    pub(crate) async fn ask(
        self,
        backend: &crate::backend_client::BackendClient,
        id: crate::id::ExecutionId,
    ) -> Result<Status, BackendError> {
        match self {
            ControlRequest::Pause => backend.pause(id).await.map(|()| Status::Paused),
            ControlRequest::Resume => backend.resume(id).await.map(|()| Status::Running),
            ControlRequest::Signal(signal) => backend.signal(id, signal).await.map(|()| Status::Running),
            ControlRequest::Resize(size) => backend.resize(id, size).await.map(|()| Status::Running),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            ControlRequest::Pause => "PAUSE",
            ControlRequest::Resume => "RESUME",
            ControlRequest::Signal(signal) => signal.name(),
            ControlRequest::Resize(_) => "resize",
        }
    }
}

impl Execution {
    /// The legacy's image can hold back its output's delivery, and nothing else.
    fn steer_original(&mut self, steer: ControlRequest, ctx: &mut Context<Self>) -> ControlResult {
        let ExecutionState::Legacy(legacy, _) = &self.state else { return Err(ended()) };
        let change = match steer {
            ControlRequest::Pause => StatusChange { status: Status::Paused, scope: Some(Scope::Delivery) },
            ControlRequest::Resume => StatusChange::to(Status::Running),
            ControlRequest::Signal(_) | ControlRequest::Resize(_) => {
                return Err(ErrorObject::new(
                    code::NOT_ALLOWED,
                    format!("{}: this backend cannot do that, it can only be canceled", steer.as_str()),
                ));
            }
        };
        if legacy.pause(steer == ControlRequest::Pause, Instant::now()) {
            self.notice.tell(ExecutionEvent::Status(change));
            self.arm_timeout(ctx);
        }
        Ok(change.status)
    }

    /// Sends the first input that waits; the others after it, so that their order is kept.
    fn send_input(&mut self, ctx: &mut Context<Self>) {
        let Some(fed) = self.fed.front() else { return };
        let (backend, id, input) = (self.backend.clone(), self.id, fed.input.clone());
        let length = input.data.len();
        let sent = async move { backend.input(id, input).await.map(|()| length).map_err(BackendError::into_error) };
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
        let (backend, id, hold) = (self.backend.clone(), self.id, self.holder.hold());
        // One that fails is made good by the next: offsets only grow.
        let sent = async move { backend.acknowledge(id, offsets, hold).await }.map(drop);
        ctx.spawn(sent.into_actor(self).map(|(), actor, ctx| {
            actor.acknowledging.under_way = false;
            actor.send_acknowledgement(ctx);
        }));
    }
}

impl Handler<WriteStdin> for Execution {
    type Result = ResponseFuture<Result<usize, ErrorObject>>;

    /// The answer comes when the command has room for all of it. When the execution ends first, the
    /// waiting inputs end with this actor.
    fn handle(&mut self, WriteStdin(input): WriteStdin, ctx: &mut Self::Context) -> Self::Result {
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
            return Box::pin(std::future::ready(Err(error)));
        }
        let (answer, answered) = oneshot::channel();
        self.fed.push_back(PendingInput { input, answer });
        if self.fed.len() == 1 {
            self.send_input(ctx);
        }
        Box::pin(async move { answered.await.unwrap_or_else(|_| Err(ended())) })
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
