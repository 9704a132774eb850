//! The connection of a client, as the roles use it beside actix. [`watch_peer`] and [`PeerTimeout`] have the kernel notice a
//! peer that is gone, [`Unflushed`] counts connections whose last bytes may not be sent, and [`ConnectionHandle`] serves
//! three operations.
//!
//! The first is to shut down a socket whose peer does not read: when a response body has ended, actix waits without a
//! limit for the peer to read the rest, and only shutdown(2) ends that. The second is to see whether a socket has room,
//! see [`ConnectionHandle::has_room`]. The third is to bound what is read ahead, see [`ReadWindow`]. The handle belongs to
//! the connection's data, so it ends with the connection; timers hold it weakly.

use std::{
    cell::RefCell,
    io::ErrorKind,
    os::fd::AsFd,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_web::{HttpRequest, dev::Extensions, rt::net::TcpStream};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt,
};
use socket2::SockRef;
use tokio::{io::Interest, sync::watch};

use super::socket::{ReadWindow, Socket};

/// How long the peer may take to read the last bytes before its connection is shut down.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// The number of unanswered keepalive probes after which an idle peer counts as gone.
const KEEPALIVE_PROBES: u32 = 6;

/// The connection of a request.
#[derive(Debug)]
pub struct ConnectionHandle {
    stream: Arc<TcpStream>,
    window: Rc<ReadWindow>,
    flushing: RefCell<Option<Flushing>>,
}

impl ConnectionHandle {
    /// Whether the socket has room, see [`has_room`].
    pub fn has_room(&self) -> bool {
        has_room(&*self.stream)
    }

    /// Waits until the socket has room. To be called by the task that writes to it only, because one task can wait.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let look = || if self.has_room() { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) };
        loop {
            let is_lost = ready!(self.stream.poll_write_ready(cx)).is_err();
            // Without room, tokio waits for the next event.
            if is_lost || self.stream.try_io(Interest::WRITABLE, look).is_ok() {
                return Poll::Ready(());
            }
        }
    }

    /// Has the kernel take no more from us while this many bytes are not sent.
    pub fn limit_unsent(&self, bytes: u32) {
        // If this fails, a slow client only gets its pongs later.
        let _ = SockRef::from(&*self.stream).set_tcp_notsent_lowat(bytes);
    }

    /// Whether the client has closed the connection, or it is broken.
    pub fn is_hung_up(&self) -> bool {
        // Not if poll(2) fails, because the caller looks again.
        ready_events(&*self.stream, PollFlags::RDHUP).is_some_and(|events| !events.is_empty())
    }

    /// The bound of reading ahead.
    pub fn window(&self) -> &Rc<ReadWindow> {
        &self.window
    }
}

/// Whether the kernel accepts more bytes of a socket now.
pub fn has_room(socket: impl AsFd) -> bool {
    // Also if poll(2) fails, so that no caller waits for it.
    ready_events(socket, PollFlags::OUT).is_none_or(|events| !events.is_empty())
}

/// Which of these events have come, errors among them. `None` if poll(2) fails.
fn ready_events(socket: impl AsFd, events: PollFlags) -> Option<PollFlags> {
    let mut fds = [PollFd::new(&socket, events)];
    poll(&mut fds, Some(&Timespec::default())).ok().map(|_| fds[0].revents())
}

/// The connection of this request.
pub fn of(request: &HttpRequest) -> Option<Rc<ConnectionHandle>> {
    request.conn_data::<Rc<ConnectionHandle>>().map(Rc::clone)
}

/// Puts a handle of a new connection into its data.
pub fn keep(socket: &Socket, data: &mut Extensions) {
    let (stream, window) = (Arc::clone(socket.stream()), Rc::clone(socket.window()));
    data.insert(Rc::new(ConnectionHandle { stream, window, flushing: RefCell::default() }));
}

/// Has the kernel probe an idle peer, so that one that vanished is noticed within this time. It does not probe while
/// data is unacknowledged, see [`PeerTimeout`].
pub fn watch_peer(stream: &TcpStream, patience: Duration) {
    let step = (patience / (KEEPALIVE_PROBES + 2)).max(Duration::from_secs(1));
    // If this fails, the loss of the peer is only noticed later.
    let _ = sockopt::set_socket_keepalive(stream, true)
        .and_then(|()| sockopt::set_tcp_keepidle(stream, step * 2))
        .and_then(|()| sockopt::set_tcp_keepintvl(stream, step))
        .and_then(|()| sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES));
}

/// Has the kernel close a connection whose peer acknowledges no data for this long (TCP_USER_TIMEOUT, tcp(7)). The
/// kernel does not distinguish a peer that is gone from one that does not read, so this is suspended while the peer is
/// known to be alive.
#[derive(Debug)]
pub struct PeerTimeout {
    socket: Arc<TcpStream>,
    patience: Duration,
    is_suspended: bool,
}

impl PeerTimeout {
    /// Sets the time-out of the connection of this request.
    pub fn over(request: &HttpRequest, patience: Duration) -> Option<PeerTimeout> {
        let socket = Arc::clone(&of(request)?.stream);
        let watch = PeerTimeout { socket, patience, is_suspended: false };
        watch.set(patience);
        Some(watch)
    }

    /// Suspends the time-out, or resumes it.
    pub fn suspend(&mut self, is_suspended: bool) {
        if self.is_suspended != is_suspended {
            self.is_suspended = is_suspended;
            self.set(if is_suspended { Duration::ZERO } else { self.patience });
        }
    }

    fn set(&self, patience: Duration) {
        let ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        // If this fails, the loss of the peer is only noticed later.
        let _ = sockopt::set_tcp_user_timeout(&*self.socket, ms);
    }
}

/// Counts connections whose last bytes the kernel may not have yet.
#[derive(Clone, Debug, Default)]
pub struct Unflushed(watch::Sender<usize>);

/// Counts one connection. Dropped with the connection, which actix drops when all bytes are flushed.
#[derive(Debug)]
struct Flushing(Unflushed);

impl Unflushed {
    /// Counts the connection of this request from now on.
    pub fn add(&self, request: &HttpRequest) {
        if let Some(socket) = of(request) {
            self.0.send_modify(|n| *n += 1);
            *socket.flushing.borrow_mut() = Some(Flushing(self.clone()));
        }
    }

    /// Waits until the count is 0.
    pub async fn none(&self) {
        // Never fails, because this is the sender.
        let _ = self.0.subscribe().wait_for(|n| *n == 0).await;
    }
}

impl Drop for Flushing {
    fn drop(&mut self) {
        self.0.0.send_modify(|n| *n -= 1);
    }
}

/// Shuts the connection of this request down if `is_due` returns true and the connection still exists, and calls `log`.
pub fn shut_down_when(
    request: &HttpRequest,
    is_due: impl Future<Output = bool> + 'static,
    log: impl FnOnce() + 'static,
) {
    let Some(socket) = of(request).as_ref().map(Rc::downgrade) else { return };
    actix_web::rt::spawn(async move {
        if is_due.await && shut_down(&socket) {
            log();
        }
    });
}

/// Returns whether the connection still existed.
fn shut_down(socket: &Weak<ConnectionHandle>) -> bool {
    let socket = socket.upgrade();
    if let Some(socket) = &socket {
        // Fails only if the connection has ended already.
        let _ = rustix::net::shutdown(&*socket.stream, rustix::net::Shutdown::Both);
    }
    socket.is_some()
}
