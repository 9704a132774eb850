//! Reads standard input for the command.

use std::{io::Read, thread};

use bytes::Bytes;
use cc_executor_actors::protocol::input::CommandInput;
use tokio::sync::mpsc;

/// The largest piece in one message, in bytes.
const PIECE: usize = 32 * 1024;

/// Reads one piece at a time. The next one is read when the service has answered the piece before: this is the
/// back-pressure of a command that does not read.
///
/// A thread reads, because a blocking read cannot be canceled; the process exits without waiting for the thread.
pub(super) struct StdinReader {
    state: StdinState,
    /// The number of pieces that were sent.
    n_sent: u64,
}

enum StdinState {
    /// Nothing is read: input is not forwarded, the end was sent, or the command takes no more.
    Closed,
    /// The next piece is read.
    Reading(mpsc::Receiver<Vec<u8>>),
    /// A piece was sent, and its response is awaited.
    AwaitingAnswer(mpsc::Receiver<Vec<u8>>),
}

impl StdinReader {
    /// Input is not forwarded.
    pub(super) fn closed() -> Self {
        StdinReader { state: StdinState::Closed, n_sent: 0 }
    }

    /// Starts to read.
    pub(super) fn start() -> Self {
        let (sender, pieces) = mpsc::channel(1);
        thread::spawn(move || {
            let mut stdin = std::io::stdin();
            let mut buffer = vec![0; PIECE];
            while let Ok(n) = stdin.read(&mut buffer) {
                if n == 0 || sender.blocking_send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        StdinReader { state: StdinState::Reading(pieces), n_sent: 0 }
    }

    /// Records the response to the newest piece. If it was not accepted, reading ends.
    pub(super) fn answered(&mut self, accepted: bool) {
        self.state = match std::mem::replace(&mut self.state, StdinState::Closed) {
            StdinState::Reading(pieces) | StdinState::AwaitingAnswer(pieces) if accepted => StdinState::Reading(pieces),
            _ => StdinState::Closed,
        };
    }

    /// The next piece to send, and its number. Never completes while the response to the piece before is awaited, or
    /// after the end.
    pub(super) async fn next(&mut self) -> (u64, CommandInput) {
        let StdinState::Reading(pieces) = &mut self.state else { return std::future::pending().await };
        let read = pieces.recv().await;
        self.n_sent += 1;
        let state = std::mem::replace(&mut self.state, StdinState::Closed);
        match (state, read) {
            (StdinState::Reading(pieces), Some(piece)) => {
                self.state = StdinState::AwaitingAnswer(pieces);
                (self.n_sent, CommandInput { data: piece.into(), eof: false })
            }
            _ => (self.n_sent, CommandInput { data: Bytes::new(), eof: true }),
        }
    }
}
