//! One WebSocket client: an actor that owns a child execution and the only way to the client.
//!
//! The actor is a thin shell. [`phase`] decides, [`outbox`] speaks; this file turns messages into
//! events and asks into effects. It runs on a plain context: its timers and its mailbox work while the
//! client's socket is stuck.

pub mod outbox;
pub mod phase;

use std::time::{Duration, Instant};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, ResponseFuture, SpawnHandle,
    StreamHandler, WrapFuture,
};
use futures_util::{Stream, stream};
use log::info;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use self::{
    outbox::{Frames, Linger, Outbox},
    phase::{Answered, Ask, Closure, Elsewhere, Event, Incoming, Phase},
};
use crate::{
    backend::{Backend, BackendError},
    execution::{
        Execution,
        messages::{Cancel, Output, Parent, Release, Report, SendSignal},
    },
    id::{ExecutionId, SessionId},
    protocol::{
        Limits,
        method::Execute,
        notify,
        rpc::{ErrorObject, Id, code},
    },
    supervisor::{Admit, Began, CancelExecution, Drain, Finished, Opened, Place, Supervisor},
    terminate::{CancelReason, CloseCode, Status},
};

/// How long a closed session still reads, so that the client's own close frame can come.
const LINGER: Duration = Duration::from_secs(1);

/// How long a closed session waits for its client to take what was said before.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

/// The grace of executions that are ended because the service goes away, in milliseconds.
const DRAIN_GRACE_MS: u64 = 1_000;

/// One client.
pub struct Session {
    id: SessionId,
    phase: Option<Phase<Outbox>>,
    child: Option<Child>,
    backend: Backend,
    place: Option<Place>,
    limits: Limits,
    heartbeat: Option<SpawnHandle>,
    linger: Option<Linger>,
    /// Whether the client has had its time for a close frame of its own.
    lingered: bool,
    opened_at: Instant,
    n_executions: u64,
    _alive: oneshot::Sender<()>,
}

/// What a session needs from its gateway.
#[derive(Clone)]
pub struct Surroundings {
    /// Who admits it.
    pub supervisor: Addr<Supervisor>,
    /// Where its executions run.
    pub backend: Backend,
    /// What its client may ask for.
    pub limits: Limits,
}

/// Admits a client and starts its session. What is to be sent comes out of the returned frames.
pub async fn start(
    id: SessionId,
    around: Surroundings,
    incoming: impl Stream<Item = Incoming> + 'static,
) -> (Frames, Ended) {
    let admit = around.supervisor.send(Admit(id, around.supervisor.clone())).await;
    let admitted = admit.unwrap_or_else(|_| Err(ErrorObject::new(code::DRAINING, "the service is shutting down")));
    let (outbox, frames, linger) = Outbox::new();
    let executors = around.backend.known().map(|kind| kind.executors());
    let room = outbox.room();
    let (phase, place) = match admitted {
        Ok(place) => (Phase::open(id, executors, around.limits, outbox), Some(place)),
        Err(error) => (Phase::refused(error, outbox), None),
    };
    let (alive, ended) = oneshot::channel();
    Session::create(|ctx| {
        ctx.add_stream(incoming);
        ctx.add_stream(stream::unfold(room, |room| async {
            room.made().await;
            Some((RoomMade, room))
        }));
        Session {
            id,
            phase: Some(phase),
            child: None,
            backend: around.backend,
            place,
            limits: around.limits,
            heartbeat: None,
            linger: Some(linger),
            lingered: false,
            opened_at: Instant::now(),
            n_executions: 0,
            _alive: alive,
        }
    });
    (frames, Ended(ended))
}

/// Tells when a session has ended, whatever ended it.
pub struct Ended(oneshot::Receiver<()>);

impl Ended {
    /// Waits for it.
    pub async fn wait(self) {
        // Nothing is ever sent: the sender goes with the session.
        let _ = self.0.await;
    }
}

/// The client's socket has taken something.
struct RoomMade;

/// The session's execution. Dropping it lets go of the execution, whatever the reason.
struct Child {
    id: ExecutionId,
    execution: Addr<Execution>,
    supervisor: Option<Addr<Supervisor>>,
}

impl Drop for Child {
    fn drop(&mut self) {
        self.execution.do_send(Release);
        if let Some(supervisor) = &self.supervisor {
            supervisor.do_send(Finished(self.id));
        }
    }
}

impl Session {
    fn on(&mut self, event: Event, ctx: &mut Context<Self>) {
        let Some(phase) = self.phase.take() else { return };
        let was_open = matches!(phase, Phase::Open(..));
        let (phase, asks) = phase.on(event, Instant::now());
        self.phase = Some(phase);
        for ask in asks {
            self.act(ask, ctx);
        }
        match self.phase.as_ref() {
            Some(Phase::Open(_, outbox)) if outbox.unsent_responses() > self.limits.unsent_responses => {
                self.on(Event::Flooded, ctx);
            }
            Some(Phase::Closed(..)) if was_open => self.closed(ctx),
            _ => {}
        }
    }

    fn act(&mut self, ask: Ask, ctx: &mut Context<Self>) {
        match ask {
            Ask::Start(id, execute) => self.start_execution(id, execute, ctx),
            Ask::Release => {
                self.child = None;
                self.heartbeat.take().map(|heartbeat| ctx.cancel_future(heartbeat));
            }
            Ask::Cancel { id, grace_ms } => {
                let cancel = Cancel { grace_ms, reason: CancelReason::Canceled };
                self.ask_child(id, ctx, |execution| async move { execution.send(cancel).await });
            }
            Ask::Signal(id, signal) => {
                self.ask_child(id, ctx, move |execution| async move { execution.send(SendSignal(signal)).await });
            }
            Ask::Drain => {
                if let Some(child) = &self.child {
                    child.execution.do_send(Cancel { grace_ms: DRAIN_GRACE_MS, reason: CancelReason::Drained });
                }
            }
            Ask::Elsewhere(id, execution_id, what) => self.ask_elsewhere(id, execution_id, what, ctx),
        }
    }

    fn start_execution(&mut self, id: ExecutionId, execute: Box<Execute>, ctx: &mut Context<Self>) {
        self.n_executions += 1;
        let heartbeat = Duration::from_millis(execute.run.heartbeat_ms);
        let parent = Parent { output: ctx.address().recipient(), reports: ctx.address().recipient() };
        let execution = Execution::new(id, self.id, execute, self.backend.clone(), parent).start();
        let supervisor = self.place.as_ref().map(|place| place.supervisor().clone());
        if let Some(supervisor) = &supervisor {
            supervisor.do_send(Began(id, execution.downgrade().recipient()));
        }
        self.child = Some(Child { id, execution, supervisor });
        self.heartbeat = Some(ctx.run_interval(heartbeat, |session, ctx| {
            let held_back = matches!(&session.phase, Some(Phase::Open(_, outbox)) if outbox.holds_output());
            session.on(Event::Heartbeat { held_back }, ctx);
        }));
    }

    fn ask_child<F>(&mut self, id: Option<Id>, ctx: &mut Context<Self>, ask: impl FnOnce(Addr<Execution>) -> F)
    where
        F: Future<Output = Result<Result<Status, ErrorObject>, actix::MailboxError>> + 'static,
    {
        // Phase asks only while it holds an execution, and so does this.
        let Some(child) = &self.child else { return };
        let execution_id = child.id;
        let answer = ask(child.execution.clone());
        ctx.spawn(answer.into_actor(self).map(move |answer, session, ctx| {
            let outcome = match answer {
                Ok(answer) => answer.map(|status| json!({ "executionId": execution_id, "status": status })),
                Err(_) => Err(ErrorObject::new(code::NOT_RUNNING, "it has just ended")),
            };
            session.on(Event::Answered(Answered { id, execution_id, own: true, outcome }), ctx);
        }));
    }

    fn ask_elsewhere(&mut self, id: Option<Id>, execution_id: ExecutionId, what: Elsewhere, ctx: &mut Context<Self>) {
        let supervisor = self.place.as_ref().map(|place| place.supervisor().clone());
        let answer = elsewhere(self.backend.clone(), supervisor, execution_id, what);
        ctx.spawn(answer.into_actor(self).map(move |outcome, session, ctx| {
            session.on(Event::Answered(Answered { id, execution_id, own: false, outcome }), ctx);
        }));
    }

    /// After the close frame: let go of everything but the socket, which is read a little longer.
    fn closed(&mut self, ctx: &mut Context<Self>) {
        self.child = None;
        self.heartbeat.take().map(|heartbeat| ctx.cancel_future(heartbeat));
        match &self.phase {
            Some(Phase::Closed(Some(_), closure)) => {
                // A client that asked for the close has nothing more to send.
                self.lingered = matches!(closure, Closure::Said(reason) if reason.code == CloseCode::Normal);
                ctx.run_later(LINGER, |session, ctx| {
                    session.lingered = true;
                    session.stop_when_flushed(ctx);
                });
                ctx.run_later(FLUSH_PATIENCE, |_, ctx| ctx.stop());
                self.stop_when_flushed(ctx);
            }
            _ => ctx.stop(),
        }
    }

    fn stop_when_flushed(&mut self, ctx: &mut Context<Self>) {
        if let Some(Phase::Closed(Some(closing), _)) = &mut self.phase
            && closing.flush()
            && self.lingered
        {
            ctx.stop();
        }
    }

    fn log_closed(&self) {
        let (close_code, why) = match &self.phase {
            Some(Phase::Closed(_, Closure::Said(reason))) => (Some(u16::from(reason.code)), reason.text.as_str()),
            Some(Phase::Closed(_, Closure::Gone)) => (None, "the client is gone"),
            Some(Phase::Open(..)) | None => (None, "the service stopped"),
        };
        info!(event = "session.closed", session_id:% = self.id, close_code:serde = close_code, executions = self.n_executions,
            ms = u64::try_from(self.opened_at.elapsed().as_millis()).unwrap_or(u64::MAX); "session closed: {why}");
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(place) = &self.place else {
            return self.closed(ctx);
        };
        info!(event = "session.opened", session_id:% = self.id; "session opened");
        place.supervisor().do_send(Opened(self.id, ctx.address().downgrade().recipient()));
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.child = None;
        if self.place.is_some() {
            self.log_closed();
        }
        self.linger = None;
    }
}

impl StreamHandler<Incoming> for Session {
    fn handle(&mut self, incoming: Incoming, ctx: &mut Self::Context) {
        match &self.phase {
            // Nothing that comes after our close frame is looked at, but for the end of it.
            Some(Phase::Closed(..)) if matches!(incoming, Incoming::Close | Incoming::Gone) => ctx.stop(),
            Some(Phase::Closed(..)) => {}
            _ => self.on(Event::Incoming(incoming), ctx),
        }
    }

    fn finished(&mut self, ctx: &mut Self::Context) {
        match &self.phase {
            Some(Phase::Open(..)) => self.on(Event::Incoming(Incoming::Gone), ctx),
            _ => ctx.stop(),
        }
    }
}

impl StreamHandler<RoomMade> for Session {
    fn handle(&mut self, _: RoomMade, ctx: &mut Self::Context) {
        match &mut self.phase {
            Some(Phase::Open(_, outbox)) => {
                if !outbox.flush() {
                    self.on(Event::Incoming(Incoming::Gone), ctx);
                }
            }
            _ => self.stop_when_flushed(ctx),
        }
    }

    fn finished(&mut self, _: &mut Self::Context) {}
}

impl Handler<Output> for Session {
    type Result = ResponseFuture<()>;

    /// The reply is the permission to go on: it waits until the output has found room.
    fn handle(&mut self, output: Output, ctx: &mut Self::Context) -> Self::Result {
        let Output { execution_id, frames, offsets } = output;
        self.on(Event::Output { execution_id, frames, offsets }, ctx);
        let credit = match &mut self.phase {
            Some(Phase::Open(_, outbox)) => outbox.credit(),
            _ => None,
        };
        match credit {
            None => Box::pin(std::future::ready(())),
            Some(credit) => Box::pin(async {
                // A credit that is dropped is one too: the client is gone, and so is whoever asks.
                let _ = credit.await;
            }),
        }
    }
}

impl Handler<Report> for Session {
    type Result = ();

    fn handle(&mut self, report: Report, ctx: &mut Self::Context) {
        self.on(Event::Report(report), ctx);
    }
}

impl Handler<Drain> for Session {
    type Result = ();

    fn handle(&mut self, Drain: Drain, ctx: &mut Self::Context) {
        self.on(Event::Drain, ctx);
    }
}

/// Asks about an execution that another session may hold: this gateway's own first, then the backend.
async fn elsewhere(
    backend: Backend,
    supervisor: Option<Addr<Supervisor>>,
    id: ExecutionId,
    what: Elsewhere,
) -> Result<Value, ErrorObject> {
    let status = |status: Status| json!({ "executionId": id, "status": status });
    match what {
        Elsewhere::Cancel { grace_ms } => {
            let cancel = Cancel { grace_ms, reason: CancelReason::Canceled };
            if let Some(supervisor) = supervisor
                && let Ok(Some(answer)) = supervisor.send(CancelExecution(id, cancel)).await
            {
                return answer.map(status);
            }
            info!(event = "cancel.requested", execution_id:% = id, grace_ms = grace_ms; "cancel requested of the backend");
            backend.cancel(id, grace_ms, CancelReason::Canceled).await.map_err(BackendError::into_error)?;
            Ok(status(Status::Cancelling))
        }
        Elsewhere::Signal(signal) => {
            backend.signal(id, signal).await.map_err(BackendError::into_error)?;
            Ok(status(Status::Running))
        }
        Elsewhere::Status => {
            let snapshot = backend.snapshot(id).await.map_err(BackendError::into_error)?;
            Ok(match snapshot.ending {
                Some(ending) => json!(notify::Ended { execution_id: id, ending }),
                None => json!(snapshot),
            })
        }
    }
}
