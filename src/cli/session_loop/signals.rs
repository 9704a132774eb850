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
    /// In a terminal session, also where it is ignored, as under nohup.
    hung_up: Option<Signal>,
}

/// A signal that came.
pub(super) enum ClientSignal {
    EndRequested(EndRequest),
    Resized,
    Suspend,
    Continued,
    HungUp,
}

impl ClientSignals {
    /// Handles them from now on.
    pub(super) fn listen(is_session: bool) -> Result<Self, ClientError> {
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
            hung_up: is_session.then(|| listen(SignalKind::hangup())).transpose()?,
        })
    }

    /// The next one. The future may be dropped and called again.
    pub(super) async fn next(&mut self) -> ClientSignal {
        let hung_up = async {
            match &mut self.hung_up {
                Some(signal) => drop(signal.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => ClientSignal::EndRequested(EndRequest::Interrupted),
            _ = self.terminate.recv() => ClientSignal::EndRequested(EndRequest::Terminated),
            _ = self.suspend.recv() => ClientSignal::Suspend,
            _ = self.continued.recv() => ClientSignal::Continued,
            _ = self.resized.recv() => ClientSignal::Resized,
            () = hung_up => ClientSignal::HungUp,
        }
    }
}
