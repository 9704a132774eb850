//! What actix does not offer for a connection. [`watch_peer`] and [`PeerTimeout`] have the kernel notice a peer that is
//! gone, [`Unflushed`] counts connections whose last bytes may not be sent, and [`ConnectionHandle`] is a duplicate of
//! the descriptor, for two operations.
//!
//! The first is to shut down a socket whose peer does not read: when a response body has ended, actix waits without a
//! limit for the peer to read the rest, and only shutdown(2) ends that. The second is to see whether a socket has room,
//! see [`has_room`]. The duplicate is made with the connection and belongs to its data, so it is
//! closed with the connection; timers hold it weakly.

use std::{
    any::Any,
    cell::{OnceCell, RefCell},
    io::ErrorKind,
    os::fd::{AsFd, OwnedFd},
    rc::{Rc, Weak},
    sync::{self, Arc},
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

/// How long the peer may take to read the last bytes before its connection is shut down.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// The number of unanswered keepalive probes after which an idle peer counts as gone.
const KEEPALIVE_PROBES: u32 = 6;

/// A second descriptor of a connection.
#[derive(Debug)]
pub struct ConnectionHandle {
    descriptor: Arc<OwnedFd>,
    flushing: RefCell<Option<Flushing>>,
    /// One more duplicate, made when the socket is waited for.
    writable: OnceCell<Option<TcpStream>>,
}

impl ConnectionHandle {
    /// Whether the socket has room, see [`has_room`].
    pub fn has_room(&self) -> bool {
        has_room(&*self.descriptor)
    }

    /// Waits until the socket has room. Ready at once where that cannot be waited for.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let register = || TcpStream::from_std(self.descriptor.try_clone().ok()?.into()).ok();
        let Some(writable) = self.writable.get_or_init(register) else { return Poll::Ready(()) };
        loop {
            if ready!(writable.poll_write_ready(cx)).is_err() || self.has_room() {
                return Poll::Ready(());
            }
            // Tells tokio that the socket was not ready, so that it waits for the next event.
            let _ = writable.try_io(Interest::WRITABLE, || Err::<(), _>(ErrorKind::WouldBlock.into()));
        }
    }

    /// Has the kernel take no more from us while this many bytes are not sent.
    pub fn limit_unsent(&self, bytes: u32) {
        // If this fails, a slow client only gets its pongs later.
        let _ = SockRef::from(&*self.descriptor).set_tcp_notsent_lowat(bytes);
    }
}

/// Whether the kernel accepts more bytes of a socket now. True if poll(2) fails, so that no caller waits for it.
pub fn has_room(socket: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec::default())).map_or(true, |n| n > 0)
}

/// The duplicate of the connection of this request.
pub fn of(request: &HttpRequest) -> Option<Rc<ConnectionHandle>> {
    request.conn_data::<Rc<ConnectionHandle>>().map(Rc::clone)
}

/// Duplicates the descriptor of a new connection, and puts it into the connection's data. `None` if the process has no
/// descriptor left.
pub fn keep(stream: &TcpStream, data: &mut Extensions) -> Option<sync::Weak<OwnedFd>> {
    let descriptor = Arc::new(stream.as_fd().try_clone_to_owned().ok()?);
    let duplicate = Arc::downgrade(&descriptor);
    data.insert(Rc::new(ConnectionHandle { descriptor, flushing: RefCell::default(), writable: OnceCell::new() }));
    Some(duplicate)
}

/// Has the kernel probe an idle peer, so that one that vanished is noticed within this time. It does not probe while
/// data is unacknowledged, see [`PeerTimeout`].
pub fn watch_peer(connection: &dyn Any, patience: Duration) {
    let Some(stream) = connection.downcast_ref::<TcpStream>() else { return };
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
    socket: Arc<OwnedFd>,
    patience: Duration,
    is_suspended: bool,
}

impl PeerTimeout {
    /// Sets the time-out of the connection of this request.
    pub fn over(request: &HttpRequest, patience: Duration) -> Option<PeerTimeout> {
        let socket = Arc::clone(&of(request)?.descriptor);
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
        let _ = rustix::net::shutdown(&*socket.descriptor, rustix::net::Shutdown::Both);
    }
    socket.is_some()
}
