//! The signals that ask the service to end.

use std::io;

use rustix::process::Signal as Number;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Undoes what whoever started this process has blocked or ignored. Kept is what nohup(1) and a shell's background
/// jobs are meant for, and that a write to a closed socket is an error.
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
        Ok(Shutdown { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The name of the next signal.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
