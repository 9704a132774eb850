//! A WebSocket client that hands out each frame as it came.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, ErrorKind, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Instant,
};

use cc_executor_actors::{
    outcome::Status,
    protocol::{
        MAX_MESSAGE_TO_CLIENT,
        execute::{Acceptance, ExecuteResult},
        notification::{Connected, StatusUpdate},
    },
    rpc::{ErrorObject, call_text},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    LONGEST_WAIT, PATIENCE,
    frames::{self, close_frame, frame, read_frame, text_frame},
    http::push_headers,
    recording::Recording,
};

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

/// One connection. A read times out after [`PATIENCE`]; waits for a certain message end after [`LONGEST_WAIT`], because
/// heartbeats keep the reads from timing out.
pub struct Client {
    reader: BufReader<TcpStream>,
    next_id: u64,
    /// Frames that were read while waiting for another one.
    pending: VecDeque<Frame>,
    /// Whether pings are answered, as a client library does it.
    pub answers_pings: bool,
    /// The head of the response to the upgrade.
    pub head: String,
    /// The params of `connected`, if [`Client::connect`] has read it.
    pub connected: Option<Connected>,
}

impl Client {
    /// A session of the native dialect, of which `connected` was read.
    pub fn connect(address: SocketAddr) -> Client {
        let mut client = Client::upgrade(address, &[]).expect("the upgrade is accepted");
        match client.recv() {
            Frame::Text(message) if message["method"] == "connected" => {
                client.connected = Some(Connected::deserialize(&message["params"]).expect("the params of connected"));
            }
            other => panic!("connected comes first, not {other:?}"),
        }
        client
    }

    /// An upgraded connection of which no frame was read, or the status of the refusal; 0 without a response.
    pub fn upgrade(address: SocketAddr, headers: &[(&str, &str)]) -> Result<Client, u16> {
        Client::upgrade_on(TcpStream::connect(address).expect("the service listens"), address, headers)
    }

    /// The same where the service may be shutting down: a refused connection is status 0.
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
        push_headers(&mut request, address, headers);
        stream.write_all(format!("{request}\r\n").as_bytes()).map_err(|_| 0u16)?;
        let mut reader = BufReader::with_capacity(64 * 1024, stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return Err(0);
            }
        }
        let status: u16 = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        if status != 101 {
            return Err(status);
        }
        Ok(Client { reader, next_id: 0, pending: VecDeque::new(), answers_pings: true, head, connected: None })
    }

    /// The TCP connection.
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// Sends bytes as they are.
    pub fn send_raw(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream().write_all(bytes)
    }

    /// Sends a text frame.
    pub fn send_text(&self, text: &str) {
        self.send_raw(&text_frame(text)).expect("the service reads");
    }

    /// Sends a call without id.
    pub fn notify(&self, method: &str, params: Value) {
        self.send_text(&json!({ "jsonrpc": "2.0", "method": method, "params": params }).to_string());
    }

    /// Sends a call, and returns its id.
    pub fn request(&mut self, method: &str, params: Value) -> u64 {
        self.next_id += 1;
        self.send_text(&call_text(self.next_id, method, &params));
        self.next_id
    }

    /// Sends a call and waits for its response. Messages before that are kept for later.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, ErrorObject> {
        let id = self.request(method, params);
        self.response(id)
    }

    /// Waits for a response. Messages before that are kept for later.
    pub fn response(&mut self, id: u64) -> Result<Value, ErrorObject> {
        let is_response = |frame: &Frame| matches!(frame, Frame::Text(message) if message["id"] == id);
        let message = self.wait_for_frame(&format!("the response {id}"), is_response);
        let Frame::Text(message) = self.pending.remove(message).expect("it was just found") else { unreachable!() };
        match message.get("error") {
            Some(error) => Err(ErrorObject::deserialize(error).expect("an error object")),
            None => Ok(message["result"].clone()),
        }
    }

    /// Waits until a notification of this method has come, and keeps all messages for later.
    pub fn wait_for(&mut self, method: &str) {
        let is_notification = |frame: &Frame| matches!(frame, Frame::Text(message) if message["method"] == method);
        self.wait_for_frame(method, is_notification);
    }

    /// Reads into `pending` until it has such a frame, and returns the frame's index.
    fn wait_for_frame(&mut self, what: &str, is_wanted: impl Fn(&Frame) -> bool) -> usize {
        let (mut index, start) = (0, Instant::now());
        loop {
            assert!(start.elapsed() < LONGEST_WAIT, "waited in vain for {what}");
            while index == self.pending.len() {
                let frame = self.recv_new();
                assert!(!matches!(frame, Frame::End | Frame::Close(..)), "waited for {what}: {frame:?}");
                self.pending.push_back(frame);
            }
            if is_wanted(&self.pending[index]) {
                return index;
            }
            index += 1;
        }
    }

    /// Reads to the next notification of this method, and returns its params. Other messages are dropped.
    pub fn notification(&mut self, method: &str) -> Value {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < LONGEST_WAIT, "waited in vain for {method}");
            match self.recv() {
                Frame::Text(message) if message["method"] == method => return message["params"].clone(),
                Frame::Text(_) | Frame::Ping(_) | Frame::Pong(_) => {}
                other => panic!("waited for {method}: {other:?}"),
            }
        }
    }

    /// Reads to the next update with this status, which is not a final one.
    pub fn wait_for_status(&mut self, status: Status) -> StatusUpdate {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < LONGEST_WAIT, "waited in vain for {status:?}");
            let params = self.notification("statusUpdate");
            let update = StatusUpdate::deserialize(&params)
                .unwrap_or_else(|error| panic!("waited for {status:?}: {error}: {params}"));
            if update.status == status {
                return update;
            }
        }
    }

    /// Starts a command and returns its id. A start that takes so long that it is reported as queued is waited for.
    pub fn execute(&mut self, params: Value) -> String {
        let result = self.accepted(params);
        match result.status {
            Acceptance::Started => {}
            Acceptance::Queued => {
                let has_left_queue = |frame: &Frame| matches!(frame, Frame::Text(message) if message["method"] == "statusUpdate" && message["params"]["status"] != "QUEUED");
                self.wait_for_frame("the start", has_left_queue);
            }
            _ => panic!("not started: {result:?}"),
        }
        result.execution_id.to_string()
    }

    /// Sends a command that must wait in the queue, and returns its id.
    pub fn queue(&mut self, params: Value) -> String {
        let result = self.accepted(params);
        assert_eq!(result.status, Acceptance::Queued, "{result:?}");
        result.execution_id.to_string()
    }

    fn accepted(&mut self, params: Value) -> ExecuteResult {
        let result = self.call("execute", params).expect("execute is accepted");
        serde_json::from_value(result).expect("the result of execute")
    }

    /// Cancels the session's execution.
    pub fn cancel(&mut self) -> Value {
        self.call("control", json!({ "type": "CANCEL" })).expect("CANCEL is accepted")
    }

    /// The same with a grace period in milliseconds.
    pub fn cancel_with_grace(&mut self, grace_ms: u64) -> Value {
        self.call("control", json!({ "type": "CANCEL", "graceMs": grace_ms })).expect("CANCEL is accepted")
    }

    /// Records the execution until it ends or is taken over.
    pub fn record(&mut self) -> Recording {
        let mut recording = Recording::default();
        self.record_rest(&mut recording);
        recording
    }

    /// Continues a recording until the execution ends or is taken over.
    pub fn record_rest(&mut self, recording: &mut Recording) {
        assert!(self.record_until(recording, |_| false), "the recording ended");
    }

    /// The same, or until the condition holds. False if the condition ended it.
    pub fn record_until(&mut self, recording: &mut Recording, until: impl Fn(&Recording) -> bool) -> bool {
        let start = Instant::now();
        while !until(recording) {
            assert!(start.elapsed() < LONGEST_WAIT, "waited in vain for the ending");
            match self.recv() {
                Frame::Text(message) => {
                    if recording.push(&message) {
                        return true;
                    }
                }
                Frame::Ping(_) | Frame::Pong(_) => {}
                other => panic!("the ending did not come: {other:?}, after {:?}", recording.statuses),
            }
        }
        false
    }

    /// Attaches to an execution at the offsets of its recording.
    pub fn attach(&mut self, id: &str, recording: &Recording) -> Result<Value, ErrorObject> {
        self.call("attach", json!({ "executionId": id, "offsets": recording.offsets() }))
    }

    /// Starts a command and records it to its end.
    pub fn run(&mut self, params: Value) -> Recording {
        self.execute(params);
        self.record()
    }

    /// The same with Claude, which may also fail before it starts.
    pub fn run_claude(&mut self, mut params: Value) -> Recording {
        params["executor"] = json!("claude");
        self.call("execute", params).expect("execute is accepted");
        let mut recording = Recording::of_claude();
        self.record_rest(&mut recording);
        recording
    }

    /// The next frame.
    pub fn recv(&mut self) -> Frame {
        self.pending.pop_front().unwrap_or_else(|| self.recv_new())
    }

    /// Reads to the end of the connection.
    pub fn read_to_end(&mut self) {
        let start = Instant::now();
        while self.recv() != Frame::End {
            assert!(start.elapsed() < LONGEST_WAIT, "waited in vain for the end of the connection");
        }
    }

    fn recv_new(&mut self) -> Frame {
        let raw = match read_frame(&mut self.reader) {
            Ok(raw) => raw,
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return Frame::End;
            }
            Err(error) => panic!("no frame came in time: {error}"),
        };
        assert!(!raw.is_masked, "a server does not mask");
        let payload = raw.payload;
        assert!(payload.len() <= MAX_MESSAGE_TO_CLIENT, "no message to a client exceeds 1 MiB");
        match raw.first {
            frames::TEXT => Frame::Text(serde_json::from_slice(&payload).expect("messages are JSON")),
            frames::CLOSE => {
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                let reason = payload.get(2..).unwrap_or_default().to_vec();
                Frame::Close(code, String::from_utf8(reason).expect("a close reason is UTF-8"))
            }
            frames::PING => {
                if self.answers_pings {
                    // If the service is gone, the next read shows it.
                    let _ = self.send_raw(&frame(frames::PONG, &payload));
                }
                Frame::Ping(payload)
            }
            frames::PONG => Frame::Pong(payload),
            other => panic!("a frame that begins with {other:#x}"),
        }
    }

    /// Reads to the close frame, answers it, and checks that nothing follows.
    pub fn close_code(&mut self) -> u16 {
        loop {
            match self.recv() {
                Frame::Close(code, reason) => {
                    assert!(!reason.is_empty(), "a close frame states its reason");
                    let _ = self.send_raw(&close_frame(code));
                    assert_eq!(self.recv(), Frame::End, "nothing comes after a close frame");
                    return code;
                }
                Frame::End => panic!("the connection ended without a close frame"),
                _ => {}
            }
        }
    }

    /// Closes the session with a close frame, and checks that nothing follows the service's answer.
    pub fn close(mut self) {
        let _ = self.send_raw(&close_frame(1000));
        assert_eq!(self.close_code(), 1000);
    }

    /// Shuts the connection down without a close frame.
    pub fn disconnect(self) {
        self.shut_down();
    }

    /// The same; what was received before can still be read.
    pub fn shut_down(&self) {
        let _ = self.stream().shutdown(Shutdown::Both);
    }
}

/// The code of an error, and the parameter that it names.
pub fn code_and_param(error: &ErrorObject) -> (i64, Option<&str>) {
    (error.code, error.data.as_ref().and_then(|data| data["param"].as_str()))
}
