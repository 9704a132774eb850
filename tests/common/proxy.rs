//! A TCP proxy that breaks connections when it is told to.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// How a connection is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CutKind {
    /// Properly closed, at both ends.
    Fin,
    /// Reset, at both ends.
    Reset,
    /// Nothing more comes towards the client, and neither end is told.
    Silent,
}

/// A proxy in front of a service. It stops listening when dropped.
pub struct Proxy {
    pub address: SocketAddr,
    n_connections: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

impl Proxy {
    /// Forwards to `target`. `cut` says of each connection by its number after how many bytes towards
    /// the client it is broken, and how.
    pub fn start(target: SocketAddr, cut: impl Fn(usize) -> Option<(u64, CutKind)> + Send + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let n_connections = Arc::new(AtomicUsize::new(0));
        let stopped = Arc::new(AtomicBool::new(false));
        let (counted, over) = (Arc::clone(&n_connections), Arc::clone(&stopped));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let cut = cut(counted.fetch_add(1, Ordering::SeqCst));
                let Ok(server) = TcpStream::connect(target) else { continue };
                let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || forward(from_client, to_server, None));
                thread::spawn(move || forward(server, client, cut));
            }
        });
        Proxy { address, n_connections, stopped }
    }

    /// How many connections were made.
    pub fn n_connections(&self) -> usize {
        self.n_connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the listener, so that its port is given back.
        let _ = TcpStream::connect(self.address);
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
        // Both stay open for as long as the test's process lives.
        std::mem::forget((from, to));
        return;
    }
    if left == 0 && cut.is_some_and(|(_, cut)| cut == CutKind::Reset) {
        for stream in [&from, &to] {
            let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
        }
        // The other direction holds duplicates: shut down nothing, or the reset would become an end.
        let _ = (from.shutdown(Shutdown::Read), to.shutdown(Shutdown::Read));
        return;
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
