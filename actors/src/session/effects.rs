//! Carries out the effects that a session's phase returns.

use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, SpawnHandle, WrapFuture};

use super::{
    actor::Session,
    by_id::{control_result, request_by_id},
    execution_handle::ExecutionHandle,
    phase::{ByIdRequest, ControlOutcome, Effect, SessionEvent},
};
use crate::{
    execution::{
        Execution,
        messages::{Acknowledge, Control, ExecutionPurpose, Parent},
    },
    id::ExecutionId,
    outcome::CancelReason,
    protocol::{DEFAULT_HEARTBEAT_MS, attach::AttachParams, control::ControlRequest},
    rpc::{ErrorObject, code},
    supervisor::ExecutionBegan,
    ws,
};

impl Session {
    pub(super) fn carry_out(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        match (effect, &mut self.current) {
            (Effect::Start(id, execute), _) => {
                let heartbeat_ms = execute.run.heartbeat_ms();
                self.start_execution(id, ExecutionPurpose::Run(execute), heartbeat_ms, ctx);
            }
            (Effect::Attach(attach), _) => {
                self.start_execution(attach.execution_id, ExecutionPurpose::Follow(attach), DEFAULT_HEARTBEAT_MS, ctx);
            }
            (Effect::SetHeartbeat(heartbeat_ms), Some(current)) => {
                let earlier = std::mem::replace(&mut current.heartbeat, start_heartbeat(heartbeat_ms, ctx));
                ctx.cancel_future(earlier);
            }
            (Effect::Drain { grace_ms }, Some(current)) => {
                let request = ControlRequest::Cancel { grace_ms, reason: CancelReason::Drained };
                current.execution.do_send(Control(request));
            }
            (Effect::Acknowledge(offsets), Some(current)) => current.execution.do_send(Acknowledge(offsets)),
            (Effect::Control(id, request), Some(current)) => {
                // Input is bounded by its bytes, and one request at a time carries it.
                let n = usize::from(!matches!(request, ControlRequest::Stdin(_)));
                self.n_requests += n;
                let execution_id = current.id;
                let answer = current.execution.send(Control(request));
                ctx.spawn(answer.into_actor(self).map(move |answer, session, ctx| {
                    let outcome = match answer {
                        Ok(answer) => answer.map(|reply| control_result(execution_id, reply)),
                        Err(_) => Err(ErrorObject::new(code::NOT_RUNNING, "the execution has just ended")),
                    };
                    session.n_requests -= n;
                    let outcome = ControlOutcome { id, execution_id, own: true, is_status: false, outcome };
                    session.on(SessionEvent::Answered(outcome), ctx);
                }));
            }
            (Effect::ById(id, execution_id, request), _) => {
                self.n_requests += 1;
                let is_status = request == ByIdRequest::Status;
                let (supervisor, client) = (self.permit.supervisor().clone(), self.permit.client().clone());
                let answer = request_by_id(self.backend.clone(), supervisor, self.id, client, execution_id, request);
                ctx.spawn(answer.into_actor(self).map(move |outcome, session, ctx| {
                    session.n_requests -= 1;
                    let outcome = ControlOutcome { id, execution_id, own: false, is_status, outcome };
                    session.on(SessionEvent::Answered(outcome), ctx);
                }));
            }
            (Effect::AcknowledgeEnded(id, offsets, hold), _) => {
                self.n_requests += 1;
                let backend = self.backend.clone();
                // If it fails, the backend retains more output than it needs to. A task of its own, because it must arrive
                // even if the session ends now.
                let acknowledged =
                    actix_rt::spawn(async move { backend.acknowledge(id, offsets, hold).await.map(drop) });
                ctx.spawn(acknowledged.into_actor(self).map(|_, session, ctx| {
                    session.n_requests -= 1;
                    session.set_gate(ctx);
                }));
            }
            (Effect::Release, _) => self.release_execution(ctx),
            // The phase returns these only while the session holds an execution.
            (Effect::SetHeartbeat(_) | Effect::Drain { .. } | Effect::Acknowledge(_) | Effect::Control(..), None) => {}
        }
    }

    fn start_execution(
        &mut self,
        id: ExecutionId,
        purpose: ExecutionPurpose,
        heartbeat_ms: u64,
        ctx: &mut Context<Self>,
    ) {
        self.n_executions += 1;
        let parent = Parent {
            encoder: ws::encoder::encoder,
            output: ctx.address().recipient(),
            reports: ctx.address().recipient(),
        };
        let observes = matches!(purpose, ExecutionPurpose::Follow(AttachParams { observe: true, .. }));
        let execution = Execution::new(id, self.id, purpose, self.backend.clone(), parent).start();
        let (supervisor, client) = (self.permit.supervisor().clone(), self.permit.client().clone());
        // A cancellation by id goes to the session that holds the execution.
        if !observes {
            let cancel = execution.downgrade().recipient();
            supervisor.do_send(ExecutionBegan { execution: id, session: self.id, client: client.clone(), cancel });
        }
        self.release_execution(ctx);
        let heartbeat = start_heartbeat(heartbeat_ms, ctx);
        self.current = Some(ExecutionHandle { id, session: self.id, client, execution, supervisor, heartbeat });
    }

    pub(super) fn release_execution(&mut self, ctx: &mut Context<Self>) {
        if let Some(current) = self.current.take() {
            ctx.cancel_future(current.heartbeat);
        }
    }
}

/// Starts the timer that repeats the newest status.
fn start_heartbeat(heartbeat_ms: u64, ctx: &mut Context<Session>) -> SpawnHandle {
    let period = Duration::from_millis(heartbeat_ms);
    ctx.run_interval(period, |session, ctx| session.on(SessionEvent::Heartbeat, ctx))
}
