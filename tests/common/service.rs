//! The real binary as a child process: a gateway, a backend, or both in one.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{LONGEST_WAIT, PATIENCE, client::Client, http, wait_until};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_cc-executor");

/// A command of the binary, without those variables of the tests' environment that it reads.
pub fn binary() -> Command {
    binary_under(BINARY)
}

/// Like [`binary`], for a copy of the binary or a program that executes it.
pub fn binary_under(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars() {
        let is_setting =
            name.starts_with("CC_EXECUTOR_") || matches!(name.as_str(), "CLAUDE_API_URL" | "RUST_LOG" | "LOG_FORMAT");
        if is_setting || name.to_ascii_lowercase().ends_with("_proxy") {
            command.env_remove(name);
        }
    }
    // The profiles of whoever runs the tests are not used.
    command.env("XDG_CONFIG_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-profiles"));
    command
}

/// A running role. It is killed when dropped; its subreaper then ends its commands.
pub struct Service {
    child: Child,
    /// The address that it listens on.
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Service {
    /// A gateway with an embedded backend.
    pub fn start() -> Service {
        Service::with(&["serve"], &[])
    }

    /// A role with these arguments and these variables.
    pub fn with(arguments: &[&str], env: &[(&str, &str)]) -> Service {
        let mut command = binary();
        command.args(arguments).args(["--bind", "127.0.0.1:0"]).envs(env.iter().copied());
        Service::spawn(command)
    }

    /// A gateway that has found the backend at this URL.
    pub fn gateway(backend: &str) -> Service {
        Service::gateway_with(backend, &[])
    }

    /// The same with these variables.
    pub fn gateway_with(backend: &str, env: &[(&str, &str)]) -> Service {
        let gateway = Service::with(&["serve", "--claude-api-url", backend], env);
        gateway.wait_for_event("backend.up", 1);
        gateway
    }

    /// A gateway whose backend may be missing.
    pub fn gateway_without_backend(backend: &str) -> Service {
        Service::with(&["serve", "--claude-api-url", backend], &[])
    }

    /// A backend.
    pub fn backend() -> Service {
        Service::with(&["backend"], &[])
    }

    /// A service from a prepared command. Returns when it listens.
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
        let (send_address, addresses) = mpsc::channel();
        let lines = Arc::clone(&log);
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let line: Value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if line["event"] == "service.listening" {
                    let _ = send_address.send(line["address"].as_str().unwrap_or_default().to_owned());
                }
                lines.lock().unwrap().push(line);
            }
        });
        let address = match addresses.recv_timeout(PATIENCE) {
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

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Opens a session.
    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// The log lines so far.
    pub fn log(&self) -> Vec<Value> {
        self.log.lock().unwrap().clone()
    }

    /// The warnings and errors so far, but for the one that it runs as root, as tests may.
    pub fn complaints(&self) -> Vec<Value> {
        let is_complaint =
            |line: &Value| !matches!(line["level"].as_str(), Some("INFO" | "DEBUG")) && line["event"] != "service.root";
        self.log().into_iter().filter(is_complaint).collect()
    }

    /// The log lines with this event so far.
    pub fn events(&self, event: &str) -> Vec<Value> {
        self.log.lock().unwrap().iter().filter(|line| line["event"] == event).cloned().collect()
    }

    /// The number of log lines with this event so far.
    pub fn count(&self, event: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line["event"] == event).count()
    }

    /// Waits until it has logged an event this many times, and returns the lines with it.
    pub fn wait_for_event(&self, event: &str, times: usize) -> Vec<Value> {
        wait_until(&format!("{times} x {event}"), PATIENCE, || self.count(event) >= times);
        self.events(event)
    }

    /// Waits until this many records of an event, or of another crate's target, are logged or counted by lines of the
    /// log. Returns these lines.
    pub fn wait_for_records(&self, of: &str, n: u64) -> Vec<Value> {
        let is_of = |line: &Value| ["event", "target", "of"].iter().any(|name| line[name] == of);
        let lines = || self.log().into_iter().filter(is_of).collect::<Vec<_>>();
        wait_until(&format!("{n} records of {of}"), PATIENCE, || lines().iter().map(n_records).sum::<u64>() >= n);
        let lines = lines();
        assert_eq!(lines.iter().map(n_records).sum::<u64>(), n, "{lines:?}");
        lines
    }

    /// The JSON that answers a GET.
    pub fn get(&self, path: &str) -> Value {
        self.json(&format!("GET {path}"))
    }

    /// The JSON that answers a DELETE.
    pub fn delete(&self, path: &str) -> Value {
        self.json(&format!("DELETE {path}"))
    }

    fn json(&self, request: &str) -> Value {
        let body = http::exchange(self.address, request, &[], "").body;
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{request}: {error}: {body}"))
    }

    /// The status and the body that answer a POST.
    pub fn post(&self, path: &str, body: &Value) -> (u16, String) {
        let response = http::exchange(self.address, &format!("POST {path}"), &[http::JSON], &body.to_string());
        (response.status, response.body)
    }

    /// Resident memory, in KiB.
    pub fn rss_kib(&self) -> u64 {
        self.rss_kib_if_running().expect("the service runs")
    }

    /// The same, or `None` if the service has exited.
    pub fn rss_kib_if_running(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_ascii_whitespace().nth(1)?.parse().ok()
    }

    /// The number of open descriptors.
    pub fn n_descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the service runs").count()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Waits for the exit.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        wait_for_exit(&mut self.child, within)
    }

    /// Runs `cc-executor run` with this service.
    pub fn run(&self, arguments: &[&str]) -> Output {
        output_of(&mut self.run_command(arguments))
    }

    /// The same as a command that has not been started.
    pub fn run_command(&self, arguments: &[&str]) -> Command {
        self.client_command(&[&["run"], arguments].concat())
    }

    /// A client command, such as `ps`, with this service.
    pub fn client_command(&self, arguments: &[&str]) -> Command {
        let mut command = binary();
        command.arg(arguments[0]).args(["--url", &self.url()]).args(&arguments[1..]);
        command
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number of log records that a line accounts for: itself, and those that it counts.
pub fn n_records(line: &Value) -> u64 {
    match line["event"].as_str() {
        Some("log.dropped" | "log.omitted") => line["lines"].as_u64().expect("a count"),
        _ => 1 + line["omitted"].as_u64().unwrap_or(0),
    }
}

/// Sends a signal to a process that a test started.
pub fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process id")).expect("not zero");
    kill_process(pid, signal).expect("the process exists");
}

/// Waits for the exit of a process that a test started.
pub fn wait_for_exit(child: &mut Child, within: Duration) -> ExitStatus {
    let mut status = None;
    wait_until(&format!("process {} exits", child.id()), within, || {
        status = child.try_wait().expect("it is a child of this process");
        status.is_some()
    });
    status.expect("it has exited")
}

/// Runs a command to its exit. The command cannot be used again.
pub fn output_of(command: &mut Command) -> Output {
    let mut command = std::mem::replace(command, Command::new(BINARY));
    let (send_output, outputs) = mpsc::channel();
    let name = format!("{command:?}");
    thread::spawn(move || send_output.send(command.output().expect("the command starts")));
    outputs.recv_timeout(LONGEST_WAIT).unwrap_or_else(|error| panic!("{name} did not exit: {error}"))
}

/// Runs a command to its exit: standard output, standard error, and the exit code.
pub fn run_to_exit(command: &mut Command) -> (String, String, i32) {
    let output = output_of(command);
    let (stdout, code) = text_and_code(&output);
    (stdout, String::from_utf8_lossy(&output.stderr).into_owned(), code)
}

/// Standard output as text, and the exit code.
pub fn text_and_code(output: &Output) -> (String, i32) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code().expect("not ended by a signal"))
}
