//! What is asked of an execution while it runs, besides its end: pause, signals, input, and the
//! acknowledgements of its client.

use std::time::Instant;

use actix::{ActorContext, ActorFutureExt, AsyncContext, Context, Handler, ResponseFuture, WrapFuture};
use futures_util::FutureExt;
use log::info;
use tokio::sync::oneshot;

use super::{
    Execution, State, ended,
    messages::{Acknowledge, Answer, Fact, Feed, Steer},
};
use crate::{
    backend::{BackendError, api::StatusChange},
    protocol::{
        MAX_INPUT_WAITING as MAX_WAITING, PerStream,
        method::Input,
        rpc::{ErrorObject, code},
    },
    terminate::{Scope, Status},
};

/// Input that has not been sent, and who waits for that.
pub(super) struct Fed {
    input: Input,
    answer: oneshot::Sender<Result<usize, ErrorObject>>,
}

/// What the client has received, on its way to the backend: one request at a time, the newest next.
#[derive(Default)]
pub(super) struct Acknowledging {
    under_way: bool,
    next: Option<PerStream<u64>>,
}

impl Handler<Steer> for Execution {
    type Result = ResponseFuture<Answer>;

    fn handle(&mut self, steer: Steer, ctx: &mut Self::Context) -> Self::Result {
        match &self.state {
            State::Ours => {
                info!(event = "steer.requested", session_id:% = self.session, execution_id:% = self.id,
                    what = steer.as_str(); "{} requested", steer.as_str());
                let (backend, id) = (self.backend.clone(), self.id);
                Box::pin(async move { steer.ask(&backend, id).await.map_err(BackendError::into_error) })
            }
            State::Plain(..) => Box::pin(std::future::ready(self.steer_original(steer, ctx))),
            State::Starting(_) | State::Withdrawing(_) | State::Ended => Box::pin(std::future::ready(Err(ended()))),
        }
    }
}

impl Steer {
    /// Has the backend do it, and gives the status that follows.
    pub(crate) async fn ask(
        self,
        backend: &crate::backend::Backend,
        id: crate::id::ExecutionId,
    ) -> Result<Status, BackendError> {
        match self {
            Steer::Pause => backend.pause(id).await.map(|()| Status::Paused),
            Steer::Resume => backend.resume(id).await.map(|()| Status::Running),
            Steer::Signal(signal) => backend.signal(id, signal).await.map(|()| Status::Running),
            Steer::Resize(size) => backend.resize(id, size).await.map(|()| Status::Running),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Steer::Pause => "PAUSE",
            Steer::Resume => "RESUME",
            Steer::Signal(signal) => signal.name(),
            Steer::Resize(_) => "resize",
        }
    }
}

impl Execution {
    /// The original's image can hold back its output's delivery, and nothing else.
    fn steer_original(&mut self, steer: Steer, ctx: &mut Context<Self>) -> Answer {
        let State::Plain(original, _) = &self.state else { return Err(ended()) };
        let change = match steer {
            Steer::Pause => StatusChange { status: Status::Paused, scope: Some(Scope::Delivery) },
            Steer::Resume => StatusChange::to(Status::Running),
            Steer::Signal(_) | Steer::Resize(_) => {
                return Err(ErrorObject::new(
                    code::NOT_ALLOWED,
                    format!("{}: this backend cannot do that, it can only be canceled", steer.as_str()),
                ));
            }
        };
        if original.pause(steer == Steer::Pause, Instant::now()) {
            self.notice.tell(Fact::Status(change));
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
            if matches!(actor.state, State::Ended) {
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

impl Handler<Feed> for Execution {
    type Result = ResponseFuture<Result<usize, ErrorObject>>;

    /// The answer comes when the command has room for all of it. When the execution ends first, the
    /// waiting inputs end with this actor.
    fn handle(&mut self, Feed(input): Feed, ctx: &mut Self::Context) -> Self::Result {
        let refusal = match &self.state {
            State::Ours => {
                let waiting: usize = self.fed.iter().map(|fed| fed.input.data.len()).sum();
                (waiting + input.data.len() > MAX_WAITING).then(|| too_much(waiting))
            }
            State::Plain(..) => {
                Some(ErrorObject::new(code::NOT_ALLOWED, "input: this backend gives its commands no standard input"))
            }
            State::Starting(_) | State::Withdrawing(_) | State::Ended => Some(ended()),
        };
        if let Some(error) = refusal {
            return Box::pin(std::future::ready(Err(error)));
        }
        let (answer, answered) = oneshot::channel();
        self.fed.push_back(Fed { input, answer });
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
        if matches!(self.state, State::Ours) {
            self.acknowledging.next = Some(offsets);
            self.send_acknowledgement(ctx);
        }
    }
}
