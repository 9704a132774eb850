//! A duplicate of each connection's descriptor, for what actix does not offer.
//!
//! First, to shut down the socket of a closed session.
//! When a response body has ended, actix waits for the peer to take what is left, for ever if the peer
//! does not read. Only shutdown(2) on a duplicate of the descriptor ends that. The duplicate is taken
//! when the connection is made and belongs to the connection's own data: it goes when the connection
//! does, and the timer holds it weakly. Second, whether a socket has room, see
//! [`ConnectionHandle::has_room`].

use std::{
    any::Any,
    cell::RefCell,
    os::fd::{AsFd, OwnedFd},
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use actix_web::{HttpRequest, dev::Extensions, rt::net::TcpStream};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt,
};
use tokio::sync::watch;

/// How long the peer may take to read what was sent last, before its connection is shut down.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// Unanswered keepalive probes after which a quiet peer is gone.
const KEEPALIVE_PROBES: u32 = 6;

/// A second descriptor of a connection.
#[derive(Debug)]
pub struct ConnectionHandle {
    descriptor: Arc<OwnedFd>,
    flushing: RefCell<Option<Flushing>>,
}

impl ConnectionHandle {
    /// Whether the kernel would take more. True where it cannot say: nothing is waited for then.
    pub fn has_room(&self) -> bool {
        let mut fds = [PollFd::new(&*self.descriptor, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())).map_or(true, |n| n > 0)
    }
}

/// The duplicate of the connection that this request came over.
pub fn of(request: &HttpRequest) -> Option<Rc<ConnectionHandle>> {
    request.conn_data::<Rc<ConnectionHandle>>().map(Rc::clone)
}

/// Takes the duplicate of a new connection.
pub fn keep(connection: &dyn Any, data: &mut Extensions) {
    let duplicate = connection.downcast_ref::<TcpStream>().and_then(|stream| stream.as_fd().try_clone_to_owned().ok());
    if let Some(duplicate) = duplicate {
        data.insert(Rc::new(ConnectionHandle { descriptor: Arc::new(duplicate), flushing: RefCell::default() }));
    }
}

/// Has the kernel look after a peer that is quiet: one that vanished without a word is found within
/// this time. One that is being written to is not found so, see [`PeerTimeout`].
pub fn watch_peer(connection: &dyn Any, patience: Duration) {
    let Some(stream) = connection.downcast_ref::<TcpStream>() else { return };
    let step = (patience / (KEEPALIVE_PROBES + 2)).max(Duration::from_secs(1));
    // Without these the peer is only found later.
    let _ = sockopt::set_socket_keepalive(stream, true)
        .and_then(|()| sockopt::set_tcp_keepidle(stream, step * 2))
        .and_then(|()| sockopt::set_tcp_keepintvl(stream, step))
        .and_then(|()| sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES));
}

/// Has the kernel look after a peer that is written to: one that acknowledges nothing for so long is
/// gone (TCP_USER_TIMEOUT, tcp(7)). The kernel takes a peer that only does not read for one that is gone,
/// so this is held off while the peer is known to live.
#[derive(Debug)]
pub struct PeerTimeout {
    socket: Arc<OwnedFd>,
    patience: Duration,
    held_off: bool,
}

impl PeerTimeout {
    /// Watches the connection of this request.
    pub fn over(request: &HttpRequest, patience: Duration) -> Option<PeerTimeout> {
        let socket = Arc::clone(&of(request)?.descriptor);
        let watch = PeerTimeout { socket, patience, held_off: false };
        watch.set(patience);
        Some(watch)
    }

    /// Holds off, or not.
    pub fn hold_off(&mut self, held_off: bool) {
        if self.held_off != held_off {
            self.held_off = held_off;
            self.set(if held_off { Duration::ZERO } else { self.patience });
        }
    }

    fn set(&self, patience: Duration) {
        let ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        // Without it the peer is only found later.
        let _ = sockopt::set_tcp_user_timeout(&*self.socket, ms);
    }
}

/// Connections on which something was said that the kernel may not have yet.
#[derive(Clone, Debug, Default)]
pub struct Unflushed(watch::Sender<usize>);

/// One of them. It goes with its connection, which goes when all is flushed.
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

    /// Waits until there are none.
    pub async fn none(&self) {
        // The sender is this one.
        let _ = self.0.subscribe().wait_for(|n| *n == 0).await;
    }
}

impl Drop for Flushing {
    fn drop(&mut self) {
        self.0.0.send_modify(|n| *n -= 1);
    }
}

/// Shuts the connection of this request down when `is_due` says so, if it is still there then, and calls `log`.
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

/// True if there was something to shut down.
fn shut_down(socket: &Weak<ConnectionHandle>) -> bool {
    let socket = socket.upgrade();
    if let Some(socket) = &socket {
        // It can only fail on a connection that has ended already.
        let _ = rustix::net::shutdown(&*socket.descriptor, rustix::net::Shutdown::Both);
    }
    socket.is_some()
}
