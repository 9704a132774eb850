//! Who is there: one actor a gateway that admits sessions, routes cancellations and begins the drain.
//!
//! It knows ids, messages and weak recipients, never a session's type, and it never sees output. An
//! entry is made by a message and removed by a guard that its owner holds, so a registry without
//! owners is empty whatever became of them.

use std::{collections::HashMap, net::IpAddr};

use actix::{Actor, Addr, Context, Handler, Message, MessageResult, ResponseFuture, WeakRecipient};
use log::info;
use tokio::sync::oneshot;

use crate::{
    execution::messages::{Control, ControlAnswer},
    id::{ExecutionId, SessionId},
    protocol::control::ControlRequest,
    rpc::{ErrorObject, code},
};

/// The one supervisor of a gateway.
pub struct Supervisor {
    bounds: SessionLimits,
    sessions: HashMap<SessionId, SessionEntry>,
    per_peer: HashMap<IpAddr, usize>,
    executions: HashMap<ExecutionId, (SessionId, WeakRecipient<Control>)>,
    draining: Option<Drain>,
    drained: Vec<oneshot::Sender<()>>,
}

/// How many sessions there may be at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionLimits {
    /// In all.
    pub sessions: usize,
    /// Of one client address.
    pub per_peer: usize,
}

#[derive(Default)]
struct SessionEntry {
    peer: Option<IpAddr>,
    drain: Option<WeakRecipient<Drain>>,
}

impl Supervisor {
    /// A supervisor that admits so many sessions.
    pub fn new(bounds: SessionLimits) -> Self {
        Supervisor {
            bounds,
            sessions: HashMap::new(),
            per_peer: HashMap::new(),
            executions: HashMap::new(),
            draining: None,
            drained: Vec::new(),
        }
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Every session and execution says hello and goodbye: a burst of both is normal.
        ctx.set_mailbox_capacity(1024);
    }
}

/// Let a session in.
#[derive(Message)]
#[rtype(result = "Result<Permit, ErrorObject>")]
pub struct Admit {
    /// The session.
    pub session: SessionId,
    /// Where its client is, if that is known.
    pub peer: Option<IpAddr>,
    /// The supervisor itself.
    pub supervisor: Addr<Supervisor>,
}

/// A session's place among those admitted, given back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    session: SessionId,
    supervisor: Addr<Supervisor>,
}

impl Permit {
    /// Who gave it.
    pub fn supervisor(&self) -> &Addr<Supervisor> {
        &self.supervisor
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.supervisor.do_send(SessionLeft(self.session));
    }
}

impl Handler<Admit> for Supervisor {
    type Result = Result<Permit, ErrorObject>;

    fn handle(&mut self, Admit { session, peer, supervisor }: Admit, _: &mut Self::Context) -> Self::Result {
        if self.draining.is_some() {
            return Err(ErrorObject::new(code::DRAINING, "the service is shutting down: connect again in a moment"));
        }
        let of_peer = peer.and_then(|peer| self.per_peer.get(&peer)).copied().unwrap_or(0);
        let SessionLimits { sessions, per_peer } = self.bounds;
        let full = if self.sessions.len() >= sessions {
            Some(format!("all {sessions} sessions are taken: try again later"))
        } else if of_peer >= per_peer {
            Some(format!("your address has {of_peer} sessions, and at most {per_peer} are given to one: close some"))
        } else {
            None
        };
        if let Some(message) = full {
            info!(event = "session.refused", session_id:% = session, sessions = self.sessions.len(), of_peer = of_peer;
                "session refused: {message}");
            return Err(ErrorObject::new(code::SESSION_LIMIT, message));
        }
        self.sessions.insert(session, SessionEntry { peer, drain: None });
        if let Some(peer) = peer {
            *self.per_peer.entry(peer).or_default() += 1;
        }
        Ok(Permit { session, supervisor })
    }
}

/// An admitted session can be told to drain from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionOpened(pub SessionId, pub WeakRecipient<Drain>);

impl Handler<SessionOpened> for Supervisor {
    type Result = ();

    fn handle(&mut self, SessionOpened(session, drain): SessionOpened, _: &mut Self::Context) {
        if let (Some(step), Some(drain)) = (self.draining, drain.upgrade()) {
            drain.do_send(step);
        }
        if let Some(entry) = self.sessions.get_mut(&session) {
            entry.drain = Some(drain);
        }
    }
}

/// A session's place is free.
#[derive(Message)]
#[rtype(result = "()")]
struct SessionLeft(SessionId);

impl Handler<SessionLeft> for Supervisor {
    type Result = ();

    fn handle(&mut self, SessionLeft(session): SessionLeft, _: &mut Self::Context) {
        let peer = self.sessions.remove(&session).and_then(|entry| entry.peer);
        if let Some(peer) = peer
            && let Some(n_sessions) = self.per_peer.get_mut(&peer)
        {
            *n_sessions -= 1;
            if *n_sessions == 0 {
                self.per_peer.remove(&peer);
            }
        }
        self.tell_drained();
    }
}

/// A session of this gateway holds an execution.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ExecutionBegan {
    /// Which execution.
    pub execution: ExecutionId,
    /// Who holds it.
    pub session: SessionId,
    /// Where a cancellation goes.
    pub cancel: WeakRecipient<Control>,
}

impl Handler<ExecutionBegan> for Supervisor {
    type Result = ();

    fn handle(&mut self, ExecutionBegan { execution, session, cancel }: ExecutionBegan, _: &mut Self::Context) {
        self.executions.insert(execution, (session, cancel));
    }
}

/// A session does not hold an execution any more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ExecutionFinished {
    /// Which execution.
    pub execution: ExecutionId,
    /// Who held it.
    pub session: SessionId,
}

impl Handler<ExecutionFinished> for Supervisor {
    type Result = ();

    fn handle(&mut self, ExecutionFinished { execution, session }: ExecutionFinished, _: &mut Self::Context) {
        // Another session may have taken it over.
        if self.executions.get(&execution).is_some_and(|(holder, _)| *holder == session) {
            self.executions.remove(&execution);
        }
    }
}

/// Cancel an execution for a client, whichever session of this gateway holds it. `None` if no session does.
#[derive(Message)]
#[rtype(result = "Option<ControlAnswer>")]
pub struct CancelExecution {
    /// Which execution.
    pub execution_id: ExecutionId,
    /// Milliseconds between TERM and KILL.
    pub grace_ms: u64,
}

impl Handler<CancelExecution> for Supervisor {
    type Result = ResponseFuture<Option<ControlAnswer>>;

    fn handle(
        &mut self,
        CancelExecution { execution_id, grace_ms }: CancelExecution,
        _: &mut Self::Context,
    ) -> Self::Result {
        let execution = self.executions.get(&execution_id).and_then(|(_, cancel)| cancel.upgrade());
        Box::pin(async move { execution?.send(Control(ControlRequest::cancel(grace_ms))).await.ok() })
    }
}

/// The service goes away: to the supervisor, and from it to every session.
#[derive(Message, Clone, Copy, PartialEq, Eq, Debug)]
#[rtype(result = "()")]
pub enum Drain {
    /// Accept nothing more. What waits is canceled, what runs may finish.
    Begin {
        /// Whether executions that may go on without a client do so in their backend.
        executions_live_on: bool,
        /// The grace of what is canceled, in milliseconds.
        grace_ms: u64,
    },
    /// What still runs must end now.
    Hurry {
        /// The grace of what is canceled, in milliseconds.
        grace_ms: u64,
    },
}

impl Handler<Drain> for Supervisor {
    type Result = ResponseFuture<()>;

    /// The reply comes when the last session has ended.
    fn handle(&mut self, drain: Drain, _: &mut Self::Context) -> Self::Result {
        let hurrying = matches!(drain, Drain::Hurry { .. });
        let event = if hurrying { "drain.hurrying" } else { "drain.started" };
        info!(event = event, sessions = self.sessions.len(), executions = self.executions.len(); "draining");
        self.draining = Some(drain);
        for session in self.sessions.values().filter_map(|entry| entry.drain.as_ref()?.upgrade()) {
            session.do_send(drain);
        }
        let (drained, is_drained) = oneshot::channel();
        self.drained.push(drained);
        self.tell_drained();
        Box::pin(async move {
            // A supervisor that is gone has no sessions either.
            let _ = is_drained.await;
        })
    }
}

impl Supervisor {
    fn tell_drained(&mut self) {
        if self.draining.is_some() && self.sessions.is_empty() {
            for waiting in self.drained.drain(..) {
                // Whoever asked may have stopped waiting.
                let _ = waiting.send(());
            }
        }
    }
}

/// Asks for the numbers of sessions and executions.
#[derive(Message)]
#[rtype(result = "Stats")]
pub struct GetStats;

/// The numbers of sessions and executions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Sessions admitted.
    pub n_sessions: usize,
    /// The most that are admitted.
    pub max_sessions: usize,
    /// Executions held by them.
    pub n_executions: usize,
    /// Whether nobody is admitted any more.
    pub draining: bool,
}

impl Handler<GetStats> for Supervisor {
    type Result = MessageResult<GetStats>;

    fn handle(&mut self, GetStats: GetStats, _: &mut Self::Context) -> Self::Result {
        MessageResult(Stats {
            n_sessions: self.sessions.len(),
            max_sessions: self.bounds.sessions,
            n_executions: self.executions.len(),
            draining: self.draining.is_some(),
        })
    }
}
