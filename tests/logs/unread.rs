//! Standard error that is not read, has no reader, or is a full disk: the service works on, ends in time, and counts the
//! lines that are missing.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Command, Stdio},
    time::Duration,
};

use cc_executor_actors::outcome::Status;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::piped::{PipedService, counts};
use crate::common::{
    PATIENCE,
    client::Client,
    http, scale,
    service::{binary, kill, n_records, wait_for_exit},
    temp::TempPath,
    wait_until,
};

/// The longest shutdown: `--drain-ms`, and a second for the last log lines.
const LONGEST_END: Duration = Duration::from_secs(9);

/// The service's own lines, with the commands of the gateway's executions.
const WITH_COMMANDS: (&str, &str) = ("RUST_LOG", "cc_executor=info,cc_executor_actors=debug");

/// The number of lines of an execution: requested, started and finished, and the process twice.
const LINES_OF_EXECUTION: u64 = 5;

/// Fills the pipe and all that waits for it: refused requests with long paths, and commands of 12 KB. Returns the number
/// of log records that this makes. An execution among them is checked.
fn flood(address: SocketAddr) -> u64 {
    let (n_refused, n_executions) = (scale(2000, 20_000) as u64, scale(240, 1000) as u64);
    let request = format!("GET /{}", "%41".repeat(10_000));
    for _ in 0..n_refused {
        assert_eq!(http::exchange(address, &request, &[("Host", "evil.example")], "").status, 403);
    }
    let mut client = Client::connect(address);
    let command = format!("echo works #{}", "x".repeat(12_000));
    for _ in 0..n_executions {
        let recording = client.run(json!({ "command": command }));
        assert_eq!((recording.stdout.as_slice(), recording.status()), (&b"works\n"[..], Status::Completed));
    }
    client.close();
    // And the two lines of the session.
    n_refused + n_executions * LINES_OF_EXECUTION + 2
}

/// The number of log records that these lines account for.
fn total(lines: &[Value]) -> u64 {
    lines.iter().map(n_records).sum()
}

fn run_echo(address: SocketAddr) {
    let mut client = Client::connect(address);
    assert_eq!(client.run(json!({ "command": "echo works" })).stdout, b"works\n");
    client.close();
}

#[test]
fn log_that_nobody_reads_holds_up_neither_sessions_nor_the_end() {
    let mut service = PipedService::start(&[WITH_COMMANDS]);
    flood(service.address);
    let mut idle = Client::connect(service.address);
    service.terminate();
    assert_eq!(idle.close_code(), 1001);
    let (status, took) = service.wait();
    assert_eq!(status.code(), Some(0));
    assert!(took < LONGEST_END, "{took:?}");
}

#[test]
fn every_dropped_line_is_counted_when_the_log_is_read_again() {
    let mut service = PipedService::start(&[WITH_COMMANDS]);
    let n_flooded = flood(service.address);
    let log = service.read_on();
    let mut lines: Vec<Value> = Vec::new();
    log.read_until(&mut lines, |lines| total(lines) >= n_flooded);
    assert_eq!(total(&lines), n_flooded, "{:?}", counts(&lines));
    let n_dropped: u64 = lines.iter().filter(|line| line["event"] == "log.dropped").map(n_records).sum();
    assert!(n_dropped > 0, "the flood is too small to drop lines: {:?}", counts(&lines));
    // Whole lines in order, before and after the gap.
    run_echo(service.address);
    service.terminate();
    assert_eq!(service.wait().0.code(), Some(0));
    log.read_rest(&mut lines);
    let times: Vec<&str> = lines.iter().map(|line| line["time"].as_str().unwrap()).collect();
    let events: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(events.last(), Some(&"service.stopped"));
    // The session with its execution, and the end of the service.
    assert_eq!(total(&lines), n_flooded + 2 + LINES_OF_EXECUTION + 3, "{:?}", counts(&lines));
}

#[test]
fn reader_that_comes_back_learns_how_many_lines_it_has_missed() {
    let fifo = TempPath::new("log");
    assert!(Command::new("mkfifo").arg(fifo.as_str()).status().unwrap().success());
    // A FIFO opens for both at once, so no open waits for the other end.
    let both = OpenOptions::new().read(true).write(true).open(&*fifo).unwrap();
    let writer = OpenOptions::new().write(true).open(&*fifo).unwrap();
    let reader = File::open(&*fifo).unwrap();
    drop(both);
    let mut service = PipedService::with(reader, Stdio::from(writer), &[]);
    service.close_log();
    for _ in 0..3 {
        run_echo(service.address);
    }
    assert!(service.is_running());
    service.reopen_log(File::open(&*fifo).unwrap());
    let (log, mut lines) = (service.read_on(), Vec::new());
    // The last session may be logged as closed after the reader has come back.
    let n_logged = 3 * (2 + LINES_OF_EXECUTION - 1);
    log.read_until(&mut lines, |lines| total(lines) >= n_logged);
    assert_eq!(total(&lines), n_logged, "{:?}", counts(&lines));
    let line = &lines[0];
    assert!(line["event"] == "log.dropped" && line["message"].as_str().unwrap().contains("Broken pipe"), "{line}");
    service.terminate();
    assert_eq!(service.wait().0.code(), Some(0));
    log.read_rest(&mut lines);
    assert_eq!(counts(&lines)["service.stopped"], 1);
}

#[test]
fn full_disk_and_closed_pipe_leave_the_service_working() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    for (n, stderr) in [Stdio::from(full), Stdio::from(writer)].into_iter().enumerate() {
        // Its log cannot say on which port it listens, so it gets an address of its own below 127.0.0.0/8.
        let own = std::process::id().to_be_bytes();
        let address = SocketAddr::from((Ipv4Addr::new(127, own[2] | 1, own[3], 2 + n as u8), 8003));
        let mut command = binary();
        command.args(["serve", "--bind", &address.to_string()]).stdout(Stdio::null()).stderr(stderr);
        let mut child = command.spawn().unwrap();
        wait_until("it listens", PATIENCE, || TcpStream::connect(address).is_ok());
        wait_until("it is ready", PATIENCE, || http::exchange(address, "GET /ready", &[], "").status == 200);
        for _ in 0..3 {
            run_echo(address);
            assert_eq!(http::exchange(address, "GET /", &[("Host", "evil.example")], "").status, 403);
        }
        kill(child.id(), Signal::TERM);
        assert_eq!(wait_for_exit(&mut child, LONGEST_END).code(), Some(0));
    }
}

/// A pipe that takes nothing more.
fn full_pipe() -> (File, Stdio) {
    let (reader, writer) = std::io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    let size = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
    assert_eq!(rustix::io::write(&writer, &vec![b'x'; size]), Ok(size));
    (File::from(OwnedFd::from(reader)), Stdio::from(writer))
}

#[test]
fn start_that_fails_is_reported_and_does_not_wait_for_a_reader() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for format in ["text", "json"] {
        for is_full in [false, true] {
            let (mut reader, stderr) = if is_full {
                full_pipe()
            } else {
                let (reader, writer) = std::io::pipe().unwrap();
                (File::from(OwnedFd::from(reader)), Stdio::from(writer))
            };
            let mut command = binary();
            command.args(["serve", "--bind", &address]).env("LOG_FORMAT", format).stderr(stderr);
            let mut child = command.spawn().unwrap();
            drop(command);
            assert_eq!(wait_for_exit(&mut child, PATIENCE).code(), Some(1));
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text.contains(&format!("cc-executor: cannot listen on {address}: ")), !is_full, "{text:.200}");
        }
    }
}
