//! The actors of cc-executor, and the words they speak.
//!
//! Everything with a mailbox lives here; everything that binds a socket, starts a process or reads a
//! file lives in the root package, which depends on this one and never the other way round.
//!
//! Read in this order:
//!
//! - [`id`], [`protocol`], [`terminate`]: the words, without any behaviour.
//! - [`session`]: one WebSocket client. Its decisions are in [`session::phase`], on plain values.
//! - [`claude`]: what Claude Code prints, and what follows from it.
//! - [`execution`]: one command, as its session sees it: the stream from the backend, turned into frames.
//! - [`supervisor`]: who is there, who may come in, and whom a cancellation is for.
//! - [`backend`]: how the execution backend is spoken to.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod backend;
pub mod claude;
pub mod clock;
pub mod execution;
pub mod id;
pub mod protocol;
pub mod session;
pub mod supervisor;
pub mod terminate;
