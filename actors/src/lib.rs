//! The actors of cc-executor, and the words they speak.
//!
//! Everything with a mailbox lives here; everything that binds a socket, starts a process or reads a
//! file lives in the root package, which depends on this one and never the other way round.
//!
//! The modules, from the bottom up:
//!
//! - [`id`], [`clock`], [`stream`], [`signal`]: ids, a stopwatch, the two output streams, the table of signals.
//! - [`outcome`], [`close`], [`activity`]: how executions end, how sessions are closed, what an agent is doing.
//! - [`rpc`]: JSON-RPC 2.0. [`protocol`]: the methods and notifications of this service.
//! - [`ws`] and [`output`]: WebSocket frames, and the text in them.
//! - [`agent`]: what agent CLIs print, and what follows from it.
//! - [`backend_api`]: what a gateway and its backend say to each other. [`backend_client`]: the gateway's side of it.
//! - [`execution`]: the actor of one command: it turns the backend's stream into frames.
//! - [`session`]: the actor of one WebSocket client. Its decisions are in [`session::phase`], on plain values.
//! - [`supervisor`]: the actor that admits sessions, counts them, and finds the session that a cancellation is for.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod activity;
pub mod agent;
pub mod backend_api;
pub mod backend_client;
pub mod clock;
pub mod close;
pub mod execution;
pub mod id;
pub mod outcome;
pub mod output;
pub mod protocol;
pub mod rpc;
pub mod session;
pub mod signal;
pub mod stream;
pub mod supervisor;
pub mod ws;
