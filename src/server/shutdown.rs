//! Receives the signals that stop the service: SIGTERM and SIGINT. [`super::drain`] says what happens then.

use std::io;

use rustix::process::Signal as Number;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::failed;

/// Restores the signals that the parent process has blocked or ignored. Ignored HUP and QUIT stay ignored, because
/// nohup(1) and background jobs of a shell need that, and so does PIPE, so that a write to a closed socket is an error.
pub fn reset() {
    crate::syscall::reset_ignored_signals(&[Number::HUP, Number::QUIT, Number::PIPE]);
}

/// SIGTERM and SIGINT, from the moment this is made.
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    /// Listens from now on.
    pub fn listen() -> io::Result<Self> {
        let listen = |kind| signal(kind).map_err(failed("cannot listen for signals"));
        Ok(Shutdown { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// The name of the next signal.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
