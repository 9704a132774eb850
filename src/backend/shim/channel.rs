//! The shim's end of the socket to its backend.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use super::protocol::{NumberedOrder, ShimEvent};

/// Reads orders and writes facts.
pub(super) struct Channel {
    socket: UnixStream,
    input: Vec<u8>,
}

impl Channel {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Channel { socket: UnixStream::from(socket), input: Vec::new() }
    }

    /// Where orders arrive.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Waits for the next order. `None` at the end, and after anything that is not an order.
    pub(super) fn wait(&mut self) -> io::Result<Option<NumberedOrder>> {
        loop {
            if let Some(order) = self.next() {
                return Ok(Some(order));
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }

    /// Reads once. False at the end: the backend is gone, or has given the execution up.
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

    /// The next whole order, and its acknowledgement.
    pub(super) fn next(&mut self) -> Option<NumberedOrder> {
        let end = self.input.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.input.drain(..=end).collect();
        let order: NumberedOrder = serde_json::from_slice(&line).ok()?;
        self.tell(&ShimEvent::Accepted { number: order.number });
        Some(order)
    }

    pub(super) fn tell(&mut self, fact: &ShimEvent) {
        let mut line = serde_json::to_vec(fact).unwrap_or_default();
        line.push(b'\n');
        // A backend that is gone is noticed where it is read.
        let _ = self.socket.write_all(&line);
    }
}
