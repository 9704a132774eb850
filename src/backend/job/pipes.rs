//! Reads the output of a command from its pipes or its terminal.

use std::io;

use bytes::{Bytes, BytesMut};
use cc_executor_actors::stream::Stream;

use crate::backend::{output_buffer::READ, pty::OutputSource};

/// Reads smaller than this are copied out, so that a few bytes do not hold a whole buffer.
const SMALL: usize = 8 * 1024;

/// One output of a command, until it is closed.
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

    /// Waits for output and reads it into the buffer. Returns the number of bytes. While there is no output there is no
    /// buffer, so that a silent command takes no memory.
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

    /// Takes the bytes of the last read. A small piece is copied, so that the next read uses the same buffer.
    pub(super) fn take(&mut self, n: usize) -> Bytes {
        if n < SMALL {
            let bytes = Bytes::copy_from_slice(&self.buffer[..n]);
            self.buffer.clear();
            bytes
        } else {
            self.buffer.split_to(n).freeze()
        }
    }

    /// Closes it.
    pub(super) fn close(&mut self) {
        self.source = None;
    }

    /// Reads the rest without waiting when all processes are gone, and closes it, because another process that has it
    /// open may write to it later. `None` if it is closed.
    pub(super) fn take_remainder(&mut self) -> Option<Vec<Bytes>> {
        let source = self.source.take()?;
        let mut pieces = Vec::new();
        source.read_remainder(READ, |piece| pieces.push(Bytes::copy_from_slice(piece)));
        Some(pieces)
    }
}
