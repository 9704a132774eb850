//! A cheap client: it splits frames by hand, and parses only the parts of messages that it checks.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use cc_executor_actors::{
    protocol::{DEFAULT_GRACE_MS, control::ControlRequest},
    rpc::call_text,
};
use serde::Serialize;
use serde_json::json;

use super::stub::LINE;

/// The bound of every wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// The size of a read, in bytes.
const READ: usize = 256 * 1024;

/// The first bytes of whole frames.
const TEXT: u8 = 0x81;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// One session.
pub struct BenchSession {
    stream: TcpStream,
    input: Vec<u8>,
    from: usize,
    to: usize,
}

impl BenchSession {
    /// A session of which `connected` was read.
    pub fn open(address: SocketAddr) -> BenchSession {
        let mut stream = TcpStream::connect(address).expect("the peer listens");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        let request = format!(
            "GET /ws/mcp HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("the peer reads");
        let mut session = BenchSession { stream, input: Vec::new(), from: 0, to: 0 };
        while !session.input[..session.to].windows(4).any(|four| four == b"\r\n\r\n") {
            session.fill(4096);
        }
        let head =
            session.input[..session.to].windows(4).position(|four| four == b"\r\n\r\n").expect("the loop has found it");
        assert!(session.input.starts_with(b"HTTP/1.1 101"), "the upgrade is accepted");
        session.from = head + 4;
        session.wait_for("connected");
        // Frees the rest of the buffer, because thousands of idle sessions are held.
        session.input = session.input[session.from..session.to].to_vec();
        (session.from, session.to) = (0, session.input.len());
        session
    }

    pub fn execute(&mut self, command: &str, framing: &str) {
        self.call("execute", &json!({ "command": command, "framing": framing }));
    }

    pub fn cancel(&mut self) {
        self.call("control", &ControlRequest::cancel(DEFAULT_GRACE_MS));
    }

    /// Starts a command that may detach.
    pub fn execute_detachable(&mut self, command: &str) {
        self.call("execute", &json!({ "command": command, "onDisconnect": "detach" }));
    }

    fn call(&mut self, method: &str, params: &impl Serialize) {
        self.send(TEXT, call_text(1, method, params).as_bytes());
    }

    fn send(&mut self, first: u8, payload: &[u8]) {
        let length = u8::try_from(payload.len()).ok().filter(|length| *length < 126);
        let mut frame = match length {
            Some(length) => vec![first, 0x80 | length],
            None => [&[first, 0x80 | 126][..], &(payload.len() as u16).to_be_bytes()].concat(),
        };
        // The mask: zeros are allowed, and leave the payload as it is.
        frame.extend([0; 4]);
        frame.extend(payload);
        self.stream.write_all(&frame).expect("the peer reads");
    }

    /// Reads to the next message of this method.
    pub fn wait_for(&mut self, method: &str) {
        let wanted = format!("\"method\":\"{method}\"");
        while !contains(self.message(), wanted.as_bytes()) {}
    }

    /// Reads to the final status.
    pub fn wait_for_end(&mut self) {
        while !is_end(self.message()) {}
    }

    /// Reads to the final status, answers pings, and returns the length of the output.
    pub fn output_length(&mut self) -> u64 {
        let mut length = 0;
        loop {
            let (first, message) = self.frame();
            if first == PING {
                let payload = message.to_vec();
                self.send(PONG, &payload);
            } else if let Some(content) = content(message) {
                // Of a text without characters that JSON escapes.
                length += content.len() as u64;
            } else if is_end(message) {
                return length;
            }
        }
    }

    /// Reads to the final status, and checks that each line came once and in order.
    pub fn check_lines(&mut self, n_lines: u64) {
        let mut checker = LineChecker { next: 0, line: Vec::with_capacity(2 * LINE) };
        loop {
            let message = self.message();
            match content(message) {
                Some(content) => checker.take(content),
                None if is_end(message) => break,
                None => {}
            }
        }
        assert_eq!((checker.next, checker.line.len()), (n_lines, 0), "all lines came");
    }

    /// The payload of the next frame.
    fn message(&mut self) -> &[u8] {
        self.frame().1
    }

    /// The first byte and the payload of the next frame.
    fn frame(&mut self) -> (u8, &[u8]) {
        loop {
            let have = &self.input[self.from..self.to];
            let header = match have.get(1) {
                None => 2,
                Some(126) => 4,
                Some(127) => 10,
                Some(_) => 2,
            };
            if have.len() >= header {
                let length = match header {
                    4 => usize::from(u16::from_be_bytes([have[2], have[3]])),
                    10 => u64::from_be_bytes(have[2..10].try_into().expect("8 bytes")) as usize,
                    _ => usize::from(have[1]),
                };
                if have.len() >= header + length {
                    let (first, start) = (have[0], self.from + header);
                    self.from = start + length;
                    return (first, &self.input[start..start + length]);
                }
            }
            self.fill(READ);
        }
    }

    fn fill(&mut self, at_most: usize) {
        if self.from > 0 {
            self.input.copy_within(self.from..self.to, 0);
            self.to -= self.from;
            self.from = 0;
        }
        if self.input.len() < self.to + at_most {
            self.input.resize(self.to + at_most, 0);
        }
        let n = self.stream.read(&mut self.input[self.to..]).expect("bytes come in time");
        assert!(n > 0, "the connection ended");
        self.to += n;
    }
}

fn contains(message: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(message, part).is_some()
}

fn is_end(message: &[u8]) -> bool {
    contains(message, b"\"method\":\"statusUpdate\"") && contains(message, b"\"reason\":")
}

/// The content of an output message, still escaped.
fn content(message: &[u8]) -> Option<&[u8]> {
    const PREFIX: &[u8] = br#"{"jsonrpc":"2.0","method":"output","params":{"type":"stdout","content":""#;
    const SUFFIX: &[u8] = br#"","end":"#;
    let rest = message.strip_prefix(PREFIX)?;
    let end = memchr::memmem::rfind(rest, SUFFIX).expect("an output message has an end");
    Some(&rest[..end])
}

/// Checks numbered lines that are cut anywhere.
struct LineChecker {
    next: u64,
    line: Vec<u8>,
}

impl LineChecker {
    fn take(&mut self, mut content: &[u8]) {
        while let Some(at) = memchr::memchr(b'\\', content) {
            assert_eq!(content[at + 1], b'n', "only newlines are escaped");
            self.line.extend_from_slice(&content[..at]);
            content = &content[at + 2..];
            assert_eq!(self.line.len(), LINE - 1, "a whole line");
            let number = self.line[..10].iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
            assert_eq!(number, self.next, "in order");
            self.next += 1;
            self.line.clear();
        }
        self.line.extend_from_slice(content);
    }
}
