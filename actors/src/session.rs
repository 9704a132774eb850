//! A session: the connection of one WebSocket client, with the execution that the client holds.
//!
//! [`phase`] decides on plain values: `actor` passes events to it, and `effects` carries out the tasks that it returns.
//! [`outbox`] is the only way to the client. A session runs on a plain context and knows no socket, so its timers and
//! its mailbox work while the client does not read.

mod actor;
mod by_id;
mod effects;
mod execution_handle;
pub mod liveness;
pub mod outbox;
pub mod phase;
mod read_gate;
pub mod unread;

use std::{future::ready, net::IpAddr, pin::pin, rc::Rc, time::Instant};

use actix::{Actor, Addr, AsyncContext};
use futures_util::{Stream, StreamExt};
use tokio::{sync::oneshot, time::timeout};

use self::{
    actor::{Phase, Session},
    outbox::{Frames, LINGER, Linger, Outbox},
    phase::{Incoming, OpenSession, Outgoing},
    read_gate::ReadGate,
    unread::UnreadBudget,
};
use crate::{
    backend_client::BackendClient,
    client::ClientName,
    close::{CloseCode, CloseReason},
    id::SessionId,
    protocol::{
        Limits,
        notification::{ErrorNotice, ServerMessage},
    },
    rpc::{ErrorObject, code},
    supervisor::{Admit, Supervisor},
};

/// What a session needs from its gateway.
#[derive(Clone)]
pub struct SessionContext {
    /// Admits the session.
    pub supervisor: Addr<Supervisor>,
    /// Runs its executions.
    pub backend: BackendClient,
    /// The bounds of its client's parameters.
    pub limits: Limits,
    /// The memory for responses that clients do not read.
    pub unread: UnreadBudget,
    /// How many requests to the backend a session may have under way before its client is not read.
    pub max_requests: usize,
}

/// Completes when a session has sent its close frame, or has ended without one.
pub struct ClosedSignal(oneshot::Receiver<()>);

impl ClosedSignal {
    /// Waits for the close.
    pub async fn wait(self) {
        // The session never sends: it drops the sender.
        let _ = self.0.await;
    }
}

/// Admits a client and starts its session. The frames for the client are in the returned stream.
pub async fn start(
    id: SessionId,
    peer: Option<IpAddr>,
    client: ClientName,
    context: SessionContext,
    incoming: impl Stream<Item = Incoming> + 'static,
) -> (Frames, ClosedSignal) {
    let SessionContext { supervisor, backend, limits, unread, max_requests } = context;
    let backend = backend.for_session(client.clone(), id);
    let unread = unread.of_session(client.clone());
    let admitted = supervisor.send(Admit { session: id, peer, client }).await;
    let admitted = admitted.unwrap_or_else(|_| Err(ErrorObject::new(code::DRAINING, "the service is shutting down")));
    let (mut outbox, frames, linger) = Outbox::new(unread);
    let (open, closed) = oneshot::channel();
    match admitted {
        Ok(permit) => {
            let (room, now) = (outbox.room(), Instant::now());
            outbox.send(phase::greeting(id, backend.known().as_ref(), limits));
            let session = Box::new(OpenSession::new(limits, now));
            Session::create(|ctx| {
                let gate = Rc::<ReadGate>::default();
                ctx.add_stream(Rc::clone(&gate).guard(incoming));
                Session {
                    id,
                    phase: Phase::Open { session, outbox, _closed: open },
                    current: None,
                    backend,
                    permit,
                    limits,
                    room,
                    gate,
                    max_requests,
                    n_requests: 0,
                    is_held: false,
                    flooded_at: None,
                    opened_at: now,
                    n_executions: 0,
                    _linger: linger,
                }
            });
        }
        Err(error) => refuse(error, outbox, linger, incoming),
    }
    (frames, ClosedSignal(closed))
}

/// Sends the reason to a client that was not admitted, and closes its connection.
fn refuse(error: ErrorObject, mut outbox: Outbox, linger: Linger, incoming: impl Stream<Item = Incoming> + 'static) {
    let reason = CloseReason::new(CloseCode::TryAgain, error.message.clone());
    outbox.send(Outgoing::Message(ServerMessage::Error(ErrorNotice { error, execution_id: None })));
    // The frames stay in the queue for the response.
    drop(outbox.close(&reason));
    actix_rt::spawn(async move {
        let is_end = |incoming: &Incoming| ready(matches!(incoming, Incoming::Close | Incoming::Gone));
        let mut ends = pin!(incoming.filter(is_end));
        // Whether the client answers the close frame or not, the response ends now.
        let _ = timeout(LINGER, ends.next()).await;
        drop(linger);
    });
}
