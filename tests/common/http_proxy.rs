//! An HTTP proxy that passes each request to a test, which forwards, delays, answers or cuts it.
//!
//! Each connection carries one request. `Connection: close` is added to it, because a later request on the same
//! connection would bypass the test.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use super::{PATIENCE, listener::TestListener, stub::respond};

/// A running proxy. It stops listening when dropped.
pub struct HttpProxy {
    pub address: SocketAddr,
    _listener: TestListener,
}

/// A request that was read and not yet forwarded.
pub struct Exchange {
    pub method: String,
    pub path: String,
    request: Vec<u8>,
    client: TcpStream,
}

/// A request that was forwarded, and its response, which was not.
pub struct HeldResponse {
    client: TcpStream,
    server: TcpStream,
    response: Vec<u8>,
}

impl HttpProxy {
    /// Calls `decide` for each request, on a thread of its own.
    pub fn start(decide: impl Fn(Exchange) + Send + Sync + 'static) -> HttpProxy {
        let decide = Arc::new(decide);
        let listener = TestListener::start(move |client| {
            let decide = Arc::clone(&decide);
            thread::spawn(move || {
                if let Some(exchange) = Exchange::read(client) {
                    decide(exchange);
                }
            });
        });
        HttpProxy { address: listener.address, _listener: listener }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Exchange {
    fn read(mut client: TcpStream) -> Option<Exchange> {
        let mut read = Vec::new();
        let end = loop {
            if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 2;
            }
            read_more(&mut client, &mut read)?;
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
            read_more(&mut client, &mut read)?;
        }
        let mut words = head.split_ascii_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let kept = head.split_inclusive("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        let mut request = kept.collect::<String>().into_bytes();
        request.extend_from_slice(b"Connection: close\r\n");
        request.extend_from_slice(&read[end..]);
        Some(Exchange { method, path, request, client })
    }

    /// Whether the request starts an execution.
    pub fn is_execute(&self) -> bool {
        (self.method.as_str(), self.path.as_str()) == ("POST", "/execute/stream")
    }

    /// Answers the request with this JSON.
    pub fn answer(mut self, status: u16, body: &str) {
        respond(&mut self.client, status, body);
        let _ = self.client.shutdown(Shutdown::Both);
    }

    /// Forwards the request and its response.
    pub fn forward(self, target: SocketAddr) {
        if let Some(held) = self.forward_request(target) {
            held.forward();
        }
    }

    /// Forwards the request, waits for the first bytes of the response, and holds them back.
    pub fn hold_response(self, target: SocketAddr) -> HeldResponse {
        let mut held = self.forward_request(target).expect("the service listens");
        held.server.set_read_timeout(Some(PATIENCE)).unwrap();
        read_more(&mut held.server, &mut held.response).expect("the service answers");
        held.server.set_read_timeout(None).unwrap();
        held
    }

    fn forward_request(self, target: SocketAddr) -> Option<HeldResponse> {
        let mut server = TcpStream::connect(target).ok()?;
        server.write_all(&self.request).ok()?;
        Some(HeldResponse { client: self.client, server, response: Vec::new() })
    }

    /// Resets the client's connection without forwarding the request.
    pub fn cut(self) {
        reset(&self.client);
    }
}

impl HeldResponse {
    /// Forwards the response.
    pub fn forward(mut self) {
        if self.client.write_all(&self.response).is_err() {
            let _ = self.server.shutdown(Shutdown::Both);
            return;
        }
        let (from_client, to_server) = (self.client.try_clone().unwrap(), self.server.try_clone().unwrap());
        thread::spawn(move || copy(from_client, to_server));
        copy(self.server, self.client);
    }

    /// Resets the client's connection, and returns the one to the service, which stays open until it is dropped.
    pub fn cut(self) -> TcpStream {
        reset(&self.client);
        self.server
    }
}

fn read_more(from: &mut TcpStream, into: &mut Vec<u8>) -> Option<()> {
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
