//! The role `backend`: runs commands, owns their processes, and streams their output.
//!
//! In the order of a request: [`routes`] is the HTTP interface, [`registry`] admits or queues an execution,
//! [`executor`] resolves its command to a program ([`agent`] for agents), [`job`] is its task, and [`process`] has it
//! started by a [`shim`] with pipes or on a [`pty`]. The output goes through the [`output_buffer`], which applies
//! back-pressure, to a [`stream`]; [`holds`] decides which consumer may read it. After the end [`registry::retention`]
//! decides how long it is kept, and a [`registry::record`] remembers the ending. [`storage`] keeps the output of executions
//! that may detach on disk. The [`subreaper`] forks the shims and
//! ends the processes of a killed one; [`deadlines`] bounds how long either may be silent.

pub mod agent;
pub mod byte_range;
pub mod config;
pub mod deadlines;
pub mod error;
pub mod executor;
pub mod holds;
pub mod job;
pub mod job_request;
pub mod output_buffer;
pub mod process;
pub mod pty;
pub mod registry;
pub mod routes;
pub mod shim;
pub mod storage;
pub mod stream;
pub mod subreaper;

use std::{io, net::TcpListener, path::Path, sync::Arc, time::Duration};

use actix_web::{App, dev::ServerHandle, middleware::from_fn, rt::net::TcpStream, web};
use futures_util::future::LocalBoxFuture;

pub use self::config::BackendConfig;
use self::{
    job::{restored, retained},
    registry::Registry,
    routes::ReadingPlaces,
    storage::StateDir,
    subreaper::handle::Subreapers,
};
use crate::server::{
    auth::{Access, guard},
    body::BodyLimits,
    connection,
    drain::Drainable,
    listen::{ListenOptions, listen},
    peers::Peers,
};

/// The subreaper's binary: this process's own, even if its file has been replaced since.
pub const THIS_BINARY: &str = "/proc/self/exe";

/// How long an idle connection is kept open. Longer than gateways keep theirs, so that a gateway never sends a request
/// on a closed connection.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// How long a client may take to close a connection after the last response.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How much longer a body may be than the message that it comes from, in bytes: a gateway adds ids and defaults.
const ADDED_BY_GATEWAYS: usize = 64 << 10;

/// How many bytes of a response actix buffers. At 32 KiB a third of the rate is lost.
const WRITE_BUFFER: usize = 256 * 1024;

/// A running backend.
pub struct Serving {
    /// Stops its server.
    pub server: ServerHandle,
    /// Its executions.
    pub registry: web::Data<Registry>,
    /// The name of the containment of executions.
    pub contained: &'static str,
}

impl Drainable for Arc<Registry> {
    fn drained(&self, _grace_ms: u64) -> LocalBoxFuture<'_, ()> {
        self.drain();
        Box::pin(self.idle())
    }

    fn unfinished(&self) -> LocalBoxFuture<'_, String> {
        let counts = self.counts();
        let n_executions = counts.running + counts.queued;
        Box::pin(async move { format!("executions killed: {n_executions}, streams cut off: {}", counts.streams) })
    }

    fn cancel_rest(&self, grace_ms: u64) {
        self.cancel_all(grace_ms);
    }
}

/// Serves on a bound listener until stopped. To be called before this process has children, because it starts the
/// subreaper.
pub fn serve(
    listener: TcpListener,
    config: BackendConfig,
    state_dir: Option<Arc<StateDir>>,
    access: Access,
    peers: Arc<Peers>,
) -> io::Result<Serving> {
    let subreapers = web::Data::new(Subreapers::start(Path::new(THIS_BINARY), config.containment)?);
    let contained = subreapers.contained().as_str();
    let longest_body = config.max_message_bytes.saturating_add(ADDED_BY_GATEWAYS);
    let max_body_bytes = config.max_body_bytes.max(longest_body);
    let bodies = web::Data::from(BodyLimits::new(longest_body, peers.patience(), max_body_bytes));
    actix_web::rt::spawn(Arc::clone(&peers).sweep());
    let registry = web::Data::new(Registry::new(config, state_dir, retained::answer));
    if let Some(directory) = registry.state_dir() {
        restored::add(&registry, directory, storage::restore::restore(directory)?);
    }
    let shared = registry.clone();
    actix_web::rt::spawn(registry.forget_in_time());
    actix_web::rt::spawn(registry.tell_positions());
    let consumer_stall = registry.config().consumer_stall;
    let reading = web::Data::new(ReadingPlaces::default());
    let access = web::Data::new(access);
    let for_requests = access.clone();
    let app = move || {
        App::new()
            .app_data(shared.clone())
            .app_data(subreapers.clone())
            .app_data(reading.clone())
            .app_data(for_requests.clone())
            .app_data(bodies.clone())
            .wrap(from_fn(guard))
            .configure(routes::configure)
    };
    let options =
        ListenOptions { disconnect_timeout: DISCONNECT_TIMEOUT, keep_alive: KEEP_ALIVE, write_buffer: WRITE_BUFFER };
    let watch = move |stream: &TcpStream| connection::watch_peer(stream, consumer_stall);
    let server = listen(listener, options, (peers, access), app, watch)?;
    let handle = server.handle();
    actix_web::rt::spawn(server);
    Ok(Serving { server: handle, registry, contained })
}
