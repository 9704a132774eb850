//! Our own standard input, on its way to the command.

use std::{io::Read, thread};

use tokio::sync::mpsc;

/// The most that is sent in one message, in bytes.
const PIECE: usize = 32 * 1024;

/// Standard input on its way to the command: one piece at a time, the next one after the service's answer.
///
/// It is read on a thread of its own, because a read cannot be given up, and a process that ends does not wait for
/// that thread.
pub(super) struct StdinReader {
    state: StdinState,
    /// How many pieces were sent.
    n_sent: u64,
}

enum StdinState {
    /// Nothing is read: nothing was asked for, the end was sent, or the command takes no more.
    Closed,
    /// The next piece is read.
    Reading(mpsc::Receiver<Vec<u8>>),
    /// A piece was sent, and the service has not answered it.
    AwaitingAnswer(mpsc::Receiver<Vec<u8>>),
}

/// What comes from standard input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StdinPiece {
    /// Some bytes.
    Piece(Vec<u8>),
    /// Its end.
    End,
}

impl StdinReader {
    /// Nothing is read.
    pub(super) fn closed() -> Self {
        StdinReader { state: StdinState::Closed, n_sent: 0 }
    }

    /// Begins to read.
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

    /// The service has answered the newest piece: with an error it takes no more.
    pub(super) fn answered(&mut self, accepted: bool) {
        self.state = match std::mem::replace(&mut self.state, StdinState::Closed) {
            StdinState::Reading(pieces) | StdinState::AwaitingAnswer(pieces) if accepted => StdinState::Reading(pieces),
            _ => StdinState::Closed,
        };
    }

    /// The next piece to send, and its number. Waits for ever while the piece before it is not answered, and after the
    /// end.
    pub(super) async fn next(&mut self) -> (u64, StdinPiece) {
        let StdinState::Reading(pieces) = &mut self.state else { return std::future::pending().await };
        let read = pieces.recv().await;
        self.n_sent += 1;
        let state = std::mem::replace(&mut self.state, StdinState::Closed);
        match (state, read) {
            (StdinState::Reading(pieces), Some(piece)) => {
                self.state = StdinState::AwaitingAnswer(pieces);
                (self.n_sent, StdinPiece::Piece(piece))
            }
            _ => (self.n_sent, StdinPiece::End),
        }
    }
}
