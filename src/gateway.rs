//! The role `serve`: WebSocket sessions in front of an execution backend.
//!
//! [`routes`] is the HTTP interface, [`upgrade`] turns a WebSocket connection into a session, and [`frame_reader`]
//! reads a client's frames. [`crate::server::connection`] closes the connection of a closed session whose client does
//! not read.

pub mod frame_reader;
pub mod message_budget;
mod read_ahead;
pub mod routes;
mod socket_body;
pub mod upgrade;

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use actix::{Actor, Addr};
use actix_web::{App, dev::ServerHandle, middleware::from_fn, web};
use cc_executor_actors::{
    backend_client::{BackendClient, KnownBackend},
    dial::DialConfig,
    protocol::Limits,
    session::{SessionContext, unread::UnreadBudget},
    supervisor::{Drain, GetStats, SessionLimits, Supervisor},
};
use futures_util::future::LocalBoxFuture;
use log::{info, warn};

use self::message_budget::MessageBudget;
use crate::{
    server::{
        auth::{Access, guard},
        connection::Unflushed,
        drain::Drainable,
        listen::{ListenOptions, listen},
        peers::Peers,
        secret::Secret,
    },
    syscall::trim_heaps,
};

/// The interval of health checks of the backend.
const BACKEND_CADENCE: Duration = Duration::from_secs(2);

/// The interval until its first answer. Short, because a session that opens before does not know the executors.
const BACKEND_FIRST_CADENCE: Duration = Duration::from_millis(100);

/// How long an idle connection is kept open. Sessions are not idle.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How often memory of long messages is given back to the system.
const TRIM_CADENCE: Duration = Duration::from_secs(2);

/// How many bytes of output actix buffers for a client that keeps up, see [`socket_body`].
const WRITE_BUFFER: usize = 256 * 1024;

/// The configuration of a gateway.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// The URL of the backend, such as `http://127.0.0.1:8000`.
    pub backend_url: String,
    /// The token for the backend.
    pub backend_token: Option<Secret>,
    /// How the backend is reached.
    pub dial: DialConfig,
    /// The limits of sessions.
    pub sessions: SessionLimits,
    /// The limits of clients' requests.
    pub limits: Limits,
    /// The bounds of what all clients together may have the gateway hold.
    pub intake: IntakeLimits,
    /// How long Claude may take to exit after its last event, where the backend is the legacy image.
    pub claude_exit: Duration,
    /// Whether executions keep running when this gateway ends, because the backend is another process.
    pub executions_live_on: bool,
}

/// The bounds of what clients may have a gateway hold in memory and under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IntakeLimits {
    /// Memory for long messages that have begun to arrive, in bytes.
    pub message_memory: u64,
    /// Memory for responses that clients do not read, in bytes.
    pub unread_memory: u64,
    /// Requests to the backend that one session may have under way.
    pub max_requests: usize,
}

impl GatewayConfig {
    fn backend(&self, known: KnownBackend) -> BackendClient {
        let token = self.backend_token.as_ref().map(|token| token.reveal().to_owned());
        BackendClient::new(&self.backend_url, token, known, self.claude_exit, self.dial.clone())
    }
}

/// A gateway that serves.
pub struct Gateway {
    /// Stops its server.
    pub server: ServerHandle,
    supervisor: Addr<Supervisor>,
    /// Connections of sessions whose last frames may still wait in user space.
    unflushed: Unflushed,
    executions_live_on: bool,
}

impl Drainable for Gateway {
    fn drained(&self, grace_ms: u64) -> LocalBoxFuture<'_, ()> {
        let begin = Drain::Begin { executions_live_on: self.executions_live_on, grace_ms };
        let begun = self.supervisor.send(begin);
        Box::pin(async move {
            // Fails if the supervisor is gone; it has no sessions then.
            let _ = begun.await;
            self.unflushed.none().await;
        })
    }

    fn unfinished(&self) -> LocalBoxFuture<'_, String> {
        let stats = self.supervisor.send(GetStats);
        Box::pin(async move {
            let n_sessions = stats.await.map_or(0, |stats| stats.n_sessions);
            format!("sessions cut off: {n_sessions}")
        })
    }

    fn cancel_rest(&self, grace_ms: u64) {
        self.supervisor.do_send(Drain::Hurry { grace_ms });
    }
}

/// Serves on a bound listener until stopped. Must be called inside an actix system.
pub fn serve(listener: TcpListener, config: GatewayConfig, access: Access, peers: Arc<Peers>) -> io::Result<Gateway> {
    let supervisor = Supervisor::new(config.sessions).start();
    let executions_live_on = config.executions_live_on;
    let unflushed = Unflushed::default();
    let for_sockets = web::Data::new(unflushed.clone());
    let budget = MessageBudget::new(config.intake.message_memory);
    actix_web::rt::spawn(trim_after_long_messages(budget.clone()));
    let unread = UnreadBudget::new(config.intake.unread_memory);
    let known = KnownBackend::default();
    actix_web::rt::spawn(watch_backend(config.backend(known.clone())));
    let for_workers = supervisor.clone();
    let access = web::Data::new(access);
    let for_requests = access.clone();
    actix_web::rt::spawn(Arc::clone(&peers).sweep());
    let app = move || {
        // One context for each worker thread, because an awc client is not `Send`.
        let context = SessionContext {
            supervisor: for_workers.clone(),
            backend: config.backend(known.clone()),
            limits: config.limits,
            unread: unread.clone(),
            max_requests: config.intake.max_requests,
        };
        App::new()
            .app_data(web::Data::new(context))
            .app_data(for_requests.clone())
            .app_data(for_sockets.clone())
            .app_data(web::Data::new(budget.clone()))
            .wrap(from_fn(guard))
            .configure(routes::configure)
    };
    let options = ListenOptions {
        // A session waits for its client's close frame itself; after that the connection ends at once.
        disconnect_timeout: Duration::ZERO,
        keep_alive: KEEP_ALIVE,
        write_buffer: WRITE_BUFFER,
    };
    let server = listen(listener, options, (peers, access), app, |_| ())?;
    let handle = server.handle();
    actix_web::rt::spawn(server);
    Ok(Gateway { server: handle, supervisor, unflushed, executions_live_on })
}

/// Gives the memory of long messages back to the system after they have been handled, because a heap keeps its peak.
async fn trim_after_long_messages(budget: MessageBudget) {
    loop {
        actix_web::rt::time::sleep(TRIM_CADENCE).await;
        if budget.take_used() {
            // Not on this thread, because it takes milliseconds to walk large heaps. It does not panic.
            let _ = actix_web::rt::task::spawn_blocking(trim_heaps).await;
        }
    }
}

/// Checks the backend's health as long as the gateway lives, and logs when it changes.
async fn watch_backend(backend: BackendClient) {
    let mut reachable = None;
    loop {
        let described = backend.describe().await;
        let now = described.is_ok();
        if reachable != Some(now) {
            match described {
                Ok(kind) => info!(event = "backend.up", executors:serde = kind.executors(); "the backend answers"),
                Err(error) => warn!(event = "backend.down"; "the backend cannot be used: {error}"),
            }
            reachable = Some(now);
        }
        let cadence = if backend.known().is_some() { BACKEND_CADENCE } else { BACKEND_FIRST_CADENCE };
        actix_web::rt::time::sleep(cadence).await;
    }
}
