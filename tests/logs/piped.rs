//! A service whose standard error is a pipe that the test reads itself, or does not read.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    os::fd::OwnedFd,
    process::{Child, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::Signal,
};
use serde_json::Value;

use crate::common::{
    LONGEST_WAIT, PATIENCE,
    service::{binary, kill, wait_for_exit},
};

/// The service. It is killed when dropped.
pub(super) struct PipedService {
    child: Child,
    pub(super) address: SocketAddr,
    /// The end from which the log is read.
    reader: BufReader<File>,
    /// The lines that were read until the service was ready.
    pub(super) first_lines: Vec<String>,
}

impl PipedService {
    /// A gateway with an embedded backend. Nothing is read from the log after the line that says that it is ready.
    pub(super) fn start(env: &[(&str, &str)]) -> PipedService {
        let (reader, writer) = io::pipe().unwrap();
        PipedService::with(File::from(OwnedFd::from(reader)), Stdio::from(writer), env)
    }

    /// The same with both ends of its log given.
    pub(super) fn with(reader: File, writer: Stdio, env: &[(&str, &str)]) -> PipedService {
        let mut command = binary();
        command.args(["serve", "--bind", "127.0.0.1:0"]).env("LOG_FORMAT", "json").envs(env.iter().copied());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn().unwrap();
        // The command still holds the writing end.
        drop(command);
        let mut service = PipedService {
            child,
            address: ([127, 0, 0, 1], 0).into(),
            reader: BufReader::with_capacity(1, reader),
            first_lines: Vec::new(),
        };
        let ready = |line: &str| line.contains("backend.up");
        while !service.first_lines.last().is_some_and(|line| ready(line)) {
            let mut line = String::new();
            let n = wait_readable(service.reader.get_ref()).and_then(|()| service.reader.read_line(&mut line));
            assert!(n.is_ok_and(|n| n > 0), "it did not come up: {:?}", service.first_lines);
            service.first_lines.push(line);
        }
        let listening = service.first_lines.iter().find_map(|line| line.split("listening on ws://").nth(1)).unwrap();
        service.address = listening.split('/').next().unwrap().parse().unwrap();
        service
    }

    pub(super) fn terminate(&self) {
        kill(self.child.id(), Signal::TERM);
    }

    /// Waits for the exit, and returns how long it took.
    pub(super) fn wait(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        (wait_for_exit(&mut self.child, PATIENCE), start.elapsed())
    }

    pub(super) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Reads the log from now on, to its end.
    pub(super) fn read_on(&mut self) -> LogLines {
        let reader = self.reader.get_ref().try_clone().unwrap();
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(reader).split(b'\n').map_while(Result::ok);
            while lines.next().is_some_and(|line| send.send(line).is_ok()) {}
        });
        LogLines(lines)
    }

    /// Closes the reading end.
    pub(super) fn close_log(&mut self) {
        let (reader, _) = io::pipe().unwrap();
        // Drops the only reading end of the service's log.
        self.reader = BufReader::with_capacity(1, File::from(OwnedFd::from(reader)));
    }

    /// Reads the log from another reading end.
    pub(super) fn reopen_log(&mut self, reader: File) {
        self.reader = BufReader::with_capacity(1, reader);
    }
}

impl Drop for PipedService {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a pipe has bytes, or has ended.
fn wait_readable(pipe: &File) -> io::Result<()> {
    let patience = Timespec::try_from(PATIENCE).unwrap();
    match poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&patience))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// The lines of a log that a thread reads.
pub(super) struct LogLines(Receiver<Vec<u8>>);

impl LogLines {
    /// Reads until the condition holds for all lines so far.
    pub(super) fn read_until(&self, lines: &mut Vec<Value>, is_enough: impl Fn(&[Value]) -> bool) {
        let start = Instant::now();
        while !is_enough(lines) {
            assert!(start.elapsed() < LONGEST_WAIT, "waited in vain for lines");
            let line = self.0.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no more lines: {:?}", counts(lines)));
            lines.push(parse(&line));
        }
    }

    /// The rest of the log as a text.
    pub(super) fn text(&self) -> String {
        let lines = std::iter::from_fn(|| self.0.recv_timeout(PATIENCE).ok());
        lines.map(|line| String::from_utf8(line).unwrap() + "\n").collect()
    }

    /// Reads to the end of the log.
    pub(super) fn read_rest(&self, lines: &mut Vec<Value>) {
        while let Ok(line) = self.0.recv_timeout(PATIENCE) {
            lines.push(parse(&line));
        }
    }
}

/// A line, which must be whole.
pub(super) fn parse(line: &[u8]) -> Value {
    serde_json::from_slice(line).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(line)))
}

/// The number of lines with each event.
pub(super) fn counts(lines: &[Value]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in lines {
        *counts.entry(line["event"].as_str().unwrap_or("none").to_owned()).or_default() += 1;
    }
    counts
}
