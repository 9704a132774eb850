//! Reads standard input for the command, and the keys that are for the client.

use std::{
    io::Read,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use bytes::Bytes;
use cc_executor_actors::protocol::input::CommandInput;
use tokio::sync::{Notify, mpsc};

use super::escape::{KeyFilter, KeyRequest, Typed};

/// The largest piece in one message, in bytes.
const PIECE: usize = 32 * 1024;

/// How much is read ahead of a command that does not read: a piece from a pipe.
const AHEAD: usize = PIECE;

/// The same from a terminal. It is large, because requests to the client are found in what is read.
const AHEAD_OF_TERMINAL: usize = 16 << 20;

/// Sends one piece at a time. The next one is sent when the service has answered the piece before: this is the
/// back-pressure of a command that does not read.
///
/// A thread reads, because a blocking read cannot be canceled; the process exits without waiting for the thread.
pub(super) struct StdinReader {
    state: StdinState,
    input: Arc<TypedQueue>,
    /// The number of pieces that were sent.
    n_sent: u64,
}

enum StdinState {
    /// Nothing is read: input is not forwarded, the end was sent, or the command takes no more.
    Closed,
    /// The next piece is taken.
    Reading,
    /// A piece of this length was sent, and its response is awaited.
    AwaitingAnswer(usize),
}

/// Where the thread sends the requests that it finds in what is typed.
pub(super) struct KeyRequests {
    pub(super) filter: KeyFilter,
    pub(super) requests: mpsc::UnboundedSender<KeyRequest>,
    /// Notified of [`KeyRequest::Drop`], which must not wait until the loop is ready for a request.
    pub(super) dropped: Arc<Notify>,
}

/// What was read and not sent.
#[derive(Default)]
struct TypedQueue {
    content: Mutex<TypedContent>,
    /// Notified of new content.
    filled: Notify,
    /// Notified of content that was taken.
    taken: Condvar,
}

#[derive(Default)]
struct TypedContent {
    bytes: Vec<u8>,
    has_ended: bool,
    is_closed: bool,
}

impl TypedQueue {
    fn lock(&self) -> MutexGuard<'_, TypedContent> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes, and waits while there are too many. Returns false when nobody takes them any more.
    fn push(&self, bytes: &[u8], ahead: usize) -> bool {
        let mut content = self.lock();
        content.bytes.extend_from_slice(bytes);
        self.filled.notify_one();
        while content.bytes.len() >= ahead && !content.is_closed {
            content = self.taken.wait(content).unwrap_or_else(PoisonError::into_inner);
        }
        !content.is_closed
    }

    fn end(&self) {
        self.lock().has_ended = true;
        self.filled.notify_one();
    }

    fn close(&self) {
        let mut content = self.lock();
        content.is_closed = true;
        content.bytes = Vec::new();
        self.taken.notify_all();
    }

    /// The next piece, or `None` at the end.
    async fn next(&self) -> Option<Vec<u8>> {
        loop {
            {
                let mut content = self.lock();
                if !content.bytes.is_empty() {
                    let length = content.bytes.len().min(PIECE);
                    let rest = content.bytes.split_off(length);
                    self.taken.notify_all();
                    return Some(std::mem::replace(&mut content.bytes, rest));
                }
                if content.has_ended {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }
}

impl StdinReader {
    /// Input is not forwarded.
    pub(super) fn closed() -> Self {
        StdinReader { state: StdinState::Closed, input: Arc::default(), n_sent: 0 }
    }

    /// Starts to read. `keys` finds requests in what is typed on a terminal.
    pub(super) fn start(keys: Option<KeyRequests>) -> Self {
        let input = Arc::new(TypedQueue::default());
        let queue = Arc::clone(&input);
        thread::spawn(move || {
            match keys {
                Some(keys) => read_keys(&queue, keys),
                None => read_pieces(|piece| queue.push(piece, AHEAD)),
            }
            queue.end();
        });
        StdinReader { state: StdinState::Reading, input, n_sent: 0 }
    }

    /// Records the response to the newest piece. If it was not accepted, reading ends.
    pub(super) fn answered(&mut self, accepted: bool) {
        match self.state {
            StdinState::Reading | StdinState::AwaitingAnswer(_) if accepted => self.state = StdinState::Reading,
            _ => self.close(),
        }
    }

    fn close(&mut self) {
        self.state = StdinState::Closed;
        self.input.close();
    }

    /// Continues on a new connection. Returns the length of the piece that was not answered on the one before, and may not
    /// have arrived.
    pub(super) fn resume(&mut self) -> Option<usize> {
        let StdinState::AwaitingAnswer(length) = self.state else { return None };
        self.state = StdinState::Reading;
        Some(length)
    }

    /// Whether everything that was typed has arrived.
    pub(super) fn is_idle(&self) -> bool {
        match self.state {
            StdinState::Closed => true,
            StdinState::Reading => self.input.lock().bytes.is_empty(),
            StdinState::AwaitingAnswer(_) => false,
        }
    }

    /// The next piece to send, and its number. Never completes while the response to the piece before is awaited, or
    /// after the end.
    pub(super) async fn next(&mut self) -> (u64, CommandInput) {
        let StdinState::Reading = self.state else { return std::future::pending().await };
        let piece = self.input.next().await;
        self.n_sent += 1;
        match piece {
            Some(piece) => {
                self.state = StdinState::AwaitingAnswer(piece.len());
                (self.n_sent, CommandInput { data: piece.into(), eof: false })
            }
            None => {
                self.state = StdinState::Closed;
                (self.n_sent, CommandInput { data: Bytes::new(), eof: true })
            }
        }
    }
}

/// Reads to the end, or until `take` returns false.
fn read_pieces(mut take: impl FnMut(&[u8]) -> bool) {
    let mut stdin = std::io::stdin();
    let mut buffer = vec![0; PIECE];
    while let Ok(n) = stdin.read(&mut buffer) {
        if n == 0 || !take(&buffer[..n]) {
            return;
        }
    }
}

/// Reads from a terminal. Requests are found also after the command takes no more input.
fn read_keys(queue: &TypedQueue, keys: KeyRequests) {
    let KeyRequests { mut filter, requests, dropped } = keys;
    let pass = |typed: Vec<Typed>| {
        for typed in typed {
            match typed {
                Typed::Input(bytes) => {
                    queue.push(&bytes, AHEAD_OF_TERMINAL);
                }
                Typed::Request(request) => {
                    // Fails when the client ends.
                    let _ = requests.send(request);
                    if request == KeyRequest::Drop {
                        dropped.notify_one();
                    }
                }
            }
        }
    };
    read_pieces(|piece| {
        pass(filter.take(piece));
        true
    });
    pass(filter.finish());
}
