//! Somebody between a client and its service who reads each message, and changes or swallows some. What is
//! no WebSocket passes as it is.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use serde_json::Value;

use super::client::frame;

/// Which way a message goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    ToService,
    ToClient,
}

/// What is done to a message: it may be changed; `false` swallows it. The command that its session runs is
/// there to go by.
pub type Meddle = fn(Direction, &str, &mut Value) -> bool;

/// A running proxy. It stops listening when dropped.
pub struct TamperingProxy {
    pub address: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl TamperingProxy {
    pub fn start(service: SocketAddr, meddle: Meddle) -> TamperingProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stopped);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(server) = TcpStream::connect(service) else { continue };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let command = Arc::new(Mutex::new(String::new()));
                let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let asked = Arc::clone(&command);
                thread::spawn(move || pass(from_client, to_server, Direction::ToService, &asked, meddle));
                thread::spawn(move || pass(server, client, Direction::ToClient, &command, meddle));
            }
        });
        TamperingProxy { address, stopped }
    }
}

impl Drop for TamperingProxy {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the listener, so that its port is given back.
        let _ = TcpStream::connect(self.address);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, way: Direction, command: &Mutex<String>, meddle: Meddle) {
    let _ = pass_all(&mut from, &mut to, way, command, meddle);
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

fn pass_all(
    from: &mut TcpStream,
    to: &mut TcpStream,
    way: Direction,
    command: &Mutex<String>,
    meddle: Meddle,
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
        let mut start = [0; 2];
        from.read_exact(&mut start)?;
        let len = match start[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes(take(from)?)),
            127 => u64::from_be_bytes(take(from)?),
            short => u64::from(short),
        };
        let mask: [u8; 4] = if start[1] & 0x80 == 0 { [0; 4] } else { take(from)? };
        let mut payload = vec![0; len as usize];
        from.read_exact(&mut payload)?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        if start[0] == 0x81
            && let Ok(mut message) = serde_json::from_slice::<Value>(&payload)
        {
            if let (Direction::ToService, Some(asked)) = (way, message["params"]["command"].as_str()) {
                *command.lock().unwrap() = asked.to_owned();
            }
            let command = command.lock().unwrap().clone();
            if !meddle(way, &command, &mut message) {
                continue;
            }
            payload = message.to_string().into_bytes();
        }
        match way {
            Direction::ToService => to.write_all(&frame(start[0], &payload))?,
            Direction::ToClient => to.write_all(&unmasked(start[0], &payload))?,
        }
    }
}

fn take<const N: usize>(from: &mut TcpStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let len = payload.len();
    let mut out = vec![first];
    match len {
        0..=125 => out.push(len as u8),
        126..=0xffff => {
            out.push(126);
            out.extend((len as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    out.extend(payload);
    out
}
