//! What the loop waits for.

use std::{
    io,
    time::{Duration, Instant},
};

use cc_executor_actors::protocol::input::CommandInput;
use tokio::time::sleep_until;

use super::signals::ClientSignal;
use crate::cli::{
    ClientError,
    connection::{Connection, ConnectionEvent},
    escape::KeyRequest,
};

/// The longest wait until a request is sent by a client that is about to be suspended.
pub(super) const SUSPEND_PATIENCE: Duration = Duration::from_secs(1);

/// The longest wait until the command draws its screen for another size. A command that gets two sizes at once may see no
/// change, and draw nothing.
pub(super) const REDRAW_PATIENCE: Duration = Duration::from_secs(1);

/// The time from the beginning of that output until the true size is sent.
pub(super) const AFTER_REDRAW: Duration = Duration::from_millis(20);

/// The longest wait until the terminal has taken the output that it is being sent by a client that detaches.
pub(super) const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

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
