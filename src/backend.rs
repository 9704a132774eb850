//! The role `backend`: runs commands, owns their processes, and streams what they write.
//!
//! The order of reading: [`table`] admits an execution or has it wait, [`executor`] turns its command
//! into a program and its arguments ([`claude`] has its own), [`process`] starts it under a [`keeper`], with pipes or on a
//! [`terminal`], [`execution`] follows it to its end, and what it writes goes through its [`spool`] to
//! whoever follows it, now or later; [`holds`] says who that is. [`orphans`] is what happens where a keeper was killed, and
//! [`routes`] is the HTTP in front, with the three forms of a stream in [`forms`].

pub mod claude;
pub mod execution;
pub mod executor;
pub mod forms;
pub mod holds;
pub mod keeper;
pub mod orphans;
pub mod process;
pub mod ring;
pub mod routes;
pub mod signal;
pub mod spool;
pub mod table;
pub mod terminal;

use std::{io, net::TcpListener, path::PathBuf, time::Duration};

use actix_web::{App, HttpServer, dev::Server, middleware::from_fn, web};

use self::{executor::Executors, table::Table};
use crate::{
    access::{Access, guard},
    socket,
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
    /// How long output and ending of an ended execution are kept.
    pub retention: Duration,
    /// How long a consumer may take nothing while nobody asks for it, before it counts as gone.
    pub consumer_stall: Duration,
    /// The longest request body, in bytes.
    pub max_message_bytes: usize,
    /// The binary that is started as keeper.
    pub keeper: PathBuf,
    /// The soft limit of open descriptors that commands get, where the service has raised its own.
    pub descriptor_limit: Option<u64>,
}

/// The keeper's binary: this one, even if its file has been replaced since.
pub const THIS_BINARY: &str = "/proc/self/exe";

/// How long an idle connection is kept. Longer than a gateway keeps one, so that a gateway never
/// meets a dead one.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Bytes of a response that may wait for its consumer in user space. At 32 KiB a third of the rate
/// is lost.
const WRITE_BUFFER: usize = 256 * 1024;

/// Serves on a bound listener until stopped. The table tells what runs, and ends it.
pub fn serve(listener: TcpListener, config: BackendConfig, access: Access) -> io::Result<(Server, web::Data<Table>)> {
    let table = web::Data::new(Table::new(config));
    let shared = table.clone();
    let consumer_stall = table.config().consumer_stall;
    let access = web::Data::new(access);
    let server = HttpServer::new(move || {
        App::new().app_data(shared.clone()).app_data(access.clone()).wrap(from_fn(guard)).configure(routes::configure)
    })
    .on_connect(move |connection, data| {
        socket::keep(connection, data);
        socket::watch_peer(connection, consumer_stall);
    })
    .tcp_nodelay(true)
    .h1_allow_half_closed(false)
    .h1_write_buffer_size(WRITE_BUFFER)
    .keep_alive(KEEP_ALIVE)
    .disable_signals()
    .listen(listener)?
    .run();
    Ok((server, table))
}
