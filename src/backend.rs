//! The role `backend`: runs commands, owns their processes, and streams what they write.
//!
//! The order of reading: [`registry`] admits an execution or has it wait, [`executor`] turns its command
//! into a program and its arguments ([`agent`] has its own), [`process`] has it started by a [`shim`], with pipes or on a
//! [`pty`], [`job`] follows it to its end, and what it writes goes through its [`output_buffer`] to
//! whoever follows it, now or later; [`holds`] says who that is. What is remembered of it then is decided in the [`registry::retention`] and lies in a
//! [`registry::record`]. The [`subreaper`] forks the shims and ends what a killed one leaves behind, and
//! [`routes`] is the HTTP in front, with the three forms of a stream in [`stream`].

pub mod agent;
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
pub mod stream;
pub mod subreaper;

use std::{io, net::TcpListener, path::Path, sync::Arc, time::Duration};

use actix_web::{App, HttpServer, dev::ServerHandle, middleware::from_fn, web};
use futures_util::future::LocalBoxFuture;

pub use self::config::BackendConfig;
use self::{job::retained, registry::Registry, subreaper::handle::Subreapers};
use crate::server::{
    auth::{Access, guard},
    connection,
    drain::Drainable,
};

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
    /// Stops its server.
    pub server: ServerHandle,
    /// What runs, and what has run.
    pub registry: web::Data<Registry>,
    /// The name of what contains executions besides their process trees.
    pub contained: &'static str,
}

impl Drainable for Arc<Registry> {
    fn drained(&self, _grace_ms: u64) -> LocalBoxFuture<'_, ()> {
        self.drain();
        Box::pin(self.idle())
    }

    fn cancel_rest(&self, grace_ms: u64) {
        self.cancel_all(grace_ms);
    }
}

/// Serves on a bound listener until stopped. The registry tells what runs, and ends it. To be called before this process
/// has children: it starts the subreaper.
pub fn serve(listener: TcpListener, config: BackendConfig, access: Access) -> io::Result<Serving> {
    let subreapers = web::Data::new(Subreapers::start(Path::new(THIS_BINARY), config.containment)?);
    let contained = subreapers.contained().as_str();
    let registry = web::Data::new(Registry::new(config, retained::answer));
    let shared = registry.clone();
    actix_web::rt::spawn(registry.forget_in_time());
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
    let handle = server.handle();
    actix_web::rt::spawn(server);
    Ok(Serving { server: handle, registry, contained })
}
