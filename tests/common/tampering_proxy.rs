//! A proxy between a client and its service that hands each WebSocket message to a test, which may change or drop it.
//! Connections that are no WebSocket pass unchanged.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::Value;

use super::{
    frames::{self, frame, read_frame, server_frame},
    listener::TestListener,
};

/// The direction of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    ToService,
    ToClient,
}

/// Changes a message, or drops it by returning false. The text is the command that the session runs.
type Tamper = dyn Fn(Direction, &str, &mut Value) -> bool + Send + Sync;

/// A running proxy. It stops listening when dropped.
pub struct TamperingProxy {
    pub address: SocketAddr,
    _listener: TestListener,
}

impl TamperingProxy {
    pub fn start(
        service: SocketAddr,
        tamper: impl Fn(Direction, &str, &mut Value) -> bool + Send + Sync + 'static,
    ) -> TamperingProxy {
        let tamper: Arc<Tamper> = Arc::new(tamper);
        let listener = TestListener::start(move |client| {
            let Ok(server) = TcpStream::connect(service) else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let command = Arc::new(Mutex::new(String::new()));
            let (of_client, tamper_client) = (Arc::clone(&command), Arc::clone(&tamper));
            let tamper = Arc::clone(&tamper);
            thread::spawn(move || forward(from_client, to_server, Direction::ToService, &of_client, &*tamper_client));
            thread::spawn(move || forward(server, client, Direction::ToClient, &command, &*tamper));
        });
        TamperingProxy { address: listener.address, _listener: listener }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, direction: Direction, command: &Mutex<String>, tamper: &Tamper) {
    // An error is the end of either connection.
    let _ = forward_all(&mut from, &mut to, direction, command, tamper);
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

fn forward_all(
    from: &mut TcpStream,
    to: &mut TcpStream,
    direction: Direction,
    command: &Mutex<String>,
    tamper: &Tamper,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    to.write_all(&head)?;
    if !String::from_utf8_lossy(&head).to_ascii_lowercase().contains("upgrade: websocket") {
        return std::io::copy(from, to).map(|_| ());
    }
    loop {
        let mut read = read_frame(from)?;
        if read.first == frames::TEXT
            && let Ok(mut message) = serde_json::from_slice::<Value>(&read.payload)
        {
            if let (Direction::ToService, Some(sent)) = (direction, message["params"]["command"].as_str()) {
                *command.lock().unwrap() = sent.to_owned();
            }
            let command = command.lock().unwrap().clone();
            if !tamper(direction, &command, &mut message) {
                continue;
            }
            read.payload = message.to_string().into_bytes();
        }
        match direction {
            Direction::ToService => to.write_all(&frame(read.first, &read.payload))?,
            Direction::ToClient => to.write_all(&server_frame(read.first, &read.payload))?,
        }
    }
}
