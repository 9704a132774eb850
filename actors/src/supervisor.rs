//! The supervisor of a gateway: admits sessions, passes cancellations on, and drains.
//!
//! It knows sessions and executions only by their ids and weak recipients, and never sees output. A message adds an
//! entry, and the drop of a guard removes it, so no entry outlives its owner.

use std::{collections::HashMap, net::IpAddr};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, MessageResult, ResponseFuture, WeakRecipient};
use log::info;
use tokio::sync::oneshot;

use crate::{
    client::ClientName,
    execution::messages::{Control, ControlAnswer},
    id::{ExecutionId, SessionId},
    peer::PeerBlock,
    protocol::control::ControlRequest,
    rpc::{ErrorObject, code},
    share::{ShareExceeded, ShareScope, Shares},
};

/// The supervisor of a gateway.
pub struct Supervisor {
    limits: SessionLimits,
    sessions: HashMap<SessionId, SessionEntry>,
    /// By client and id, because a client may choose an id that another client uses, and must not reach that client's
    /// execution.
    executions: HashMap<(ClientName, ExecutionId), (SessionId, WeakRecipient<Control>)>,
    of_clients: Shares,
    draining: Option<Drain>,
    /// Answer the [`Drain`] messages after the end of the last session.
    drained: Vec<oneshot::Sender<()>>,
}

/// The most sessions at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionLimits {
    /// In all. The clients share them.
    pub sessions: usize,
    /// From one address, or one IPv6 network of 64 bits. It identifies no client, because many clients may have one address.
    pub per_peer: usize,
}

/// When to try again after the refusal of a session, in milliseconds. Another one may end at any moment.
const RETRY_SESSION_MS: u64 = 1_000;

struct SessionEntry {
    peer: PeerBlock,
    client: ClientName,
    /// The session's address, once it has started.
    drain: Option<WeakRecipient<Drain>>,
}

impl Supervisor {
    /// A supervisor with these limits.
    pub fn new(limits: SessionLimits) -> Self {
        Supervisor {
            limits,
            sessions: HashMap::new(),
            executions: HashMap::new(),
            of_clients: Shares::new(limits.sessions as u64),
            draining: None,
            drained: Vec::new(),
        }
    }

    /// Whether a session is admitted. The error says whose limit is reached.
    fn admits(&self, peer: PeerBlock, client: &ClientName) -> Result<(), (String, ShareExceeded)> {
        self.of_clients.admits(client, 1, false).map_err(|exceeded| {
            let ShareExceeded { scope, limit, used } = exceeded;
            let message = match scope {
                ShareScope::Client => {
                    format!("this client has {used} sessions, and its share of --max-sessions is {limit}: close some")
                }
                ShareScope::Service => {
                    format!("{used} sessions are open, the limit of --max-sessions is {limit}: try again in a moment")
                }
            };
            (message, exceeded)
        })?;
        let of_peer = self.sessions.values().filter(|entry| peer != PeerBlock::Unknown && entry.peer == peer).count();
        let limit = self.limits.per_peer;
        if of_peer < limit {
            return Ok(());
        }
        let exceeded = ShareExceeded { scope: ShareScope::Client, limit: limit as u64, used: of_peer as u64 };
        Err((format!("your address has {of_peer} sessions, the limit is {limit}: close some"), exceeded))
    }

    fn answer_if_drained(&mut self) {
        if self.draining.is_some() && self.sessions.is_empty() {
            for drained in self.drained.drain(..) {
                // The sender may have stopped waiting.
                let _ = drained.send(());
            }
        }
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Each session and each execution sends a message at its start and at its end, and these come in bursts.
        ctx.set_mailbox_capacity(1024);
    }
}

/// Admit a session.
#[derive(Message)]
#[rtype(result = "Result<Permit, ErrorObject>")]
pub struct Admit {
    /// The session.
    pub session: SessionId,
    /// The client's address, if it is known.
    pub peer: Option<IpAddr>,
    /// The client.
    pub client: ClientName,
}

/// The admission of a session. Dropping it makes room for another session.
#[derive(Debug)]
pub struct Permit {
    session: SessionId,
    client: ClientName,
    supervisor: Addr<Supervisor>,
}

impl Permit {
    /// The supervisor that admitted the session.
    pub fn supervisor(&self) -> &Addr<Supervisor> {
        &self.supervisor
    }

    /// The client of the session.
    pub fn client(&self) -> &ClientName {
        &self.client
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.supervisor.do_send(SessionLeft(self.session));
    }
}

impl Handler<Admit> for Supervisor {
    type Result = Result<Permit, ErrorObject>;

    fn handle(&mut self, Admit { session, peer, client }: Admit, ctx: &mut Self::Context) -> Self::Result {
        if self.draining.is_some() {
            return Err(ErrorObject::new(code::DRAINING, "the service is shutting down: connect again in a moment"));
        }
        let block = PeerBlock::from(peer);
        if let Err((message, exceeded)) = self.admits(block, &client) {
            info!(event = "session.refused", session_id:% = session, client:% = client, sessions = self.sessions.len(),
                limit = exceeded.limit, used = exceeded.used, peer:serde = peer; "session refused: {message}");
            return Err(ErrorObject::new(code::SESSION_LIMIT, message).over(exceeded, Some(RETRY_SESSION_MS)));
        }
        self.of_clients.add(&client, 1);
        self.sessions.insert(session, SessionEntry { peer: block, client: client.clone(), drain: None });
        Ok(Permit { session, client, supervisor: ctx.address() })
    }
}

/// An admitted session has started, and can drain from now on.
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

#[derive(Message)]
#[rtype(result = "()")]
struct SessionLeft(SessionId);

impl Handler<SessionLeft> for Supervisor {
    type Result = ();

    fn handle(&mut self, SessionLeft(session): SessionLeft, _: &mut Self::Context) {
        if let Some(SessionEntry { client, .. }) = self.sessions.remove(&session) {
            self.of_clients.remove(&client, 1);
        }
        self.answer_if_drained();
    }
}

/// A session of this gateway holds an execution.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ExecutionBegan {
    /// The execution.
    pub execution: ExecutionId,
    /// The session.
    pub session: SessionId,
    /// The client of the session.
    pub client: ClientName,
    /// Takes a cancellation.
    pub cancel: WeakRecipient<Control>,
}

impl Handler<ExecutionBegan> for Supervisor {
    type Result = ();

    fn handle(&mut self, began: ExecutionBegan, _: &mut Self::Context) {
        let ExecutionBegan { execution, session, client, cancel } = began;
        self.executions.insert((client, execution), (session, cancel));
    }
}

/// A session does not hold an execution any more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ExecutionFinished {
    /// The execution.
    pub execution: ExecutionId,
    /// The session.
    pub session: SessionId,
    /// The client of the session.
    pub client: ClientName,
}

impl Handler<ExecutionFinished> for Supervisor {
    type Result = ();

    fn handle(&mut self, finished: ExecutionFinished, _: &mut Self::Context) {
        let ExecutionFinished { execution, session, client } = finished;
        let key = (client, execution);
        // Another session may have taken it over.
        if self.executions.get(&key).is_some_and(|(holder, _)| *holder == session) {
            self.executions.remove(&key);
        }
    }
}

/// Cancel an execution on behalf of its client. The answer is `None` if no session of this client holds it here.
#[derive(Message)]
#[rtype(result = "Option<ControlAnswer>")]
pub struct CancelExecution {
    /// The execution.
    pub execution_id: ExecutionId,
    /// The client.
    pub client: ClientName,
    /// Milliseconds between TERM and KILL.
    pub grace_ms: u64,
}

impl Handler<CancelExecution> for Supervisor {
    type Result = ResponseFuture<Option<ControlAnswer>>;

    fn handle(&mut self, cancel: CancelExecution, _: &mut Self::Context) -> Self::Result {
        let CancelExecution { execution_id, client, grace_ms } = cancel;
        let execution = self.executions.get(&(client, execution_id)).and_then(|(_, cancel)| cancel.upgrade());
        Box::pin(async move { execution?.send(Control(ControlRequest::cancel(grace_ms))).await.ok() })
    }
}

/// The service is shutting down: sent to the supervisor, and from there to each session.
#[derive(Message, Clone, Copy, PartialEq, Eq, Debug)]
#[rtype(result = "()")]
pub enum Drain {
    /// Accept nothing more. Queued executions are canceled, running ones may finish.
    Begin {
        /// Whether executions that may detach continue in their backend.
        executions_live_on: bool,
        /// The grace period of cancellations, in milliseconds.
        grace_ms: u64,
    },
    /// End the running executions now.
    Hurry {
        /// The grace period of cancellations, in milliseconds.
        grace_ms: u64,
    },
}

impl Handler<Drain> for Supervisor {
    type Result = ResponseFuture<()>;

    /// The reply comes after the end of the last session.
    fn handle(&mut self, drain: Drain, _: &mut Self::Context) -> Self::Result {
        let is_hurry = matches!(drain, Drain::Hurry { .. });
        let event = if is_hurry { "drain.hurrying" } else { "drain.started" };
        info!(event = event, sessions = self.sessions.len(), executions = self.executions.len(); "draining");
        self.draining = Some(drain);
        for session in self.sessions.values().filter_map(|entry| entry.drain.as_ref()?.upgrade()) {
            session.do_send(drain);
        }
        let (drained, is_drained) = oneshot::channel();
        self.drained.push(drained);
        self.answer_if_drained();
        Box::pin(async move {
            // An error means that the supervisor has ended, and all sessions with it.
            let _ = is_drained.await;
        })
    }
}

/// Get the numbers of sessions and executions.
#[derive(Message)]
#[rtype(result = "Stats")]
pub struct GetStats;

/// The numbers of sessions and executions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Admitted sessions.
    pub n_sessions: usize,
    /// Whether a session of a client that has none is admitted.
    pub admits_newcomers: bool,
    /// Executions that they hold.
    pub n_executions: usize,
    /// Whether no session is admitted any more.
    pub draining: bool,
}

impl Handler<GetStats> for Supervisor {
    type Result = MessageResult<GetStats>;

    fn handle(&mut self, GetStats: GetStats, _: &mut Self::Context) -> Self::Result {
        MessageResult(Stats {
            n_sessions: self.sessions.len(),
            admits_newcomers: self.of_clients.admits_newcomer(1).is_ok(),
            n_executions: self.executions.len(),
            draining: self.draining.is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix::test]
    async fn an_ipv6_network_is_one_address() {
        let supervisor = Supervisor::new(SessionLimits { sessions: 10, per_peer: 1 }).start();
        let admit = |peer: &str| {
            let peer = Some(peer.parse().expect("an address"));
            supervisor.send(Admit { session: SessionId::random(), peer, client: ClientName::anonymous() })
        };
        let mut admitted = Vec::new();
        for (peer, is_admitted) in [
            ("2001:db8::1", true),
            ("2001:db8::ffff:1", false),
            ("2001:db8:0:1::1", true),
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", false),
            ("192.0.2.2", true),
        ] {
            let permit = admit(peer).await.expect("the supervisor runs");
            assert_eq!(permit.is_ok(), is_admitted, "{peer}");
            admitted.extend(permit.ok());
        }
    }
}
