//! The role `backend`: runs commands, owns their processes, and streams what they write.
//!
//! The order of reading: [`registry`] admits an execution or has it wait, [`executor`] turns its command
//! into a program and its arguments ([`agent`] has its own), [`process`] has it started by a [`shim`], with pipes or on a
//! [`pty`], [`job`] follows it to its end, and what it writes goes through its [`output_buffer`] to
//! whoever follows it, now or later; [`holds`] says who that is. What is remembered of it then is decided in the [`registry::model`] and lies in a
//! [`registry::record`]. The [`subreaper`] forks the shims and ends what a killed one leaves behind, and
//! [`routes`] is the HTTP in front, with the three forms of a stream in [`stream`].

pub mod agent;
pub mod executor;
pub mod holds;
pub mod job;
pub mod output_buffer;
pub mod process;
pub mod pty;
pub mod registry;
pub mod routes;
pub mod shim;
pub mod stream;
pub mod subreaper;

use std::{io, net::TcpListener, path::Path, sync::Arc, time::Duration};

use actix_web::{App, HttpServer, dev::Server, middleware::from_fn, web};

use self::{executor::Executors, registry::Registry, shim::containment::Containment, subreaper::handle::Subreapers};
use crate::server::{
    auth::{Access, guard},
    connection,
};

/// What a backend needs to know.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// What can be run.
    pub executors: Executors,
    /// How many executions may run at a time.
    pub max_executions: usize,
    /// How many may wait for a place.
    pub max_queued: usize,
    /// The longest total or stall time-out a client may ask for, in milliseconds.
    pub max_timeout_ms: u64,
    /// The longest time without a consumer that a client may ask for, in milliseconds.
    pub max_detach_ms: u64,
    /// How much of each output stream is kept, in bytes.
    pub ring_bytes: usize,
    /// How much output of ended executions is kept in all, in bytes.
    pub max_kept_bytes: usize,
    /// How many executions are known at the most, those that have ended included.
    pub max_ended: usize,
    /// How long output and ending of an ended execution are kept.
    pub retention: Duration,
    /// How long a consumer may take nothing while nobody asks for it, before it counts as gone.
    pub consumer_stall: Duration,
    /// How long Claude may take to exit after its last event.
    pub claude_exit: Duration,
    /// The longest request body, in bytes.
    pub max_message_bytes: usize,
    /// What contains executions besides their process trees.
    pub containment: Containment,
    /// The soft limit of open descriptors that commands get, where the service has raised its own.
    pub descriptor_limit: Option<u64>,
}

/// The subreaper's binary: this one, even if its file has been replaced since.
pub const THIS_BINARY: &str = "/proc/self/exe";

/// How long an idle connection is kept. Longer than a gateway keeps one, so that a gateway never
/// meets a dead one.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Bytes of a response that may wait for its consumer in user space. At 32 KiB a third of the rate
/// is lost.
const WRITE_BUFFER: usize = 256 * 1024;

/// A backend that serves.
pub struct Serving {
    /// Its server; it must be polled.
    pub server: Server,
    /// What runs, and what has run.
    pub registry: web::Data<Registry>,
    /// The name of what contains executions besides their process trees.
    pub contained: &'static str,
}

/// Serves on a bound listener until stopped. The registry tells what runs, and ends it. To be called before this process
/// has children: it starts the subreaper.
pub fn serve(listener: TcpListener, config: BackendConfig, access: Access) -> io::Result<Serving> {
    let subreapers = web::Data::new(Subreapers::start(Path::new(THIS_BINARY), config.containment)?);
    let contained = subreapers.contained().as_str();
    let registry = web::Data::new(Registry::new(config));
    let shared = registry.clone();
    actix_web::rt::spawn(Registry::forget_in_time(Arc::downgrade(&registry.clone().into_inner())));
    let consumer_stall = registry.config().consumer_stall;
    let access = web::Data::new(access);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(shared.clone())
            .app_data(subreapers.clone())
            .app_data(access.clone())
            .wrap(from_fn(guard))
            .configure(routes::configure)
    })
    .on_connect(move |connection, data| {
        connection::keep(connection, data);
        connection::watch_peer(connection, consumer_stall);
    })
    .tcp_nodelay(true)
    .h1_allow_half_closed(false)
    .h1_write_buffer_size(WRITE_BUFFER)
    .keep_alive(KEEP_ALIVE)
    .disable_signals()
    .listen(listener)?
    .run();
    Ok(Serving { server, registry, contained })
}
