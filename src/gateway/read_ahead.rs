//! The bytes of a session's client, of which actix reads only a little more than the session has taken.
//!
//! actix reads until its own buffers are full, which are a quarter of a megabyte for each connection. Many clients whose
//! messages wait for memory would take more for what was read ahead than for the messages.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_web::{
    error::PayloadError,
    web::{Bytes, Payload},
};
use futures_util::{Stream, StreamExt};

use crate::server::{connection::ConnectionHandle, socket::ReadWindow};

/// How much is read ahead, in bytes.
const READ_AHEAD: usize = 64 * 1024;

/// The client's bytes.
pub struct ReadAhead {
    payload: Payload,
    /// `None` for a request without a connection, as in unit tests.
    window: Option<Rc<ReadWindow>>,
}

impl ReadAhead {
    /// The bytes of this connection.
    pub fn new(payload: Payload, connection: Option<&ConnectionHandle>) -> Self {
        let window = connection.map(|connection| Rc::clone(connection.window()));
        if let Some(window) = &window {
            window.open(READ_AHEAD);
        }
        ReadAhead { payload, window }
    }
}

impl Stream for ReadAhead {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.payload.poll_next_unpin(cx);
        if let (Poll::Ready(Some(Ok(bytes))), Some(window)) = (&next, &self.window) {
            window.take(bytes.len());
        }
        next
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        if let Some(window) = &self.window {
            window.remove();
        }
    }
}
