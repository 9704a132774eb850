//! The standard input of a command: requests wait here until the pipe or the terminal has room.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use cc_executor_actors::protocol::MAX_INPUT_WAITING;
use tokio::{io::AsyncWriteExt, net::unix::pipe, sync::oneshot};

use crate::backend::job_request::{JobError, ReplySender};

/// The input of one command, in the order of the requests.
pub(super) struct StdinWriter {
    /// Whether clients may write to it.
    is_for_clients: bool,
    /// `None` if the command has no input, or the input has ended.
    sink: Option<pipe::Sender>,
    /// A terminal stays open; its input is ended by a character.
    is_terminal: bool,
    pending: VecDeque<PendingWrite>,
    n_pending: usize,
}

struct PendingWrite {
    bytes: Bytes,
    eof: bool,
    reply: ReplySender,
}

impl StdinWriter {
    /// An input that clients write to, if the command has one.
    pub(super) fn new(sink: Option<pipe::Sender>, is_terminal: bool) -> Self {
        let is_for_clients = sink.is_some();
        StdinWriter { is_for_clients, sink, is_terminal, pending: VecDeque::new(), n_pending: 0 }
    }

    /// An input with these bytes, to which clients may not write.
    pub(super) fn given(sink: Option<pipe::Sender>, bytes: Bytes) -> Self {
        let mut input = StdinWriter { is_for_clients: false, ..StdinWriter::new(sink, false) };
        input.n_pending = bytes.len();
        input.pending.push_back(PendingWrite { bytes, eof: true, reply: oneshot::channel().0 });
        input
    }

    /// Adds bytes. The reply is sent when the command can read all of them.
    pub(super) fn push(&mut self, bytes: Bytes, eof: bool, reply: ReplySender) {
        if let Err(error) = self.check_length(bytes.len()) {
            // Fails if the client is gone. The same holds below.
            let _ = reply.send(Err(error));
            return;
        }
        self.n_pending += bytes.len();
        self.pending.push_back(PendingWrite { bytes, eof, reply });
    }

    fn check_length(&self, length: usize) -> Result<(), JobError> {
        if !self.is_for_clients {
            return Err(JobError::NoStdin);
        }
        if self.sink.is_none() || self.pending.back().is_some_and(|last| last.eof && !self.is_terminal) {
            return Err(JobError::StdinClosed);
        }
        if self.n_pending + length > MAX_INPUT_WAITING {
            return Err(JobError::StdinFull { length, waiting: self.n_pending });
        }
        Ok(())
    }

    /// Whether there are bytes to write, or an end.
    pub(super) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Writes some of the pending bytes. May be dropped and called again, because only written bytes are removed.
    pub(super) async fn write(&mut self) {
        let (Some(first), Some(sink)) = (self.pending.front_mut(), &mut self.sink) else { return };
        if !first.bytes.is_empty() {
            match sink.write(&first.bytes).await {
                Ok(n) => {
                    first.bytes.advance(n);
                    self.n_pending -= n;
                }
                Err(_) => return self.close(),
            }
        }
        if first.bytes.is_empty()
            && let Some(PendingWrite { eof, reply, .. }) = self.pending.pop_front()
        {
            if eof && !self.is_terminal {
                self.sink = None;
            }
            let _ = reply.send(Ok(()));
        }
    }

    /// The command reads no more. All pending requests fail.
    pub(super) fn close(&mut self) {
        self.sink = None;
        self.n_pending = 0;
        for PendingWrite { reply, .. } in self.pending.drain(..) {
            let _ = reply.send(Err(JobError::StdinClosed));
        }
    }
}
