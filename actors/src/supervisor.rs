//! Who is there: one actor a gateway that admits sessions, routes cancellations and begins the drain.
//!
//! It knows ids, messages and weak recipients, never a session's type, and it never sees output. An
//! entry is made by a message and removed by a guard that its owner holds, so a registry without
//! owners is empty whatever became of them.

use std::collections::HashMap;

use actix::{Actor, Addr, Context, Handler, Message, MessageResult, ResponseFuture, WeakRecipient};
use log::info;
use tokio::sync::oneshot;

use crate::{
    execution::messages::Cancel,
    id::{ExecutionId, SessionId},
    protocol::rpc::{ErrorObject, code},
    terminate::Status,
};

/// The one supervisor of a gateway.
pub struct Supervisor {
    max_sessions: usize,
    sessions: HashMap<SessionId, Option<WeakRecipient<Drain>>>,
    executions: HashMap<ExecutionId, WeakRecipient<Cancel>>,
    draining: bool,
    drained: Vec<oneshot::Sender<()>>,
}

impl Supervisor {
    /// A supervisor that admits so many sessions at a time.
    pub fn new(max_sessions: usize) -> Self {
        Supervisor {
            max_sessions,
            sessions: HashMap::new(),
            executions: HashMap::new(),
            draining: false,
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
pub struct Admit(pub SessionId, pub Addr<Supervisor>);

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

    fn handle(&mut self, Admit(session, supervisor): Admit, _: &mut Self::Context) -> Self::Result {
        if self.draining {
            return Err(ErrorObject::new(code::DRAINING, "the service is shutting down: connect again in a moment"));
        }
        if self.sessions.len() >= self.max_sessions {
            info!(event = "session.refused", session_id:% = session, limit = self.max_sessions; "session refused: all places are taken");
            let message = format!("all {} sessions are taken: try again later", self.max_sessions);
            return Err(ErrorObject::new(code::SESSION_LIMIT, message));
        }
        self.sessions.insert(session, None);
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
        if self.draining
            && let Some(drain) = drain.upgrade()
        {
            drain.do_send(Drain);
        }
        if let Some(entry) = self.sessions.get_mut(&session) {
            *entry = Some(drain);
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
        self.sessions.remove(&session);
        self.tell_drained();
    }
}

/// An execution began in a session of this gateway.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Began(pub ExecutionId, pub WeakRecipient<Cancel>);

impl Handler<Began> for Supervisor {
    type Result = ();

    fn handle(&mut self, Began(execution, cancel): Began, _: &mut Self::Context) {
        self.executions.insert(execution, cancel);
    }
}

/// An execution of this gateway is over, or left to its backend.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Finished(pub ExecutionId);

impl Handler<Finished> for Supervisor {
    type Result = ();

    fn handle(&mut self, Finished(execution): Finished, _: &mut Self::Context) {
        self.executions.remove(&execution);
    }
}

/// Cancel the execution with this id, whichever session of this gateway holds it. `None`: none does.
#[derive(Message)]
#[rtype(result = "Option<Result<Status, ErrorObject>>")]
pub struct CancelExecution(pub ExecutionId, pub Cancel);

impl Handler<CancelExecution> for Supervisor {
    type Result = ResponseFuture<Option<Result<Status, ErrorObject>>>;

    fn handle(&mut self, CancelExecution(id, cancel): CancelExecution, _: &mut Self::Context) -> Self::Result {
        let execution = self.executions.get(&id).and_then(WeakRecipient::upgrade);
        Box::pin(async move { execution?.send(cancel).await.ok() })
    }
}

/// Accept nothing more, and let the session end: to the supervisor and from it to every session.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct Drain;

impl Handler<Drain> for Supervisor {
    type Result = ResponseFuture<()>;

    /// The reply comes when the last session has ended.
    fn handle(&mut self, Drain: Drain, _: &mut Self::Context) -> Self::Result {
        info!(event = "drain.started", sessions = self.sessions.len(), executions = self.executions.len(); "draining");
        self.draining = true;
        for session in self.sessions.values().flatten().filter_map(WeakRecipient::upgrade) {
            session.do_send(Drain);
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
        if self.draining && self.sessions.is_empty() {
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
            max_sessions: self.max_sessions,
            n_executions: self.executions.len(),
            draining: self.draining,
        })
    }
}
