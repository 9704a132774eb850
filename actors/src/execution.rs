//! The actor of one execution. It owns the backend's HTTP stream, and reports output and events to its parent, which it
//! knows only as two recipients.
//!
//! The actor is never restarted, because a command is not idempotent, and it reports the end exactly once.
//!
//! Start with `state`, which decides; the actor carries its actions out. A relay (`native`, `legacy`) reads the stream
//! beside the mailbox, so a cancellation is handled while the relay waits for the client.

mod connect;
mod control;
mod legacy;
pub mod messages;
mod native;
mod notice;
mod relay;
mod state;

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, ResponseFuture, SpawnHandle, WrapFuture,
};
use futures_util::FutureExt;
use log::{debug, info};
use tokio::time::sleep;

use self::{
    connect::{BackendStream, ConnectError, ExecutionEnd},
    control::{Acknowledger, InputQueue},
    messages::{ControlAnswer, ExecutionEvent, ExecutionPurpose, Parent, Release, StreamStart},
    notice::ExitNotice,
    relay::RelayConfig,
    state::{Cancellation, ExecutionState, FIRST_EVENT_PATIENCE, RequestKind, StateAction, StateEvent},
};
use crate::{
    agent::{self, Agent, ReaderOptions},
    backend_client::{BackendClient, BackendError, HoldIdentity, WithdrawResult},
    clock::millis,
    id::{ExecutionId, SessionId},
    outcome::{Outcome, Reason, Status},
    protocol::{
        DEFAULT_HEARTBEAT_MS,
        control::{ControlReply, ControlRequest},
    },
    stream::PerStream,
};

/// How long an answer to input that is under way when the execution ends may take to arrive.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// One execution of one session.
pub struct Execution {
    id: ExecutionId,
    session: SessionId,
    purpose: ExecutionPurpose,
    backend: BackendClient,
    /// The name under which this gateway requests and follows it.
    holder: Rc<HoldIdentity>,
    state: ExecutionState,
    /// The request or the search whose stream is awaited.
    request: SpawnHandle,
    notice: ExitNotice,
    requested_at: Instant,
    /// Whether the execution keeps running in its backend without a client, as far as the gateway knows.
    may_detach: bool,
    /// The agent, if its standard output consists of an agent's events.
    agent: Option<&'static dyn Agent>,
    input: InputQueue,
    acknowledging: Acknowledger,
}

impl Execution {
    /// An execution that starts as soon as its actor does.
    pub fn new(
        id: ExecutionId,
        session: SessionId,
        purpose: ExecutionPurpose,
        backend: BackendClient,
        parent: Parent,
    ) -> Self {
        let may_detach = matches!(&purpose, ExecutionPurpose::Run(execute) if execute.run.detach.is_some());
        let kind = match purpose {
            ExecutionPurpose::Run(_) => RequestKind::Run { may_detach },
            ExecutionPurpose::Follow(_) => RequestKind::Attach,
        };
        Execution {
            id,
            session,
            purpose,
            backend,
            holder: Rc::default(),
            state: ExecutionState::Starting(kind),
            request: SpawnHandle::default(),
            notice: ExitNotice::new(id, parent),
            requested_at: Instant::now(),
            may_detach,
            agent: None,
            input: InputQueue::default(),
            acknowledging: Acknowledger::default(),
        }
    }

    /// Takes an event, and carries out the actions that follow.
    fn on(&mut self, event: StateEvent, ctx: &mut Context<Self>) {
        for action in self.state.on(event, Instant::now()) {
            self.act(action, ctx);
        }
    }

    /// Waits for an event beside the mailbox.
    fn spawn(&self, event: impl Future<Output = StateEvent> + 'static, ctx: &mut Context<Self>) -> SpawnHandle {
        ctx.spawn(event.into_actor(self).map(|event, actor, ctx| actor.on(event, ctx)))
    }

    fn act(&mut self, action: StateAction, ctx: &mut Context<Self>) {
        match action {
            StateAction::Relay(stream, start) => self.relay(stream, start, ctx),
            StateAction::DropRequest => {
                ctx.cancel_future(self.request);
            }
            StateAction::Withdraw { cancellation: Cancellation { grace_ms, reason }, for_client, patience } => {
                let (backend, id, holder) = (self.backend.clone(), self.id, Rc::clone(&self.holder));
                // A separate task, because the withdrawal must be completed even if this actor stops waiting for it.
                let result =
                    actix_rt::spawn(async move { backend.withdraw(id, grace_ms, reason, &holder, for_client).await });
                let withdrawn = async move { StateEvent::Withdrawn(result.await.unwrap_or(WithdrawResult::Failed)) };
                self.spawn(withdrawn, ctx);
                self.spawn(sleep(patience).map(|()| StateEvent::WithdrawOverdue), ctx);
            }
            StateAction::Cancel(Cancellation { grace_ms, reason }) => {
                let (backend, id) = (self.backend.clone(), self.id);
                // A separate task, because the request must be sent even if this actor stops. If it fails, the backend is
                // lost, which the end of the stream reports.
                actix_rt::spawn(async move { backend.control(id, ControlRequest::Cancel { grace_ms, reason }).await });
            }
            StateAction::Find(unless_found) => {
                let (backend, id, holder) = (self.backend.clone(), self.id, Rc::clone(&self.holder));
                let search = async move {
                    let found = connect::find(&backend, id, PerStream::default(), &holder, false).await;
                    let found = found.map(|(events, start)| (BackendStream::Native(events), start));
                    opened(found, |error| StateEvent::NotFound(not_found(unless_found, id, &error)))
                };
                self.request = self.spawn(search, ctx);
            }
            StateAction::Refuse(error) => {
                info!(event = "execution.refused", session_id:% = self.session, execution_id:% = self.id,
                    code = error.code; "execution refused: {}", error.message);
                self.end(ExecutionEvent::Refused(error), ctx);
            }
            StateAction::HandOver => {
                info!(event = "execution.taken_over", session_id:% = self.session, execution_id:% = self.id,
                    ms = millis(self.requested_at.elapsed()); "another consumer has taken the execution over");
                self.end(ExecutionEvent::TakenOver, ctx);
            }
            StateAction::Finish(outcome) => self.finish(outcome, ctx),
            StateAction::Stop => {
                self.log_released();
                ctx.stop();
            }
        }
    }

    fn relay(&mut self, stream: BackendStream, start: StreamStart, ctx: &mut Context<Self>) {
        // The client is gone. The backend notices that its stream is dropped.
        let Some(parent) = self.notice.parent.clone() else { return self.on(StateEvent::Release, ctx) };
        info!(event = "execution.started", session_id:% = self.session, execution_id:% = self.id, client:serde = self.backend.on_behalf_of(),
            status = start.status.as_str(), attached = matches!(self.purpose, ExecutionPurpose::Follow(_)),
            observed:serde = self.purpose.observes().then_some(true), ms = millis(self.requested_at.elapsed()); "execution started");
        let (framing, offsets, events, heartbeat_ms) = match &self.purpose {
            ExecutionPurpose::Run(execute) => {
                (execute.framing, PerStream::default(), execute.events, Some(execute.run.heartbeat_ms()))
            }
            ExecutionPurpose::Follow(attach) => (attach.framing, attach.offsets, attach.events, None),
        };
        let heartbeat_ms = heartbeat_ms.or(start.terms.heartbeat_ms).unwrap_or(DEFAULT_HEARTBEAT_MS);
        self.may_detach |= start.terms.may_detach;
        self.agent = start.terms.agent().and_then(agent::named);
        let config = RelayConfig {
            id: self.id,
            backend: self.backend.clone(),
            holder: Rc::clone(&self.holder),
            has_id: matches!(stream, BackendStream::Native(_)),
            parent,
            agent: self.agent,
            reader_options: ReaderOptions { framing, start: offsets.stdout, events_of: events.then_some(self.id) },
            offsets,
            heartbeat: Duration::from_millis(heartbeat_ms),
            may_detach: self.may_detach,
            observes: self.purpose.observes(),
        };
        self.notice.report(ExecutionEvent::Held(start));
        let relayed = async move {
            StateEvent::StreamEnded(match stream {
                BackendStream::Native(events) => native::relay(events, config).await,
                BackendStream::Legacy(stream) => ExecutionEnd::Ended(Box::new(legacy::relay(stream, config).await)),
            })
        };
        self.spawn(relayed, ctx);
    }

    /// Ends the execution. While a native backend streams, the answer comes when that backend has accepted the request;
    /// otherwise at once.
    fn cancel(&mut self, cancellation: Cancellation, ctx: &mut Context<Self>) -> ResponseFuture<ControlAnswer> {
        let Cancellation { grace_ms, reason } = cancellation;
        info!(event = "cancel.requested", session_id:% = self.session, execution_id:% = self.id,
            grace_ms = grace_ms, reason = reason.as_str(); "cancel requested");
        if matches!(self.state, ExecutionState::Ended) {
            return control::answered(Err(control::not_running(self.id)));
        }
        self.on(StateEvent::Cancel(cancellation), ctx);
        match self.state {
            ExecutionState::Native(_) => self.forward(ControlRequest::Cancel { grace_ms, reason }),
            ExecutionState::Ended => control::answered(Ok(ControlReply::Status(Status::Cancelled))),
            _ => control::answered(Ok(ControlReply::Status(Status::Cancelling))),
        }
    }

    /// Sends a control request to the backend.
    fn forward(&self, request: ControlRequest) -> ResponseFuture<ControlAnswer> {
        let (backend, id) = (self.backend.clone(), self.id);
        Box::pin(async move { backend.control(id, request).await.map_err(BackendError::into_error) })
    }

    fn log_released(&self) {
        let ms = millis(self.requested_at.elapsed());
        if self.purpose.observes() {
            info!(event = "execution.released", session_id:% = self.session, execution_id:% = self.id, observed = true,
                ms = ms; "the observer is gone; the execution does not notice");
        } else if self.may_detach {
            info!(event = "execution.released", session_id:% = self.session, execution_id:% = self.id, ms = ms;
                "the client is gone; the execution keeps running in its backend");
        } else {
            info!(event = "execution.finished", session_id:% = self.session, execution_id:% = self.id,
                status = Status::Cancelled.as_str(), reason = Reason::Disconnected.as_str(), ms = ms;
                "the client is gone; the backend ends the execution");
        }
    }

    fn finish(&mut self, mut outcome: Outcome, ctx: &mut Context<Self>) {
        if self.agent.is_some() {
            // The digest is of the agent's events, and the client gets their texts.
            outcome.sha256.stdout = None;
        }
        info!(event = "execution.finished", session_id:% = self.session, execution_id:% = self.id,
            status = outcome.status.as_str(), reason = outcome.reason.as_str(), exit_code:serde = outcome.exit_code,
            signal:serde = outcome.signal, stdout_bytes:serde = outcome.bytes.stdout,
            stderr_bytes:serde = outcome.bytes.stderr, ms = millis(self.requested_at.elapsed()); "execution finished");
        self.end(ExecutionEvent::Exited(outcome), ctx);
    }

    /// Reports the end, and stops. If the command has read input whose answer is under way on another connection, the
    /// actor waits for that answer.
    fn end(&mut self, event: ExecutionEvent, ctx: &mut Context<Self>) {
        self.notice.end(event);
        if self.input.is_empty() {
            ctx.stop();
        } else {
            ctx.run_later(ANSWER_PATIENCE, |_, ctx| ctx.stop());
        }
    }
}

/// The outcome of an execution that was not found. If its stream was lost, the message says where it may be.
fn not_found(outcome: Outcome, id: ExecutionId, error: &BackendError) -> Outcome {
    match &outcome.message {
        Some(fault) if outcome.reason == Reason::BackendLost => {
            let message = Some(connect::not_found(fault, id, error));
            Outcome { message, ..outcome }
        }
        _ => outcome,
    }
}

/// The event of a request or a search for the execution; `failed` makes the event of a failure.
fn opened(
    result: Result<(BackendStream, StreamStart), ConnectError>,
    failed: impl FnOnce(BackendError) -> StateEvent,
) -> StateEvent {
    match result {
        Ok((stream, start)) => StateEvent::Opened(stream, start),
        Err(ConnectError::End(end)) => StateEvent::StreamEnded(end),
        Err(ConnectError::Failed(error)) => failed(error),
    }
}

impl Actor for Execution {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let ExecutionPurpose::Run(execute) = &self.purpose {
            debug!(event = "execution.command", session_id:% = self.session, execution_id:% = self.id,
                command:% = execute.run.command.to_text(), env:serde = execute.run.env.keys().collect::<Vec<_>>();
                "execution requested");
        }
        let (backend, id, purpose) = (self.backend.clone(), self.id, self.purpose.clone());
        let holder = Rc::clone(&self.holder);
        let request =
            async move { opened(connect::open(&backend, id, &purpose, &holder).await, StateEvent::OpenFailed) };
        self.request = self.spawn(request, ctx);
        self.spawn(sleep(FIRST_EVENT_PATIENCE).map(|()| StateEvent::OpenOverdue), ctx);
    }
}

impl Handler<Release> for Execution {
    type Result = ();

    fn handle(&mut self, Release: Release, ctx: &mut Self::Context) {
        self.notice.parent = None;
        self.on(StateEvent::Release, ctx);
    }
}
