//! A backend that does no work: it streams numbered lines as fast as they are read, or nothing at all.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Length of a line, its newline included, in bytes.
pub const LINE: usize = 100;

/// Bytes of output in one frame of the stream: whole lines, about 64 KiB.
const FRAME: usize = 655 * LINE;

/// The bound of every wait.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running stub.
pub struct StubBackend {
    pub address: SocketAddr,
    aborts: Receiver<Instant>,
}

/// How many DELETEs have come: each ends the quiet stream that runs.
#[derive(Default)]
struct Canceled {
    n: Mutex<u64>,
    more: Condvar,
}

impl StubBackend {
    pub fn start() -> StubBackend {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (abort, aborts) = mpsc::channel();
        let canceled = Arc::new(Canceled::default());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (abort, canceled) = (abort.clone(), Arc::clone(&canceled));
                // A peer that goes away in mid-stream ends its connection, and nothing else.
                thread::spawn(move || connection(&stream, &abort, &canceled));
            }
        });
        StubBackend { address, aborts }
    }

    /// When the next cancellation was heard.
    pub fn next_abort(&self) -> Instant {
        self.aborts.recv_timeout(PATIENCE).expect("the cancellation arrives")
    }
}

fn connection(stream: &TcpStream, abort: &Sender<Instant>, canceled: &Canceled) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            match header.trim_end().split_once(':') {
                None => break,
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().unwrap_or(0)
                }
                Some(_) => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        if line.starts_with("DELETE") {
            let _ = abort.send(Instant::now());
            *canceled.n.lock().expect("no panic holds it") += 1;
            canceled.more.notify_all();
            respond(writer, "{\"verified\":true,\"survivors\":0,\"graceMs\":0,\"escalated\":false}")?;
        } else if line.starts_with("POST") {
            let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
            execute(&mut writer, &asked, canceled)?;
        } else {
            respond(writer, &health().to_string())?;
        }
    }
}

fn execute(to: &mut impl Write, asked: &Value, canceled: &Canceled) -> std::io::Result<()> {
    let question = asked["question"].as_str().unwrap_or_default();
    let started = word(&json!({ "started": { "executionId": asked["executionId"], "executor": "shell" } }));
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let before = *canceled.n.lock().expect("no panic holds it");
    match question.strip_prefix("lines ").and_then(|n| n.parse::<u64>().ok()) {
        Some(n_lines) => {
            to.write_all(&[head.as_bytes(), &chunk(&started)].concat())?;
            write_lines(to, n_lines)?;
            to.write_all(&[chunk(&exit("COMPLETED", "exit", Some(0))), b"0\r\n\r\n".to_vec()].concat())
        }
        None => {
            to.write_all(&[head.as_bytes(), &chunk(&started)].concat())?;
            let n = canceled.n.lock().expect("no panic holds it");
            let (_n, _) = canceled.more.wait_timeout_while(n, PATIENCE, |n| *n == before).expect("no panic holds it");
            to.write_all(&[chunk(&exit("CANCELLED", "canceled", None)), b"0\r\n\r\n".to_vec()].concat())
        }
    }
}

fn write_lines(to: &mut impl Write, n_lines: u64) -> std::io::Result<()> {
    let mut next = 0;
    let mut output = Vec::with_capacity(FRAME);
    while next < n_lines {
        output.clear();
        while output.len() < FRAME && next < n_lines {
            write!(output, "{next:010} ").expect("memory");
            output.resize(output.len() + LINE - 12, b'x');
            output.push(b'\n');
            next += 1;
        }
        to.write_all(&chunk(&frame(1, &output)))?;
    }
    Ok(())
}

fn exit(status: &str, reason: &str, exit_code: Option<i32>) -> Vec<u8> {
    word(&json!({ "exit": {
        "status": status, "reason": reason, "exit_code": exit_code, "signal": null, "message": null, "elapsedMs": 1,
        "bytes": { "stdout": null, "stderr": null }, "sha256": { "stdout": null, "stderr": null }, "leftovers": 0,
    } }))
}

fn word(word: &Value) -> Vec<u8> {
    frame(3, word.to_string().as_bytes())
}

fn frame(stream: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("below 4 GiB").to_be_bytes();
    [&[stream, 0, 0, 0], &length[..], bytes].concat()
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn respond(mut to: &TcpStream, body: &str) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    to.write_all(format!("{head}{body}").as_bytes())
}

fn health() -> Value {
    json!({
        "server": "cc-executor", "version": "0", "executors": ["shell"], "defaultExecutor": "shell",
        "maxExecutions": 64, "capabilities": [], "running": 0, "queued": 0,
    })
}
