//! cc-executor: runs commands for remote clients over WebSocket sessions.
//!
//! The actors and the words they speak are in the member crate `cc-executor-actors`. Here is everything
//! that has a socket, a process, a terminal, a file or an environment variable:
//!
//! - [`config`], [`logging`], [`cli`], [`signals`]: what `main` puts together; [`console`]: all that is printed.
//! - `syscall`: the one file with `unsafe`, and why.
//! - [`access`]: who may speak to either role; [`socket`]: what both need of a connection.
//! - [`gateway`]: the role `serve`, WebSocket sessions in front of a backend.
//! - [`backend`]: the role `backend`, which runs commands and owns their processes.
//! - [`client`]: the commands of a person or a script: `run`, `check`, `logs` and the like.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod access;
pub mod backend;
pub mod cli;
pub mod client;
pub mod config;
pub mod console;
pub mod drain;
pub mod gateway;
pub mod logging;
pub mod signals;
pub mod socket;
mod syscall;
