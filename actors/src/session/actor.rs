//! The actor of a session: its messages become events of the phase, and it ends the connection after the close frame.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, ResponseFuture, StreamHandler};
use futures_util::stream;
use log::{info, warn};
use tokio::sync::oneshot;

use super::{
    execution_handle::ExecutionHandle,
    liveness::Liveness,
    outbox::{Closing, LINGER, Linger, Outbox, RoomSignal},
    phase::{Incoming, OpenSession, SessionEnd, SessionEvent, SessionStep},
    read_gate::ReadGate,
};
use crate::{
    backend_client::BackendClient,
    clock::millis,
    close::{CloseCode, CloseReason},
    execution::messages::{EncodedOutput, ExecutionReport},
    id::SessionId,
    protocol::Limits,
    share::ShareExceeded,
    supervisor::{Drain, Permit, SessionOpened},
};

/// How long a closed session waits until its client has read the messages before the close frame.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

/// How long a client that leaves too many messages unread may read nothing.
const FLOOD_PATIENCE: Duration = Duration::from_secs(2);

/// The session of one admitted client.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) phase: Phase,
    pub(super) current: Option<ExecutionHandle>,
    pub(super) backend: BackendClient,
    pub(super) permit: Permit,
    pub(super) limits: Limits,
    pub(super) room: Rc<RoomSignal>,
    pub(super) gate: Rc<ReadGate>,
    /// How many requests to the backend may be under way before the client is not read, and how many are.
    pub(super) max_requests: usize,
    pub(super) n_requests: usize,
    /// Whether the client's next message waits for memory.
    pub(super) is_held: bool,
    /// How many bytes the client had read when it last left too many messages unread, until that is checked.
    pub(super) flooded_at: Option<u64>,
    pub(super) opened_at: Instant,
    pub(super) n_executions: u64,
    /// The response ends when this is dropped.
    pub(super) _linger: Linger,
}

/// Whether the client is connected.
pub(super) enum Phase {
    /// Messages go in both directions. Dropping the sender completes the session's `ClosedSignal`.
    Open { session: Box<OpenSession>, outbox: Outbox, _closed: oneshot::Sender<()> },
    /// The close frame was sent. While the session lingers, the client's close frame may arrive; after that the session
    /// stops as soon as its frames are written.
    Closed { outbox: Closing, reason: CloseReason, lingers: bool },
    /// The connection has ended without a close frame of the service.
    Gone,
}

/// The client's socket has accepted frames, so the outbox has room.
struct OutboxReady;

impl Session {
    /// Passes an event to the open session: sends its messages and carries out its effects.
    pub(super) fn on(&mut self, event: SessionEvent, ctx: &mut Context<Self>) {
        let Phase::Open { session, outbox, .. } = &mut self.phase else { return };
        let SessionStep { messages, effects, end } = session.on(event, Instant::now());
        messages.into_iter().for_each(|message| outbox.send(message));
        let counted = outbox.count_unread();
        for effect in effects {
            self.carry_out(effect, ctx);
        }
        self.set_gate(ctx);
        match (end, counted) {
            (SessionEnd::Open, Err(ShareExceeded { limit, used, .. })) => {
                let reason = format!("unread messages take {used} of {limit} bytes: read what is sent");
                self.on(SessionEvent::Flooded(reason), ctx);
            }
            (SessionEnd::Open, Ok(())) => {}
            (SessionEnd::Close(reason), _) => self.close(reason, ctx),
            (SessionEnd::Gone, _) => {
                self.phase = Phase::Gone;
                self.release_execution(ctx);
                ctx.stop();
            }
        }
    }

    /// Reads the client only while it may queue more: it has few requests under way, and reads its responses.
    pub(super) fn set_gate(&mut self, ctx: &mut Context<Self>) {
        let Phase::Open { outbox, .. } = &self.phase else { return };
        let is_flooded = outbox.unsent_messages() > self.limits.unsent_responses;
        if is_flooded {
            self.room.want();
            // One timer at a time, however often the client crosses the limit.
            if self.flooded_at.is_none() {
                self.flooded_at = Some(self.room.taken());
                ctx.run_later(FLOOD_PATIENCE, Session::check_flood);
            }
        }
        self.gate.set_shut(is_flooded || self.n_requests >= self.max_requests);
    }

    /// Closes the session of a client that has read nothing since too many messages wait for it.
    fn check_flood(&mut self, ctx: &mut Context<Self>) {
        let Phase::Open { outbox, .. } = &self.phase else { return };
        let limit = self.limits.unsent_responses;
        let has_read = self.flooded_at.take() != Some(self.room.taken());
        if outbox.unsent_messages() > limit && !has_read {
            return self
                .on(SessionEvent::Flooded(format!("more than {limit} messages unread: read what is sent")), ctx);
        }
        self.set_gate(ctx);
    }

    /// Sends the close frame. Only the `Closing` of the outbox remains, so no message can follow.
    fn close(&mut self, reason: CloseReason, ctx: &mut Context<Self>) {
        let Phase::Open { outbox, .. } = std::mem::replace(&mut self.phase, Phase::Gone) else { return };
        // A client that asked for the close has nothing more to send.
        let lingers = reason.code != CloseCode::Normal;
        self.phase = Phase::Closed { outbox: outbox.close(&reason), reason, lingers };
        self.release_execution(ctx);
        // The client's close frame may stand behind messages that the gate has held back.
        self.gate.set_shut(false);
        ctx.run_later(LINGER, |session, ctx| {
            if let Phase::Closed { lingers, .. } = &mut session.phase {
                *lingers = false;
            }
            session.stop_when_flushed(ctx);
        });
        ctx.run_later(FLUSH_PATIENCE, |_, ctx| ctx.stop());
        self.stop_when_flushed(ctx);
    }

    fn stop_when_flushed(&mut self, ctx: &mut Context<Self>) {
        if let Phase::Closed { outbox, lingers, .. } = &mut self.phase
            && outbox.is_flushed()
            && !*lingers
        {
            ctx.stop();
        }
    }

    /// Checks whether the client is still connected and reading.
    fn tick(&mut self, ctx: &mut Context<Self>) {
        let Phase::Open { outbox, .. } = &self.phase else { return };
        let blocked = outbox.is_blocked();
        let is_read = !self.is_held && !self.gate.is_shut();
        self.on(SessionEvent::Tick { taken: self.room.taken(), blocked, is_read }, ctx);
        if matches!(self.phase, Phase::Closed { .. }) {
            let event = if blocked { "client.stalled" } else { "client.unresponsive" };
            warn!(event = event, session_id:% = self.id, patience_ms = self.limits.client_stall_ms;
                "the client {}", if blocked { "reads nothing" } else { "answers no ping" });
        }
    }

    fn log_closed(&self) {
        let (close_code, why) = match &self.phase {
            Phase::Closed { reason, .. } => (Some(u16::from(reason.code)), reason.text.as_str()),
            Phase::Gone => (None, "the client is gone"),
            Phase::Open { .. } => (None, "the service stopped"),
        };
        info!(event = "session.closed", session_id:% = self.id, close_code:serde = close_code, executions = self.n_executions,
            ms = millis(self.opened_at.elapsed()); "session closed: {why}");
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        info!(event = "session.opened", session_id:% = self.id, client:serde = self.backend.on_behalf_of(); "session opened");
        let drain = ctx.address().downgrade().recipient();
        self.permit.supervisor().do_send(SessionOpened(self.id, drain));
        ctx.add_stream(stream::unfold(Rc::clone(&self.room), |room| async {
            room.wait().await;
            Some((OutboxReady, room))
        }));
        let period = Liveness::tick_period(Duration::from_millis(self.limits.client_stall_ms));
        ctx.run_interval(period, Session::tick);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.current = None;
        self.log_closed();
    }
}

impl StreamHandler<Incoming> for Session {
    fn handle(&mut self, incoming: Incoming, ctx: &mut Self::Context) {
        self.is_held = incoming == Incoming::Held;
        match (&self.phase, &incoming) {
            (Phase::Open { .. }, _) => self.on(SessionEvent::Incoming(incoming), ctx),
            // After the close frame of the service, only the end of the connection matters.
            (_, Incoming::Close | Incoming::Gone) => ctx.stop(),
            _ => {}
        }
    }

    fn finished(&mut self, ctx: &mut Self::Context) {
        StreamHandler::handle(self, Incoming::Gone, ctx);
    }
}

impl StreamHandler<OutboxReady> for Session {
    fn handle(&mut self, _: OutboxReady, ctx: &mut Self::Context) {
        match &mut self.phase {
            Phase::Open { outbox, .. } if outbox.is_gone() => self.on(SessionEvent::Incoming(Incoming::Gone), ctx),
            Phase::Open { outbox, .. } => {
                // Fewer bytes than before, so never refused.
                let _ = outbox.count_unread();
                self.set_gate(ctx);
            }
            _ => self.stop_when_flushed(ctx),
        }
    }

    fn finished(&mut self, _: &mut Self::Context) {}
}

impl Handler<EncodedOutput> for Session {
    type Result = ResponseFuture<()>;

    /// The reply comes when the outbox has room. `Relay::flush` waits for it.
    fn handle(&mut self, output: EncodedOutput, ctx: &mut Self::Context) -> Self::Result {
        self.on(SessionEvent::Output(output), ctx);
        let credit = match &mut self.phase {
            Phase::Open { outbox, .. } => outbox.credit(),
            _ => None,
        };
        Box::pin(async {
            if let Some(credit) = credit {
                // A dropped credit is a permission too: the client is gone, so the output goes nowhere.
                let _ = credit.await;
            }
        })
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
        self.on(SessionEvent::Drain(drain), ctx);
    }
}
