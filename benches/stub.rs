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

use cc_executor_actors::{
    backend_api::{
        BackendEvent, ExecuteRequest, Health, Heartbeat, MULTIPLEXED, StartedEvent, StreamInfo,
        multiplex::{event_header, header},
    },
    outcome::{CancelReport, Outcome, Reason, Status},
    protocol::Limits,
    stream::Stream,
};
use serde::Serialize;

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

/// The number of DELETEs so far. Each ends the quiet stream that runs.
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
                // An error ends only its connection: the peer has disconnected.
                thread::spawn(move || connection(&stream, &abort, &canceled));
            }
        });
        StubBackend { address, aborts }
    }

    /// The time at which the next cancel arrived.
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
            respond(writer, &CancelReport::never_ran(0))?;
        } else if line.starts_with("POST") {
            let request = ExecuteRequest::read(&body, &Limits::default())
                .expect("the gateway and the bridge send an ExecuteRequest");
            execute(&mut writer, request, canceled)?;
        } else {
            respond(writer, &health())?;
        }
    }
}

fn execute(to: &mut impl Write, request: ExecuteRequest, canceled: &Canceled) -> std::io::Result<()> {
    let command = request.run.command;
    let started = BackendEvent::Started(StartedEvent {
        execution_id: request.run.execution_id.expect("the gateway and the bridge choose the id"),
        executor: "shell".into(),
        status: Status::Running,
        terms: StreamInfo::default(),
        alive: Heartbeat::default(),
    });
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {MULTIPLEXED}\r\nTransfer-Encoding: chunked\r\n\r\n");
    let n_before = *canceled.n.lock().expect("no panic holds it");
    to.write_all(&[head.as_bytes(), &chunk(&event(&started))].concat())?;
    let outcome = match command.to_text().strip_prefix("lines ").and_then(|n| n.parse::<u64>().ok()) {
        Some(n_lines) => {
            write_lines(to, n_lines)?;
            Outcome { exit_code: Some(0), ..Outcome::without_process(Status::Completed, Reason::Exit, None) }
        }
        None => {
            let n = canceled.n.lock().expect("no panic holds it");
            let (_n, _) = canceled.more.wait_timeout_while(n, PATIENCE, |n| *n == n_before).expect("no panic holds it");
            Outcome::without_process(Status::Cancelled, Reason::Canceled, None)
        }
    };
    to.write_all(&[chunk(&event(&BackendEvent::Exit(outcome))), chunk(b"")].concat())
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
        to.write_all(&chunk(&[&header(Stream::Stdout, output.len() as u32)[..], &output].concat()))?;
    }
    Ok(())
}

fn event(event: &BackendEvent) -> Vec<u8> {
    let json = serde_json::to_vec(event).expect("an event has string keys");
    [&event_header(json.len() as u32)[..], &json].concat()
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn respond(mut to: &TcpStream, body: &impl Serialize) -> std::io::Result<()> {
    let body = serde_json::to_string(body).expect("a body has string keys");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    to.write_all(format!("{head}{body}").as_bytes())
}

fn health() -> Health {
    Health {
        server: "cc-executor".into(),
        version: "0".into(),
        instance: None,
        executors: vec!["shell".into()],
        default_executor: "shell".into(),
        max_executions: 64,
        capabilities: Vec::new(),
        running: 0,
        queued: 0,
    }
}
