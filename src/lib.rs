//! cc-executor: runs commands for remote clients over WebSocket sessions.
//!
//! The actors and their messages are in the member crate `cc-executor-actors`. Here is everything
//! that has a socket, a process, a terminal, a file or an environment variable:
//!
//! - [`config`], [`logging`]: settings and log lines. [`console`]: standard output and standard error.
//! - [`outgoing`]: how clients and gateways reach a service: URL, proxy, trusted CAs.
//! - `syscall`: the only file with `unsafe`, and the reasons.
//! - [`server`]: the listener of both roles: authorization, connections, shutdown signals, the drain.
//! - [`gateway`]: the role `serve`, WebSocket sessions in front of a backend.
//! - [`backend`]: the role `backend`, which runs commands and owns their processes.
//! - [`protocol`]: the reference of the WebSocket protocol, for client authors.
//! - [`cli`]: the command line, and the commands for people and scripts: `run`, `check`, `logs` and the like.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod backend;
pub mod cli;
pub mod config;
pub mod console;
pub mod gateway;
pub mod logging;
pub mod outgoing;
pub mod server;
mod syscall;

#[doc = include_str!("protocol.md")]
pub mod protocol {}
