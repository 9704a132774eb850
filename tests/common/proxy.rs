//! A TCP proxy that breaks each connection after a given number of bytes.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::listener::TestListener;

/// How a connection is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CutKind {
    /// Closed at both ends.
    Fin,
    /// Reset at both ends.
    Reset,
    /// Open at both ends, but no byte reaches the client any more.
    Silent,
}

/// A proxy in front of a service. It stops listening when dropped.
pub struct Proxy {
    pub address: SocketAddr,
    n_connections: Arc<AtomicUsize>,
    _listener: TestListener,
}

impl Proxy {
    /// Forwards to `target`. For each connection, by its number, `cut` gives the number of bytes towards the client after
    /// which it is broken, and how.
    pub fn start(target: SocketAddr, cut: impl Fn(usize) -> Option<(u64, CutKind)> + Send + 'static) -> Proxy {
        let n_connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&n_connections);
        let listener = TestListener::start(move |client| {
            let cut = cut(counter.fetch_add(1, Ordering::SeqCst));
            let Ok(server) = TcpStream::connect(target) else { return };
            let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || forward(from_client, to_server, None));
            thread::spawn(move || forward(server, client, cut));
        });
        Proxy { address: listener.address, n_connections, _listener: listener }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The number of connections so far.
    pub fn n_connections(&self) -> usize {
        self.n_connections.load(Ordering::SeqCst)
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, cut: Option<(u64, CutKind)>) {
    let mut left = cut.map_or(u64::MAX, |(after, _)| after);
    let mut bytes = [0; 64 * 1024];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        match from.read(&mut bytes[..most]) {
            Ok(n) if n > 0 && to.write_all(&bytes[..n]).is_ok() => left -= n as u64,
            _ => break,
        }
    }
    if left == 0 && cut.is_some_and(|(_, cut)| cut == CutKind::Silent) {
        // Leaked, because dropping them would close both ends.
        std::mem::forget((from, to));
        return;
    }
    if left == 0 && cut.is_some_and(|(_, cut)| cut == CutKind::Reset) {
        for stream in [&from, &to] {
            let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
        }
        // Only the reading side, because shutting down the writing side would send a FIN before the reset. The other
        // direction holds duplicates of both.
        let _ = (from.shutdown(Shutdown::Read), to.shutdown(Shutdown::Read));
        return;
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
