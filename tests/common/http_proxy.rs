//! An HTTP proxy that sees each request, and lets a test decide what becomes of it and of its response.
//!
//! Each connection carries one request: `Connection: close` is added to it, so that no later request
//! passes unseen on the same connection.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::{PATIENCE, stub::respond};

/// A running proxy. It stops listening when dropped.
pub struct HttpProxy {
    pub address: SocketAddr,
    stopped: Arc<AtomicBool>,
}

/// A request that was read and not yet passed on.
pub struct Exchange {
    pub method: String,
    pub path: String,
    request: Vec<u8>,
    client: TcpStream,
}

/// A request that was passed on, whose response is held back.
pub struct Held {
    client: TcpStream,
    server: TcpStream,
    response: Vec<u8>,
}

impl HttpProxy {
    /// Calls `decide` for each request, on a thread of its own.
    pub fn start(decide: impl Fn(Exchange) + Send + Sync + 'static) -> HttpProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let (over, decide) = (Arc::clone(&stopped), Arc::new(decide));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let decide = Arc::clone(&decide);
                thread::spawn(move || {
                    if let Some(exchange) = Exchange::read(client) {
                        decide(exchange);
                    }
                });
            }
        });
        HttpProxy { address, stopped }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the listener, so that its port is given back.
        let _ = TcpStream::connect(self.address);
    }
}

impl Exchange {
    fn read(mut client: TcpStream) -> Option<Exchange> {
        let mut read = Vec::new();
        let end = loop {
            if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 2;
            }
            more(&mut client, &mut read)?;
        };
        let head = String::from_utf8_lossy(&read[..end]).into_owned();
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let length: usize = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        while read.len() < end + 2 + length {
            more(&mut client, &mut read)?;
        }
        let mut words = head.split_ascii_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let kept = head.split_inclusive("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        let mut request = kept.collect::<String>().into_bytes();
        request.extend_from_slice(b"Connection: close\r\n");
        request.extend_from_slice(&read[end..]);
        Some(Exchange { method, path, request, client })
    }

    /// Whether it asks for a new execution.
    pub fn is_execute(&self) -> bool {
        (self.method.as_str(), self.path.as_str()) == ("POST", "/execute/stream")
    }

    /// Answers it with this JSON.
    pub fn answer(mut self, status: u16, body: &str) {
        respond(&mut self.client, status, body);
        let _ = self.client.shutdown(Shutdown::Both);
    }

    /// Passes it on, and whatever comes back.
    pub fn forward(self, target: SocketAddr) {
        if let Some(held) = self.send(target) {
            held.pass();
        }
    }

    /// Passes it on, and holds back what comes.
    pub fn send(self, target: SocketAddr) -> Option<Held> {
        let mut server = TcpStream::connect(target).ok()?;
        server.write_all(&self.request).ok()?;
        Some(Held { client: self.client, server, response: Vec::new() })
    }

    /// Resets its connection without passing it on.
    pub fn cut(self) {
        reset(&self.client);
    }
}

impl Held {
    /// Waits for the first bytes of the response.
    pub fn answered(&mut self) {
        self.server.set_read_timeout(Some(PATIENCE)).unwrap();
        more(&mut self.server, &mut self.response).expect("the service answers");
        self.server.set_read_timeout(None).unwrap();
    }

    /// Lets the response pass.
    pub fn pass(mut self) {
        if self.client.write_all(&self.response).is_err() {
            let _ = self.server.shutdown(Shutdown::Both);
            return;
        }
        let (from_client, to_server) = (self.client.try_clone().unwrap(), self.server.try_clone().unwrap());
        thread::spawn(move || copy(from_client, to_server));
        copy(self.server, self.client);
    }

    /// Resets the connection of whoever asked. The other one lives for as long as it is kept.
    pub fn cut(self) -> TcpStream {
        reset(&self.client);
        self.server
    }
}

fn more(from: &mut TcpStream, into: &mut Vec<u8>) -> Option<()> {
    let mut bytes = [0; 16 * 1024];
    let n = from.read(&mut bytes).ok().filter(|n| *n > 0)?;
    into.extend_from_slice(&bytes[..n]);
    Some(())
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}
