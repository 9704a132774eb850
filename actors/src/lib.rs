//! The actors of cc-executor, and their messages.
//!
//! Everything with a mailbox is here. Everything that binds a socket, starts a process or reads a file is in the root
//! package, which depends on this one.
//!
//! The modules, from the bottom up:
//!
//! - [`id`], [`clock`], [`stream`], [`signal`]: ids, a stopwatch, the two output streams, the table of signals.
//!   [`name`]: the names of executions, and the beginnings of ids.
//! - [`client`], [`share`]: who calls the service, and how clients share a limit. [`peer`]: the addresses that count as one.
//! - [`excerpt`]: cuts the values of clients in texts.
//! - [`outcome`], [`close`], [`activity`]: how executions end, how sessions are closed, the activity of an agent.
//! - [`rpc`]: JSON-RPC 2.0. [`protocol`]: the methods and notifications of this service.
//! - [`output`]: encodes a command's output as messages, for WebSocket clients and JSON lines. [`ws`]: WebSocket
//!   frames.
//! - [`agent`]: the events of agent CLIs.
//! - [`dial`]: the connections of HTTP and WebSocket clients, through proxies and with TLS.
//! - [`backend_api`]: the HTTP messages between gateway and backend. [`backend_client`]: the gateway's client for them.
//! - [`execution`]: the actor of one command, which turns the backend's stream into messages.
//! - [`session`]: the actor of one WebSocket client. [`session::phase`] has its decisions, on plain values.
//! - [`supervisor`]: the actor that admits and counts sessions, passes cancellations to executions, and drains the
//!   sessions.
//!
//! # Example
//!
//! A session takes a stream of messages from its client and returns a stream of WebSocket frames for it. Both may be in
//! memory, because the session knows no socket. Nothing connects to the backend here: `ping` does not need one.
//!
//! ```
//! use actix::Actor;
//! use cc_executor_actors::{
//!     agent::claude::progress::EXIT_PATIENCE,
//!     backend_client::{BackendClient, KnownBackend},
//!     client::ClientName,
//!     dial::DialConfig,
//!     id::SessionId,
//!     protocol::Limits,
//!     session::{self, SessionContext, phase::Incoming, unread::UnreadBudget},
//!     supervisor::{SessionLimits, Supervisor},
//! };
//! use futures_util::{StreamExt, stream};
//!
//! actix::System::new().block_on(async {
//!     let context = SessionContext {
//!         supervisor: Supervisor::new(SessionLimits { sessions: 1, per_peer: 1 }).start(),
//!         backend: BackendClient::new("http://127.0.0.1:8000", None, KnownBackend::default(), EXIT_PATIENCE, DialConfig::default()),
//!         limits: Limits::default(),
//!         unread: UnreadBudget::new(1 << 20),
//!         max_requests: 16,
//!     };
//!     let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
//!     let incoming = stream::iter([Incoming::Text(ping.to_owned()), Incoming::Close]);
//!
//!     let (frames, closed) = session::start(SessionId::random(), None, ClientName::anonymous(), context, incoming).await;
//!     let sent = frames.collect::<Vec<_>>().await.concat();
//!     closed.wait().await;
//!
//!     let text = String::from_utf8_lossy(&sent);
//!     assert!(text.contains(r#""method":"connected""#), "the greeting comes first: {text}");
//!     assert!(text.contains(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#), "then the response: {text}");
//!     let close = sent.iter().rposition(|byte| *byte == 0x88).expect("a close frame comes last");
//!     assert_eq!(sent[close + 2..close + 4], 1000u16.to_be_bytes(), "its close code: {text}");
//! });
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod activity;
pub mod agent;
pub mod backend_api;
pub mod backend_client;
pub mod client;
pub mod clock;
pub mod close;
pub mod dial;
pub mod excerpt;
pub mod execution;
pub mod id;
pub mod name;
pub mod outcome;
pub mod output;
pub mod peer;
pub mod protocol;
pub mod rpc;
pub mod session;
pub mod share;
pub mod signal;
pub mod stream;
pub mod supervisor;
pub mod ws;
