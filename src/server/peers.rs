//! The connections of one listener, and the wrong tokens of their peers: the rules of [`super::admission`] and
//! [`super::guess_limit`], carried out.
//!
//! [`Peers::arrive`] runs for each new connection and closes others for it. The guard in [`super::auth`] reports each
//! request to the connection's [`ConnectionPlace`].

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use actix_web::{
    body::{BodySize, MessageBody},
    dev::{Extensions, ServiceRequest, ServiceResponse},
    http::{ConnectionType, header},
    rt::net::TcpStream,
    web::Bytes,
};
use cc_executor_actors::{peer::PeerBlock, share::ShareExceeded};
use pin_project_lite::pin_project;
use rustix::net::{Shutdown, shutdown, sockopt::set_socket_linger};

use super::{
    admission::{ConnectionBounds, ConnectionId, ConnectionTable},
    connection,
    guess_limit::GuessLimit,
    socket::Socket,
};

/// How often connections whose time is over are looked for.
const SWEEP_CADENCE: Duration = Duration::from_secs(1);

/// actix starts no more workers than this.
const MAX_WORKERS: usize = 512;

/// How long the answer to a wrong token of a peer that has sent too many is held back.
const PENALTY: Duration = Duration::from_secs(1);

/// The peers of one listener.
#[derive(Debug)]
pub struct Peers {
    bounds: ConnectionBounds,
    connections: Mutex<Connections>,
    guesses: Mutex<GuessLimit>,
}

#[derive(Debug)]
struct Connections {
    table: ConnectionTable,
    sockets: HashMap<ConnectionId, Weak<TcpStream>>,
}

impl Peers {
    /// The peers of a listener with these bounds.
    pub fn new(bounds: ConnectionBounds) -> Arc<Self> {
        let connections = Connections { table: ConnectionTable::new(bounds), sockets: HashMap::new() };
        Arc::new(Peers { bounds, connections: Mutex::new(connections), guesses: Mutex::default() })
    }

    /// How long a request may take to arrive.
    pub fn patience(&self) -> Duration {
        self.bounds.patience
    }

    /// How many connections each of actix's workers may have. At this number actix accepts no more. That is above the
    /// bounds, so it only holds back a burst until the connections that gave way to it are closed.
    pub fn for_each_worker(&self) -> usize {
        let n_workers = thread::available_parallelism().map_or(2, usize::from).min(MAX_WORKERS);
        (self.bounds.connections / 4).saturating_add(self.bounds.connections).div_ceil(n_workers)
    }

    /// Gives a new connection a place, and closes those that must give way to it.
    pub fn arrive(self: &Arc<Self>, socket: &Socket, data: &mut Extensions) {
        connection::keep(socket, data);
        let stream = socket.stream();
        let peer = PeerBlock::from(stream.peer_addr().ok().map(|address| address.ip()));
        let mut connections = lock(&self.connections);
        let (id, closed) = connections.table.arrive(peer, Instant::now());
        connections.sockets.insert(id, Arc::downgrade(stream));
        closed.into_iter().for_each(|id| connections.close(id));
        data.insert(ConnectionPlace { peers: Arc::clone(self), id, peer });
    }

    /// Closes connections whose time is over, for ever.
    pub async fn sweep(self: Arc<Self>) {
        loop {
            actix_web::rt::time::sleep(SWEEP_CADENCE).await;
            self.sweep_at(Instant::now());
        }
    }

    fn sweep_at(&self, now: Instant) {
        let mut connections = lock(&self.connections);
        for id in connections.table.resting(now) {
            if connections.is_full(id) {
                connections.table.keep_sending(id, now);
            }
        }
        for id in connections.table.take_overdue(now) {
            connections.reset_when_closed(id);
            connections.close(id);
        }
    }
}

impl Connections {
    /// Whether the socket takes nothing more, so that actix may still have bytes for it.
    fn is_full(&self, id: ConnectionId) -> bool {
        self.sockets.get(&id).and_then(Weak::upgrade).is_some_and(|socket| !connection::has_room(&*socket))
    }

    /// Has the kernel reset a connection when actix drops it (SO_LINGER, socket(7)). A peer that still sends would otherwise
    /// meet a socket in FIN_WAIT2 whose window is full, and probe it for two minutes.
    fn reset_when_closed(&self, id: ConnectionId) {
        if let Some(socket) = self.sockets.get(&id).and_then(Weak::upgrade) {
            // If this fails, only the peer waits longer.
            let _ = set_socket_linger(&*socket, Some(Duration::ZERO));
        }
    }

    /// Has actix drop a connection.
    fn close(&self, id: ConnectionId) {
        if let Some(socket) = self.sockets.get(&id).and_then(Weak::upgrade) {
            // Fails only if the connection has ended already.
            let _ = shutdown(&*socket, Shutdown::Both);
        }
    }
}

/// The place of a connection among those of its listener. Belongs to the connection's data, so it is dropped with it.
#[derive(Debug)]
pub struct ConnectionPlace {
    peers: Arc<Peers>,
    id: ConnectionId,
    peer: PeerBlock,
}

impl ConnectionPlace {
    /// A request that needs no authorization has come.
    pub fn probe(&self) {
        lock(&self.peers.connections).table.probe(self.id, Instant::now());
    }

    /// An authorized request begins.
    ///
    /// # Errors
    ///
    /// Too many authorized connections are in use.
    pub fn begin(&self) -> Result<Work, ShareExceeded> {
        let mut connections = lock(&self.peers.connections);
        let closed = connections.table.begin(self.id, Instant::now())?;
        closed.into_iter().for_each(|id| connections.close(id));
        Ok(Work { peers: Arc::clone(&self.peers), id: self.id })
    }

    /// A request is refused, and the connection is closed after the answer.
    pub fn refuse(&self) {
        lock(&self.peers.connections).table.refuse(self.id, Instant::now());
    }

    /// Counts a wrong token. If the peer has sent too many, waits, and returns the time after which it may send the
    /// next one.
    pub async fn slow_down(&self) -> Option<Duration> {
        let retry_after = lock(&self.peers.guesses).count(self.peer, Instant::now())?;
        actix_web::rt::time::sleep(PENALTY).await;
        Some(retry_after)
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let mut connections = lock(&self.peers.connections);
        connections.table.leave(self.id);
        connections.sockets.remove(&self.id);
    }
}

/// An authorized request on a connection, until its response is sent.
#[derive(Debug)]
pub struct Work {
    peers: Arc<Peers>,
    id: ConnectionId,
}

impl Drop for Work {
    fn drop(&mut self) {
        lock(&self.peers.connections).table.end(self.id, Instant::now());
    }
}

pin_project! {
    /// A response's body, with which the work of its request ends.
    #[derive(Debug)]
    pub struct WorkBody<B> {
        #[pin]
        body: B,
        _work: Option<Work>,
    }
}

impl<B> WorkBody<B> {
    /// Ends the work with the response's body. If the request was refused, the connection of a chunked body ends with
    /// it, too, because actix would read the rest, which has no bound.
    pub fn wrap(response: ServiceResponse<B>, work: Option<Work>) -> ServiceResponse<WorkBody<B>> {
        let is_chunked = response.request().headers().contains_key(header::TRANSFER_ENCODING);
        let is_refused = response.status().is_client_error() || response.status().is_server_error();
        let mut response = response.map_body(|_, body| WorkBody { body, _work: work });
        if is_refused && is_chunked {
            response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
            if let Some(place) = response.request().conn_data::<ConnectionPlace>() {
                place.refuse();
            }
        }
        response
    }
}

impl<B: MessageBody> MessageBody for WorkBody<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.project().body.poll_next(cx)
    }
}

/// The place of the connection of this request.
pub fn place_of(request: &ServiceRequest) -> Option<&ConnectionPlace> {
    request.conn_data::<ConnectionPlace>()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use actix_web::rt::net::TcpListener;
    use rustix::{
        io::Errno,
        net::{SendFlags, send},
    };
    use tokio::io::AsyncReadExt;

    use super::*;

    /// A connection whose only response has ended, but for what its full socket holds: its two ends, and its data.
    async fn with_full_socket(peers: &Arc<Peers>) -> (TcpStream, Arc<TcpStream>, Extensions, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = Socket::new(listener.accept().await.unwrap().0);
        let server = Arc::clone(socket.stream());
        let mut data = Extensions::new();
        peers.arrive(&socket, &mut data);
        drop(data.get::<ConnectionPlace>().unwrap().begin().unwrap());
        let mut n_written = 0;
        loop {
            match rustix::io::write(&*server, &[b'x'; 1 << 16]) {
                Ok(n) => n_written += n,
                Err(Errno::AGAIN) if !connection::has_room(&*server) => return (client, server, data, n_written),
                Err(Errno::AGAIN) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn is_cut(server: &TcpStream) -> bool {
        send(server, b"", SendFlags::NOSIGNAL) == Err(Errno::PIPE)
    }

    #[actix_web::test]
    async fn the_end_of_a_response_may_be_read_slowly_but_not_for_ever() {
        let bounds = ConnectionBounds::of_backend(4_096, 512, Duration::from_secs(10));
        let peers = Peers::new(bounds);
        let sweep = |from, seconds: std::ops::Range<u64>| {
            seconds.for_each(|n| peers.sweep_at(from + Duration::from_secs(n)));
        };
        let ((mut slow, server, _slow_data, n_written), start) = (with_full_socket(&peers).await, Instant::now());
        sweep(start, 0..290);
        assert!(!is_cut(&server), "its client reads");
        let mut bytes = vec![0; n_written];
        slow.read_exact(&mut bytes).await.unwrap();
        sweep(start, 290..385);
        assert!(is_cut(&server), "it has been idle for too long");

        let ((_silent, server, _silent_data, _), start) = (with_full_socket(&peers).await, Instant::now());
        sweep(start, 0..400);
        assert!(is_cut(&server), "its client reads nothing");
    }
}
