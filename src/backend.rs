//! The role `backend`: runs commands, owns their processes, and streams what they write.
//!
//! The order of reading: [`executor`] turns a command into a program and its arguments, [`process`]
//! starts it under a [`keeper`], [`execution`] reads it to its end, [`orphans`] is what happens
//! where a keeper was killed, [`table`] knows them all, and
//! [`routes`] is the HTTP in front, with the three forms of a stream in [`forms`].

pub mod execution;
pub mod executor;
pub mod forms;
pub mod keeper;
pub mod orphans;
pub mod process;
pub mod routes;
pub mod signal;
pub mod table;

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
    /// The longest total time-out a client may ask for, in milliseconds.
    pub max_timeout_ms: u64,
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
    let access = web::Data::new(access);
    let server = HttpServer::new(move || {
        App::new().app_data(shared.clone()).app_data(access.clone()).wrap(from_fn(guard)).configure(routes::configure)
    })
    .on_connect(socket::keep)
    .tcp_nodelay(true)
    .h1_allow_half_closed(false)
    .h1_write_buffer_size(WRITE_BUFFER)
    .keep_alive(KEEP_ALIVE)
    .disable_signals()
    .listen(listener)?
    .run();
    Ok((server, table))
}
