//! The gateway's HTTP client for its execution backend.
//!
//! It knows HTTP and nothing of sessions. Two kinds of backend are understood: the native one, and the legacy image,
//! which has only `/health` and plain-text output streams. `GET /health` at the start tells which kind answers. A
//! native backend never becomes a legacy one because of a later answer, and an execution belongs to the kind of
//! backend that it was started on.
//!
//! Start with `client`, which holds the connection pool. `start` opens the streams of executions, `executions`
//! addresses executions by their ids.

pub mod body_end;
mod client;
mod error;
mod executions;
mod hold;
mod known;
mod legacy;
mod output;
mod request_gate;
mod start;
mod tracked_connector;

pub use self::{
    body_end::BodyEnd,
    client::BackendClient,
    error::BackendError,
    executions::WithdrawResult,
    hold::HoldIdentity,
    known::{BackendKind, KnownBackend},
    output::OutputResponse,
    start::{OpenedStream, ResponseBody},
};
