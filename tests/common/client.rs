//! A WebSocket client that does what it is told, frame by frame, and hides nothing.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use serde_json::{Value, json};

use super::PATIENCE;

/// A frame from the service.
#[derive(Clone, PartialEq, Debug)]
pub enum Frame {
    Text(Value),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16, String),
    /// The connection ended.
    End,
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    at: usize,
    next_id: u64,
    passed_by: VecDeque<Frame>,
    /// Whether pings are answered, as a client library does it.
    pub answers_pings: bool,
    /// The head of the response to the upgrade.
    pub head: String,
    /// The params of `connected`.
    pub hello: Value,
}

/// What came of an execution, as its client saw it.
#[derive(Debug, Default)]
pub struct Recording {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The params of every `output`, contents left out.
    pub n_messages: usize,
    /// The statuses, in order.
    pub statuses: Vec<String>,
    /// The params of every `statusUpdate`.
    pub updates: Vec<Value>,
    /// The params of `error` notifications.
    pub errors: Vec<Value>,
    /// The params of every `gap`. Their bytes are [`LOST`] in the stream.
    pub gaps: Vec<Value>,
    /// The params of `detached`.
    pub detached: Option<Value>,
    /// Where standard output is made of Claude's events: their offset up to here, and the params of each
    /// `event`.
    pub of_claude: Option<u64>,
    pub events: Vec<Value>,
    /// The final `statusUpdate`'s params.
    pub end: Value,
}

impl Recording {
    /// A story of Claude, of which nothing is known yet.
    pub fn of_claude() -> Recording {
        Recording { of_claude: Some(0), ..Recording::default() }
    }

    /// Where to go on.
    pub fn offsets(&self) -> Value {
        let stdout = self.of_claude.unwrap_or(self.stdout.len() as u64);
        json!({ "stdout": stdout, "stderr": self.stderr.len() })
    }

    /// What was said on standard output.
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("text is UTF-8")
    }

    /// The updates with this status.
    pub fn with_status(&self, status: &str) -> Vec<&Value> {
        self.updates.iter().filter(|update| update["status"] == status).collect()
    }
}

/// What stands for a byte that was lost, in a story.
pub const LOST: u8 = 0;

impl Client {
    /// A session of the native dialect that has said `connected`.
    pub fn connect(address: SocketAddr) -> Client {
        let mut client = Client::upgrade(address, &[]).expect("the upgrade is accepted");
        match client.recv() {
            Frame::Text(message) if message["method"] == "connected" => client.hello = message["params"].clone(),
            other => panic!("connected comes first, not {other:?}"),
        }
        client
    }

    /// An upgraded connection of which nothing has been read, or the status of the refusal; 0 if there
    /// was no answer.
    pub fn upgrade(address: SocketAddr, headers: &[(&str, &str)]) -> Result<Client, u16> {
        Client::upgrade_on(TcpStream::connect(address).expect("it listens"), address, headers)
    }

    /// The same where the service may be going away: what fails is a refusal.
    pub fn try_upgrade(address: SocketAddr) -> Result<Client, u16> {
        let stream = TcpStream::connect(address).map_err(|_| 0u16)?;
        Client::upgrade_on(stream, address, &[])
    }

    /// The same on a connection that was made before.
    pub fn upgrade_on(mut stream: TcpStream, address: SocketAddr, headers: &[(&str, &str)]) -> Result<Client, u16> {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut request = "GET /ws/mcp HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            .to_owned();
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request.push_str(&format!("Host: {address}\r\n"));
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if stream.write_all(format!("{request}\r\n").as_bytes()).is_err() {
            return Err(0);
        }
        let mut input = Vec::new();
        let end = loop {
            if let Some(at) = input.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            let mut bytes = [0; 4096];
            let n = stream.read(&mut bytes).unwrap_or(0);
            if n == 0 {
                return Err(0);
            }
            input.extend_from_slice(&bytes[..n]);
        };
        let head = String::from_utf8_lossy(&input[..end]).into_owned();
        let status: u16 = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        if status != 101 {
            return Err(status);
        }
        Ok(Client {
            stream,
            input,
            at: end,
            next_id: 0,
            passed_by: VecDeque::new(),
            answers_pings: true,
            head,
            hello: Value::Null,
        })
    }

    /// The connection below.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a text frame.
    pub fn send_text(&mut self, text: &str) {
        self.stream.write_all(&frame(0x81, text.as_bytes())).expect("the service takes it");
    }

    /// Sends a call without id.
    pub fn notify(&mut self, method: &str, params: Value) {
        self.send_text(&json!({ "jsonrpc": "2.0", "method": method, "params": params }).to_string());
    }

    /// Sends a call, and gives its id.
    pub fn request(&mut self, method: &str, params: Value) -> u64 {
        self.next_id += 1;
        self.send_text(
            &json!({ "jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params }).to_string(),
        );
        self.next_id
    }

    /// Sends a call and waits for its response. What comes before it is kept for later.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        let id = self.request(method, params);
        self.response(id)
    }

    /// Waits for a response.
    pub fn response(&mut self, id: u64) -> Result<Value, Value> {
        let here = self.passed_by.iter().position(|frame| matches!(frame, Frame::Text(message) if message["id"] == id));
        let mut here = here.and_then(|at| self.passed_by.remove(at));
        loop {
            match here.take().unwrap_or_else(|| self.recv_new()) {
                Frame::Text(message) if message["id"] == id => {
                    return match message.get("error") {
                        Some(error) => Err(error.clone()),
                        None => Ok(message["result"].clone()),
                    };
                }
                frame @ (Frame::Text(_) | Frame::Ping(_) | Frame::Pong(_)) => self.passed_by.push_back(frame),
                other => panic!("a response was owed: {other:?}"),
            }
        }
    }

    /// Waits for a notification of this method, and gives its params.
    pub fn notification(&mut self, method: &str) -> Value {
        loop {
            match self.recv() {
                Frame::Text(message) if message["method"] == method => return message["params"].clone(),
                Frame::Text(_) | Frame::Ping(_) | Frame::Pong(_) => {}
                other => panic!("waited for {method}: {other:?}"),
            }
        }
    }

    /// Waits until a notification of this method has come, and keeps all for later.
    pub fn seen(&mut self, method: &str) {
        while !self.passed_by.iter().any(|frame| matches!(frame, Frame::Text(message) if message["method"] == method)) {
            let frame = self.recv_new();
            assert!(!matches!(frame, Frame::End | Frame::Close(..)), "waited for {method}: {frame:?}");
            self.passed_by.push_back(frame);
        }
    }

    /// Waits for a status.
    pub fn status(&mut self, status: &str) -> Value {
        loop {
            let params = self.notification("statusUpdate");
            if params["status"] == status {
                return params;
            }
            assert!(params.get("reason").is_none(), "waited for {status}: {params}");
        }
    }

    /// Starts a command and gives its id.
    pub fn execute(&mut self, params: Value) -> String {
        let result = self.call("execute", params).expect("it is accepted");
        assert_eq!(result["status"], "started", "{result}");
        result["executionId"].as_str().expect("an id").to_owned()
    }

    /// Reads until the execution has ended, and checks what every stream must keep to.
    pub fn story(&mut self) -> Recording {
        let mut story = Recording::default();
        self.follow(&mut story, |_| false);
        story
    }

    /// Reads on until the execution has ended, is taken over, or the story has come so far. True at the
    /// end.
    pub fn follow(&mut self, story: &mut Recording, until: impl Fn(&Recording) -> bool) -> bool {
        while !until(story) {
            let message = match self.recv() {
                Frame::Text(message) => message,
                Frame::Ping(_) | Frame::Pong(_) => continue,
                other => panic!("the end was owed: {other:?}, after {:?}", story.statuses),
            };
            let params = &message["params"];
            match message["method"].as_str() {
                Some("output") => {
                    story.n_messages += 1;
                    let stream = if params["type"] == "stdout" { &mut story.stdout } else { &mut story.stderr };
                    match params["content"].as_str() {
                        Some(text) => stream.extend_from_slice(text.as_bytes()),
                        None => stream.extend(base64(params["contentBase64"].as_str().expect("a content"))),
                    }
                    match (&mut story.of_claude, params["type"] == "stdout") {
                        (Some(offset), true) => {
                            let end = params["end"].as_u64().expect("an end");
                            assert!(end >= *offset, "an end never goes back");
                            *offset = end;
                        }
                        _ => assert_eq!(params["end"], stream.len(), "offsets count every byte"),
                    }
                }
                Some("gap") => {
                    let stream = if params["type"] == "stdout" { &mut story.stdout } else { &mut story.stderr };
                    let to = params["to"].as_u64().expect("an offset");
                    match (&mut story.of_claude, params["type"] == "stdout") {
                        (Some(offset), true) => *offset = to,
                        _ => {
                            assert_eq!(params["from"], stream.len(), "a gap begins where the stream is");
                            stream.resize(usize::try_from(to).unwrap(), LOST);
                        }
                    }
                    story.gaps.push(params.clone());
                }
                Some("statusUpdate") => {
                    let status = params["status"].as_str().expect("a status").to_owned();
                    let is_last = matches!(status.as_str(), "COMPLETED" | "CANCELLED" | "FAILED");
                    story.statuses.push(status);
                    story.updates.push(params.clone());
                    if is_last {
                        story.end = params.clone();
                        return true;
                    }
                }
                Some("detached") => {
                    story.detached = Some(params.clone());
                    return true;
                }
                Some("error") => story.errors.push(params.clone()),
                Some("event") => story.events.push(params.clone()),
                _ => {}
            }
        }
        false
    }

    /// Follows an execution from where a story broke off.
    pub fn attach(&mut self, id: &str, story: &Recording) -> Result<Value, Value> {
        self.call("attach", json!({ "executionId": id, "offsets": story.offsets() }))
    }

    /// Starts a command and reads it to its end.
    pub fn run(&mut self, params: Value) -> Recording {
        self.execute(params);
        self.story()
    }

    /// The same of Claude, which may also end before it runs.
    pub fn ask_claude(&mut self, mut params: Value) -> Recording {
        params["executor"] = json!("claude");
        self.call("execute", params).expect("it is accepted");
        let mut story = Recording::of_claude();
        self.follow(&mut story, |_| false);
        story
    }

    /// The next frame.
    pub fn recv(&mut self) -> Frame {
        self.passed_by.pop_front().unwrap_or_else(|| self.recv_new())
    }

    fn recv_new(&mut self) -> Frame {
        let Some(head) = self.take(2) else { return Frame::End };
        let len = match head[1] {
            126 => self.take(2).map(|len| u64::from(u16::from_be_bytes(len.try_into().unwrap()))),
            127 => self.take(8).map(|len| u64::from_be_bytes(len.try_into().unwrap())),
            short => Some(u64::from(short)),
        };
        let Some(payload) = len.and_then(|len| self.take(len as usize)) else { return Frame::End };
        assert!(payload.len() <= 1 << 20, "no message to a client exceeds 1 MiB");
        match head[0] {
            0x81 => Frame::Text(serde_json::from_slice(&payload).expect("messages are JSON")),
            0x88 => {
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                Frame::Close(
                    code,
                    String::from_utf8(payload[2.min(payload.len())..].to_vec()).expect("a reason is UTF-8"),
                )
            }
            0x89 => {
                if self.answers_pings {
                    // A service that is gone is noticed where it is read.
                    let _ = self.stream.write_all(&frame(0x8a, &payload));
                }
                Frame::Ping(payload)
            }
            0x8a => Frame::Pong(payload),
            other => panic!("a frame that begins with {other:#x}"),
        }
    }

    /// Reads past everything to the close frame; after it there must be nothing.
    pub fn close_code(&mut self) -> u16 {
        loop {
            match self.recv() {
                Frame::Close(code, reason) => {
                    assert!(!reason.is_empty(), "a close reason is something a person can act on");
                    let _ = self.stream.write_all(&frame(0x88, &code.to_be_bytes()));
                    assert_eq!(self.recv(), Frame::End, "nothing comes after a close frame");
                    return code;
                }
                Frame::End => panic!("the connection ended without a close frame"),
                _ => {}
            }
        }
    }

    /// Leaves properly, and checks that nothing follows.
    pub fn close(mut self) {
        let _ = self.stream.write_all(&frame(0x88, &1000u16.to_be_bytes()));
        assert_eq!(self.close_code(), 1000);
    }

    /// Leaves without a word.
    pub fn vanish(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The same, and what had been received can still be read.
    pub fn vanish_now(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn take(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.input.len() - self.at < n {
            if self.at > 1 << 20 {
                self.input.drain(..self.at);
                self.at = 0;
            }
            let mut bytes = [0; 64 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(n) => self.input.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came in time: {error}"),
            }
        }
        self.at += n;
        Some(self.input[self.at - n..self.at].to_vec())
    }
}

/// A masked frame, as a client sends it.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = frame_header(first, payload.len() as u64);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// The header of a masked frame that declares so many bytes.
pub fn frame_header(first: u8, len: u64) -> Vec<u8> {
    let mut out = vec![first];
    match len {
        0..=125 => out.push(0x80 | len as u8),
        126..=0xffff => {
            out.push(0x80 | 126);
            out.extend((len as u16).to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend(len.to_be_bytes());
        }
    }
    out.extend(MASK);
    out
}

const MASK: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

fn base64(text: &str) -> Vec<u8> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.decode(text).expect("base64")
}
