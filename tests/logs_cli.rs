//! `logs` as people use it: on a file, behind a pipe, and before one.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{ChildStdin, Command, Output, Stdio},
};

use crate::common::service::binary;

/// As `docker-compose logs` gives it: one container's lines after the other's, and text between them.
const LOG: &str = r#"Attaching to claude-api, cc-executor-mcp
claude-api | {"time":"2026-01-02T03:04:05.000Z","level":"INFO","event":"process.started","execution_id":"eeeeeeee-1","message":"process started"}
claude-api | {"time":"2026-01-02T03:04:07.000Z","level":"INFO","event":"process.finished","execution_id":"eeeeeeee-1","message":"process finished"}
gateway | {"time":"2026-01-02T03:04:04.000Z","level":"INFO","event":"session.opened","session_id":"aaaaaaaa-1","message":"session opened"}
gateway | {"time":"2026-01-02T03:04:05.500Z","level":"INFO","event":"execution.started","session_id":"aaaaaaaa-1","execution_id":"eeeeeeee-1","message":"execution started"}
"#;

struct Log(PathBuf);

impl Log {
    fn of(name: &str, text: &str) -> Log {
        let path = std::env::temp_dir().join(format!("cc-executor-logs-{}-{name}", std::process::id()));
        fs::write(&path, text).unwrap();
        Log(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn logs(arguments: &[&str]) -> Command {
    let mut command = binary();
    command.arg("logs").args(arguments);
    command
}

/// The events that were printed, standard error, and the exit code.
fn told(output: &Output) -> (Vec<String>, String, i32) {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let events = text.lines().map(|line| line.split_whitespace().nth(2).unwrap().to_owned()).collect();
    (events, String::from_utf8(output.stderr.clone()).unwrap(), output.status.code().unwrap())
}

#[test]
fn file_is_printed_in_order_and_other_lines_are_counted() {
    let log = Log::of("order", LOG);
    let (events, err, code) = told(&logs(&["--session", "aaaa", log.path()]).output().unwrap());
    assert_eq!(events, ["session.opened", "process.started", "execution.started", "process.finished"]);
    assert_eq!((err.as_str(), code), ("cc-executor: 1 lines are no JSON log lines and are not shown\n", 0));
    let (events, _, code) =
        told(&logs(&["--session", "aaaa", "--event", "process.finished", log.path()]).output().unwrap());
    assert_eq!((events, code), (vec!["process.finished".to_owned()], 0));
}

#[test]
fn exit_codes_distinguish_why_nothing_was_printed() {
    let log = Log::of("codes", LOG);
    let text = Log::of("text", "a log for people\n");
    for (arguments, part, code) in [
        (["--session", "bbbb", log.path()].as_slice(), "none of 5 log lines", 1),
        (&[text.path()], "LOG_FORMAT=json", 64),
        (&["/no/such/file"], "cannot read", 64),
        (&["/"], "cannot read", 64),
        (&["-"], "2>&1", 1),
    ] {
        let (events, err, was) = told(&logs(arguments).stdin(Stdio::null()).output().unwrap());
        assert_eq!((events.len(), was), (0, code), "{arguments:?}: {err}");
        assert!(err.contains(part), "{arguments:?}: {err}");
    }
}

#[test]
fn growing_log_is_printed_line_by_line() {
    let mut child = logs(&["-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input: ChildStdin = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    // Nothing more is written before the line is read: it does not wait for the end.
    for line in LOG.lines() {
        writeln!(input, "{line}").unwrap();
        let told = output.next().unwrap().unwrap();
        if !line.contains('{') {
            assert_eq!(told, line, "where all is wanted, what is no log line is told as it came");
            continue;
        }
        let event = told.split_whitespace().nth(2).unwrap();
        assert!(line.contains(&format!("\"event\":\"{event}\"")), "{line}: {told}");
    }
    drop(input);
    assert!(output.next().is_none());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn closed_stdout_is_accepted_and_full_disk_fails() {
    let log = Log::of("readers", LOG);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (_, err, code) = told(&logs(&[log.path()]).stdout(writer).output().unwrap());
    assert_eq!((err.as_str(), code), ("", 0));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (_, err, code) = told(&logs(&[log.path()]).stdout(full).output().unwrap());
    assert_eq!(code, 74, "{err}");
}
