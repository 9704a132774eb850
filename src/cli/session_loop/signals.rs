//! The signals that a client handles, from its terminal or from another process.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{ClientError, exit, exit_code::EndRequest};

/// The handlers.
pub(super) struct ClientSignals {
    interrupt: Signal,
    terminate: Signal,
    resized: Signal,
    suspend: Signal,
    continued: Signal,
}

/// A signal that came.
pub(super) enum ClientSignal {
    EndRequested(EndRequest),
    Resized,
    Suspend,
    Continued,
}

impl ClientSignals {
    /// Handles them from now on.
    pub(super) fn listen() -> Result<Self, ClientError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| ClientError::new(exit::SOFTWARE, format!("cannot listen for signals: {error}")))
        };
        Ok(ClientSignals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            resized: listen(SignalKind::window_change())?,
            suspend: listen(SignalKind::from_raw(libc::SIGTSTP))?,
            continued: listen(SignalKind::from_raw(libc::SIGCONT))?,
        })
    }

    /// The next one. The future may be dropped and called again.
    pub(super) async fn next(&mut self) -> ClientSignal {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => ClientSignal::EndRequested(EndRequest::Interrupted),
            _ = self.terminate.recv() => ClientSignal::EndRequested(EndRequest::Terminated),
            _ = self.suspend.recv() => ClientSignal::Suspend,
            _ = self.continued.recv() => ClientSignal::Continued,
            _ = self.resized.recv() => ClientSignal::Resized,
        }
    }
}
