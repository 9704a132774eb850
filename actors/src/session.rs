//! One WebSocket client: an actor that owns a child execution and the only way to the client.
//!
//! The actor is a thin shell. [`phase`] decides, [`outbox`] speaks; this file turns messages into
//! events and asks into effects. It runs on a plain context: its timers and its mailbox work while the
//! client's socket is stuck.

pub mod liveness;
pub mod outbox;
pub mod phase;

use std::{
    net::IpAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, ResponseFuture, SpawnHandle,
    StreamHandler, WrapFuture,
};
use futures_util::{Stream, stream};
use log::{info, warn};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use self::{
    liveness::Liveness,
    outbox::{Frames, Linger, Outbox, RoomSignal},
    phase::{ByIdRequest, CloseCause, ControlOutcome, DrainMode, Effect, Incoming, Phase, SessionEvent},
};
use crate::{
    backend_client::{BackendClient, BackendError},
    close::CloseCode,
    execution::{
        Execution,
        messages::{Acknowledge, Control, EncodedOutput, ExecutionPurpose, ExecutionReport, Parent, Release},
    },
    id::{ExecutionId, SessionId},
    outcome::CancelReason,
    protocol::{
        DEFAULT_HEARTBEAT_MS, EmptyResult, Limits,
        control::{ControlReply, ControlRequest, ControlResult},
        input::InputResult,
        notification::FinalStatus,
        status::StatusResult,
    },
    rpc::{ErrorObject, Id, code},
    supervisor::{Admit, CancelExecution, Drain, ExecutionBegan, ExecutionFinished, Permit, SessionOpened, Supervisor},
    ws,
};

/// How long a closed session still reads, so that the client's own close frame can come.
const LINGER: Duration = Duration::from_secs(1);

/// How long a closed session waits for its client to take what was said before.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

/// One client.
pub struct Session {
    id: SessionId,
    phase: Phase<Outbox>,
    stage: ConnectionStage,
    current: Option<ExecutionHandle>,
    backend: BackendClient,
    admission: SessionAdmission,
    limits: Limits,
    room: Rc<RoomSignal>,
    opened_at: Instant,
    n_executions: u64,
    drain_grace_ms: u64,
    /// The response does not end before this is dropped.
    _linger: Linger,
}

/// Whether the supervisor let the session in.
enum SessionAdmission {
    Admitted(Permit),
    /// It is told why and closed. It begins no execution, and is not counted or logged.
    Refused,
}

impl SessionAdmission {
    fn supervisor(&self) -> Option<&Addr<Supervisor>> {
        match self {
            SessionAdmission::Admitted(permit) => Some(permit.supervisor()),
            SessionAdmission::Refused => None,
        }
    }
}

/// What the connection is still needed for.
enum ConnectionStage {
    /// Messages in both directions. The sender is dropped with the close frame, which [`ClosedSignal`] tells.
    Open { _closed: oneshot::Sender<()> },
    /// The close frame was sent; the client has time for its own.
    Lingering,
    /// The client has had its time: the session stops as soon as its frames are written.
    Lingered,
}

/// What a session needs from its gateway.
#[derive(Clone)]
pub struct SessionContext {
    /// Who admits it.
    pub supervisor: Addr<Supervisor>,
    /// Where its executions run.
    pub backend: BackendClient,
    /// What its client may ask for.
    pub limits: Limits,
}

/// Admits a client and starts its session. What is to be sent comes out of the returned frames.
pub async fn start(
    id: SessionId,
    peer: Option<IpAddr>,
    around: SessionContext,
    incoming: impl Stream<Item = Incoming> + 'static,
) -> (Frames, ClosedSignal) {
    let admit = around.supervisor.send(Admit { session: id, peer, supervisor: around.supervisor.clone() }).await;
    let admitted = admit.unwrap_or_else(|_| Err(ErrorObject::new(code::DRAINING, "the service is shutting down")));
    let (outbox, frames, linger) = Outbox::new();
    let room = outbox.room();
    let now = Instant::now();
    let (phase, admission) = match admitted {
        Ok(permit) => {
            let phase = Phase::open(id, around.backend.known().as_ref(), around.limits, outbox, now);
            (phase, SessionAdmission::Admitted(permit))
        }
        Err(error) => (Phase::refused(error, outbox), SessionAdmission::Refused),
    };
    let (open, closed) = oneshot::channel();
    Session::create(|ctx| {
        ctx.add_stream(incoming);
        ctx.add_stream(stream::unfold(Rc::clone(&room), |room| async {
            room.made().await;
            Some((OutboxReady, room))
        }));
        Session {
            id,
            phase,
            stage: ConnectionStage::Open { _closed: open },
            current: None,
            backend: around.backend,
            admission,
            limits: around.limits,
            room,
            opened_at: now,
            n_executions: 0,
            drain_grace_ms: 0,
            _linger: linger,
        }
    });
    (frames, ClosedSignal(closed))
}

/// Tells when a session has been closed, whatever closed it.
pub struct ClosedSignal(oneshot::Receiver<()>);

impl ClosedSignal {
    /// Waits for it.
    pub async fn wait(self) {
        // Nothing is ever sent: the sender goes with the session.
        let _ = self.0.await;
    }
}

/// The client's socket has taken something.
struct OutboxReady;

/// The session's execution. Dropping it lets go of the execution, whatever the reason.
struct ExecutionHandle {
    id: ExecutionId,
    session: SessionId,
    execution: Addr<Execution>,
    supervisor: Option<Addr<Supervisor>>,
    /// Repeats the newest status.
    heartbeat: SpawnHandle,
}

impl Drop for ExecutionHandle {
    fn drop(&mut self) {
        self.execution.do_send(Release);
        if let Some(supervisor) = &self.supervisor {
            supervisor.do_send(ExecutionFinished { execution: self.id, session: self.session });
        }
    }
}

impl Session {
    fn on(&mut self, event: SessionEvent, ctx: &mut Context<Self>) {
        // The phase is moved through its own function; nothing sees what stands here meanwhile.
        let phase = std::mem::replace(&mut self.phase, Phase::Closed(None, CloseCause::Gone));
        let was_open = matches!(phase, Phase::Open(..));
        let (phase, asks) = phase.on(event, Instant::now());
        self.phase = phase;
        for ask in asks {
            self.act(ask, ctx);
        }
        match &self.phase {
            Phase::Open(_, outbox) if outbox.unsent_responses() > self.limits.unsent_responses => {
                self.on(SessionEvent::Flooded, ctx);
            }
            Phase::Closed(..) if was_open => self.closed(ctx),
            Phase::Open(..) | Phase::Closed(..) => {}
        }
    }

    fn act(&mut self, ask: Effect, ctx: &mut Context<Self>) {
        match ask {
            Effect::Start(id, execute) => {
                let heartbeat_ms = execute.run.heartbeat_ms();
                self.start_execution(id, ExecutionPurpose::Run(execute), heartbeat_ms, ctx);
            }
            Effect::Follow(attach) => {
                self.start_execution(attach.execution_id, ExecutionPurpose::Follow(attach), DEFAULT_HEARTBEAT_MS, ctx);
            }
            Effect::Beat(heartbeat_ms) => {
                if let Some(current) = &mut self.current {
                    let before = std::mem::replace(&mut current.heartbeat, beat(heartbeat_ms, ctx));
                    ctx.cancel_future(before);
                }
            }
            Effect::Control(id, request) => self.ask_child(id, request, ctx),
            Effect::Release => self.release_current(ctx),
            Effect::Acknowledge(offsets) => {
                if let Some(current) = &self.current {
                    current.execution.do_send(Acknowledge(offsets));
                }
            }
            Effect::Delivered(id, offsets, hold) => {
                let backend = self.backend.clone();
                // Where it fails, the backend keeps more than it must.
                actix_rt::spawn(async move { backend.acknowledge(id, offsets, hold).await.map(drop) });
            }
            Effect::Drain => {
                if let Some(current) = &self.current {
                    let grace_ms = self.drain_grace_ms;
                    let request = ControlRequest::Cancel { grace_ms, reason: CancelReason::Drained };
                    current.execution.do_send(Control(request));
                }
            }
            Effect::Elsewhere(id, execution_id, what) => self.ask_elsewhere(id, execution_id, what, ctx),
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
        let execution = Execution::new(id, self.id, purpose, self.backend.clone(), parent).start();
        let supervisor = self.admission.supervisor().cloned();
        if let Some(supervisor) = &supervisor {
            let cancel = execution.downgrade().recipient();
            supervisor.do_send(ExecutionBegan { execution: id, session: self.id, cancel });
        }
        self.release_current(ctx);
        let heartbeat = beat(heartbeat_ms, ctx);
        self.current = Some(ExecutionHandle { id, session: self.id, execution, supervisor, heartbeat });
    }

    fn release_current(&mut self, ctx: &mut Context<Self>) {
        if let Some(current) = self.current.take() {
            ctx.cancel_future(current.heartbeat);
        }
    }

    fn ask_child(&mut self, id: Option<Id>, request: ControlRequest, ctx: &mut Context<Self>) {
        // Phase asks only while it holds an execution, and so does this.
        let Some(current) = &self.current else { return };
        let execution_id = current.id;
        let answer = current.execution.send(Control(request));
        ctx.spawn(answer.into_actor(self).map(move |answer, session, ctx| {
            let outcome = match answer {
                Ok(answer) => answer.map(|reply| response_of(execution_id, reply)),
                Err(_) => Err(ErrorObject::new(code::NOT_RUNNING, "it has just ended")),
            };
            session.on(SessionEvent::Answered(ControlOutcome { id, execution_id, own: true, outcome }), ctx);
        }));
    }

    fn ask_elsewhere(&mut self, id: Option<Id>, execution_id: ExecutionId, what: ByIdRequest, ctx: &mut Context<Self>) {
        let supervisor = self.admission.supervisor().cloned();
        let answer = elsewhere(self.backend.clone(), supervisor, execution_id, what);
        ctx.spawn(answer.into_actor(self).map(move |outcome, session, ctx| {
            session.on(SessionEvent::Answered(ControlOutcome { id, execution_id, own: false, outcome }), ctx);
        }));
    }

    /// After the close frame: let go of everything but the socket, which is read a little longer.
    fn closed(&mut self, ctx: &mut Context<Self>) {
        self.release_current(ctx);
        // A client that asked for the close has nothing more to send.
        self.stage = match &self.phase {
            Phase::Closed(_, CloseCause::Said(reason)) if reason.code == CloseCode::Normal => ConnectionStage::Lingered,
            _ => ConnectionStage::Lingering,
        };
        if !matches!(self.phase, Phase::Closed(Some(_), _)) {
            return ctx.stop();
        }
        ctx.run_later(LINGER, |session, ctx| {
            session.stage = ConnectionStage::Lingered;
            session.stop_when_flushed(ctx);
        });
        ctx.run_later(FLUSH_PATIENCE, |_, ctx| ctx.stop());
        self.stop_when_flushed(ctx);
    }

    fn stop_when_flushed(&mut self, ctx: &mut Context<Self>) {
        if let Phase::Closed(Some(closing), _) = &mut self.phase
            && closing.flush()
            && matches!(self.stage, ConnectionStage::Lingered)
        {
            ctx.stop();
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        let blocked = matches!(&self.phase, Phase::Open(_, outbox) if outbox.is_blocked());
        let was_open = matches!(self.phase, Phase::Open(..));
        self.on(SessionEvent::Look { taken: self.room.taken(), blocked }, ctx);
        if was_open && matches!(self.phase, Phase::Closed(..)) {
            let event = if blocked { "client.stalled" } else { "client.unresponsive" };
            warn!(event = event, session_id:% = self.id, patience_ms = self.limits.client_stall_ms;
                "the client {}", if blocked { "accepts nothing" } else { "gives no sign of life" });
        }
    }

    fn log_closed(&self) {
        let (close_code, why) = match &self.phase {
            Phase::Closed(_, CloseCause::Said(reason)) => (Some(u16::from(reason.code)), reason.text.as_str()),
            Phase::Closed(_, CloseCause::Gone) => (None, "the client is gone"),
            Phase::Open(..) => (None, "the service stopped"),
        };
        info!(event = "session.closed", session_id:% = self.id, close_code:serde = close_code, executions = self.n_executions,
            ms = u64::try_from(self.opened_at.elapsed().as_millis()).unwrap_or(u64::MAX); "session closed: {why}");
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(supervisor) = self.admission.supervisor() else {
            return self.closed(ctx);
        };
        info!(event = "session.opened", session_id:% = self.id; "session opened");
        supervisor.do_send(SessionOpened(self.id, ctx.address().downgrade().recipient()));
        let cadence = Liveness::cadence(Duration::from_millis(self.limits.client_stall_ms));
        ctx.run_interval(cadence, Session::tick);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.current = None;
        if let SessionAdmission::Admitted(_) = self.admission {
            self.log_closed();
        }
    }
}

impl StreamHandler<Incoming> for Session {
    fn handle(&mut self, incoming: Incoming, ctx: &mut Self::Context) {
        match &self.phase {
            // Nothing that comes after our close frame is looked at, but for the end of it.
            Phase::Closed(..) if matches!(incoming, Incoming::Close | Incoming::Gone) => ctx.stop(),
            Phase::Closed(..) => {}
            _ => self.on(SessionEvent::Incoming(incoming), ctx),
        }
    }

    fn finished(&mut self, ctx: &mut Self::Context) {
        match &self.phase {
            Phase::Open(..) => self.on(SessionEvent::Incoming(Incoming::Gone), ctx),
            _ => ctx.stop(),
        }
    }
}

impl StreamHandler<OutboxReady> for Session {
    fn handle(&mut self, _: OutboxReady, ctx: &mut Self::Context) {
        match &mut self.phase {
            Phase::Open(_, outbox) => {
                if !outbox.flush() {
                    self.on(SessionEvent::Incoming(Incoming::Gone), ctx);
                }
            }
            _ => self.stop_when_flushed(ctx),
        }
    }

    fn finished(&mut self, _: &mut Self::Context) {}
}

impl Handler<EncodedOutput> for Session {
    type Result = ResponseFuture<()>;

    /// The reply is the permission to go on: it waits until the output has found room.
    fn handle(&mut self, output: EncodedOutput, ctx: &mut Self::Context) -> Self::Result {
        let EncodedOutput { execution_id, bytes: frames, offsets } = output;
        self.on(SessionEvent::Output { execution_id, frames, offsets }, ctx);
        let credit = match &mut self.phase {
            Phase::Open(_, outbox) => outbox.credit(),
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

impl Handler<ExecutionReport> for Session {
    type Result = ();

    fn handle(&mut self, report: ExecutionReport, ctx: &mut Self::Context) {
        self.on(SessionEvent::Report(report), ctx);
    }
}

impl Handler<Drain> for Session {
    type Result = ();

    fn handle(&mut self, drain: Drain, ctx: &mut Self::Context) {
        let (event, grace_ms) = match drain {
            Drain::Begin { executions_live_on: true, grace_ms } => (SessionEvent::Drain(DrainMode::Running), grace_ms),
            Drain::Begin { executions_live_on: false, grace_ms } => (SessionEvent::Drain(DrainMode::Nothing), grace_ms),
            Drain::Hurry { grace_ms } => (SessionEvent::Hurry, grace_ms),
        };
        self.drain_grace_ms = grace_ms;
        self.on(event, ctx);
    }
}

/// The response of a control request that was carried out.
fn response_of(execution_id: ExecutionId, reply: ControlReply) -> Value {
    match reply {
        ControlReply::Status(status) => json!(ControlResult { execution_id, status }),
        ControlReply::Accepted(accepted) => json!(InputResult { accepted }),
        ControlReply::Done => json!(EmptyResult {}),
    }
}

/// Repeats the newest status this often from now on.
fn beat(heartbeat_ms: u64, ctx: &mut Context<Session>) -> SpawnHandle {
    let interval = Duration::from_millis(heartbeat_ms);
    ctx.run_interval(interval, |session, ctx| session.on(SessionEvent::Heartbeat, ctx))
}

/// Asks about an execution that another session may hold: this gateway's own first, then the backend.
async fn elsewhere(
    backend: BackendClient,
    supervisor: Option<Addr<Supervisor>>,
    id: ExecutionId,
    what: ByIdRequest,
) -> Result<Value, ErrorObject> {
    match what {
        ByIdRequest::Control(request) => {
            if let ControlRequest::Cancel { grace_ms, .. } = request {
                if let Some(supervisor) = supervisor
                    && let Ok(Some(answer)) = supervisor.send(CancelExecution { execution_id: id, grace_ms }).await
                {
                    return answer.map(|reply| response_of(id, reply));
                }
                info!(event = "cancel.requested", execution_id:% = id, grace_ms = grace_ms; "cancel requested of the backend");
            }
            let reply = backend.control(id, request).await.map_err(BackendError::into_error)?;
            Ok(response_of(id, reply))
        }
        ByIdRequest::Status => {
            let snapshot = backend.snapshot(id).await.map_err(BackendError::into_error)?;
            Ok(json!(match snapshot.ending {
                Some(ending) => StatusResult::Ended(FinalStatus { execution_id: id, ending }),
                None => StatusResult::Other(snapshot),
            }))
        }
    }
}
