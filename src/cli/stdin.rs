//! Our own standard input, on its way to the command.

use std::{io::Read, thread};

use tokio::sync::mpsc;

/// The most that is sent in one message, in bytes.
const PIECE: usize = 32 * 1024;

/// Reads standard input on a thread of its own: a read cannot be given up, and a process that ends does
/// not wait for this one.
pub(super) struct StdinReader {
    pieces: Option<mpsc::Receiver<Vec<u8>>>,
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
    pub(super) fn none() -> Self {
        StdinReader { pieces: None }
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
        StdinReader { pieces: Some(pieces) }
    }

    /// Nothing more is wanted.
    pub(super) fn stop(&mut self) {
        self.pieces = None;
    }

    /// What comes next. Never, after the end.
    pub(super) async fn next(&mut self) -> StdinPiece {
        let Some(pieces) = &mut self.pieces else { return std::future::pending().await };
        match pieces.recv().await {
            Some(piece) => StdinPiece::Piece(piece),
            None => {
                self.pieces = None;
                StdinPiece::End
            }
        }
    }
}
