//! What a command is to read, on its way into its pipe or terminal.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use cc_executor_actors::protocol::MAX_INPUT_WAITING;
use tokio::{io::AsyncWriteExt, net::unix::pipe, sync::oneshot};

use crate::backend::job_request::{JobError, ReplySender};

/// The input of one command, in the order in which it was asked for.
pub(super) struct StdinWriter {
    /// Whether the command has one at all.
    wanted: bool,
    sink: Option<pipe::Sender>,
    /// A terminal stays open; its input is ended by a character.
    is_terminal: bool,
    waiting: VecDeque<PendingWrite>,
    n_waiting: usize,
}

struct PendingWrite {
    bytes: Bytes,
    eof: bool,
    answer: ReplySender,
}

impl StdinWriter {
    /// The input that goes into this sink.
    pub(super) fn new(sink: Option<pipe::Sender>, is_terminal: bool) -> Self {
        StdinWriter { wanted: sink.is_some(), sink, is_terminal, waiting: VecDeque::new(), n_waiting: 0 }
    }

    /// The input that is this and ends with it: nobody else writes any.
    pub(super) fn given(sink: Option<pipe::Sender>, bytes: Bytes) -> Self {
        let mut input = StdinWriter { wanted: false, ..StdinWriter::new(sink, false) };
        input.n_waiting = bytes.len();
        input.waiting.push_back(PendingWrite { bytes, eof: true, answer: oneshot::channel().0 });
        input
    }

    /// Takes more. The answer comes when all of it is where the command can read it.
    pub(super) fn take(&mut self, bytes: Bytes, eof: bool, answer: ReplySender) {
        if let Err(error) = self.check_length(bytes.len()) {
            // Whoever asked may be gone.
            let _ = answer.send(Err(error));
            return;
        }
        self.n_waiting += bytes.len();
        self.waiting.push_back(PendingWrite { bytes, eof, answer });
    }

    fn check_length(&self, length: usize) -> Result<(), JobError> {
        if !self.wanted {
            return Err(JobError::NoStdin);
        }
        if self.sink.is_none() || self.waiting.back().is_some_and(|last| last.eof && !self.is_terminal) {
            return Err(JobError::StdinClosed);
        }
        if self.n_waiting + length > MAX_INPUT_WAITING {
            return Err(JobError::StdinFull { waiting: self.n_waiting });
        }
        Ok(())
    }

    /// Whether there is something to write.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes some of what waits. May be dropped and called again: only what was written is taken off.
    pub(super) async fn write(&mut self) {
        let (Some(first), Some(sink)) = (self.waiting.front_mut(), &mut self.sink) else { return };
        if !first.bytes.is_empty() {
            match sink.write(&first.bytes).await {
                Ok(n) => {
                    first.bytes.advance(n);
                    self.n_waiting -= n;
                }
                Err(_) => return self.close(),
            }
        }
        if first.bytes.is_empty()
            && let Some(PendingWrite { eof, answer, .. }) = self.waiting.pop_front()
        {
            if eof && !self.is_terminal {
                self.sink = None;
            }
            let _ = answer.send(Ok(()));
        }
    }

    /// Nobody will read any more: what waits is answered with that.
    pub(super) fn close(&mut self) {
        self.sink = None;
        self.n_waiting = 0;
        for PendingWrite { answer, .. } in self.waiting.drain(..) {
            let _ = answer.send(Err(JobError::StdinClosed));
        }
    }
}
