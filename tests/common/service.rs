//! The real binary as a child process: a gateway, a backend, or both in one.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{PATIENCE, client::Client, wait_until};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_cc-executor");

/// A command of the binary without anything of the tests' own environment that it would read.
pub fn binary() -> Command {
    let mut command = Command::new(BINARY);
    for (name, _) in std::env::vars() {
        if name.starts_with("CC_EXECUTOR_") || matches!(name.as_str(), "CLAUDE_API_URL" | "RUST_LOG" | "LOG_FORMAT") {
            command.env_remove(name);
        }
    }
    command
}

/// A running role. It is killed when dropped; its subreaper then ends whatever it ran.
pub struct Service {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Service {
    /// The whole system in one process.
    pub fn start() -> Service {
        Service::with(&["serve"], &[])
    }

    /// A role with these arguments and these variables.
    pub fn with(arguments: &[&str], env: &[(&str, &str)]) -> Service {
        let mut command = binary();
        command.args(arguments).args(["--bind", "127.0.0.1:0"]).envs(env.iter().copied());
        Service::spawn(command)
    }

    /// A gateway in front of that backend.
    pub fn gateway(backend: &str) -> Service {
        Service::with(&["serve", "--claude-api-url", backend], &[])
    }

    /// A backend.
    pub fn backend() -> Service {
        Service::with(&["backend"], &[])
    }

    /// A prepared command that will listen.
    pub fn spawn(mut command: Command) -> Service {
        let mut child = command
            .env("LOG_FORMAT", "json")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let (listening, listens) = mpsc::channel();
        let lines = Arc::clone(&log);
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let line: Value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if line["event"] == "service.listening" {
                    let _ = listening.send(line["address"].as_str().unwrap_or_default().to_owned());
                }
                lines.lock().unwrap().push(line);
            }
        });
        let address = match listens.recv_timeout(PATIENCE) {
            Ok(address) => address.parse().expect("an address"),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let _ = child.kill();
                panic!("the service did not come up: {:?}", log.lock().unwrap());
            }
        };
        let service = Service { child, address, log };
        if service.log().iter().any(|line| line["role"] == "gateway" && line["embedded"] == true) {
            service.wait_for_event("backend.up", 1);
        }
        service
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A session.
    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// What it has logged so far.
    pub fn log(&self) -> Vec<Value> {
        self.log.lock().unwrap().clone()
    }

    /// How often it has logged this event.
    pub fn count(&self, event: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line["event"] == event).count()
    }

    /// Waits until it has logged an event so often.
    pub fn wait_for_event(&self, event: &str, times: usize) {
        wait_until(&format!("{times} x {event}"), PATIENCE, || self.count(event) >= times);
    }

    /// What it answers to a GET, as JSON.
    pub fn get(&self, path: &str) -> Value {
        self.ask("GET", path)
    }

    /// What it answers to a DELETE, as JSON.
    pub fn delete(&self, path: &str) -> Value {
        self.ask("DELETE", path)
    }

    fn ask(&self, method: &str, path: &str) -> Value {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let body = if head.contains("chunked") { dechunked(body) } else { body.to_owned() };
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{method} {path}: {error}: {answer}"))
    }

    /// What it answers to a POST: the status and the body.
    pub fn post(&self, path: &str, body: &Value) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (host, body) = (self.address, body.to_string());
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        write!(stream, "{head}{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, if head.contains("chunked") { dechunked(body) } else { body.to_owned() })
    }

    /// Resident memory, in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("there is a VmRSS");
        line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// The same, and nothing where it has ended.
    pub fn rss_kib_if_running(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Waits for its end.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(start.elapsed() < within, "the service did not end within {within:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// `cc-executor run` through this service.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.run_command(arguments).output().expect("run runs")
    }

    /// The same, prepared.
    pub fn run_command(&self, arguments: &[&str]) -> Command {
        let mut command = binary();
        command.args(["run", "--url", &self.url()]).args(arguments);
        command
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process that a test started.
pub fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("not zero");
    kill_process(pid, signal).expect("it is there");
}

/// Standard output as text, and the exit code.
pub fn text_and_code(output: &Output) -> (String, i32) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code().expect("not ended by a signal"))
}

/// The body of a chunked response (RFC 9112 section 7.1).
fn dechunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a chunk's size");
        whole.push_str(&rest[..size]);
        body = rest[size..].strip_prefix("\r\n").expect("a chunk's end");
    }
    whole
}
