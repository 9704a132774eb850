//! A backend that answers by a script, with every fault that a real one may have.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use cc_executor_actors::{
    backend_api::{BackendEvent, Health, Heartbeat, MULTIPLEXED, StartedEvent, StreamInfo},
    outcome::{Outcome, Reason, Status},
};
use serde::Serialize;
use serde_json::Value;

use super::listener::TestListener;

/// A request that the stub has read.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Value,
}

/// A running stub. It stops listening when dropped.
pub struct Stub {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    _listener: TestListener,
}

impl Stub {
    /// Calls `answer` for each request, on the thread of its connection, and then closes the connection.
    pub fn start(answer: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static) -> Stub {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        let listener = TestListener::start(move |mut stream| {
            let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
            thread::spawn(move || {
                if let Some(request) = read_request(&stream) {
                    seen.lock().unwrap().push(request.clone());
                    answer(&request, &mut stream);
                }
                let _ = stream.shutdown(Shutdown::Both);
            });
        });
        Stub { address: listener.address, requests, _listener: listener }
    }

    /// A native backend whose executions are answered by `answer`.
    pub fn native(answer: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static) -> Stub {
        Stub::start(move |request, stream| match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/health") => respond_json(stream, &native_health()),
            ("GET", "/ready") => respond(stream, 200, "{}"),
            _ => answer(request, stream),
        })
    }

    /// A legacy image, which knows only its health and the route at `path`.
    pub fn legacy(path: &'static str, answer: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static) -> Stub {
        Stub::start(move |request, stream| match request.path.as_str() {
            "/health" => respond(stream, 200, r#"{"status":"healthy","service":"claude-api"}"#),
            asked if asked == path => answer(request, stream),
            _ => respond(stream, 404, r#"{"detail":"Not Found"}"#),
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The requests with this method so far.
    pub fn requests_with(&self, method: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.method == method).collect()
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path, headers, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
}

/// The health of a native backend.
pub fn native_health() -> Health {
    Health {
        server: "cc-executor".into(),
        version: "0.1.0".into(),
        instance: None,
        executors: vec!["shell".into()],
        default_executor: "shell".into(),
        max_executions: 64,
        capabilities: Vec::new(),
        running: 0,
        queued: 0,
    }
}

/// Writes a whole response.
pub fn respond(stream: &mut TcpStream, status: u16, body: &str) {
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

/// Writes a whole response with this JSON.
pub fn respond_json(stream: &mut TcpStream, body: &impl Serialize) {
    respond(stream, 200, &serde_json::to_string(body).expect("a wire type has string keys"));
}

/// The head of a chunked response.
pub fn chunked_head(media: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes()
}

/// The head of a response with a multiplexed stream.
pub fn stream_head() -> Vec<u8> {
    chunked_head(MULTIPLEXED)
}

/// A chunk of a chunked body; the last one if it is empty.
pub fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// A frame of a multiplexed stream. The stream's number is raw, because tests also send unknown ones.
pub fn multiplexed(stream: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![stream, 0, 0, 0];
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend(bytes);
    out
}

/// A [`BackendEvent`], or JSON that is none, as a frame.
pub fn event(event: &impl Serialize) -> Vec<u8> {
    multiplexed(3, &serde_json::to_vec(event).expect("a wire type has string keys"))
}

/// The event that the process of this request runs.
pub fn started(request: &Request) -> Vec<u8> {
    event(&BackendEvent::Started(StartedEvent {
        execution_id: serde_json::from_value(request.body["executionId"].clone()).expect("an execution id"),
        executor: "shell".into(),
        status: Status::Running,
        terms: StreamInfo::default(),
        alive: Heartbeat::default(),
    }))
}

/// The final event of a command that exited with this code.
pub fn exited(code: i32) -> Vec<u8> {
    let status = if code == 0 { Status::Completed } else { Status::Failed };
    let outcome = Outcome { exit_code: Some(code), ..Outcome::without_process(status, Reason::Exit, None) };
    event(&BackendEvent::Exit(outcome))
}
