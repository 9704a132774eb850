//! The shim's end of the socket to its backend.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use super::protocol::{Numbered, Order, ShimEvent};

/// Reads orders and writes events.
pub(super) struct Channel {
    socket: UnixStream,
    input: Vec<u8>,
}

impl Channel {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Channel { socket: UnixStream::from(socket), input: Vec::new() }
    }

    /// Readable when orders arrive.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Waits for the next order. `None` at the end of file.
    pub(super) fn wait(&mut self) -> io::Result<Option<Order>> {
        loop {
            if let Some(order) = self.next() {
                return Ok(Some(order));
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }

    /// Reads once. Returns false at the end of file: the backend is gone, or has given the execution up.
    pub(super) fn read(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 16 * 1024];
        match self.socket.read(&mut bytes) {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.input.extend_from_slice(&bytes[..n]);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the next whole order, and acknowledges it.
    pub(super) fn next(&mut self) -> Option<Order> {
        let end = self.input.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.input.drain(..=end).collect();
        let order: Numbered<Order> = serde_json::from_slice(&line).ok()?;
        self.send(&ShimEvent::Accepted { number: order.number });
        Some(order.message)
    }

    pub(super) fn send(&mut self, event: &ShimEvent) {
        let mut line = serde_json::to_vec(event).unwrap_or_default();
        line.push(b'\n');
        // Ignored, because the next read notices that the backend is gone.
        let _ = self.socket.write_all(&line);
    }
}
