//! An HTTP proxy that makes tunnels, or refuses to in every way. It connects where the test says, so a host name in a
//! test needs no name service.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use super::listener::TestListener;

/// What a proxy does with a request for a tunnel.
#[derive(Clone, Debug)]
pub enum ProxyConduct {
    /// Makes it, to this address.
    Forward(SocketAddr),
    /// Makes it for a client with this `Proxy-Authorization`, and answers others with 407.
    ForwardIf(SocketAddr, String),
    /// Answers with these bytes, and closes.
    Answer(Vec<u8>),
    /// Reads, and never answers.
    Silent,
    /// Sends a head without an end.
    Endless,
}

/// A running proxy.
pub struct ConnectProxy {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    _listener: TestListener,
}

impl ConnectProxy {
    pub fn start(conduct: ProxyConduct) -> ConnectProxy {
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        let listener = TestListener::start(move |stream| {
            let (seen, conduct) = (Arc::clone(&seen), conduct.clone());
            thread::spawn(move || serve(stream, &seen, &conduct));
        });
        ConnectProxy { address: listener.address, heads, _listener: listener }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The heads of the requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn serve(mut client: TcpStream, seen: &Mutex<Vec<String>>, conduct: &ProxyConduct) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    seen.lock().unwrap().push(head.clone());
    match conduct {
        ProxyConduct::Forward(to) => forward(client, *to),
        ProxyConduct::ForwardIf(to, authorization) => {
            if head.contains(&format!("\r\nProxy-Authorization: {authorization}\r\n")) {
                return forward(client, *to);
            }
            client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n").ok()
        }
        ProxyConduct::Answer(bytes) => {
            client.write_all(bytes).ok()?;
            client.shutdown(Shutdown::Both).ok()
        }
        // Ends when the client gives up.
        ProxyConduct::Silent => client.read(&mut [0]).ok().map(drop),
        ProxyConduct::Endless => loop {
            client.write_all(b"X-Y: z\r\n").ok()?;
        },
    }
}

fn forward(mut client: TcpStream, to: SocketAddr) -> Option<()> {
    let server = TcpStream::connect(to).ok()?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n").ok()?;
    let (from_client, to_server) = (client.try_clone().ok()?, server.try_clone().ok()?);
    thread::spawn(move || copy(from_client, to_server));
    copy(server, client);
    Some(())
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
