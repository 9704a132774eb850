//! `logs` on a file, with input from a pipe, and with output to a pipe.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{ChildStdin, Command, Stdio},
};

use serde_json::json;

use crate::common::{
    HOSTILE, is_obeyed,
    service::{binary, run_to_exit},
    temp::TempPath,
};

/// The output of `docker-compose logs`: the lines of one container after those of the other, and other text.
const LOG: &str = r#"Attaching to claude-api, cc-executor-mcp
claude-api | {"time":"2026-01-02T03:04:05.000Z","level":"INFO","event":"process.started","execution_id":"eeeeeeee-1","message":"process started"}
claude-api | {"time":"2026-01-02T03:04:07.000Z","level":"INFO","event":"process.finished","execution_id":"eeeeeeee-1","message":"process finished"}
gateway | {"time":"2026-01-02T03:04:04.000Z","level":"INFO","event":"session.opened","session_id":"aaaaaaaa-1","message":"session opened"}
gateway | {"time":"2026-01-02T03:04:05.500Z","level":"INFO","event":"execution.started","session_id":"aaaaaaaa-1","execution_id":"eeeeeeee-1","message":"execution started"}
"#;

fn logs(arguments: &[&str]) -> Command {
    let mut command = binary();
    command.arg("logs").args(arguments);
    command
}

/// Runs a command to its exit: the printed events, standard error, and the exit code.
fn events(command: &mut Command) -> (Vec<String>, String, i32) {
    let (stdout, stderr, code) = run_to_exit(command);
    (stdout.lines().map(|line| line.split_whitespace().nth(2).unwrap().to_owned()).collect(), stderr, code)
}

#[test]
fn file_is_printed_in_order_and_other_lines_are_counted() {
    let log = TempPath::with_content("order", LOG);
    let (names, stderr, code) = events(&mut logs(&["--session", "aaaa", log.as_str()]));
    assert_eq!(names, ["session.opened", "process.started", "execution.started", "process.finished"]);
    assert_eq!(
        (stderr.as_str(), code),
        ("cc-executor: 1 lines are not shown, because they are not JSON log lines\n", 0)
    );
    let (names, _, code) = events(&mut logs(&["--session", "aaaa", "--event", "process.finished", log.as_str()]));
    assert_eq!((names, code), (vec!["process.finished".to_owned()], 0));
}

#[test]
fn exit_codes_distinguish_why_nothing_was_printed() {
    let log = TempPath::with_content("codes", LOG);
    let text = TempPath::with_content("text", "a log for people\n");
    for (arguments, part, code) in [
        (["--session", "bbbb", log.as_str()].as_slice(), "none of 5 log lines", 1),
        (&[text.as_str()], "LOG_FORMAT=json", 64),
        (&["/no/such/file"], "cannot read", 64),
        (&["/"], "cannot read", 64),
        (&["-"], "2>&1", 1),
    ] {
        let (names, stderr, actual) = events(logs(arguments).stdin(Stdio::null()));
        assert_eq!((names.len(), actual), (0, code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(part), "{arguments:?}: {stderr}");
    }
}

#[test]
fn growing_log_is_printed_line_by_line() {
    let mut child = logs(&["-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input: ChildStdin = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    // The next line is written only after this one was read, so `logs` cannot wait for the end.
    for line in LOG.lines() {
        writeln!(input, "{line}").unwrap();
        let printed = output.next().unwrap().unwrap();
        if !line.contains('{') {
            assert_eq!(printed, line, "without a filter, other lines are printed as they came");
            continue;
        }
        let event = printed.split_whitespace().nth(2).unwrap();
        assert!(line.contains(&format!("\"event\":\"{event}\"")), "{line}: {printed}");
    }
    drop(input);
    assert!(output.next().is_none());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn closed_stdout_is_accepted_and_full_disk_fails() {
    let log = TempPath::with_content("readers", LOG);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (_, stderr, code) = events(logs(&[log.as_str()]).stdout(writer));
    assert_eq!((stderr.as_str(), code), ("", 0));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (_, stderr, code) = events(logs(&[log.as_str()]).stdout(full));
    assert_eq!(code, 74, "{stderr}");
}

#[test]
fn hostile_log_is_printed_without_control_characters() {
    let line = json!({ "time": "2026-01-02T03:04:05.000Z", "event": HOSTILE, "session_id": HOSTILE, HOSTILE: HOSTILE,
        "level": HOSTILE, "list": [HOSTILE], "message": HOSTILE });
    let timeless = json!({ "time": HOSTILE, "event": "session.opened" });
    // As another program writes JSON: all but the control characters below 0x20 may be raw.
    let log = format!("{line}\n{timeless}\nno JSON {HOSTILE}\n");
    let file = TempPath::with_content("hostile", &log);
    for (from_file, n_lines) in [(true, 2), (false, 3)] {
        let input = fs::File::open(&*file).unwrap();
        let mut command = logs(&[if from_file { file.as_str() } else { "-" }]);
        let (stdout, stderr, code) = run_to_exit(command.stdin(input));
        assert_eq!((stdout.lines().count(), code), (n_lines, 0), "{stdout} {stderr}");
        for text in [&stdout, &stderr] {
            assert!(!text.contains(is_obeyed), "{text:?}");
        }
        assert!(stdout.contains("\\u001b]0;title\\u0007\\r\\u009b2J"), "{stdout}");
    }
}
