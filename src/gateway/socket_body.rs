//! The body of a session's response: hands frames over only as fast as the client's connection takes them.
//!
//! Bytes that wait in user space or, unsent, in the kernel delay every later frame, a pong among them. Over a slow link a
//! kernel buffers megabytes, and a client library gives up before its pong arrives. So the kernel is told to keep little
//! unsent (TCP_NOTSENT_LOWAT, tcp(7)), and frames stay in the outbox, where a pong goes ahead of output, until the socket
//! has room. To wait for that before each portion costs throughput, so a connection that has shown its speed takes frames
//! without it, until it becomes slow.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use actix_web::{Error, web::Bytes};
use cc_executor_actors::session::outbox::Frames;
use futures_util::{Stream, StreamExt};
use tokio::time::{Sleep, sleep};

use crate::server::connection::ConnectionHandle;

/// How much the kernel may hold unsent, in bytes. With [`PORTION`] and one batch of output (64 KiB) this is at most
/// 128 KiB, which takes two seconds at 64 KiB/s.
pub const MAX_UNSENT: u32 = 32 * 1024;

/// What is handed over before the socket is asked for room, in bytes.
const PORTION: usize = 32 * 1024;

/// What a connection must take within [`PROOF_TIME`] to be fast, in bytes. The buffers of the two sockets take up to 6 MiB
/// (tcp_rmem) from any sender, so at least 2 MiB of it were transmitted.
const PROOF: usize = 8 << 20;
const PROOF_TIME: Duration = Duration::from_secs(2);

/// A fast connection becomes slow if it is full after this many bytes and they took longer than [`CHECK_TIME`].
const CHECK: usize = 256 * 1024;
const CHECK_TIME: Duration = Duration::from_millis(250);

/// How often a held back client's connection is looked at.
const LOOK_CADENCE: Duration = Duration::from_secs(1);

/// The frames of a session, for its connection.
pub struct SocketBody {
    frames: Frames,
    /// `None` for a request without a connection, as in unit tests: then frames are handed over at once.
    connection: Option<Rc<ConnectionHandle>>,
    pace: ConnectionPace,
    /// When the bytes of `taken` began to be handed over.
    since: Instant,
    taken: usize,
    /// Whether no frame has waited since the last one.
    is_idle: bool,
    /// The next look whether the client has gone.
    look: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Copy)]
enum ConnectionPace {
    Slow(PortionState),
    Fast,
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
        SocketBody {
            frames,
            connection,
            pace: ConnectionPace::Slow(PortionState::Open(0)),
            since: Instant::now(),
            taken: 0,
            is_idle: false,
            look: None,
        }
    }

    /// Waits until the next frame may be handed over.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(connection), ConnectionPace::Slow(state)) = (&self.connection, self.pace) else {
            return Poll::Ready(());
        };
        match state {
            PortionState::Open(handed_over) if handed_over < PORTION => return Poll::Ready(()),
            PortionState::Open(_) => {}
            PortionState::Writing if connection.has_room() => {
                self.pace = ConnectionPace::Slow(PortionState::Open(0));
                return Poll::Ready(());
            }
            PortionState::Writing | PortionState::Full => {
                self.pace = ConnectionPace::Slow(PortionState::Full);
                ready!(connection.poll_room(cx));
            }
        }
        self.pace = ConnectionPace::Slow(PortionState::Writing);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready when the client has gone. actix notices that only when it reads, which it does not while the client is held
    /// back.
    fn poll_hangup(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(connection) = self.connection.as_ref().filter(|connection| connection.window().is_full()) else {
            self.look = None;
            return Poll::Pending;
        };
        let look = self.look.get_or_insert_with(|| Box::pin(sleep(LOOK_CADENCE)));
        while look.as_mut().poll(cx).is_ready() {
            if connection.is_hung_up() {
                return Poll::Ready(());
            }
            look.set(sleep(LOOK_CADENCE));
        }
        Poll::Pending
    }

    /// Counts what was handed over, and judges the speed of the connection.
    fn judge(&mut self, n_bytes: usize) {
        let Some(connection) = &self.connection else { return };
        if std::mem::take(&mut self.is_idle) && matches!(self.pace, ConnectionPace::Fast) {
            // The time without frames says nothing about the connection.
            (self.since, self.taken) = (Instant::now(), 0);
        }
        self.taken += n_bytes;
        let elapsed = self.since.elapsed();
        match &mut self.pace {
            ConnectionPace::Slow(_) if elapsed <= PROOF_TIME && self.taken >= PROOF => {
                self.pace = ConnectionPace::Fast;
                self.frames.set_keeps_up(true);
            }
            ConnectionPace::Slow(state) => {
                if let PortionState::Open(handed_over) = state {
                    *handed_over += n_bytes;
                }
                if elapsed <= PROOF_TIME {
                    return;
                }
            }
            ConnectionPace::Fast if self.taken < CHECK => return,
            ConnectionPace::Fast if elapsed > CHECK_TIME && !connection.has_room() => {
                self.pace = ConnectionPace::Slow(PortionState::Open(n_bytes));
                self.frames.set_keeps_up(false);
            }
            ConnectionPace::Fast => {}
        }
        (self.since, self.taken) = (Instant::now(), 0);
    }
}

impl Stream for SocketBody {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.poll_hangup(cx).is_ready() {
            return Poll::Ready(None);
        }
        ready!(self.poll_room(cx));
        let Poll::Ready(next) = self.frames.poll_next_unpin(cx) else {
            self.is_idle = true;
            return Poll::Pending;
        };
        self.judge(next.as_ref().map_or(0, Bytes::len));
        Poll::Ready(next.map(Ok))
    }
}
