//! A backend that follows a script: real HTTP on a port of its own, and every fault one can think of.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use serde_json::{Value, json};

/// A request as it came.
#[derive(Clone, Debug)]
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
    stopped: Arc<AtomicBool>,
}

impl Stub {
    /// Answers each request by calling `answer`, on a thread of the connection; the connection is
    /// closed when it returns.
    pub fn start(answer: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stopped = Arc::new(AtomicBool::new(false));
        let (seen, over, answer) = (Arc::clone(&requests), Arc::clone(&stopped), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                thread::spawn(move || {
                    let mut stream = stream;
                    if let Some(request) = read_request(&stream) {
                        seen.lock().unwrap().push(request.clone());
                        answer(&request, &mut stream);
                    }
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Stub { address, requests, stopped }
    }

    /// A backend of our own kind whose `POST /execute/stream` is answered by `answer`.
    pub fn ours(answer: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static) -> Stub {
        Stub::start(move |request, stream| match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/health") => respond(stream, 200, &our_health().to_string()),
            ("GET", "/ready") => respond(stream, 200, "{}"),
            _ => answer(request, stream),
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the listener, so that its port is given back.
        let _ = TcpStream::connect(self.address);
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

/// What our own backend says of itself.
pub fn our_health() -> Value {
    json!({
        "server": "cc-executor", "version": "0.1.0", "executors": ["shell"], "defaultExecutor": "shell",
        "maxExecutions": 64, "capabilities": [], "running": 0, "queued": 0,
    })
}

/// A whole response.
pub fn respond(stream: &mut TcpStream, status: u16, body: &str) {
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

/// The head of a chunked response.
pub fn chunked_head(media: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes()
}

/// One chunk.
pub fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// A multiplexed frame.
pub fn multiplexed(stream: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![stream, 0, 0, 0];
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend(bytes);
    out
}

/// A word of the backend.
pub fn word(word: &Value) -> Vec<u8> {
    multiplexed(3, word.to_string().as_bytes())
}

/// The word that the process runs.
pub fn started(request: &Request) -> Vec<u8> {
    word(&json!({ "started": { "executionId": request.body["executionId"], "executor": "shell" } }))
}

/// The last word of a command that exited with this code.
pub fn exited(code: i32) -> Vec<u8> {
    let status = if code == 0 { "COMPLETED" } else { "FAILED" };
    word(&json!({ "exit": {
        "status": status, "reason": "exit", "exit_code": code, "signal": null, "message": null, "elapsedMs": 1,
        "bytes": { "stdout": null, "stderr": null }, "sha256": { "stdout": null, "stderr": null }, "leftovers": 0,
    } }))
}
