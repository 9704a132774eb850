//! The pipes of a command, or its terminal, as far as they are read.

use std::io;

use bytes::{Bytes, BytesMut};
use cc_executor_actors::stream::Stream;

use crate::backend::{output_buffer::READ, pty::OutputSource};

/// Reads smaller than this are copied out, so that a few bytes do not hold a whole buffer.
const SMALL: usize = 8 * 1024;

/// What a command writes. A source that is closed gives nothing more.
pub(super) struct OutputPipe {
    stream: Stream,
    source: Option<OutputSource>,
    buffer: BytesMut,
}

impl OutputPipe {
    /// The pipes of standard output and standard error.
    pub(super) fn both([stdout, stderr]: [Option<OutputSource>; 2]) -> [OutputPipe; 2] {
        let pipe = |stream, source| OutputPipe { stream, source, buffer: BytesMut::new() };
        [pipe(Stream::Stdout, stdout), pipe(Stream::Stderr, stderr)]
    }

    pub(super) fn stream(&self) -> Stream {
        self.stream
    }

    pub(super) fn is_open(&self) -> bool {
        self.source.is_some()
    }

    /// Reads what is there, as soon as there is something, into the buffer. Returns how much. A command that writes
    /// nothing holds no buffer.
    pub(super) async fn read(&mut self) -> io::Result<usize> {
        let Some(source) = &self.source else { return Ok(0) };
        loop {
            self.buffer.reserve(READ);
            match source.try_read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.buffer = BytesMut::new(),
                read => return read,
            }
            source.readable().await?;
        }
    }

    /// Takes what was read. A small piece is copied, which leaves the buffer's room to the next read.
    pub(super) fn take(&mut self, n: usize) -> Bytes {
        if n < SMALL {
            let bytes = Bytes::copy_from_slice(&self.buffer[..n]);
            self.buffer.clear();
            bytes
        } else {
            self.buffer.split_to(n).freeze()
        }
    }

    /// Nothing more comes from it.
    pub(super) fn close(&mut self) {
        self.source = None;
    }

    /// Reads without waiting what is left now that all processes are gone, and closes it: what another process writes
    /// to it later is not this command's. `None` if it is closed.
    pub(super) fn take_remainder(&mut self) -> Option<Vec<Bytes>> {
        let source = self.source.take()?;
        let mut pieces = Vec::new();
        source.read_remainder(READ, |piece| pieces.push(Bytes::copy_from_slice(piece)));
        Some(pieces)
    }
}
