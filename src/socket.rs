//! A duplicate of each connection's descriptor, for what actix does not offer.
//!
//! First, that the socket of a closed session comes back.
//! When a response body has ended, actix waits for the peer to take what is left, for ever if the peer
//! does not read. Only shutdown(2) on a duplicate of the descriptor ends that. The duplicate is taken
//! when the connection is made and belongs to the connection's own data: it goes when the connection
//! does, and the timer holds it weakly. Second, whether a socket has room, see
//! [`Duplicate::has_room`].

use std::{
    any::Any,
    os::fd::{AsFd, OwnedFd},
    rc::{Rc, Weak},
    time::Duration,
};

use actix_web::{HttpRequest, dev::Extensions, rt::net::TcpStream};
use cc_executor_actors::{id::SessionId, session::Ended};
use log::info;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long what was said last may take to be read after a session has ended.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// A second descriptor of a connection.
#[derive(Debug)]
pub struct Duplicate(OwnedFd);

impl Duplicate {
    /// Whether the kernel would take more. True where it cannot say: nothing is waited for then.
    pub fn has_room(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())).map_or(true, |n| n > 0)
    }
}

/// The duplicate of the connection that this request came over.
pub fn of(request: &HttpRequest) -> Option<Rc<Duplicate>> {
    request.conn_data::<Rc<Duplicate>>().map(Rc::clone)
}

/// Takes the duplicate of a new connection.
pub fn keep(connection: &dyn Any, data: &mut Extensions) {
    let duplicate = connection.downcast_ref::<TcpStream>().and_then(|stream| stream.as_fd().try_clone_to_owned().ok());
    if let Some(duplicate) = duplicate {
        data.insert(Rc::new(Duplicate(duplicate)));
    }
}

/// Shuts the connection of this request down a while after its session has ended, if it is still there.
pub fn release_after(request: &HttpRequest, ended: Ended, id: SessionId) {
    let Some(socket) = of(request).as_ref().map(Rc::downgrade) else { return };
    actix_web::rt::spawn(async move {
        ended.wait().await;
        actix_web::rt::time::sleep(DRAIN_PATIENCE).await;
        shut_down(&socket, id);
    });
}

fn shut_down(socket: &Weak<Duplicate>, id: SessionId) {
    if let Some(socket) = socket.upgrade() {
        info!(event = "socket.shut_down", session_id:% = id; "a closed session's client does not read: its connection is cut");
        // It can only fail on a connection that has ended already.
        let _ = rustix::net::shutdown(&socket.0, rustix::net::Shutdown::Both);
    }
}
