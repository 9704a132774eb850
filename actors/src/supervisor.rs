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
    execution::messages::{Answer, Cancel},
    id::{ExecutionId, SessionId},
    protocol::rpc::{ErrorObject, code},
};

/// The one supervisor of a gateway.
pub struct Supervisor {
    bounds: Bounds,
    sessions: HashMap<SessionId, Entry>,
    per_peer: HashMap<IpAddr, usize>,
    executions: HashMap<ExecutionId, (SessionId, WeakRecipient<Cancel>)>,
    draining: Option<Drain>,
    drained: Vec<oneshot::Sender<()>>,
}

/// How many sessions there may be at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// In all.
    pub sessions: usize,
    /// Of one client address.
    pub per_peer: usize,
}

#[derive(Default)]
struct Entry {
    peer: Option<IpAddr>,
    drain: Option<WeakRecipient<Drain>>,
}

impl Supervisor {
    /// A supervisor that admits so many sessions.
    pub fn new(bounds: Bounds) -> Self {
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
#[rtype(result = "Result<Place, ErrorObject>")]
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
pub struct Place {
    session: SessionId,
    supervisor: Addr<Supervisor>,
}

impl Place {
    /// Who gave it.
    pub fn supervisor(&self) -> &Addr<Supervisor> {
        &self.supervisor
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.supervisor.do_send(Left(self.session));
    }
}

impl Handler<Admit> for Supervisor {
    type Result = Result<Place, ErrorObject>;

    fn handle(&mut self, Admit { session, peer, supervisor }: Admit, _: &mut Self::Context) -> Self::Result {
        if self.draining.is_some() {
            return Err(ErrorObject::new(code::DRAINING, "the service is shutting down: connect again in a moment"));
        }
        let of_peer = peer.and_then(|peer| self.per_peer.get(&peer)).copied().unwrap_or(0);
        let Bounds { sessions, per_peer } = self.bounds;
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
        self.sessions.insert(session, Entry { peer, drain: None });
        if let Some(peer) = peer {
            *self.per_peer.entry(peer).or_default() += 1;
        }
        Ok(Place { session, supervisor })
    }
}

/// An admitted session can be told to drain from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Opened(pub SessionId, pub WeakRecipient<Drain>);

impl Handler<Opened> for Supervisor {
    type Result = ();

    fn handle(&mut self, Opened(session, drain): Opened, _: &mut Self::Context) {
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
struct Left(SessionId);

impl Handler<Left> for Supervisor {
    type Result = ();

    fn handle(&mut self, Left(session): Left, _: &mut Self::Context) {
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
pub struct Began {
    /// Which execution.
    pub execution: ExecutionId,
    /// Who holds it.
    pub session: SessionId,
    /// Where a cancellation goes.
    pub cancel: WeakRecipient<Cancel>,
}

impl Handler<Began> for Supervisor {
    type Result = ();

    fn handle(&mut self, Began { execution, session, cancel }: Began, _: &mut Self::Context) {
        self.executions.insert(execution, (session, cancel));
    }
}

/// A session does not hold an execution any more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Finished {
    /// Which execution.
    pub execution: ExecutionId,
    /// Who held it.
    pub session: SessionId,
}

impl Handler<Finished> for Supervisor {
    type Result = ();

    fn handle(&mut self, Finished { execution, session }: Finished, _: &mut Self::Context) {
        // Another session may have taken it over.
        if self.executions.get(&execution).is_some_and(|(holder, _)| *holder == session) {
            self.executions.remove(&execution);
        }
    }
}

/// Cancel the execution with this id, whichever session of this gateway holds it. `None`: none does.
#[derive(Message)]
#[rtype(result = "Option<Answer>")]
pub struct CancelExecution(pub ExecutionId, pub Cancel);

impl Handler<CancelExecution> for Supervisor {
    type Result = ResponseFuture<Option<Answer>>;

    fn handle(&mut self, CancelExecution(id, cancel): CancelExecution, _: &mut Self::Context) -> Self::Result {
        let execution = self.executions.get(&id).and_then(|(_, cancel)| cancel.upgrade());
        Box::pin(async move { execution?.send(cancel).await.ok() })
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

/// How many are there?
#[derive(Message)]
#[rtype(result = "Census")]
pub struct Count;

/// Who is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Census {
    /// Sessions admitted.
    pub n_sessions: usize,
    /// The most that are admitted.
    pub max_sessions: usize,
    /// Executions held by them.
    pub n_executions: usize,
    /// Whether nobody is admitted any more.
    pub draining: bool,
}

impl Handler<Count> for Supervisor {
    type Result = MessageResult<Count>;

    fn handle(&mut self, Count: Count, _: &mut Self::Context) -> Self::Result {
        MessageResult(Census {
            n_sessions: self.sessions.len(),
            max_sessions: self.bounds.sessions,
            n_executions: self.executions.len(),
            draining: self.draining.is_some(),
        })
    }
}
