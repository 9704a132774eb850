//! What the loop waits for.

use std::{io, time::Instant};

use cc_executor_actors::protocol::input::CommandInput;
use tokio::time::sleep_until;

use super::signals::ClientSignal;
use crate::cli::{
    ClientError,
    connection::{Connection, ConnectionEvent},
    escape::KeyRequest,
};

/// The event that ended a wait of the loop.
pub(super) enum LoopWake {
    Signaled(ClientSignal),
    /// The user typed a request.
    Typed(KeyRequest),
    Opened(Result<Connection, ClientError>),
    Wrote(io::Result<()>),
    Received(ConnectionEvent),
    AnswerOverdue,
    Input(u64, CommandInput),
    Tick,
    /// A client that detaches does not wait any longer for its input to arrive.
    DetachDue,
}

/// Waits until this time, or for ever.
pub(super) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
