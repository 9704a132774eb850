//! The body of a session's response: hands frames over only as fast as the client's connection takes them.
//!
//! Bytes that wait in user space or, unsent, in the kernel delay every later frame, a pong among them. Over a slow link a
//! kernel buffers megabytes, and a client library gives up before its pong arrives. So the kernel is told to keep little
//! unsent (TCP_NOTSENT_LOWAT, tcp(7)), and frames stay in the outbox, where a pong goes ahead of output, until the socket
//! has room. A connection that keeps up gets larger portions, because many small writes cost throughput.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use actix_web::{Error, web::Bytes};
use cc_executor_actors::session::outbox::Frames;
use futures_util::{Stream, StreamExt};

use crate::server::connection::ConnectionHandle;

/// How much the kernel may hold unsent, in bytes. With [`MIN_PORTION`] and one batch of output (64 KiB) this is at most
/// 128 KiB, which takes two seconds at 64 KiB/s.
pub const MAX_UNSENT: u32 = 32 * 1024;

/// What is handed over before the socket is asked again, in bytes, for a connection that has just been full.
const MIN_PORTION: usize = 32 * 1024;

/// The same for a connection that keeps up: it has taken [`PROOF`] without being full.
const MAX_PORTION: usize = 256 * 1024;

/// How much a connection must take without being full before its portions grow, in bytes. More than a socket's buffers,
/// which take something from any sender.
const PROOF: usize = 8 << 20;

/// The frames of a session, for its connection.
pub struct SocketBody {
    frames: Frames,
    /// `None` where the connection has no duplicate: then frames are handed over at once.
    connection: Option<Rc<ConnectionHandle>>,
    /// How much was handed over since the socket was last full, in bytes.
    taken: usize,
    state: PortionState,
}

#[derive(Clone, Copy)]
enum PortionState {
    /// This many bytes of the portion were handed over.
    Open(usize),
    /// actix writes what it has, which it does when the body is pending.
    Writing,
    /// The socket had no room after that.
    Full,
}

impl SocketBody {
    /// The body for this connection.
    pub fn new(frames: Frames, connection: Option<Rc<ConnectionHandle>>) -> Self {
        if let Some(connection) = &connection {
            connection.limit_unsent(MAX_UNSENT);
        }
        SocketBody { frames, connection, taken: 0, state: PortionState::Open(0) }
    }

    /// How much is handed over before the socket is asked again, in bytes.
    fn portion(&self) -> usize {
        if self.taken < PROOF { MIN_PORTION } else { MAX_PORTION }
    }

    /// Waits until a portion is open.
    fn poll_portion(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        let Some(connection) = &self.connection else { return Poll::Ready(0) };
        match self.state {
            PortionState::Open(handed_over) if handed_over < self.portion() => return Poll::Ready(handed_over),
            PortionState::Open(_) => {}
            PortionState::Writing if connection.has_room() => {
                self.state = PortionState::Open(0);
                return Poll::Ready(0);
            }
            PortionState::Writing | PortionState::Full => {
                (self.taken, self.state) = (0, PortionState::Full);
                self.frames.set_keeps_up(false);
                ready!(connection.poll_room(cx));
            }
        }
        self.state = PortionState::Writing;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Stream for SocketBody {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let handed_over = ready!(self.poll_portion(cx));
        let next = ready!(self.frames.poll_next_unpin(cx));
        let n_bytes = next.as_ref().map_or(0, Bytes::len);
        let before = self.taken;
        self.taken = before.saturating_add(n_bytes);
        if before < PROOF && self.taken >= PROOF {
            self.frames.set_keeps_up(true);
        }
        self.state = PortionState::Open(handed_over + n_bytes);
        Poll::Ready(next.map(Ok))
    }
}
